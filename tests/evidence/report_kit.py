"""Records and verdicts made by hand, for what a short simulation does not show."""

from __future__ import annotations

from typing import Any

from privet.privacy.audit.verify import (
    AuditedEntry,
    AuditedRecord,
    Fault,
    LogRecord,
    SiteFinding,
    Verdict,
)
from privet.privacy.audit.verify.result import Witnessed

PLAN = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
CODE = "sha256:" + "c" * 64
RATE = "0.05"


def event(count: int = 5) -> dict[str, Any]:
    gaussian = {"type": "gaussian", "standard_deviation": "1.5", "sensitivity": "1.0"}
    step = {"type": "poisson_sampled", "sample_rate": RATE, "event": gaussian}
    return {"type": "repeated", "event": step, "count": count}


def plan(title: str = "Who is readmitted", **changes: Any) -> dict[str, Any]:
    return {
        "name": "readmission",
        "title": title,
        "task": {"kind": "tabular", "label": "readmitted", "numeric": {"age": {}, "stay": {}}},
        "model": {"kind": "ft-transformer"},
        "training": {"rounds": 8, "steps": 5, "sample_rate": 0.05},
        "privacy": {
            "epsilon": 3.0,
            "delta": 1e-6,
            "unit": "person",
            "relation": "add_or_remove_one",
            "clip": 1.0,
            "noise_multiplier": 1.5,
            "max_records": 4,
        },
        "metrics": {"source": "gate", "every": 4, "noise_multiplier": 20.0},
        "attested": {"H12": "ranges are from a textbook"},
        **changes,
    }


class Book:
    """A log that is written entry by entry; each takes four hours."""

    def __init__(self, name: str, role: str = "site", day: int = 1) -> None:
        self.record = LogRecord(name, role, f"privet.ledger/{name}/0123456789abcdef")
        self._hours = 24 * (day - 1)

    def add(self, kind: str, **fields: Any) -> int:
        number = len(self.record.entries)
        day, hour = divmod(self._hours + 4 * number, 24)
        time = f"2026-{3 + day // 28:02d}-{1 + day % 28:02d}T{hour:02d}:00:00Z"
        value = {"sequence": number, "time": time, "log": self.record.origin, **fields}
        self.record.entries.append(AuditedEntry(number, time, kind, value))
        return number

    def witnessed(self, *names: str) -> None:
        keys = tuple(f"privet.witness/{name}/0123456789abcdef" for name in names)
        self.record.checkpoints.append((len(self.record.entries), keys))


def ledger(
    name: str,
    *,
    setting: str = "site",
    runs: dict[str, str] | None = None,
    rounds: int = 8,
    attested: dict[str, str] | None = None,
    reproducible: bool = False,
    tests: tuple[str, ...] = ("H6", "H7", "H16", "H17"),
) -> Book:
    """A site that trained ``runs`` (their plans by name); the last round of each is aborted."""
    state = Book(name)
    state.add(
        "genesis", site=name, key="", recovery=None, witness="", setting=setting,
        software="privet 0.1.0",
    )  # fmt: skip
    state.add(
        "population", population="patients", unit="person", relation="add_or_remove_one",
        epsilon="3.0", delta="1e-06", max_records=4,
    )  # fmt: skip
    state.add("data-set", data_set="admissions-2026", population="patients", disjoint="")
    policy = {"site": name, "attested": attested or {}, "populations": {}, "data": {}}
    state.add("policy", policy=policy)
    for run, digest in (runs or {"readmission-1": PLAN}).items():
        state.add("plan-approved", plan=digest, by=["Dr. Ada Okafor"], how="manual")
        for number in range(1, rounds + 1):
            order = f"sha256:{number:064x}"
            slot = {
                "run": run,
                "round": number,
                "attempt": 1,
                "order": order,
                "keyid": "0" * 64,
                "plan": digest,
            }
            at = state.add(
                "reserved", population="patients", data_set="admissions-2026", **slot,
                purpose="train", model=CODE, code=CODE, event=event(), self_tests=list(tests),
            )  # fmt: skip
            if number == rounds:
                state.add("aborted", reservation=at, data_opened=True, reason="recovered")
            else:
                state.add(
                    "released", reservation=at, order=order, digest=CODE, event=event(),
                    reproducible=reproducible,
                )  # fmt: skip
    return state


def verdict(
    books: list[Book],
    *,
    epsilon: float | None = 1.25,
    faults: list[Fault] | None = None,
    plans: dict[str, dict[str, Any]] | None = None,
    quorum: int = 2,
    pinned: bool = True,
    unit: str = "person",
) -> Verdict:
    names = [state.record.name for state in books if state.record.role == "site"]
    keys = {name: f"privet.witness/{name}/0123456789abcdef+00+AA" for name in [*names, "centre"]}
    roster = {
        "quorum": quorum,
        "coordinator": {"name": "centre", "witness": keys["centre"]},
        "sites": [{"name": name, "witness": keys[name]} for name in names],
    }
    found = []
    for state in books:
        if state.record.role == "site":
            charges = [e for e in state.record.entries if e.kind == "reserved"]
            runs = len({e.predicate["run"] for e in charges})
            found.append(
                SiteFinding(
                    state.record.name,
                    "patients",
                    unit,
                    "add_or_remove_one",
                    1e-6,
                    epsilon,
                    3.0,
                    len(state.record.entries),
                    charges=len(charges),
                    runs=runs,
                    enforced_by="filter" if runs > 1 else "pld",
                    rdp_epsilon=None if epsilon is None else epsilon * 1.1,
                )
            )
    record = AuditedRecord(
        roster, {PLAN: plan()} if plans is None else plans, [b.record for b in books]
    )
    return Verdict(
        not faults, "pinned" if pinned else "unpinned", faults or [], [], found, record, quorum,
        {name: Witnessed(9, 9, tuple(n for n in (*names, "centre") if n != name)) for name in names},
    )  # fmt: skip


def three_sites(**changes: Any) -> list[Book]:
    """Three real sites, each witnessed by the two others and the coordinator."""
    names = ("St. Anna", "Lakeside", "Harbour")
    books = [ledger(name, **changes) for name in names]
    lakeside = books[1]
    order = {"order": CODE, "plan": PLAN, "model": CODE, "purpose": "train", "keyid": "0" * 64}
    lakeside.add("paused", by="Dr. Ada Okafor")
    lakeside.add(
        "refused", run="readmission-1", round=9, attempt=1, status="refused-paused", **order
    )
    lakeside.add("resumed", by="Dr. Ada Okafor")
    books[2].add("key-rotated", key="privet.ledger/Harbour/0123456789abcdef+00+AA", why="rotation")
    for state in books:
        state.witnessed(*(name for name in names if name != state.record.name), "centre")
    return books
