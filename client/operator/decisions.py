"""The operator's decisions about a site, and the site's folder.

The folder holds ``site.toml`` (the policy) and the ledger's folder with its keys. If the policy has
``[keys]``, the ledger's key is in a hardware token instead of a file. A decision is an entry in the
ledger, also while a client is running.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from privet.client.operator.approval import budget_of, joined
from privet.client.operator.newer_ledger import require_newest
from privet.client.operator.status import site_standing
from privet.common.canonical import write_atomic, write_json
from privet.common.errors import InputError, PrivateKeyError, RefusedError, WrongLedgerError
from privet.common.files.private_files import private_folder
from privet.common.site_name import trimmed
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.ledger_base import FILE
from privet.privacy.evidence.officers import OfficerDecision, OfficerSignature, ssh_key, ssh_text
from privet.privacy.evidence.pkcs11 import Pkcs11Signer
from privet.privacy.evidence.signed_note import COSIGN, Key, Signer, key_name
from privet.privacy.evidence.statement import Entry
from privet.privacy.person_names import same_person, tidy
from privet.privacy.policy import TEMPLATE, Keys, Policy

POLICY_FILE = "site.toml"
POLICY_SIGNATURES = "policy-signatures"
"""Papers beside the ledger: officers' signatures of policies that are not in force yet."""
SignerFor = Callable[[bytes], Signer]
"""Returns an officer's private key, given the raw public one that the policy lists."""
LEDGER_KEY, WITNESS_KEY, _RECOVERY_KEY = "ledger.pem", "witness.pem", "recovery.pem"
FINGERPRINTS = "fingerprints.json"
"""Beside the recovery key: which ledger it is for."""


