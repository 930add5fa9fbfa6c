"""What a verifier answers, and what it keeps of a bundle when asked to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

#: The closed list of rules that a fault can name.
RULES = (
    "bundle", "roster", "signature", "tree", "consistency", "witness", "sequence", "entry",
    "vocabulary", "population", "policy", "plan", "code", "event", "reservation", "release",
    "cap", "accounting", "order", "round", "model", "receipt",
)  # fmt: skip

#: Ends the message of a fault that older verifiers did not find.
NEW_RULE = " (a rule since November 2026: earlier software was not held to it)"

#: After this many faults no more are listed.
MAX_FAULTS = 1000


@dataclass(frozen=True)
class Fault:
    """One broken rule.

    Attributes:
        site: name of the site or of the coordinator; None for the bundle as a whole.
        entry: sequence number in that log, if the fault is at one entry.
        rule: one of :data:`RULES`.
        message: what is wrong, in printable ASCII where it quotes the bundle.
    """

    site: str | None
    entry: int | None
    rule: str
    message: str


@dataclass(frozen=True)
class SiteFinding:
    """What one population of one site spent.

    Attributes:
        epsilon: the PLD of all charges at ``delta``; None if an event is not private.
        cap: the ε of the population; None if it has no cap.
        entries: entries of the site's ledger.
        charges: reservations that were not given back.
        runs: runs that these charges belong to.
        conditional: ids of the assumption register that ``epsilon`` is conditional on.
        enforced_by: what holds the cap at the end of the ledger.
        rdp_epsilon: the ceiling, by the second accountant.
    """

    site: str
    population: str
    unit: str
    relation: str
    delta: float
    epsilon: float | None
    cap: float | None
    entries: int
    charges: int = 0
    runs: int = 0
    conditional: tuple[str, ...] = ()
    enforced_by: Literal["pld", "gaussian filter", "filter", "none"] = "none"
    rdp_epsilon: float | None = None


@dataclass(frozen=True)
class Witnessed:
    """How far others witnessed one log.

    Attributes:
        upto: entries before this place are under a head that a quorum of others cosigned; 0: none
            are, and the log is its owner's word alone.
        entries: entries of the log.
        by: names of the members who cosigned that head.
    """

    upto: int
    entries: int
    by: tuple[str, ...]


@dataclass(frozen=True)
class Unfinished:
    """Releases of a run at one site that no finished run accounts for, and their ε.

    ``epsilon`` is their composition at the population's δ; None: not private.
    """

    site: str
    population: str
    run: str
    releases: int
    epsilon: float | None


@dataclass(frozen=True)
class CodeFinding:
    """Which code the ledgers say computed, by run: the sites' word, which a digest may pin.

    Attributes:
        pinned: the digests that alone may be named; empty where none were given.
        runs: what the reservations of each run name, of any coordinator.
    """

    pinned: frozenset[str] = frozenset()
    runs: dict[str, set[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the format page."""
        runs = {name: sorted(digests) for name, digests in sorted(self.runs.items())}
        return {"pinned": bool(self.pinned), "runs": runs}


@dataclass(frozen=True)
class AuditedEntry:
    """One entry of a log, as it was read."""

    sequence: int
    time: str
    kind: str
    predicate: dict[str, Any]


@dataclass(frozen=True)
class LogRecord:
    """One log; ``checkpoints`` are sizes with the names of the cosigning keys.

    ``passed`` counts entries that were read and are not in ``entries``, in a brief record.
    """

    name: str
    role: str
    origin: str
    entries: list[AuditedEntry] = field(default_factory=list)
    checkpoints: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    passed: int = 0


@dataclass(frozen=True)
class AuditedRecord:
    """The readable parts of a bundle; plans by their digest.

    ``brief``: of reservations and what became of them only one of each sort is here.
    """

    roster: dict[str, Any] = field(default_factory=dict)
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: list[LogRecord] = field(default_factory=list)
    brief: bool = False


