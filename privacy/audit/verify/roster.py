"""The roster: who takes part, with which keys, and how many witnesses a checkpoint needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from privet.privacy.audit.verify import notes
from privet.privacy.audit.verify.notes import COSIGNER, SIGNER, Key
from privet.privacy.audit.verify.schema import is_name
from privet.privacy.audit.verify.strict import Malformed, is_digest, obj

FORMAT = "privet/roster/v1"
_MOST_SITES = 10_000


@dataclass(frozen=True)
class Member:
    """A site or the coordinator; ``orders`` is the coordinator's order key."""

    name: str
    log: Key
    witness: Key
    orders: Key | None = None


@dataclass(frozen=True)
class Roster:
    """The roster of a bundle.

    Attributes:
        witnesses: every witness key by (name, id).
        owners: names of the members by the name of their witness key.
    """

    quorum: int
    coordinator: Member
    sites: tuple[Member, ...]
    witnesses: dict[tuple[str, bytes], Key]
    owners: dict[str, str]

    @property
    def orders_keyid(self) -> str:
        """The fingerprint of the key that signs the coordinator's orders, in hex."""
        key = self.coordinator.orders
        return "" if key is None else key.fingerprint


def _named(text: object, signature_type: int, prefix: str, name: str) -> Key:
    """Read a verifier key that must be called ``PREFIX/NAME/FP16``."""
    key = notes.read_vkey(text, signature_type)
    if key.name != f"{prefix}/{name.replace(' ', '_')}/{key.fingerprint[:16]}":
        raise Malformed(f"a key of '{name}' must be called {prefix}/NAME/FP16")
    return key


def _shape(value: object) -> dict[str, Any]:
    roster = obj(value, "a roster", "format", "quorum", "coordinator", "sites")
    if roster["format"] != FORMAT:
        raise Malformed(f"the format of the roster is not {FORMAT}")
    if type(roster["quorum"]) is not int or roster["quorum"] < 0:
        raise Malformed("'quorum' must be an integer from 0")
    obj(roster["coordinator"], "the coordinator", "name", "journal", "orders", "witness")
    if not isinstance(roster["sites"], list) or not 0 < len(roster["sites"]) <= _MOST_SITES:
        raise Malformed("a roster must list its sites")
    for site in roster["sites"]:
        obj(site, "a site of the roster", "name", "ledger", "witness")
    names = [roster["coordinator"]["name"], *(site["name"] for site in roster["sites"])]
    if not all(map(is_name, names)) or len(set(names)) != len(names):
        raise Malformed("the names of a roster must be proper and unique")
    return roster


def read_roster(value: object) -> Roster:
    """Read the roster of a bundle, whose keys are all verifier keys.

    Raises:
        Malformed: if a key is missing, misnamed or used twice.
    """
    roster = _shape(value)
    head = roster["coordinator"]
    coordinator = Member(
        head["name"],
        _named(head["journal"], SIGNER, "privet.journal", head["name"]),
        _named(head["witness"], COSIGNER, "privet.witness", head["name"]),
        _named(head["orders"], SIGNER, "privet.orders", head["name"]),
    )
    sites = tuple(
        Member(
            site["name"],
            _named(site["ledger"], SIGNER, "privet.ledger", site["name"]),
            _named(site["witness"], COSIGNER, "privet.witness", site["name"]),
        )
        for site in roster["sites"]
    )
    members = (coordinator, *sites)
    raws = [key.raw for m in members for key in (m.log, m.witness, m.orders) if key is not None]
    if len(set(raws)) != len(raws):
        raise Malformed("a roster names the same key twice")
    return Roster(
        roster["quorum"], coordinator, sites,
        {(m.witness.name, m.witness.id): m.witness for m in members},
        {m.witness.name: m.name for m in members},
    )  # fmt: skip


def _same(pinned: object, key: Key) -> bool:
    """Return whether a pinned verifier key or fingerprint is that of ``key``."""
    if is_digest(pinned):
        return pinned == "sha256:" + key.fingerprint
    return notes.read_vkey(pinned, key.type) == key


def differences(pinned_value: object, roster: Roster) -> list[str]:
    """Return in what the bundle's roster differs from one handed over out of band.

    The order of sites may differ; everything else must be the same.

    Raises:
        Malformed: if the pinned roster cannot be read.
    """
    pinned = _shape(pinned_value)
    wrong = []
    if pinned["quorum"] != roster.quorum:
        wrong.append("the quorum is not the pinned one")
    head, own = pinned["coordinator"], roster.coordinator
    if head["name"] != own.name:
        wrong.append("the coordinator is not the pinned one")
    pairs = [(head["journal"], own.log), (head["witness"], own.witness)]
    if own.orders is not None:
        pairs.append((head["orders"], own.orders))
    sites = {site["name"]: site for site in pinned["sites"]}
    if sites.keys() != {member.name for member in roster.sites}:
        wrong.append("the sites are not the pinned ones")
    for member in roster.sites:
        if member.name in sites:
            site = sites[member.name]
            pairs += [(site["ledger"], member.log), (site["witness"], member.witness)]
    for text, key in pairs:
        if not _same(text, key):
            wrong.append(f"the key {key.name!a} is not the pinned one")
    return wrong