@dataclass(frozen=True)
class OperatorDecisions:
    """One site's policy and ledger, opened.

    Attributes:
        policy: as the file is now.
        ledger: in which decisions are noted.
    """

    policy: Policy
    ledger: Ledger

    @classmethod
    def open(cls, policy_file: Path, passphrase: str | None) -> OperatorDecisions:
        """Open policy and ledger of a site.

        Nothing is written: populations are registered for life, so only a client that starts to
        work under the policy registers them.

        Args:
            policy_file: the site's ``site.toml``.
            passphrase: of the ledger's key; None for an unencrypted one.

        Raises:
            PolicyError: if the policy is wrong.
            WrongLedgerError: if there is no ledger yet, it is missing, or another site's.
            PrivateKeyError: if the key cannot be opened, or is not the ledger's.
        """
        policy = Policy.load(policy_file)
        require_ledger(policy)
        key_now = partial(_key_now, policy_file, passphrase)
        key = _key(policy, passphrase)
        return cls(policy, Ledger(policy.ledger_folder, key, policy.site, key_now=key_now))

    def approve(self, plan: str, name: str, signer: SignerFor | None = None) -> tuple[str, ...]:
        """Approve a plan by its digest in a person's name; return the names of all who did.

        Args:
            plan: its digest.
            name: of the person who approves; an officer, if the policy has officers.
            signer: returns the private half of an officer's key, given the public one.

        Raises:
            InputError: if the digest or the name is malformed.
            PrivateKeyError: if the key cannot be opened, or is not the officer's.
            RefusedError: if the policy has officers, and this person is none; or a newer ledger was
                seen elsewhere.
            SitePausedError: if the site has withdrawn.
        """
        digest, name = full_digest(plan), tidy(name)
        signature = None
        if self.policy.officers:
            signature = self._sign("plan-approved", digest, name, signer, self.policy.officers)
            name = signature.name
        elif self.ledger.state.officers:
            raise RefusedError(
                "the policy in the ledger has officers, and this file names none: an officer signs "
                "the changed policy first (`privet client sign-policy`)"
            )
        with self._deciding():
            # As many people as approved the plan must open it again once its failures closed it.
            failed, most = self.ledger.attempts(digest)
            before = self.ledger.state.approvals.get(digest, ())
            if failed >= most:
                before = ()
            by = joined(before, name)
            if signature is not None:  # as the policy writes it, also where it was typed otherwise
                by = [name if same_person(one) == same_person(name) else one for one in by]
            self.ledger.approve(digest, by, "manual", again=failed > 0, signature=signature)
        return self.ledger.state.approvals[digest]

    def sign_policy(self, name: str, signer: SignerFor) -> tuple[list[str], int]:
        """Sign a changed policy, as an officer of the one in force; the last signature makes it
        valid.

        The number of signatures is that of a plan's approvals. They are stored beside the ledger.

        Args:
            name: of the officer.
            signer: as in :meth:`approve`.

        Returns:
            The names of the signers so far, and how many must sign.

        Raises:
            InputError: if the policy in force has no officers, or is already this policy.
            PrivateKeyError: if the key cannot be opened, or is not the officer's.
            RefusedError: if this person is no officer.
            LedgerError: if the policy contradicts the ledger about a population.
        """
        self.ledger.log.refresh()
        officers = self.ledger.state.officers
        if self.ledger.state.policy == self.policy.public():
            raise InputError("the ledger has this policy already; there is nothing to sign")
        if not officers:
            raise InputError(
                "the policy in force has no officers, so nobody has to sign: start the client"
            )
        signature = self._sign("policy", self.policy.digest, tidy(name), signer, officers)
        with self.ledger.log.writing():
            require_newest(self.ledger)
            needed = self.ledger.state.officers_needed
            signed = {one.name: one for one in self._policy_signatures()}
            signed[signature.name] = signature
            made = list(signed.values())
            if len(made) >= needed:
                note_policy(self.policy, self.ledger, made)
            else:
                values = [one.to_json() for one in made]
                self.ledger.keep(POLICY_SIGNATURES, self.policy.digest, values)
        return sorted(signed), needed

    def _policy_signatures(self) -> list[OfficerSignature]:
        """Return the officers' signatures of this policy since the one in force was noted."""
        ledger, ledger_state = self.ledger, self.ledger.state
        kept = dict(ledger.log.store.papers(POLICY_SIGNATURES)).get(self.policy.digest, "[]")
        found = [OfficerSignature.from_json(value) for value in json.loads(kept)]
        return [
            one
            for one in found
            if one.size > ledger_state.policy_at
            and ledger_state.officers.get(one.name) == ssh_text(one.key)
            and one.signs(ledger.log.origin, "policy", self.policy.digest)
        ]

    def _sign(
        self, kind: str, subject: str, name: str, signer: SignerFor | None,
        officers: Mapping[str, str],
    ) -> OfficerSignature:  # fmt: skip
        """Have an officer sign. The ledger is not locked: an agent may wait for its owner."""
        found = next((o for o in officers if same_person(o) == same_person(name)), None)
        if found is None:
            raise RefusedError(
                f"'{name}' is no officer of the policy; it names {', '.join(officers)}"
            )
        public = ssh_key(officers[found])
        if signer is None:
            raise PrivateKeyError(
                f"the key of '{found}' is needed: the policy lists it under [officers]"
            )
        private = signer(public)
        if private.public != public:
            raise PrivateKeyError(
                f"this is not the key of '{found}': the policy lists {ssh_text(public)}, the key "
                f"is {ssh_text(private.public)}"
            )
        size = len(self.ledger.log)
        decision = OfficerDecision(self.ledger.log.origin, kind, subject, found, size)
        return OfficerSignature.make(decision, private)

    def refuse(self, plan: str, name: str) -> None:
        """Refuse a plan from now on.

        Args:
            plan: its digest.
            name: of the person who refuses.

        Raises:
            InputError, PrivateKeyError, SitePausedError: as :meth:`approve`.
        """
        digest, name = full_digest(plan), tidy(name)
        with self._deciding():
            self.ledger.refuse_plan(digest, [name])

    def pause(self, name: str, *, end: bool = False) -> None:
        """Pause the site, so that it reserves nothing, or end the pause.

        Args:
            name: of the person who decides.
            end: end the pause instead.

        Raises:
            InputError, PrivateKeyError, SitePausedError: as :meth:`approve`.
        """
        name = tidy(name)
        with self._deciding():
            decide = self.ledger.resume if end else self.ledger.pause
            decide(name)

    def withdraw(self, name: str) -> None:
        """Withdraw the site: it never reserves anything again; a second call changes nothing."""
        name = tidy(name)
        with self.ledger.log.writing():
            require_newest(self.ledger)
            self.ledger.withdraw(name)

    def status(self) -> dict[str, Any]:
        """Return the state of the site in JSON values."""
        return site_standing(self.policy, self.ledger)

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        """Hold the right to decide, with the ledger as it is on disk now."""
        with self.ledger.log.writing():
            self.ledger.require_present()
            require_newest(self.ledger)
            yield


def note_policy(
    policy: Policy, ledger: Ledger, signatures: Sequence[OfficerSignature] = ()
) -> None:
    """Note the policy's terms that the ledger does not hold yet; all of them, or none.

    Args:
        policy: as the file is now.
        ledger: of the site.
        signatures: of officers of the policy in force, if it has officers.

    Raises:
        LedgerError: if it contradicts the ledger about a population.
        RefusedError: if officers must sign a change, and too few did.
    """
    with ledger.log.writing():
        for name in policy.populations:
            ledger.register(name, budget_of(policy, name))
        for name, data in policy.data.items():
            ledger.add_data_set(name, data.population, data.disjoint)
        ledger.set_policy(policy.public(), signatures)


