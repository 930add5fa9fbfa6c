"""Entries as named rows: what a worker reads, and the kinds of which a ledger has most."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class Problem(NamedTuple):
    """What is wrong with a line: the rule that it breaks, and how."""

    rule: str
    message: str


class EntryRow(NamedTuple):
    """One entry, read and verified as far as that goes without the ones before it.

    Attributes:
        leaf: hash of the leaf.
        problems: rules that the entry breaks by itself.
        kind: its kind; empty if it cannot be read, and then nothing below says anything.
        signer: id of the key of its first signature, in hex; None: no key that was in force
            when the entry was read, so the signature was not verified.
        seconds: its time, in seconds since 1970.
        predicate: its fields, by the format page.
        event: the canonical text of its event; empty if it has none or a malformed one.
    """

    leaf: bytes
    problems: list[Problem]
    kind: str
    signer: str | None
    seconds: int
    predicate: dict[str, Any]
    event: str

    def pick(self, names: Iterable[str]) -> list[Any]:
        """Return fields of the entry by name; ``event`` and ``leaf`` are those of the row."""
        known = {**self.predicate, "event": self.event, "leaf": self.leaf}
        return [known[name] for name in names]


class ReservedRow(NamedTuple):
    """An entry ``reserved``; ``event`` is its text."""

    population: str
    data_set: str
    run: str
    round: int
    attempt: int
    purpose: str
    order: str
    keyid: str
    plan: str
    model: str
    code: str
    event: str


class RefusedRow(NamedTuple):
    """An entry ``refused``."""

    run: str
    round: int
    attempt: int
    purpose: str
    order: str
    keyid: str
    plan: str
    model: str
    status: str


class ReleasedRow(NamedTuple):
    """An entry ``released`` or ``metric-released``; ``event`` is its text, ``leaf`` its hash."""

    reservation: int
    order: str
    digest: str
    reproducible: bool
    event: str
    leaf: bytes


class AbortedRow(NamedTuple):
    """An entry ``aborted``."""

    reservation: int
    data_opened: bool
    reason: str
