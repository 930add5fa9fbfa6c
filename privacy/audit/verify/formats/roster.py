"""The roster: who takes part, with which keys, and how many witnesses a checkpoint needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from privet.privacy.audit.verify.formats import notes
from privet.privacy.audit.verify.formats.notes import COSIGNER, SIGNER, AuditedKey
from privet.privacy.audit.verify.formats.schema import is_name
from privet.privacy.audit.verify.formats.strict import Malformed, is_digest, obj
from privet.privacy.audit.verify.result import show

FORMAT = "privet/roster/v1"
_MAX_SITES = 10_000
#: What a roster's fields, and the names of keys, call in short.
_KEYS = {"ledger": "ledger", "journal": "journal", "orders": "order", "witness": "witness"}


@dataclass(frozen=True)
class AuditedMember:
    """A site or the coordinator; ``orders`` is the coordinator's order key."""

    name: str
    log: AuditedKey
    witness: AuditedKey
    orders: AuditedKey | None = None


@dataclass(frozen=True)
class AuditedRoster:
    """The roster of a bundle.

    Attributes:
        witnesses: every witness key by (name, id).
        owners: names of the members by the name of their witness key.
    """

    quorum: int
    coordinator: AuditedMember
    sites: tuple[AuditedMember, ...]
    witnesses: dict[tuple[str, bytes], AuditedKey]
    owners: dict[str, str]

    @property
    def orders_keyid(self) -> str:
        """The fingerprint of the key that signs the coordinator's orders, in hex."""
        key = self.coordinator.orders
        return "" if key is None else key.fingerprint


def _named(text: object, signature_type: int, room: str, name: str) -> AuditedKey:
    """Read a verifier key that must be called ``privet.ROOM/NAME/FP16``."""
    who = f"the {_KEYS[room]} key of {name}"
    try:
        key = notes.read_vkey(text, signature_type)
    except Malformed as error:
        raise Malformed(f"{who}: {error}") from None
    if key.name != f"privet.{room}/{name.replace(' ', '_')}/{key.fingerprint[:16]}":
        raise Malformed(f"{who} must be called privet.{room}/NAME/FP16")
    return key


def _shape(value: object) -> dict[str, Any]:
    roster = obj(value, "a roster", "format", "quorum", "coordinator", "sites")
    if roster["format"] != FORMAT:
        raise Malformed(f"the format of the roster is not {FORMAT}")
    if type(roster["quorum"]) is not int or roster["quorum"] < 0:
        raise Malformed("'quorum' must be an integer from 0")
    obj(roster["coordinator"], "the coordinator", "name", "journal", "orders", "witness")
    if not isinstance(roster["sites"], list) or not 0 < len(roster["sites"]) <= _MAX_SITES:
        raise Malformed("a roster must list its sites")
    for number, site in enumerate(roster["sites"], 1):
        who = f"site {number} of the roster"
        if isinstance(site, dict) and is_name(site.get("name")):
            who += f", {site['name']},"
        obj(site, who, "name", "ledger", "witness")
    names = [roster["coordinator"]["name"], *(site["name"] for site in roster["sites"])]
    for number, name in enumerate(names):
        who = f"site {number} of the roster" if number else "the coordinator"
        if not is_name(name):
            raise Malformed(f"the name of {who} is not a proper one: {show(name)}")
    if len(set(names)) != len(names):
        raise Malformed(f"the roster names {Counter(names).most_common(1)[0][0]} twice")
    return roster


def read_roster(value: object) -> AuditedRoster:
    """Read the roster of a bundle, whose keys are all verifier keys.

    Raises:
        Malformed: if a key is missing, misnamed or used twice.
    """
    roster = _shape(value)
    head = roster["coordinator"]
    coordinator = AuditedMember(
        head["name"],
        _named(head["journal"], SIGNER, "journal", head["name"]),
        _named(head["witness"], COSIGNER, "witness", head["name"]),
        _named(head["orders"], SIGNER, "orders", head["name"]),
    )
    sites = tuple(
        AuditedMember(
            site["name"],
            _named(site["ledger"], SIGNER, "ledger", site["name"]),
            _named(site["witness"], COSIGNER, "witness", site["name"]),
        )
        for site in roster["sites"]
    )
    members = (coordinator, *sites)
    owners: dict[bytes, str] = {}
    for member in members:
        for key in filter(None, (member.log, member.witness, member.orders)):
            if key.raw in owners:
                both = f"{owners[key.raw]} and {member.name}"
                raise Malformed(f"a roster names the same key twice, for {both}")
            owners[key.raw] = member.name
    return AuditedRoster(
        roster["quorum"], coordinator, sites,
        {(m.witness.name, m.witness.id): m.witness for m in members},
        {m.witness.name: m.name for m in members},
    )  # fmt: skip


