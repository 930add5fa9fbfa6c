"""What a bundle's record says: ledgers, populations, charges, runs, refusals, witnesses.

The verifier keeps an entry only if its fields have the types of the format page. What is
inside a plan, a policy or an event may still be anything, so it is read with care: a
report of a broken bundle must come out, and say that it is broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from privet.common.errors import InputError
from privet.privacy.accounting import events as ev
from privet.privacy.accounting.units import finite
from privet.privacy.audit.verify import AuditedEntry, AuditedRecord, LogRecord
from privet.privacy.audit.verify.formats.schema import TRACELESS


@dataclass
class ReportCharge:
    """One reservation and what became of it: ``open``, ``released``, ``kept``, ``returned``."""

    entry: AuditedEntry
    event: ev.Event
    state: str = "open"
    reason: str = ""
    reproducible: bool = False

    def __getattr__(self, name: str) -> Any:
        """Return a field of the entry: ``run``, ``round``, ``purpose``, ``plan`` and so on."""
        try:
            return self.entry.predicate[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def unnoised(self) -> bool:
        """Whether it was reserved for something without noise."""
        return bool(dig(self.entry.predicate["event"], "type") == "non_private")

    @property
    def counts(self) -> bool:
        """Whether it counts against the population."""
        return self.state != "returned"


@dataclass
class ReportGroup:
    """One population of one site, with its data sets (name, why disjoint) and charges."""

    site: str
    name: str
    unit: str
    relation: str
    cap: float | None
    delta: float
    max_records: int
    data_sets: list[tuple[str, str]] = field(default_factory=list)
    charges: list[ReportCharge] = field(default_factory=list)
    closed: bool = False
    steps: list[tuple[ReportCharge, int]] = field(default_factory=list)
    """Charges as they came (1) and as they were given back (-1)."""

    @property
    def runs(self) -> list[str]:
        """Runs whose charges count, in order."""
        return list(dict.fromkeys(c.run for c in self.charges if c.counts))


@dataclass
class ReportLedger:
    """One site's ledger."""

    log: LogRecord
    setting: str = ""
    software: str = ""
    groups: dict[str, ReportGroup] = field(default_factory=dict)
    charges: list[ReportCharge] = field(default_factory=list)
    policies: list[AuditedEntry] = field(default_factory=list)
    approvals: list[AuditedEntry] = field(default_factory=list)
    refusals: list[AuditedEntry] = field(default_factory=list)
    rotations: list[AuditedEntry] = field(default_factory=list)
    stops: list[AuditedEntry] = field(default_factory=list)
    other_ledgers: tuple[str, ...] | None = None
    """First keys of other ledgers of the same people, as the site states; None: it does not."""

    @property
    def site(self) -> str:
        """The site's name."""
        return self.log.name

    @property
    def policy(self) -> Any:
        """The newest policy; empty if none is in the ledger."""
        return self.policies[-1].predicate["policy"] if self.policies else {}

    @property
    def attested(self) -> dict[str, str]:
        """Rows that the newest policy vouches for, with the reason."""
        return texts(dig(self.policy, "attested"))

    @property
    def disjoint(self) -> list[str]:
        """Why nobody is in two populations, by the site's own words: nothing where it has one.

        "" stands for a data set that does not say it.
        """
        later = list(self.groups.values())[1:]
        if not later:
            return []
        reasons = list(dict.fromkeys(why.strip() for group in later for _, why in group.data_sets))
        if "" in reasons:
            return [""]
        return ["; ".join(reasons) or "the second population has no data set yet"]


