"""The operator's desk: a site's folder, and what its operator decides by hand.

The folder holds ``site.toml`` (the policy) and the ledger's folder with its keys. Where
the policy has ``[keys]``, the ledger's key is in a hardware token instead of a file. A
decision is an entry in the ledger, also while a client is running.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privet.common.canonical import write_atomic
from privet.common.errors import InputError, KeyFault, LedgerError
from privet.privacy.book import Budget
from privet.privacy.keys import FileSigner
from privet.privacy.ledger import Ledger
from privet.privacy.pkcs11 import Pkcs11Signer
from privet.privacy.policy import TEMPLATE, Keys, Policy
from privet.privacy.signed_note import COSIGN, Key, Signer, key_name
from privet.privacy.units import Relation, Unit

POLICY_FILE = "site.toml"
_LEDGER_KEY, _WITNESS_KEY, _RECOVERY_KEY = "ledger.pem", "witness.pem", "recovery.pem"


@dataclass(frozen=True)
class Desk:
    """One site's policy and ledger, opened.

    Attributes:
        policy: as the file says now.
        ledger: where decisions are noted.
    """

    policy: Policy
    ledger: Ledger

    @classmethod
    def open(cls, policy_file: Path, passphrase: str | None) -> Desk:
        """Open what ``policy_file`` names. Nothing is written: populations are registered
        for life, so only a client that starts to work under the policy does that.

        Raises:
            PolicyError: if the policy is wrong.
            LedgerError: if there is no ledger yet.
            KeyFault: if the key does not open.
        """
        policy = Policy.load(policy_file)
        folder = policy.ledger_folder
        if not (folder / "ledger.db").exists():
            raise LedgerError(f"{folder}: there is no ledger yet; run `privet client init` first")
        return cls(policy, Ledger(folder, _key(policy, passphrase), policy.site))

    def approve(self, plan: str, name: str) -> tuple[str, ...]:
        """Approve a plan by its digest in somebody's name; return all who did."""
        digest = full_digest(plan)
        self.ledger.log.refresh()
        by = {*self.ledger.book.approvals.get(digest, ()), name}
        self.ledger.approve(digest, by, "manual")
        return self.ledger.book.approvals[digest]

    def status(self) -> dict[str, Any]:
        """Return the state of the ledger in JSON values."""
        book, log = self.ledger.book, self.ledger.log
        cosigned = log.cosigned()
        state = "withdrawn" if book.withdrawn else "paused" if book.paused else "open"
        return {
            "site": self.policy.site,
            "state": state,
            "entries": len(log),
            "witnessed": cosigned.size if cosigned else 0,
            "origin": log.origin,
            "fingerprint": log.first_key.fingerprint,
            "populations": [
                {
                    "population": name,
                    **self.ledger.spent(name).to_dict(),
                    "cap": population.budget.epsilon,
                    "runs": sum(bool(events) for events in population.charges.values()),
                    "closed": population.closed,
                }
                for name, population in book.populations.items()
            ],
            "plans": [
                *({"plan": p, "state": "approved", "by": list(by)} for p, by in _sorted(book)),
                *({"plan": p, "state": "refused", "by": []} for p in sorted(book.refused_plans)),
            ],
            "open": [item.slot for item in self.ledger.pending()],
        }


def note_policy(policy: Policy, ledger: Ledger) -> None:
    """Note what the policy says, where the ledger does not say it yet.

    Raises:
        LedgerError: if it says something else about a population than the ledger.
    """
    for name, population in policy.populations.items():
        budget = Budget(
            population.epsilon,
            population.delta,
            Unit(population.unit),
            Relation(population.relation),
            population.max_records,
        )
        ledger.register(name, budget)
    for name, data in policy.data.items():
        ledger.add_data_set(name, data.population, data.disjoint)
    ledger.set_policy(policy.public())