def require_pinned(value: object) -> None:
    """Check a roster that was handed over out of band, whatever the bundle says.

    Raises:
        Malformed: naming what is wrong, and at whom.
    """
    roster = _shape(value)
    head = roster["coordinator"]
    named = [(head["name"], field, head[field]) for field in ("journal", "orders", "witness")]
    for site in roster["sites"]:
        named += [(site["name"], field, site[field]) for field in ("ledger", "witness")]
    for name, field, text in named:
        if isinstance(text, str) and is_digest(text.lower()):
            continue
        try:
            notes.read_vkey(text, COSIGNER if field == "witness" else SIGNER)
        except Malformed as error:
            raise _no_key(f"'{field}' of {name}", error) from None


def _no_key(who: str, error: Malformed) -> Malformed:
    return Malformed(
        f"{who} is neither a fingerprint (sha256: and 64 hex digits) nor a verifier key: {error}"
    )


def _same(pinned: object, key: AuditedKey, who: str) -> bool:
    """Return whether a pinned verifier key or fingerprint is that of ``key``."""
    # Who reads a fingerprint from paper may write its letters in upper case.
    if isinstance(pinned, str) and is_digest(pinned.lower()):
        return pinned.lower() == "sha256:" + key.fingerprint
    try:
        return notes.read_vkey(pinned, key.type) == key
    except Malformed as error:
        raise _no_key(who, error) from None


def differences(pinned_value: object, roster: AuditedRoster) -> list[str]:
    """Return in what the bundle's roster differs from one handed over out of band.

    The order of sites may differ; everything else must be the same.

    Args:
        pinned_value: the roster that was handed over, as JSON.
        roster: the bundle's.

    Raises:
        Malformed: if the pinned roster cannot be read.
    """
    pinned = _shape(pinned_value)
    wrong = []
    if pinned["quorum"] != roster.quorum:
        wrong.append(
            f"the quorum is {roster.quorum} in the bundle and {pinned['quorum']} in the pinned"
            " roster"
        )
    head, own = pinned["coordinator"], roster.coordinator
    if head["name"] != own.name:
        wrong.append(
            f"the coordinator is {own.name} in the bundle and {head['name']} in the pinned roster"
        )
    sites = {site["name"]: site for site in pinned["sites"]}
    wrong += _other_names(sites, roster)
    pairs = [(head["journal"], own.log, "journal"), (head["witness"], own.witness, "witness")]
    if own.orders is not None:
        pairs.append((head["orders"], own.orders, "orders"))
    checked = [(*pair, own.name) for pair in pairs]
    for member in roster.sites:
        if member.name in sites:
            site = sites[member.name]
            checked.append((site["ledger"], member.log, "ledger", member.name))
            checked.append((site["witness"], member.witness, "witness", member.name))
    for text, key, field, name in checked:
        if not _same(text, key, f"'{field}' of {name}"):
            wrong.append(f"the {_KEYS[field]} key of {name} is not the pinned one")
    return wrong


def _other_names(pinned: dict[str, Any], roster: AuditedRoster) -> list[str]:
    """Return which sites are in one of the rosters only, or have another name in the other."""
    wrong = []
    named = {member.name for member in roster.sites}
    left = {_key_text(site["ledger"]): name for name, site in pinned.items() if name not in named}
    for member in roster.sites:
        if member.name in pinned:
            continue
        theirs = left.pop("sha256:" + member.log.fingerprint, None)
        if theirs is None:
            wrong.append(f"the site {member.name} of the bundle is not in the pinned roster")
        else:
            wrong.append(
                f"the site that the pinned roster calls {theirs} is called {member.name} in the"
                " bundle"
            )
    wrong += [
        f"the site {name} of the pinned roster is not in the bundle" for name in left.values()
    ]
    return wrong


def _key_text(pinned: object) -> object:
    """Return a pinned key as a fingerprint if it is one or holds one, or else as something."""
    if isinstance(pinned, str) and is_digest(pinned.lower()):
        return pinned.lower()
    try:
        return "sha256:" + notes.read_vkey(pinned, SIGNER).fingerprint
    except Malformed:
        return object()