@dataclass
class ReportRun:
    """One run, as the journal and the ledgers tell it. ``journal`` is False without a journal."""

    name: str
    plan: str
    journal: bool
    sites: list[str]
    opened: str = ""
    closed: str = ""
    how: str = ""
    model: str = ""
    rounds: int = 0
    codes: list[str] = field(default_factory=list)
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Answers that leave no entry at the site, by site and status."""


@dataclass
class ReportInput:
    """Everything the report is made of."""

    record: AuditedRecord
    ledgers: list[ReportLedger]
    journal: LogRecord | None
    runs: list[ReportRun]
    plans: dict[str, dict[str, Any]]

    @property
    def coordinator(self) -> str:
        """Name of the coordinator, as the roster has it."""
        return str(dig(self.record.roster, "coordinator", "name") or "")

    @property
    def quorum(self) -> int:
        """How many cosignatures a witnessed head needs."""
        value = self.record.roster.get("quorum")
        return value if isinstance(value, int) else 0

    @property
    def settings(self) -> set[str]:
        """What the geneses say: ``site``, ``simulation``, ``bundle``."""
        found = {ledger.setting for ledger in self.ledgers}
        if self.journal and self.journal.entries:
            found.add(str(self.journal.entries[0].predicate.get("setting", "")))
        return found or {""}

    @property
    def simulated(self) -> bool:
        """Whether somebody's log says that this was a simulation, also one from a bundle."""
        return bool(self.settings & {"simulation", "bundle"})

    @property
    def groups(self) -> list[ReportGroup]:
        """All populations of all sites."""
        return [group for ledger in self.ledgers for group in ledger.groups.values()]

    @property
    def period(self) -> tuple[str, str]:
        """Times of the first and the last entry of all logs; empty without entries."""
        times = [entry.time for log in self.record.logs for entry in log.entries]
        return min(times, default=""), max(times, default="")

    @property
    def owners(self) -> dict[str, str]:
        """Who holds a witness key, by the key's name."""
        roster = self.record.roster
        found: dict[str, str] = {}
        for member in [*(roster.get("sites") or []), roster.get("coordinator")]:
            key, name = dig(member, "witness"), dig(member, "name")
            if isinstance(key, str) and isinstance(name, str):
                found[key.partition("+")[0]] = name
        return found

    def title(self, plan: str) -> str:
        """Return the title of a plan, or its name."""
        value = self.plans.get(plan, {})
        return str(dig(value, "title") or dig(value, "name") or "plan not in the bundle")


def dig(value: Any, *keys: str) -> Any:
    """Return what is at ``keys`` of nested mappings, or None."""
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def texts(value: Any) -> dict[str, str]:
    """Return the pairs of a mapping whose value is a text that says something."""
    pairs = value.items() if isinstance(value, dict) else ()
    return {str(k): v for k, v in pairs if isinstance(v, str) and v.strip()}


