"""The operator's desk: a site's folder, and what its operator decides by hand.

The folder holds ``site.toml`` (the policy) and the ledger's folder with its keys. Where
the policy has ``[keys]``, the ledger's key is in a hardware token instead of a file. A
decision is an entry in the ledger, also while a client is running.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privet.client.approval import budget_of, joined, tidy
from privet.client.standing import site_standing
from privet.common.canonical import write_atomic
from privet.common.errors import InputError, WrongLedger
from privet.privacy.keys import FileSigner
from privet.privacy.ledger import FILE, Ledger
from privet.privacy.pkcs11 import Pkcs11Signer
from privet.privacy.policy import TEMPLATE, Keys, Policy
from privet.privacy.signed_note import COSIGN, Key, Signer, key_name
from privet.privacy.statement import Entry

POLICY_FILE = "site.toml"
LEDGER_KEY, _WITNESS_KEY, _RECOVERY_KEY = "ledger.pem", "witness.pem", "recovery.pem"


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
            WrongLedger: if there is no ledger yet, it is missing, or another site's.
            KeyFault: if the key does not open, or is not the ledger's.
        """
        policy = Policy.load(policy_file)
        require_ledger(policy)
        return cls(policy, Ledger(policy.ledger_folder, _key(policy, passphrase), policy.site))

    def approve(self, plan: str, name: str) -> tuple[str, ...]:
        """Approve a plan by its digest in somebody's name; return all who did.

        Raises:
            InputError: if it is no digest, or no name.
            SitePaused: if the site has withdrawn.
        """
        digest, name = full_digest(plan), tidy(name)
        with self._deciding():
            # As many people as approved the plan must open it again once its failures closed it.
            failed, most = self.ledger.attempts(digest)
            before = self.ledger.book.approvals.get(digest, ())
            by = joined(() if failed >= most else before, name)
            self.ledger.approve(digest, by, "manual", again=failed > 0)
        return self.ledger.book.approvals[digest]

    def refuse(self, plan: str, name: str) -> None:
        """Refuse a plan by its digest from now on. Raises as :meth:`approve`."""
        digest, name = full_digest(plan), tidy(name)
        with self._deciding():
            self.ledger.refuse_plan(digest, [name])

    def pause(self, name: str, *, end: bool = False) -> None:
        """Reserve nothing from now on, or end that. Raises as :meth:`approve`."""
        name = tidy(name)
        with self._deciding():
            (self.ledger.resume if end else self.ledger.pause)(name)

    def withdraw(self, name: str) -> None:
        """Reserve nothing ever again; a second time changes nothing."""
        self.ledger.withdraw(tidy(name))

    def status(self) -> dict[str, Any]:
        """Return the state of the site in JSON values."""
        return site_standing(self.policy, self.ledger)

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        """Hold the right to decide, as of what is on disk now."""
        with self.ledger.log.writing():
            self.ledger.require_present()
            yield


def note_policy(policy: Policy, ledger: Ledger) -> None:
    """Note what the policy says, where the ledger does not say it yet.

    Raises:
        LedgerError: if it says something else about a population than the ledger.
    """
    for name in policy.populations:
        ledger.register(name, budget_of(policy, name))
    for name, data in policy.data.items():
        ledger.add_data_set(name, data.population, data.disjoint)
    ledger.set_policy(policy.public())


def make_site(
    folder: Path,
    site: str,
    passphrase: str | None,
    *,
    keys: Keys | None = None,
    coordinators: Sequence[str] = (),
) -> dict[str, str]:
    """Make a site's folder: policy to fill in, keys, ledger; return the fingerprints.

    Args:
        folder: new or empty.
        site: its name.
        passphrase: of the key files.
        keys: where the ledger's key is, if it is in a token; default a new file.
        coordinators: fingerprints of the order keys that may ask.

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
        ledger_key.save(place / LEDGER_KEY, passphrase)
    else:
        ledger_key = in_token(keys)
    witness_key, recovery_key = FileSigner.generate(), FileSigner.generate()
    witness_key.save(place / _WITNESS_KEY, passphrase)
    recovery_key.save(folder / "offline" / _RECOVERY_KEY, passphrase)
    witness = Key(key_name("witness", site, witness_key.public), witness_key.public, COSIGN)
    recovery = Key(key_name("recovery", site, recovery_key.public), recovery_key.public)
    ledger = Ledger(place, ledger_key, site, witness=witness, recovery=recovery, create=True)
    text = TEMPLATE.replace('site = "North"', f'site = "{site}"')
    text = text.replace("coordinators = []  ", f"coordinators = {json.dumps(list(coordinators))}  ")
    if keys is not None:
        named = "\n".join(f"{k} = {json.dumps(v)}" for k, v in keys.model_dump().items())
        text = text.replace("\n# The persons.", f"\n[keys]\n{named}\n\n# The persons.")
    write_atomic(folder / POLICY_FILE, text.encode())
    return {"ledger": ledger.log.first_key.fingerprint, "witness": witness.fingerprint}


def public_keys(folder: Path) -> tuple[Key, Key]:
    """Return the first keys of a site's ledger and of its witness, by the site's folder.

    Raises:
        WrongLedger: if there is no ledger.
    """
    policy = Policy.load(folder / POLICY_FILE)
    ledger = Ledger.read(policy.ledger_folder, policy.site)
    genesis = Entry.read(ledger.log.store.leaf(0)).predicate
    return Key.parse(genesis["key"]), Key.parse(genesis["witness"])


def require_ledger(policy: Policy) -> None:
    """Check that the ledger that ``policy`` names is there.

    Raises:
        WrongLedger: if it is not, saying whether there was one.
    """
    if has_ledger(policy):
        return
    raise WrongLedger(
        f"{policy.ledger_folder}: there is no ledger yet; run `privet client init` first"
    )


def has_ledger(policy: Policy) -> bool:
    """Whether the ledger that ``policy`` names is there.

    Raises:
        WrongLedger: if there was one: its keys, or a part of it, are still there.
    """
    folder = policy.ledger_folder
    if (folder / FILE).exists():
        return True
    left = sorted(path.name for pattern in ("*.pem", f"{FILE}*") for path in folder.glob(pattern))
    if left:
        raise WrongLedger(
            f"{folder}: the ledger is missing ({FILE}), though there is {', '.join(left)}. Restore "
            "its newest copy and do not start anew: what cannot be read any more counts as spent "
            "(docs/explanation/evidence.md, Loss and repair)"
        )
    return False


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
        return in_token(policy.keys)
    return FileSigner.load(policy.ledger_folder / LEDGER_KEY, passphrase)


def in_token(keys: Keys, label: str | None = None) -> Signer:
    """Return the key that ``keys`` names, or the one called ``label`` in the same token.

    Raises:
        KeyFault: if it cannot be opened.
    """
    return Pkcs11Signer.open(Path(keys.module), keys.token, label or keys.ledger)