@dataclass(frozen=True)
class Verdict:
    """The answer: ``ok`` means that no rule is broken; notes break none.

    Attributes:
        quorum: how many cosignatures of others a witnessed head needs.
        witnessed: how far others witnessed each site's ledger, by name.
        unfinished: releases that no finished run accounts for.
    """

    ok: bool
    roster: Literal["pinned", "unpinned"]
    faults: list[Fault]
    notes: list[str]
    sites: list[SiteFinding]
    record: AuditedRecord | None = None
    quorum: int = 0
    witnessed: dict[str, Witnessed] = field(default_factory=dict)
    unfinished: list[Unfinished] = field(default_factory=list)
    code: CodeFinding = field(default_factory=CodeFinding)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the format page; sites carry a few fields more."""
        return {
            "ok": self.ok,
            "roster": self.roster,
            "witnessed": {
                "quorum": self.quorum,
                "sites": {
                    name: {**asdict(found), "by": list(found.by)}
                    for name, found in self.witnessed.items()
                },
            },
            "code": self.code.to_dict(),
            "faults": [asdict(fault) for fault in self.faults],
            "sites": [
                {**asdict(finding), "conditional": list(finding.conditional)}
                for finding in self.sites
            ],
            "unfinished": [asdict(found) for found in self.unfinished],
        }


class Findings:
    """Collects faults and notes; beyond :data:`MAX_FAULTS` it only counts."""

    def __init__(self, pinned_code: Iterable[str] = ()) -> None:
        self.code = CodeFinding(frozenset(pinned_code))
        self.faults: list[Fault] = []
        self.notes: list[str] = []
        self.dropped = self.unlisted = 0

    def fault(self, rule: str, message: str, site: str | None = None, entry: int | None = None,
              ) -> None:  # fmt: skip
        """Add a fault.

        Args:
            rule: one of :data:`RULES`.
            message: what is wrong.
            site: whose log it is in; None: of the bundle.
            entry: its place there; None: of the log.
        """
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(Fault(site, entry, rule, message))
        else:
            self.dropped += 1

    def note(self, text: str) -> None:
        """Add a note."""
        if len(self.notes) < MAX_FAULTS:
            self.notes.append(text)
        else:
            self.unlisted += 1

    def close(self) -> None:
        """Say how many faults (``bundle``) and notes are not listed."""
        if self.dropped:
            more = count_are(self.dropped, "more fault")
            self.faults.append(Fault(None, None, "bundle", f"{more} not listed"))
        if self.unlisted:
            self.notes.append(f"{self.unlisted} more notes are not listed")


def show(value: object, limit: int = 80) -> str:
    """Return untrusted ``value`` as short printable ASCII.

    Args:
        value: of any type.
        limit: most characters.
    """
    if isinstance(value, str | bytes):
        value = value[: limit + 1]
    elif isinstance(value, dict):
        return "an object"
    elif isinstance(value, list):
        return "a list"
    elif isinstance(value, int) and value.bit_length() > 256:
        return "a huge integer"
    text = ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def short(name: str) -> str:
    """Return a digest shortened, and so that it shows."""
    return name[:23] + "…"


def count(number: int, what: str) -> str:
    """Return ``number`` and the noun, in the plural if it is not one.

    Args:
        number: how many.
        what: the noun, in the singular.
    """
    if number == 1:
        return f"1 {what}"
    if what.endswith("y"):
        return f"{number} {what[:-1]}ies"
    return f"{number} {what}s"


def count_are(number: int, what: str, singular: str = "is", plural: str = "are") -> str:
    """Return what :func:`count` does, and the verb that fits."""
    verb = plural
    if number == 1:
        verb = singular
    return f"{count(number, what)} {verb}"


def finite(value: float) -> float | None:
    """Return a number, or None for infinity."""
    return None if math.isinf(value) else value