def number(value: Any) -> float | None:
    """Return a finite number that JSON gives as a number or as a decimal string, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return finite(found)


def read(record: AuditedRecord) -> ReportInput:
    """Read a record; nothing in it raises."""
    ledgers = [_ledger(log) for log in record.logs if log.role == "site"]
    journal = next((log for log in record.logs if log.role == "coordinator"), None)
    return ReportInput(record, ledgers, journal, _runs(ledgers, journal), record.plans)


def _ledger(log: LogRecord) -> ReportLedger:
    ledger = ReportLedger(log)
    found: dict[int, tuple[ReportCharge, ReportGroup | None]] = {}
    for entry in log.entries:
        if entry.kind == "reserved":
            found[entry.sequence] = _charge(ledger, entry)
        elif entry.kind in ("released", "metric-released", "aborted"):
            pair = found.get(entry.predicate["reservation"])
            if pair is not None:
                _close(entry, *pair)
        elif entry.kind in _REGISTERED:
            _REGISTERED[entry.kind](ledger, entry)
        else:
            _sort_in(ledger, entry)
    return ledger


def _charge(ledger: ReportLedger, entry: AuditedEntry) -> tuple[ReportCharge, ReportGroup | None]:
    """Take in a reservation; return it with the group that it charges, if that is registered."""
    charge = ReportCharge(entry, _event(entry.predicate["event"]))
    group = ledger.groups.get(entry.predicate["population"])
    ledger.charges.append(charge)
    if group is not None:
        group.charges.append(charge)
        group.steps.append((charge, 1))
    return charge, group


def _genesis(ledger: ReportLedger, entry: AuditedEntry) -> None:
    value = entry.predicate
    ledger.setting, ledger.software = str(value["setting"]), _software(value["software"])
    if (stated := value.get("other_ledgers")) is not None:
        ledger.other_ledgers = tuple(map(str, stated))


def _population(ledger: ReportLedger, entry: AuditedEntry) -> None:
    value = entry.predicate
    ledger.groups.setdefault(value["population"], _group(ledger.log.name, value))


def _data_set(ledger: ReportLedger, entry: AuditedEntry) -> None:
    value = entry.predicate
    if value["population"] in ledger.groups:
        pair = (value["data_set"], value["disjoint"])
        ledger.groups[value["population"]].data_sets.append(pair)


def _budget_closed(ledger: ReportLedger, entry: AuditedEntry) -> None:
    ledger.stops.append(entry)
    if entry.predicate["population"] in ledger.groups:
        ledger.groups[entry.predicate["population"]].closed = True


_REGISTERED = {
    "genesis": _genesis, "population": _population, "data-set": _data_set,
    "budget-closed": _budget_closed,
}  # fmt: skip


def _sort_in(ledger: ReportLedger, entry: AuditedEntry) -> None:
    lists = {
        "policy": ledger.policies,
        "plan-approved": ledger.approvals,
        "plan-refused": ledger.approvals,
        "refused": ledger.refusals,
        "key-rotated": ledger.rotations,
        "paused": ledger.stops,
        "resumed": ledger.stops,
        "withdrawn": ledger.stops,
    }
    if entry.kind in lists:
        lists[entry.kind].append(entry)


def _close(entry: AuditedEntry, charge: ReportCharge, group: ReportGroup | None) -> None:
    value = entry.predicate
    if entry.kind != "aborted":
        charge.state = "released"
        charge.reproducible = bool(value["reproducible"])
        return
    charge.reason = value["reason"]
    charge.state = "kept" if value["data_opened"] else "returned"
    if group is not None and charge.state == "returned":
        group.steps.append((charge, -1))


def _group(site: str, value: dict[str, Any]) -> ReportGroup:
    return ReportGroup(
        site,
        value["population"],
        value["unit"],
        value["relation"],
        number(value["epsilon"]),
        number(value["delta"]) or 0.0,
        value["max_records"],
    )


def _event(value: Any) -> ev.Event:
    try:
        return ev.from_json(value)
    except InputError:
        return ev.NonPrivate("the event cannot be read")


def _software(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in sorted(value.items()))
    return str(value)


def _runs(ledgers: list[ReportLedger], journal: LogRecord | None) -> list[ReportRun]:
    runs = {run.name: run for run in _journal_runs(journal)}
    for ledger in ledgers:
        for entry in [*(charge.entry for charge in ledger.charges), *ledger.refusals]:
            value = entry.predicate
            run = runs.setdefault(value["run"], ReportRun(value["run"], value["plan"], False, []))
            if ledger.site not in run.sites:
                run.sites.append(ledger.site)
            if not run.journal:
                run.opened = min(filter(None, (run.opened, entry.time)))
                run.closed = max(run.closed, entry.time)
                if entry.kind == "reserved":
                    run.rounds = max(run.rounds, value["round"])
            code = value.get("code")
            if code and code not in run.codes:
                run.codes.append(code)
    return sorted(runs.values(), key=lambda run: (run.opened, run.name))


def _journal_runs(journal: LogRecord | None) -> Iterator[ReportRun]:
    runs: dict[str, ReportRun] = {}
    for entry in journal.entries if journal else ():
        value = entry.predicate
        if entry.kind == "run-opened":
            runs[value["run"]] = ReportRun(
                value["run"], value["plan"], True, list(value["sites"]), opened=entry.time
            )
            continue
        run = runs.get(value.get("run", ""))
        if run is None:
            continue
        if entry.kind == "round":
            run.rounds += 1
            for order in value["orders"]:
                if order["answer"] in ("no-reply", *TRACELESS):
                    run.answers[order["site"], order["answer"]] += 1
        elif entry.kind == "run-closed":
            run.closed, run.how, run.model = entry.time, value["how"], value["model"]
        elif entry.kind == "run-resumed":
            run.closed, run.how, run.rounds = "", "", value["rounds"]
    yield from runs.values()
