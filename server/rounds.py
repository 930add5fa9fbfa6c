"""Run the rounds of a run, from the first order to the last snapshot.

Each round orders, waits, checks, aggregates, measures, has the logs witnessed, stores the model and
notes the round. An observer receives each round as a :class:`Progress`. Nothing in a round depends
on private data except through a release. A plan that trains nothing has one round, which only
measures the model.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from privet.common.errors import QuorumError, RunError
from privet.common.flat import Arrays, FrozenArrays, digest_arrays
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.privacy.accounting.plan_events import has_gate_release, is_measured
from privet.server.evidence.run_evidence import RunEvidence, Wait
from privet.server.recovery.replay import Replay, ReplayLink, Restored
from privet.server.replies import Replies, Reply, no_quorum, released
from privet.server.retry import Again, End, decide, pause
from privet.server.round_models import RoundModels, digests_of
from privet.server.snapshot import Snapshot, Snapshots

_LOG = logging.getLogger("privet.rounds")


class Link(ReplayLink, Protocol):
    """Carry orders to sites and replies back; Flower's grid implements it."""

    def enrolled(self) -> list[str]:
        """Return the names of the sites that answer, in the plan's order."""

    def ask(
        self,
        round_number: int,
        orders: list[Order],
        model: Arrays,
        heads: dict[str, str],
        questions: Mapping[str, dict[str, Any]] | None = None,
    ) -> list[Reply]:
        """Send the orders; return the replies.

        Args:
            round_number: number of the round, from 1.
            orders: signed orders of one purpose, at most one for each site.
            model: the model that the updates start from.
            heads: by site, the newest head of its log that somebody witnessed, or "".
            questions: by site, the evidence of its log that it shall send beside a release. A site
                that sends none is asked by :meth:`show`.

        Returns:
            The replies that came in time, in site order.
        """

    def show(self, questions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Ask sites for evidence of their logs; return the answers that came in time, by site."""

    def state(self) -> Arrays:
        """Return the state that the strategy keeps from round to round."""

    def restore(self, state: Arrays) -> None:
        """Restore the strategy's state that :meth:`state` returned."""


@dataclass(frozen=True)
class Progress:
    """The facts that are known after a round.

    Attributes:
        round: number of the round, from 1.
        statuses: status that each site answered.
        spent: by site, the privacy loss that its ledger reports (as :meth:`PrivacyLoss.to_dict`).
        metrics: metrics that may be published, or empty.
        histograms: by site, the noised table of the metrics mechanism.
        reproducible: whether the noise of some release came from a seed, or no release says that it
            did not.
        remarks: faults that do not end the run, such as metrics that could not be computed.
    """

    round: int
    statuses: dict[str, Status]
    spent: dict[str, dict[str, Any]]
    metrics: dict[str, Any]
    histograms: dict[str, Any] = field(default_factory=dict)
    reproducible: bool = True
    remarks: tuple[str, ...] = ()


@dataclass
class Outcome:
    """The result of a run: the final model, and the progress of every round."""

    model: Arrays
    progress: list[Progress] = field(default_factory=list)

    @property
    def reproducible(self) -> bool:
        """As in :class:`Progress`, for all rounds since the last restart of the process."""
        first = [step.round for step in self.progress[:1]]
        return first != [1] or any(step.reproducible for step in self.progress)


def run(
    run_id: str,
    plan: Plan,
    initial: Callable[[], Arrays],
    link: Link,
    snapshots: Snapshots,
    collector: RunEvidence,
    *,
    average: Callable[[list[Arrays]], Arrays],
    evaluate: Callable[[Arrays], dict[str, Any]] | None = None,
    keep: Callable[[Progress], None] = lambda progress: None,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Run all rounds of ``plan``, from the latest snapshot if there is one.

    Args:
        run_id: identifier of the run.
        plan: what is trained, with its noise calibrated.
        initial: makes the first model.
        link: reaches the sites.
        snapshots: where the model is stored after each round.
        collector: keeps the run's evidence; it is closed here.
        average: returns the mean of several models, for a plan that averages the last rounds.
        evaluate: computes metrics of a model on a public test split; None computes none.
        keep: called with a round's progress before the round counts as done, and perhaps again
            after a restart.
        observe: called with the progress of each round that is done.

    Returns:
        The final model, and the progress of the rounds that this process did.

    Raises:
        QuorumError: if too few sites release in a round.
        EvidenceError: if the history of a site's ledger, or the journal's, does not hold.
        RunError: if no site is connected, or none releases.
    """

    def published(*models: Arrays) -> Arrays:
        if len(models) == 1:
            return models[0]
        return average(list(models))

    stored = snapshots.latest()
    if stored and stored.round == plan.last_round and collector.is_done(run_id):
        # The process ended after the journal's last line, before its caller kept the model.
        collector.close()
        return Outcome(published(*stored.earlier, stored.arrays))
    sites = link.enrolled()
    if not sites:
        raise RunError("no site of the plan is connected")
    done = stored.round if stored else 0
    restored = Restored.find(collector, run_id, done, sites, link.show)
    model: Arrays = FrozenArrays.of(initial())
    begins = digest_arrays(model)
    if stored is not None:
        model = FrozenArrays.of(stored.arrays)
        link.restore(stored.state)
    begun = collector.begun_with(run_id)
    # A site that comes late takes part in the next run: the journal has named this one's sites.
    sites = [site for site in sites if begun is None or site in begun]
    if not sites:
        raise RunError("no site that began this run is connected")
    if not restored.is_ended:
        _require_turns(plan, sites, done)
    collector.begin(run_id, plan.digest, begins, sites, link.show, ended=restored.is_ended)
    if stored and stored.record:
        # The process may have ended between the snapshot and its line in the journal.
        collector.close_round(stored.record)
    attempts = collector.resume(run_id, restored.last + 1)
    replay = Replay(link, collector, restored, sites)
    rounds = _Rounds(run_id, plan, sites, link, collector, evaluate, attempts, replay)
    if collector.is_resumed(run_id):
        rounds.before = {site: number - 1 for site, number in attempts.items()}
    last: deque[Arrays] = deque(maxlen=plan.strategy.average_last)
    if stored is not None:
        last.extend((*stored.earlier, model))
    del stored
    outcome = Outcome(published(*(last or [model])))
    restored.tell(collector, done)
    try:
        for number in range(done + 1, plan.last_round + 1):
            replies, joined = rounds.train(number, model, outcome.model)
            last.append(joined)
            shown = published(*last)
            measured = rounds.measure(number, shown)
            progress, record = rounds.look(
                number, RoundModels(model, joined, shown), replies, measured
            )
            # Before the round counts as done: nothing that sites paid for is lost between the two.
            keep(progress)
            snapshots.store(Snapshot(number, joined, record, tuple(last)[:-1], link.state()))
            if number not in restored.rounds:
                collector.close_round(record)
            model = joined
            del replies, measured  # their files would be held through the next round
            outcome.progress.append(progress)
            outcome.model = shown
            restored.tell(collector, number)
            observe(progress)
    except RunError as error:
        # While its rounds are made again, the journal is further, and says nothing of this.
        if done + len(outcome.progress) >= restored.last:
            rounds.close(outcome.model, fault=type(error).__name__)
        collector.close()
        raise
    rounds.close(outcome.model)
    collector.close()
    return outcome


def _require_turns(plan: Plan, sites: list[str], done: int) -> None:
    """Check that each round to come has its quorum of sites, before anything is ordered.

    Args:
        plan: of the run.
        sites: that are connected, and began the run.
        done: rounds that are done.

    Raises:
        QuorumError: naming the sites that a round lacks.
    """
    if plan.schedule is None:
        return
    here = set(sites)
    for number in range(done + 1, plan.last_round + 1):
        turn = plan.schedule.sites_in(number)
        if len(turn & here) < plan.quorum:
            lacking = ", ".join(sorted(turn - here))
            raise QuorumError(
                f"round {number} is the turn of sites that are not here: {lacking}. A quorum of "
                f"{plan.quorum} could not answer; nothing was ordered. Connect them, and run again"
            )


@dataclass
class _Rounds:
    """The parts of a run that stay the same from round to round."""

    run_id: str
    plan: Plan
    sites: list[str]
    link: Link
    collector: RunEvidence
    evaluate: Callable[[Arrays], dict[str, Any]] | None
    attempts: dict[str, int]
    replay: Replay
    before: dict[str, int] = field(default_factory=dict)
    """Attempts that do not count in this round: those made before the run was resumed."""
    _used: list[str] = field(default_factory=list)
    _closed: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of sites that refused the plan: the next round to ask in, and the rounds left out before."""

    def train(self, number: int, model: Arrays, shown: Arrays) -> tuple[list[Reply], Arrays]:
        """Order, wait, check, aggregate; return the replies and the next model.

        A round that the journal has is made again from its releases. A plan that trains nothing
        keeps its model.

        Args:
            number: of the round, from 1.
            model: the model before the round.
            shown: the model that is published if this round breaks.
        """
        if number in self.replay.rounds:
            return self.replay.train(number, model)
        if not self.plan.trains:
            return [], model
        with self._noted_if_broken(number, model, shown):
            replies = self._gather("train", number, model)
            return replies, self.link.join(number, model, released(replies))

    def measure(self, number: int, shown: Arrays) -> list[Reply]:
        """Have the model measured through the metrics mechanism if the plan says so.

        A site that does not answer is left out; but if nothing is trained, a quorum must answer.

        Args:
            number: of the round, from 1.
            shown: the model that is published.

        Returns:
            The replies; none if nothing is measured in this round.
        """
        if number in self.replay.rounds:
            return self.replay.measure(number, shown)
        if not self.plan.trains:
            with self._noted_if_broken(number, shown, shown):
                return self._gather("evaluate", number, shown)
        if has_gate_release(self.plan, number) and (due := self._due(number)):
            return self._ask("evaluate", number, shown, due)
        return []

    def _due(self, number: int) -> list[str]:
        """Return the sites to ask in a round.

        A site that refused the plan, as it does once its failures closed it, is left out for one
        round, then for two, four and so on: only its operator can change that.
        """
        return [
            site
            for site in self._turn(number)
            if site not in self._closed or self._closed[site][0] <= number
        ]

    def _turn(self, number: int) -> list[str]:
        """Return the sites that take part in a round."""
        return [site for site in self.sites if self.plan.takes_part(site, number)]

    def _note_closed(self, number: int, reply: Reply) -> None:
        if reply.status is Status.REFUSED_PLAN:
            _, before = self._closed.get(reply.site, (0, 0))
            pause = max(1, 2 * before)
            self._closed[reply.site] = number + 1 + pause, pause
        elif reply.release is not None:
            self._closed.pop(reply.site, None)

    @contextmanager
    def _noted_if_broken(self, number: int, model: Arrays, shown: Arrays) -> Iterator[None]:
        """Note the orders of a round that aggregates nothing: the run ends with it."""
        self._used = []
        try:
            yield
        except RunError:
            same = digest_arrays(model)
            models = RoundModels(same, same, digest_arrays(shown))
            record = self.collector.record(self.run_id, number, models, [], ())
            self.collector.close_round(record)
            raise
        self.attempts, self.before = {}, {}

    def _gather(self, purpose: str, number: int, model: Arrays) -> list[Reply]:
        """Ask until a quorum has released, as :func:`privet.server.retry.decide` says.

        Raises:
            QuorumError: if no other site can be asked.
        """
        plan = self.plan
        if len(self._turn(number)) < plan.quorum:
            raise no_quorum(plan, number, ())
        asked = there = self._due(number)
        if len(there) < plan.quorum:
            asked = there = self._turn(number)
        replies = Replies()
        while True:
            replies.take(asked, self._ask(purpose, number, model, asked), time.monotonic())
            counted = {site: n - self.before.get(site, 0) for site, n in self.attempts.items()}
            heard = replies.heard(there, counted, time.monotonic())
            again = decide(heard, plan.quorum, plan.strategy.attempts)
            if again is End.QUORUM:
                return [replies.held[site] for site in there if site in replies.held]
            due = self._wait(number, again, replies.held) if isinstance(again, Again) else []
            if not due:
                raise no_quorum(plan, number, replies.held.values())
            asked = [site for site in there if site in due]

    def _wait(self, number: int, again: Again, held: dict[str, Reply]) -> list[str]:
        """Wait until sites can be asked again, and return them; none if waiting is useless."""
        if waits := [f"{site}: {held[site].status}" for site in (*again.same, *again.anew)]:
            said = {"round": number, "sites": "; ".join(waits), "seconds": again.seconds}
            _LOG.info("a round waits", extra=said)
        back = self.link.wait(list(again.away), again.seconds)
        if back is None:
            return []
        if back and again.seconds != 0:
            return back  # the others' time has not come
        for site in again.anew:
            self.attempts[site] = self.attempts.get(site, 1) + 1
        return [*back, *again.same, *again.anew]

    def look(
        self,
        number: int,
        models: RoundModels[Arrays],
        replies: list[Reply],
        measured: list[Reply],
    ) -> tuple[Progress, dict[str, Any]]:
        """Have all logs witnessed, and collect the facts that may be published.

        Args:
            number: of the round.
            models: of the round.
            replies: of :meth:`train`.
            measured: of :meth:`measure`.

        Returns:
            The progress, and the journal's record of the round.
        """
        metrics, remarks = self._figures(number, models.published)
        record = self.replay.rounds.get(number) or self._record(number, models)
        # Of a site's two releases, the later one says what it has spent.
        latest = {r.site: r.release for r in (*replies, *measured) if r.release is not None}
        spent = {site: release.facts["spent"] for site, release in latest.items()}
        tables = {r.site: r.release.arrays["histogram"] for r in measured if r.release is not None}
        releases = [r.release for r in (*replies, *measured) if r.release is not None]
        reproducible = any(one.facts.get("reproducible") is not False for one in releases)
        said = {reply.site: reply.status for reply in replies or measured}
        turn = self._turn(number)
        said |= {site: Status.REFUSED_PLAN for site in self._closed if site not in said}
        statuses = {site: said[site] for site in turn if site in said}
        progress = Progress(number, statuses, spent, metrics, tables, reproducible, remarks)
        return progress, record

    def _figures(self, number: int, shown: Arrays) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return metrics on a public test split, or a remark: releases are paid for by now."""
        public = self.evaluate is not None and self.plan.metrics.source == "public"
        if not public or not is_measured(self.plan, number):
            return {}, ()
        assert self.evaluate is not None
        try:
            return self.evaluate(shown), ()
        except Exception as error:
            _LOG.exception("no metrics", extra={"round": number})
            return {}, (f"round {number}: the metrics could not be computed: {error!r}",)

    def close(self, model: Arrays, *, fault: str = "") -> None:
        """Write the end of the run into the journal.

        Args:
            model: the final model.
            fault: name of the error that ended the run, or "".
        """
        self.collector.close_run(
            self.run_id, digest_arrays(model), self.sites, self.link.show, fault=fault
        )

    def _ask(self, purpose: str, number: int, model: Arrays, sites: list[str]) -> list[Reply]:
        """Order, wait, and drop every release that its site's log does not hold."""
        digest, plan = digest_arrays(model), self.plan.digest
        wanted = [
            Order(
                self.run_id,
                site,
                number,
                self.attempts.get(site, 1),
                purpose,
                plan,
                digest,
                tuple(model),
            )
            for site in sites
        ]
        orders = {order.site: order for order in self.collector.sign(wanted)}
        heads = {site: self.collector.head(site) for site in sites}
        replies: list[Reply] = []

        def send(questions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
            replies.extend(self.link.ask(number, list(orders.values()), model, heads, questions))
            return {reply.site: reply.shown for reply in replies if reply.shown is not None}

        shown = self.collector.ask(orders, send)
        came = {
            reply.site: (orders[reply.site], str(reply.release.facts["digest"]))
            for reply in replies
            if reply.release is not None
        }
        proved = self.collector.receive(came, self.link.show, shown)
        checked = []
        for reply in replies:
            if reply.release is not None and reply.site not in proved:
                reply = replace(reply, status=Status.FAILED, release=None, unproved=True)
            self.collector.answered(orders[reply.site], reply.status)
            if reply.release is not None:
                self._used.append(orders[reply.site].digest)
            self._note_closed(number, reply)
            checked.append(reply)
        return checked

    def _witness_wait(self) -> Wait:
        """Return the wait for connected sites that send no evidence: longer each time."""
        tries = 0

        def wait(silent: list[str]) -> bool:
            nonlocal tries
            tries += 1
            if tries > 1 and self.link.wait([], pause(tries - 1)) is None:
                return False
            return self.link.wait(silent) is not None

        return wait

    def _record(self, number: int, models: RoundModels[Arrays]) -> dict[str, Any]:
        # Where this stops the run, the round has no line: its model was never published, and an
        # evaluation of it belongs to no other.
        witnessed = self.collector.witness(
            self.sites, self.link.show, self._witness_wait(), turn=self._turn(number)
        )
        digests = digests_of(models)
        return self.collector.record(self.run_id, number, digests, witnessed, self._used)
