"""The rounds of a run, from first order to last snapshot.

Each round: configure, order, wait, check, join, store, look. What a round did is told to
an observer as a :class:`Progress`; nothing in it depends on private data but through a
release.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from privet.common.errors import QuorumNotMet, RunError
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.common.release import Arrays, Release, digest_arrays
from privet.server.snapshot import Snapshot, Snapshots


@dataclass(frozen=True)
class Reply:
    """One site's answer; ``handle`` is the link's own message."""

    site: str
    status: Status
    release: Release | None
    handle: Any = None


class Link(Protocol):
    """How orders reach sites; Flower's grid stands behind it."""

    def enrolled(self) -> list[str]:
        """Return the names of the sites that answer, in the plan's order."""
        ...

    def ask(self, round_number: int, orders: list[Order], model: Arrays) -> list[Reply]:
        """Send the orders and return the replies that came in time, in site order."""
        ...

    def join(self, round_number: int, model: Arrays, replies: list[Reply]) -> Arrays:
        """Return the next model."""
        ...


@dataclass(frozen=True)
class Progress:
    """What is known after a round.

    Attributes:
        round: number of the round, from 1.
        statuses: answer of each site.
        spent: by site, what its ledger has spent (as :meth:`PrivacyLoss.to_dict`).
        metrics: figures that may be shown, or empty.
        histograms: by site, the noised table of the metrics gate.
        reproducible: the noise of some release came from a seed, or nobody said that it
            did not.
    """

    round: int
    statuses: dict[str, Status]
    spent: dict[str, dict[str, Any]]
    metrics: dict[str, Any]
    histograms: dict[str, Any] = field(default_factory=dict)
    reproducible: bool = True


@dataclass
class Outcome:
    """The result of a run: the final model and every round's progress."""

    model: Arrays
    progress: list[Progress] = field(default_factory=list)

    @property
    def reproducible(self) -> bool:
        """As in :class:`Progress`, for the whole run; rounds before a restart are not known."""
        first = self.progress[0].round if self.progress else 0
        return first != 1 or any(step.reproducible for step in self.progress)


def run(
    run_id: str,
    plan: Plan,
    initial: Arrays,
    link: Link,
    snapshots: Snapshots,
    *,
    average: Callable[[list[Arrays]], Arrays],
    evaluate: Callable[[Arrays], dict[str, Any]] | None = None,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Run all rounds of ``plan``, from the latest snapshot if there is one.

    Raises:
        QuorumNotMet: if too few sites release in a round.
        RunError: if no site is there, or none releases.
    """
    sites = link.enrolled()
    if not sites:
        raise RunError("no site of the plan is connected")
    stored = snapshots.latest()
    model, done = (stored.arrays, stored.round) if stored else (initial, 0)
    last: deque[Arrays] = deque(maxlen=plan.strategy.average_last)
    outcome = Outcome(model)
    for number in range(done + 1, plan.training.rounds + 1):
        replies = _ask(run_id, plan, "train", number, sites, model, link)
        released = [reply for reply in replies if reply.release is not None]
        _require_quorum(plan, number, replies, released)
        model = link.join(number, model, released)
        snapshots.store(Snapshot(number, model, _receipts(released)))
        last.append(model)
        shown = average(list(last))
        progress = _look(run_id, plan, number, sites, shown, link, evaluate, replies)
        outcome.progress.append(progress)
        outcome.model = shown
        observe(progress)
    return outcome


def _ask(
    run_id: str, plan: Plan, purpose: str, number: int, sites: list[str], model: Arrays, link: Link
) -> list[Reply]:
    digest, plan_digest = digest_arrays(model), plan.digest
    orders = [
        Order(run_id, site, number, 1, purpose, plan_digest, digest, tuple(model)) for site in sites
    ]
    return link.ask(number, orders, model)


def _require_quorum(plan: Plan, number: int, replies: list[Reply], released: list[Reply]) -> None:
    if len(released) >= plan.quorum:
        return
    counts: dict[str, int] = {}
    for reply in replies:
        counts[reply.status] = counts.get(reply.status, 0) + 1
    silent = len(plan.sites) - len(replies)
    if silent:
        counts["no reply in time"] = silent
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    raise QuorumNotMet(
        f"round {number}: {len(released)} of {len(plan.sites)} sites released an update, the "
        f"quorum is {plan.quorum} ({said})"
    )


def _look(
    run_id: str,
    plan: Plan,
    number: int,
    sites: list[str],
    model: Arrays,
    link: Link,
    evaluate: Callable[[Arrays], dict[str, Any]] | None,
    replies: list[Reply],
) -> Progress:
    """Evaluate as the plan says, and gather what may be shown."""
    due = number % plan.metrics.every == 0 or number == plan.training.rounds
    metrics: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    releases = [reply.release for reply in replies if reply.release]
    latest = {reply.site: reply for reply in replies}
    if due and plan.metrics.source == "gate":
        for reply in _ask(run_id, plan, "evaluate", number, sites, model, link):
            if reply.release is not None:
                tables[reply.site] = reply.release.arrays["histogram"]
                latest[reply.site] = reply
                releases.append(reply.release)
    elif due and evaluate is not None and plan.metrics.source == "public":
        metrics = evaluate(model)
    spent = {site: reply.release.facts["spent"] for site, reply in latest.items() if reply.release}
    statuses = {reply.site: reply.status for reply in replies}
    reproducible = any(one.facts.get("reproducible") is not False for one in releases)
    return Progress(number, statuses, spent, metrics, tables, reproducible)


def _receipts(released: list[Reply]) -> dict[str, Any]:
    return {
        reply.site: {"order": reply.release.order, "digest": reply.release.facts["digest"]}
        for reply in released
        if reply.release is not None
    }
