"""The state machine of the coordinator's journal, and what it says about the sites' ledgers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from privet.privacy.audit.verify.cost.plans import AuditedPlan
from privet.privacy.audit.verify.formats.lines import AuditedReceipt
from privet.privacy.audit.verify.formats.roster import AuditedMember
from privet.privacy.audit.verify.formats.rows import EntryRow, Problem
from privet.privacy.audit.verify.formats.schema import NOT_NOW, TRACELESS
from privet.privacy.audit.verify.formats.strict import Malformed
from privet.privacy.audit.verify.formats.tree import inclusion_root
from privet.privacy.audit.verify.result import NEW_RULE, count, count_are, show
from privet.privacy.audit.verify.rules.log import AuditedLog
from privet.privacy.audit.verify.rules.lot import drawn
from privet.privacy.audit.verify.rules.orders import OrderOutcome
from privet.privacy.audit.verify.rules.state import VerificationState


@dataclass
class AuditedRun:
    """A run of this coordinator.

    Attributes:
        plan_name, plan: digest of its plan, and the plan if it is here.
        sites: that take part.
        model, shown: digests of the models that the last round made and published.
        rounds: that it had.
        how: it ended, ``done`` or ``failed``; empty while it is open.
        broken: its last round joined nothing.
        listed: orders of its last round.
        not_now: those of a last round that joined nothing, whose sites said ``not-now``.
        at: place of its last round in the journal.
        heads: of the sites that released in its last round: log, size and root as witnessed.
        sizes: of all logs that its last round had witnessed.
        off_lot: rounds of which a log lacks cosignatures of the sites that the lot named.
    """

    plan_name: str
    plan: AuditedPlan | None
    sites: list[str]
    model: str
    shown: str
    rounds: int = 0
    how: str = ""
    broken: bool = False
    listed: list[OrderOutcome] = field(default_factory=list)
    not_now: list[OrderOutcome] = field(default_factory=list)
    at: int = -1
    heads: list[tuple[str, int, str]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    off_lot: list[int] = field(default_factory=list)


class AuditedJournal(AuditedLog):
    """The journal; ``receipts`` lists in order whose release needs one, None: of no order here."""

    role = "journal"
    called = "coordinator"

    def __init__(self, state: VerificationState, member: AuditedMember, wanted: set[int]) -> None:
        super().__init__(state, member, wanted)
        self.runs: dict[str, AuditedRun] = {}
        #: Releases that no round used, by site, run and purpose.
        self.unused: Counter[tuple[str, str, str]] = Counter()
        self.receipts: list[OrderOutcome | None] = []
        self._closed = False
        self._last_done = -1
        #: What rounds say of the journal's own checkpoints, which stand after it.
        self._own: list[tuple[int, dict[str, Any]]] = []
        self._rules: dict[str, Callable[[dict[str, Any]], None]] = {
            "run-opened": self._run_opened, "round": self._round, "run-closed": self._run_closed,
            "run-resumed": self._run_resumed,
        }  # fmt: skip

    def apply(self, row: EntryRow) -> None:
        """Apply the rules of a journal to its next entry."""
        self._closed = row.kind == "run-closed"
        if row.kind in self._rules:
            self._rules[row.kind](row.predicate)

    # runs

    def _run_opened(self, entry: dict[str, Any]) -> None:
        """A run is opened once (``round``), for sites of ``roster`` and ``plan`` (rule 27)."""
        name, plan_name = entry["run"], entry["plan"]
        self.state.needed.add(plan_name)
        if name in self.runs:
            self.fault("round", f"run {show(name)} is opened twice")
            return
        plan, sites = self.state.plans.get(plan_name), entry["sites"]
        if self.state.runs[name].plan not in (None, plan_name):
            self.fault("plan", f"the sites have another plan for run {show(name)}")
        for site in sites:
            if site not in self.state.members or site == self.name:
                self.fault("roster", f"run {show(name)} has a site that the roster lacks")
        if plan is not None and (not sites or sites != [s for s in plan.sites if s in sites]):
            self.fault("plan", "the sites of a run must be the plan's, in its order")
        model = entry["model"]
        self.runs[name] = AuditedRun(plan_name, plan, sites, model, model)

    def _run_closed(self, entry: dict[str, Any]) -> None:
        """Rules 25 and 30 (``model``, ``round``): a run ends after its last round, with its model.

        One that is done has all rounds of its plan.
        """
        run = self.runs.get(entry["run"])
        if run is None or run.how:
            self.fault("round", f"run {show(entry['run'])} is not open")
            return
        run.how = entry["how"]
        if run.how == "done":
            self._last_done = self._here
        if run.how == "done" and run.broken:
            self.fault("round", "a run is done, and its last round joined nothing" + NEW_RULE)
        if entry["rounds"] != run.rounds:
            self.fault("round", "a run is closed with another number of rounds")
        if run.how == "done" and run.plan is not None and run.rounds != run.plan.rounds:
            self.fault("round", "a run is done with fewer rounds than its plan has")
        if entry["model"] != run.shown:
            self.fault("model", "the published model is not that of the last round")

    def _run_resumed(self, entry: dict[str, Any]) -> None:
        """Rule 26 (``round``, ``model``): a run that failed continues after its last whole round.

        The orders of a round that joined nothing are listed again by the one in its place.
        """
        run = self.runs.get(entry["run"])
        if run is None or run.how != "failed":
            self.fault("round", f"run {show(entry['run'])} is resumed, and has not failed")
            return
        if entry["rounds"] != run.rounds - run.broken:
            self.fault("round", "a run is resumed after another round than its last")
        if entry["model"] != run.model:
            self.fault("model", "a run is resumed with another model than its last")
        if run.broken:
            for asked in run.listed:
                asked.listed = False
            run.rounds, run.broken = run.rounds - 1, False
        run.how = ""

    # rounds

    def _round(self, entry: dict[str, Any]) -> None:
        """Check a round (``round``): of an open run, then its models, orders and releases."""
        run = self.runs.get(entry["run"])
        if run is None or run.how:
            self.fault("round", f"run {show(entry['run'])} is not open")
            return
        self._check_models(run, entry)
        run.rounds, run.model, run.shown = entry["round"], entry["next"], entry["shown"]
        run.listed, run.at = [], self._here
        for item in entry["orders"]:
            self._order(run, entry, item)
        self._check_releases(run, entry)
        self._check_quorum(run, entry)
        self._check_lot(run, entry)
        for item in entry["witnessed"]:
            if item["log"] == self.origin:
                self._own.append((self._here, item))
            else:
                self._witnessed(item)

    def _check_models(self, run: AuditedRun, entry: dict[str, Any]) -> None:
        """Rules 25 and 30 (``round``, ``model``): rounds count up, each begins where one ended.

        A round publishes the model that it made, unless the plan averages. A round that joined
        nothing publishes the model of the round before.
        """
        plan = run.plan
        if entry["round"] != run.rounds + 1:
            self.fault("round", "the rounds of a run must count up from 1 without a gap")
        if plan is not None and entry["round"] > plan.rounds:
            self.fault("round", "more rounds than the plan has")
        if entry["model"] != run.model:
            self.fault("model", "a round must begin with the model that the last one made")
        if plan is not None and not plan.trainings and entry["next"] != run.model:
            self.fault("model", "a run that only evaluates ends a round with another model")
        if entry["shown"] != entry["next"] and (plan is None or not plan.averages):
            message = "the published model is not the round's, and the plan does not average"
            self.fault("model", message)
        if plan is None or not plan.trainings or entry["joined"]:
            return
        if entry["metrics"]:
            self.fault("round", "a round that joined nothing publishes metrics" + NEW_RULE)
        if entry["shown"] != run.shown:
            self.fault("model", "a round that joined nothing publishes another model" + NEW_RULE)

    def _check_releases(self, run: AuditedRun, entry: dict[str, Any]) -> None:
        """Rules 20 and 24 (``round``, ``witness``): one release a site, each of it witnessed."""
        covered = {item["log"]: item["size"] for item in entry["witnessed"]}
        asked: defaultdict[tuple[str, str], list[OrderOutcome]] = defaultdict(list)
        for one in run.listed:
            asked[one.order.purpose, one.order.site].append(one)
        for purpose, items in (("train", entry["joined"]), ("evaluate", entry["metrics"])):
            taken: set[str] = set()
            for item in items:
                if item["site"] in taken:
                    self.fault("round", f"two releases of {show(item['site'])} in one list")
                taken.add(item["site"])
                self._use(item, asked[purpose, item["site"]])
                if covered.get(item["log"], 0) <= item["entry"]:
                    self.fault("witness", f"a release of {show(item['site'])} is not witnessed")

    def _check_quorum(self, run: AuditedRun, entry: dict[str, Any]) -> None:
        """Rule 30 (``round``, ``model``): a round has a quorum of releases.

        All but the last one of a run that failed, which then makes no other model.
        """
        if run.broken:
            self.fault("round", "a round follows one that joined nothing" + NEW_RULE)
        if run.plan is None:
            return
        made = len(entry["joined" if run.plan.trainings else "metrics"])
        run.broken = made == 0
        if 0 < made < run.plan.quorum:
            message = (
                f"a round of {count(made, 'release')}, and the plan asks for {run.plan.quorum}"
            )
            self.fault("round", message + NEW_RULE)
        if run.broken and entry["next"] != entry["model"]:
            self.fault("model", "a round that joined nothing made another model" + NEW_RULE)

    def _check_lot(self, run: AuditedRun, entry: dict[str, Any]) -> None:
        """Note a round of which a log lacks a quorum of the witnesses that the lot named.

        They may not have answered; then others did. It is no fault, but who chooses the round in
        which they are silent chooses the witnesses. Where there was nothing to draw from, as in the
        first round, all are asked, and more than half should have cosigned.
        """
        before, sizes = run.heads, run.sizes
        run.sizes = sizes | {one["log"]: one["size"] for one in entry["witnessed"]}
        released = {item["log"] for item in (*entry["joined"], *entry["metrics"])}
        run.heads = [
            (one["log"], one["size"], one["root"])
            for one in entry["witnessed"]
            if one["log"] in released
        ]
        count_of = run.plan.witnesses if run.plan is not None else None
        if count_of is None:
            return
        roster = self.state.roster
        for item in entry["witnessed"]:
            if sizes.get(item["log"]) == item["size"]:
                continue  # a log that did not grow keeps its witnesses
            owner = self.state.origins.get(item["log"])
            # The author of a log has no hand in its lot.
            told = [head for head in before if head[0] != item["log"]]
            others = [site.name for site in roster.sites if site.name != owner]
            named, least = others, len(roster.sites) // 2 + 1
            if told:
                named = drawn(entry["run"], entry["round"], item["log"], told, others)[:count_of]
                least = roster.quorum
            by = {roster.owners.get(one) for one in item["cosigners"]} - {owner}
            if len(by & {*named, self.name}) < min(least, len(others)):
                run.off_lot.append(entry["round"])
                return

    def _order(self, run: AuditedRun, entry: dict[str, Any], item: dict[str, Any]) -> None:
        """Rules 23 and 25 (``order``, ``model``): a listed order is here, and of this round.

        Args:
            run: that the round is of.
            entry: the round.
            item: what it says of the order.
        """
        asked = self.state.orders.get(item["order"])
        if asked is None:
            self.fault("order", f"an order for {show(item['site'])} is not in the bundle")
            return
        if asked.listed:
            self.fault("order", "an order is listed twice")
            return
        asked.listed = True
        run.listed.append(asked)
        run.not_now = [waiting for waiting in run.not_now if waiting is not asked]
        order = asked.order
        slot = (entry["run"], entry["round"], item["purpose"], item["attempt"], item["site"])
        if order[:5] != slot or order.plan != run.plan_name or order.site not in run.sites:
            self.fault("order", "a listed order is of another slot, plan or site")
        if order.model != entry[{"train": "model"}.get(order.purpose, "shown")]:
            self.fault("model", f"the order for {show(item['site'])} carries another model")
        if order.site in self.state.absent:
            return
        if item["answer"] == NOT_NOW and not entry["joined"] and not entry["metrics"]:
            run.not_now.append(asked)  # the run may be resumed, and the order asked again
            return
        self._answer(asked, item["answer"])

    def _answer(self, asked: OrderOutcome, answer: str) -> None:
        """Rule 23 (``order``): the journal and the site's ledger name the same answer.

        Args:
            asked: the order, with what the ledger says.
            answer: what the journal says.
        """
        site = show(asked.order.site)
        where = f"{site} answered {answer}"
        if asked.reserved and asked.refused is not None:
            self.fault("order", f"{site} both reserved and refused one order")
        elif asked.reserved:
            if answer == "released" and asked.release is None:
                self.fault("order", f"{where}, and its ledger has no release")
            elif answer not in ("released", "failed", "no-reply"):
                self.fault("order", f"{where}, and its ledger has a reservation")
        elif asked.refused is not None:
            if answer not in (asked.refused, "no-reply"):
                self.fault("order", f"{where}, and its ledger has another refusal")
        elif answer not in ("no-reply", "failed", *TRACELESS):
            self.fault("order", f"{where}, and its ledger has no entry")

    def _use(self, item: dict[str, Any], asked: list[OrderOutcome]) -> None:
        """Rule 24 (``release``): a used release is where the journal says.

        Args:
            item: what the round says of it.
            asked: the orders of the round for this site and purpose.
        """
        site, found = item["site"], None
        if site in self.state.absent:
            self.receipts.append(None)
            return
        for one in asked:
            if one.release is not None and one.release[:2] == (item["entry"], item["digest"]):
                found = one
        member = self.state.members.get(site)
        if found is None or member is None or item["log"] != member.log.name:
            self.fault("release", f"no such release of {show(site)} for this round")
            found = None
        else:
            found.used = True
        self.receipts.append(found)

    def _witnessed(self, item: dict[str, Any]) -> None:
        """Rule 19 (``witness``): a witnessed checkpoint is here, with exactly these cosigners."""
        owner = self.state.origins.get(item["log"])
        if owner in self.state.absent:
            return
        head = self.state.heads.get(item["log"], {}).get(item["size"])
        if owner is None or head is None or "sha256:" + head.root.hex() != item["root"]:
            self.fault("witness", "a witnessed checkpoint is not in the bundle")
            return
        head.named = head.told = True
        if list(head.cosigners) != item["cosigners"]:
            self.fault("witness", "the cosigners of a checkpoint are not those of the journal")
        if not self.state.quorum(head.cosigners, owner):
            self.fault("witness", "a witnessed checkpoint has no quorum")

    # the end

    def close(self) -> None:
        """Check the journal against the ledgers as a whole."""
        super().close()
        if self.cut:
            return
        for here, item in self._own:
            self._here = here
            self._witnessed(item)
        for run in self.runs.values():
            self._here = run.at
            for asked in run.not_now:
                self._answer(asked, NOT_NOW)
        self._here = -1
        self._note_lots()
        self._check_end()
        self._check_runs()
        self._check_orders()

    def _note_lots(self) -> None:
        for name, run in self.runs.items():
            if run.off_lot:
                self.state.findings.note(
                    f"run {show(name)}: in {count(len(run.off_lot), 'round')} of {run.rounds},"
                    f" first in round {run.off_lot[0]}, a log was cosigned by others than the lot"
                    " named: those did not answer, or were not asked"
                )

    def _check_end(self) -> None:
        """Rules 21 and 32 (``witness``): the end of a run that is done is witnessed."""
        last = self.heads.get(self.tree.size)
        if self._closed and (last is None or not self.state.quorum(last.cosigners, self.name)):
            if all(run.how == "failed" for run in self.runs.values()):
                # Its sites may be the reason why it ended. What they paid for has its orders.
                self.state.findings.note("the end of the run, which failed, is not witnessed")
            else:
                self.fault("witness", "the end of the run is not witnessed")
        elif self._last_done >= self.under_quorum():
            self.fault("witness", "the end of a run is not witnessed" + NEW_RULE)

    def _check_runs(self) -> None:
        """Rule 23 (``order``): what ledgers say of a run here answers orders that are here."""
        for name in self.runs:
            for site, entry in self.state.runs[name].without_order.items():
                self.state.findings.fault("order", "an entry's order is missing", site, entry)
        for name in sorted(self.state.runs.keys() - self.runs.keys()):
            self.state.findings.note(f"run {show(name)} is of no journal here: not checked")
        unclosed = [name for name, run in self.runs.items() if not run.how]
        if unclosed:
            more, verb = "", "is"
            if len(unclosed) > 1:
                more, verb = f" and {len(unclosed) - 1} more", "are"
            self.state.findings.note(f"run {show(unclosed[0])}{more} {verb} not closed")

    def _check_orders(self) -> None:
        """Rules 23 and 25 (``order``, ``model``): each order is listed, or of a round to come.

        Releases that no round used are counted for a note (rule 24).
        """
        for asked in self.state.orders.values():
            order = asked.order
            if asked.release is not None and not asked.used:
                self.unused[order.site, order.run, order.purpose] += 1
            if asked.listed:
                continue
            run = self.runs.get(order.run)
            if run is None or run.how == "done" or order.round != run.rounds + 1:
                self.fault("order", f"an order of run {show(order.run)} is not in the journal")
                continue
            if order.plan != run.plan_name or order.site not in run.sites:
                self.fault("order", "an order of an unfinished round is of another plan or site")
            alone = run.plan is not None and not run.plan.trainings
            if (order.purpose == "train" or alone) and order.model != run.model:
                self.fault("model", "an order of an unfinished round carries another model")
        if total := sum(self.unused.values()):
            unused = count_are(total, "release")
            self.state.findings.note(f"{unused} neither aggregated nor published (unused)")

    def receipt(self, number: int, found: AuditedReceipt | Problem) -> None:
        """Check a receipt (``receipt``): it proves that its ledger holds a release that was used.

        Args:
            number: its place among the receipts of the bundle.
            found: the receipt, or what is wrong with its line.
        """
        if isinstance(found, Problem):
            self.fault(found.rule, found.message)
            return
        if number >= len(self.receipts):
            self.fault("receipt", "a receipt too many")
            return
        asked = self.receipts[number]
        if asked is None or asked.release is None:
            return
        order, where = asked.order, f"receipt {number}"
        if (found.run, found.round, found.purpose, found.site) != (*order[:3], order.site):
            self.fault("receipt", f"{where} is of another release than the journal's next")
            return
        origin = self.state.members[order.site].log.name
        head = self.state.texts[origin].get(found.checkpoint)
        if head is None:
            self.fault("receipt", f"the checkpoint of {where} is not in the bundle")
            return
        head.named = True
        try:
            root = inclusion_root(found.place, head.size, asked.release.leaf, found.path)
        except Malformed as error:
            self.fault("receipt", f"{where}: {error}")
            return
        if found.place != asked.release.entry or root != head.root:
            self.fault("receipt", f"{where} does not prove that the release is in the ledger")