def make_site(
    folder: Path,
    site: str,
    passphrase: str | None,
    *,
    keys: Keys | None = None,
    coordinators: Sequence[str] = (),
    other_ledgers: Sequence[str] | None = None,
) -> dict[str, str]:
    """Make a site's folder: policy to fill in, keys, ledger; return the fingerprints.

    Args:
        folder: new or empty.
        site: its name.
        passphrase: of the key files.
        keys: the token that holds the ledger's key; None makes a key file.
        coordinators: fingerprints of the order keys that may run plans here.
        other_ledgers: first keys of the other ledgers with a budget of the same people, as the site
            states; empty if it states that there is none, None if it states nothing.

    Raises:
        InputError: if the folder is not empty.
        PrivateKeyError: if the keys cannot be written, or the token's cannot be opened.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; nothing was written")
    site = trimmed(site)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", site):
        raise InputError(
            f"'{site}' cannot be the name of a site: up to 64 letters, digits, spaces and . _ -"
        )
    ledger_key: Signer = FileSigner.generate() if keys is None else in_token(keys)
    private_folder(folder)
    place = folder / "ledger"
    if isinstance(ledger_key, FileSigner):
        ledger_key.save(place / LEDGER_KEY, passphrase)
    witness_key, recovery_key = FileSigner.generate(), FileSigner.generate()
    witness_key.save(place / WITNESS_KEY, passphrase)
    recovery_key.save(folder / "offline" / _RECOVERY_KEY, passphrase)
    witness = Key(key_name("witness", site, witness_key.public), witness_key.public, COSIGN)
    recovery = Key(key_name("recovery", site, recovery_key.public), recovery_key.public)
    ledger = Ledger(
        place, ledger_key, site, witness=witness, recovery=recovery, create=True,
        other_ledgers=other_ledgers,
    )  # fmt: skip
    text = TEMPLATE.replace('site = "North"', f'site = "{site}"')
    text = text.replace("coordinators = []  ", f"coordinators = {json.dumps(list(coordinators))}  ")
    if keys is not None:
        named = "\n".join(f"{k} = {json.dumps(v)}" for k, v in keys.model_dump().items())
        text = text.replace("\n# The people.", f"\n[keys]\n{named}\n\n# The people.")
    write_atomic(folder / POLICY_FILE, text.encode())
    prints = {"ledger": ledger.log.first_key.fingerprint, "witness": witness.fingerprint}
    write_json(folder / "offline" / FINGERPRINTS, {"site": site, **prints})
    return prints


def stated_ledgers(others: Sequence[str], *, only: bool = False) -> tuple[str, ...] | None:
    """Return a site's statement about other ledgers of its people; None if it makes none.

    Args:
        others: fingerprints of their first keys.
        only: whether it states that there is none.

    Raises:
        InputError: if one is no fingerprint, or both statements are made.
    """
    if only and others:
        raise InputError("--only-ledger and --other-ledger contradict each other")
    for text in others:
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
            raise InputError(
                f"'{text}' is no fingerprint of a ledger's first key (sha256: and 64 hex digits); "
                "`privet client status` shows it"
            )
    return tuple(sorted(set(others))) if others or only else None


def public_keys(folder: Path) -> tuple[Key, Key]:
    """Return the first keys of a site's ledger and of its witness, by the site's folder.

    Raises:
        WrongLedgerError: if there is no ledger.
    """
    policy = Policy.load(folder / POLICY_FILE)
    ledger = Ledger.read(policy.ledger_folder, policy.site)
    genesis = Entry.read(ledger.log.store.leaf(0)).predicate
    return Key.parse(genesis["key"]), Key.parse(genesis["witness"])


def require_ledger(policy: Policy) -> None:
    """Check that the ledger that ``policy`` names is there.

    Raises:
        WrongLedgerError: if it is not; the message says whether there was one.
    """
    if has_ledger(policy):
        return
    raise WrongLedgerError(
        f"{policy.ledger_folder}: there is no ledger yet; run `privet client init` first"
    )


def has_ledger(policy: Policy) -> bool:
    """Whether the ledger that ``policy`` names is there.

    Raises:
        WrongLedgerError: if there was one: its keys, or a part of it, are still there.
    """
    folder = policy.ledger_folder
    if (folder / FILE).exists():
        return True
    left = sorted(path.name for pattern in ("*.pem", f"{FILE}*") for path in folder.glob(pattern))
    if left:
        raise WrongLedgerError(
            f"{folder}: the ledger is missing ({FILE}), though there is {', '.join(left)}. Restore "
            "its newest copy and begin no new one: what cannot be read any more counts as spent "
            "(docs/explanation/evidence.md, Loss and repair)"
        )
    return False


def full_digest(text: str) -> str:
    """Return a plan's digest with its prefix.

    Raises:
        InputError: if it is not a digest.
    """
    digest = "sha256:" + text.removeprefix("sha256:")
    if len(digest) != 71 or any(c not in "0123456789abcdef" for c in digest[7:]):
        raise InputError(f"'{text}' is not a plan's digest (sha256: and 64 hex digits)")
    return digest


def _key(policy: Policy, passphrase: str | None) -> Signer:
    if policy.keys is not None:
        return in_token(policy.keys)
    return FileSigner.load(policy.ledger_folder / LEDGER_KEY, passphrase)


def _key_now(policy_file: Path, passphrase: str | None) -> Signer:
    """Return the ledger key that the policy names by now."""
    return _key(Policy.load(policy_file), passphrase)


def in_token(keys: Keys, label: str | None = None) -> Signer:
    """Return the signer of a key in a hardware token.

    Args:
        keys: the policy's section; it names module, token and the ledger's key.
        label: of the key in the token; None takes the ledger's.

    Raises:
        PrivateKeyError: if it cannot be opened.
    """
    return Pkcs11Signer.open(Path(keys.module), keys.token, label or keys.ledger)