def make_site(
    folder: Path, site: str, passphrase: str | None, *, keys: Keys | None = None
) -> dict[str, str]:
    """Make a site's folder: policy to fill in, keys, ledger; return the fingerprints.

    Args:
        folder: new or empty.
        site: its name.
        passphrase: of the key files.
        keys: where the ledger's key is, if it is in a token; default a new file.

    Raises:
        InputError: if the folder is not empty.
        KeyFault: if the keys cannot be written, or the token's cannot be opened.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; nothing was written")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", site):
        raise InputError(
            f"'{site}' cannot be the name of a site: up to 64 letters, digits, spaces and . _ -"
        )
    place = folder / "ledger"
    ledger_key: Signer
    if keys is None:
        ledger_key = FileSigner.generate()
        ledger_key.save(place / _LEDGER_KEY, passphrase)
    else:
        ledger_key = _in_token(keys)
    witness_key, recovery_key = FileSigner.generate(), FileSigner.generate()
    witness_key.save(place / _WITNESS_KEY, passphrase)
    recovery_key.save(folder / "offline" / _RECOVERY_KEY, passphrase)
    witness = Key(key_name("witness", site, witness_key.public), witness_key.public, COSIGN)
    recovery = Key(key_name("recovery", site, recovery_key.public), recovery_key.public)
    ledger = Ledger(place, ledger_key, site, witness=witness, recovery=recovery, create=True)
    text = TEMPLATE.replace('site = "North"', f'site = "{site}"')
    if keys is not None:
        named = "\n".join(f"{k} = {json.dumps(v)}" for k, v in keys.model_dump().items())
        text = text.replace("\n# The persons.", f"\n[keys]\n{named}\n\n# The persons.")
    write_atomic(folder / POLICY_FILE, text.encode())
    return {"ledger": ledger.log.first_key.fingerprint, "witness": witness.fingerprint}


def rotate_key(
    policy_file: Path, passphrase: str | None, *, recovery: Path | None, to: str | None = None
) -> str:
    """Replace the ledger key by a new one; return its fingerprint.

    A new key file is on disk before the entry that names it, and takes the old one's place
    after it; if the process ends between, the next call finishes. A new key in a token is
    made there by the operator: it is ``to``, or the one that the policy names where the key
    in force is still a file, or lost.

    Args:
        policy_file: of the site.
        passphrase: of all key files.
        recovery: the recovery key's file, where the ledger key is lost.
        to: label of the new key pair in the token that the policy names.

    Raises:
        InputError: if ``to`` is given and the policy names no token.
        KeyFault: if a key does not open, or nothing would change.
        LedgerError: if the ledger cannot be written.
    """
    policy = Policy.load(policy_file)
    folder, keys = policy.ledger_folder, policy.keys
    path, coming = folder / _LEDGER_KEY, folder / "ledger-next.pem"
    if to and keys is None:
        raise InputError(f"{policy_file} has no [keys]: there is no token that could hold '{to}'")
    new = _in_token(keys, to) if keys else _next_file(coming, recovery or path, passphrase)
    if _is_in_force(folder, policy.site, new):
        # An earlier call wrote the entry and ended before the files were moved.
        if keys and not to and not path.exists():
            raise KeyFault(
                f"the key '{keys.ledger}' is in force already; make another one in token "
                f"'{keys.token}' and name it with --to"
            )
    elif recovery is not None:
        signer = FileSigner.load(recovery, passphrase)
        Ledger.recover(folder, policy.site, signer, new)
    else:
        old = _in_token(keys) if keys and to else FileSigner.load(path, passphrase)
        Ledger(folder, old, policy.site).rotate(new)
    if path.exists():
        path.replace(folder / f"ledger-until-{new.public.hex()[:8]}.pem")
    if keys is None:
        coming.replace(path)
    return Key("ledger", new.public).fingerprint


def _next_file(path: Path, signs: Path, passphrase: str | None) -> Signer:
    if not path.exists():
        FileSigner.load(signs, passphrase)  # a wrong passphrase must not become the new key's
        FileSigner.generate().save(path, passphrase)
    return FileSigner.load(path, passphrase)


def _is_in_force(folder: Path, site: str, signer: Signer) -> bool:
    try:
        Ledger(folder, signer, site)
    except KeyFault:
        return False
    return True


def full_digest(text: str) -> str:
    """Return a plan's digest with its prefix.

    Raises:
        InputError: if it is not a digest.
    """
    digest = text if text.startswith("sha256:") else f"sha256:{text}"
    if len(digest) != 71 or any(c not in "0123456789abcdef" for c in digest[7:]):
        raise InputError(f"'{text}' is not a plan's digest (sha256: and 64 hex digits)")
    return digest


def _key(policy: Policy, passphrase: str | None) -> Signer:
    if policy.keys is not None:
        return _in_token(policy.keys)
    return FileSigner.load(policy.ledger_folder / _LEDGER_KEY, passphrase)


def _in_token(keys: Keys, label: str | None = None) -> Signer:
    return Pkcs11Signer.open(Path(keys.module), keys.token, label or keys.ledger)


def _sorted(book: Any) -> list[tuple[str, tuple[str, ...]]]:
    return sorted(book.approvals.items())
