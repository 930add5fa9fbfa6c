"""The state machine of the coordinator's journal, and what it says about the sites' ledgers."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from privet.privacy.audit.verify.lines import AuditedOrder, AuditedReceipt, Problem
from privet.privacy.audit.verify.log import AuditedLog
from privet.privacy.audit.verify.orders import (
    LISTED,
    NONE,
    REFUSED,
    RELEASED,
    RESERVED,
    USED,
)
from privet.privacy.audit.verify.plans import AuditedPlan
from privet.privacy.audit.verify.result import NEW_RULE, count, show
from privet.privacy.audit.verify.roster import AuditedMember
from privet.privacy.audit.verify.schema import NOT_NOW, TRACELESS
from privet.privacy.audit.verify.state import VerificationState
from privet.privacy.audit.verify.strict import Malformed
from privet.privacy.audit.verify.tree import inclusion_root


@dataclass
class AuditedRun:
    """A run of this coordinator; ``broken``: its last round joined nothing."""

    plan_name: str
    plan: AuditedPlan | None
    sites: list[str]
    model: str
    shown: str
    rounds: int = 0
    how: str = ""
    broken: bool = False
    #: Of a last round that joined nothing: the places of its orders, and who said not-now.
    listed: list[int] = field(default_factory=list)
    not_now: list[tuple[int, AuditedOrder]] = field(default_factory=list)
    at: int = -1


#: Places of a round's orders, by purpose and site.
Places = dict[tuple[str, str], list[int]]


class AuditedJournal(AuditedLog):
    """The journal; ``receipts`` lists the places of the orders that need one, in order."""

    role = "journal"
    called = "coordinator"

    def __init__(self, case: VerificationState, member: AuditedMember, wanted: set[int]) -> None:
        super().__init__(case, member, wanted)
        self.runs: dict[str, AuditedRun] = {}
        #: Releases that no round used, by site, run and purpose.
        self.unused: Counter[tuple[str, str, str]] = Counter()
        self._closed = False
        self._last_done = -1
        self.receipts = array("I")
        self._own: list[tuple[int, dict[str, Any]]] = []
        self._rules: dict[str, Callable[[dict[str, Any]], None]] = {
            "run-opened": self._run_opened, "round": self._round, "run-closed": self._run_closed,
            "run-resumed": self._run_resumed,
        }  # fmt: skip

    def apply(
        self, kind: str, values: tuple[Any, ...] | None, predicate: dict[str, Any] | None,
        hashed: bytes,
    ) -> None:  # fmt: skip
        """Apply the rules of a journal to its next entry."""
        self._closed = kind == "run-closed"
        if predicate is not None and kind in self._rules:
            self._rules[kind](predicate)

    def _run_opened(self, entry: dict[str, Any]) -> None:
        name, plan_name = entry["run"], entry["plan"]
        self.case.needed.add(plan_name)
        if name in self.runs:
            self.fault("round", f"run {show(name)} is opened twice")
            return
        plan, sites = self.case.plans.get(plan_name), entry["sites"]
        seen = self.case.run(name)
        if seen.plan not in (None, plan_name):
            self.fault("plan", f"the sites have another plan for run {show(name)}")
        for site in sites:
            if site not in self.case.members or site == self.name:
                self.fault("roster", f"run {show(name)} has a site that the roster lacks")
        if plan is not None and (not sites or sites != [s for s in plan.sites if s in sites]):
            self.fault("plan", "the sites of a run must be the plan's, in its order")
        model = entry["model"]
        self.runs[name] = AuditedRun(plan_name, plan, sites, model, model)

    def _round(self, entry: dict[str, Any]) -> None:
        run = self.runs.get(entry["run"])
        if run is None or run.how:
            self.fault("round", f"run {show(entry['run'])} is not open")
            return
        if entry["round"] != run.rounds + 1:
            self.fault("round", "the rounds of a run must count up from 1 without a gap")
        if run.plan is not None and entry["round"] > run.plan.rounds:
            self.fault("round", "more rounds than the plan has")
        run.rounds = entry["round"]
        if entry["model"] != run.model:
            self.fault("model", "a round must begin with the model that the last one made")
        if run.plan is not None and not run.plan.trainings and entry["next"] != run.model:
            self.fault("model", "a run that only evaluates ends a round with another model")
        averages = run.plan is not None and run.plan.averages
        if entry["shown"] != entry["next"] and not averages:
            self.fault("model", "the model shown is not the round's, and the plan does not average")
        if not entry["joined"] and run.plan is not None and run.plan.trainings:
            if entry["metrics"]:
                self.fault("round", "a round that joined nothing shows figures" + NEW_RULE)
            if entry["shown"] != run.shown:
                self.fault("model", "a round that joined nothing shows another model" + NEW_RULE)
        run.model, run.shown = entry["next"], entry["shown"]
        here: Places = {}
        run.listed, run.at = [], self._here
        for item in entry["orders"]:
            self._order(run, entry, item, here)
        covered = {item["log"]: item["size"] for item in entry["witnessed"]}
        for purpose in ("train", "evaluate"):
            taken: set[str] = set()
            for item in entry["joined" if purpose == "train" else "metrics"]:
                if item["site"] in taken:
                    self.fault("round", f"two releases of {show(item['site'])} in one list")
                taken.add(item["site"])
                self._use(purpose, item, here)
                if covered.get(item["log"], 0) <= item["entry"]:
                    self.fault("witness", f"a release of {show(item['site'])} is not witnessed")
        self._check_quorum(run, entry)
        for item in entry["witnessed"]:
            if item["log"] == self.origin:
                self._own.append((self._here, item))
            else:
                self._witnessed(item)

    def _check_quorum(self, run: AuditedRun, entry: dict[str, Any]) -> None:
        """A round has a quorum of releases, but for the last one of a run that failed."""
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

    def _order(
        self, run: AuditedRun, entry: dict[str, Any], item: dict[str, Any], here: Places
    ) -> None:  # fmt: skip
        orders, place = self.case.orders, self.case.orders.find_text(item["order"])
        if place == NONE:
            self.fault("order", f"an order for {show(item['site'])} is not in the bundle")
            return
        if orders.state[place] & LISTED:
            self.fault("order", "an order is listed twice")
            return
        orders.state[place] |= LISTED
        run.listed.append(place)
        run.not_now = [waiting for waiting in run.not_now if waiting[0] != place]
        order = orders.get(place)
        slot = (entry["run"], entry["round"], item["purpose"], item["attempt"], item["site"])
        if order[:5] != slot or order.plan != run.plan_name or order.site not in run.sites:
            self.fault("order", "a listed order is of another slot, plan or site")
        if order.model != entry["model" if order.purpose == "train" else "shown"]:
            self.fault("model", f"the order for {show(item['site'])} carries another model")
        here.setdefault((order.purpose, order.site), []).append(place)
        if order.site in self.case.absent:
            return
        if item["answer"] == NOT_NOW and not entry["joined"] and not entry["metrics"]:
            run.not_now.append((place, order))  # the run may be resumed, and the order asked again
            return
        self._answer(place, item["answer"], order)

    def _answer(self, place: int, answer: str, order: AuditedOrder) -> None:
        state, status = self.case.orders.state[place], self.case.orders.status[place]
        where = f"{show(order.site)} answered {answer}"
        if state & RESERVED and state & REFUSED:
            self.fault("order", f"{show(order.site)} both reserved and refused one order")
        elif state & RESERVED:
            if answer == "released" and not state & RELEASED:
                self.fault("order", f"{where}, and its ledger has no release")
            elif answer not in ("released", "failed", "no-reply"):
                self.fault("order", f"{where}, and its ledger has a reservation")
        elif state & REFUSED:
            if answer not in (self.case.orders.texts.text[status], "no-reply"):
                self.fault("order", f"{where}, and its ledger has another refusal")
        elif answer not in ("no-reply", "failed", *TRACELESS):
            self.fault("order", f"{where}, and its ledger has no entry")

    def _use(self, purpose: str, item: dict[str, Any], here: Places) -> None:
        """Check that a joined or shown release stands where the journal says."""
        orders, site = self.case.orders, item["site"]
        if site in self.case.absent:
            self.receipts.append(NONE)
            return
        wanted = bytes.fromhex(item["digest"][7:])
        found = NONE
        for place in here.get((purpose, site), ()):
            same = orders.release[32 * place : 32 * place + 32] == wanted
            if orders.state[place] & RELEASED and orders.entry[place] == item["entry"] and same:
                found = place
        member = self.case.members.get(site)
        if found == NONE or member is None or item["log"] != member.log.name:
            self.fault("release", f"no such release of {show(site)} for this round")
            found = NONE
        else:
            orders.state[found] |= USED
        self.receipts.append(found)

    def _witnessed(self, item: dict[str, Any]) -> None:
        """Check that a witnessed checkpoint is here, with exactly these cosigners."""
        owner = self.case.origins.get(item["log"])
        if owner in self.case.absent:
            return
        head = self.case.heads.get(item["log"], {}).get(item["size"])
        if owner is None or head is None or "sha256:" + head.root.hex() != item["root"]:
            self.fault("witness", "a witnessed checkpoint is not in the bundle")
            return
        head.named = head.told = True
        if list(head.cosigners) != item["cosigners"]:
            self.fault("witness", "the cosigners of a checkpoint are not those of the journal")
        if not self.case.quorum(head.cosigners, owner):
            self.fault("witness", "a witnessed checkpoint has no quorum")

    def _run_closed(self, entry: dict[str, Any]) -> None:
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
            self.fault("model", "the published model is not the last one shown")

    def _run_resumed(self, entry: dict[str, Any]) -> None:
        """A run that failed goes on after its last round that joined anything.

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
            for place in run.listed:
                self.case.orders.state[place] &= ~LISTED
            run.rounds, run.broken = run.rounds - 1, False
        run.how = ""

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
            for place, order in run.not_now:
                self._answer(place, NOT_NOW, order)
        self._here = -1
        last = self.heads.get(self.tree.size)
        if self._closed and (last is None or not self.case.quorum(last.cosigners, self.name)):
            if all(run.how == "failed" for run in self.runs.values()):
                # Its sites may be the reason why it ended. What they paid for has its orders.
                self.case.findings.note("the end of the run, which failed, is not witnessed")
            else:
                self.fault("witness", "the end of the run is not witnessed")
        elif self._last_done >= self._quorum_upto():
            self.fault("witness", "the end of a run is not witnessed" + NEW_RULE)
        unclosed: list[str] = []
        for name, run in self.runs.items():
            if not run.how:
                unclosed.append(name)
            for site, entry in self.case.run(name).without_order.items():
                self.case.findings.fault("order", "an entry's order is missing", site, entry)
        for name in self.case.runs.keys() - self.runs.keys():
            self.case.findings.note(f"run {show(name)} is of no journal here: not checked")
        if unclosed:
            more = f" and {len(unclosed) - 1} more" if len(unclosed) > 1 else ""
            verb = "are" if more else "is"
            self.case.findings.note(f"run {show(unclosed[0])}{more} {verb} not closed")
        self._check_orders()

    def _quorum_upto(self) -> int:
        """Return how many entries stand under a head with as many cosigners as the roster asks."""
        held = [n for n, head in self.heads.items() if self.case.quorum(head.cosigners, self.name)]
        return max(held, default=0)

    def _check_orders(self) -> None:
        orders = self.case.orders
        unused: Counter[tuple[str, str, str]] = Counter()
        for place, state in enumerate(orders.state):
            if state & RELEASED and not state & USED:
                order = orders.get(place)
                unused[order.site, order.run, order.purpose] += 1
            if state & LISTED:
                continue
            order = orders.get(place)
            run = self.runs.get(order.run)
            if run is None or run.how == "done" or order.round != run.rounds + 1:
                self.fault("order", f"an order of run {show(order.run)} is not in the journal")
                continue
            if order.plan != run.plan_name or order.site not in run.sites:
                self.fault("order", "an order of an unfinished round is of another plan or site")
            alone = run.plan is not None and not run.plan.trainings
            if (order.purpose == "train" or alone) and order.model != run.model:
                self.fault("model", "an order of an unfinished round carries another model")
        if unused:
            total = sum(unused.values())
            verb = "is" if total == 1 else "are"
            self.case.findings.note(
                f"{count(total, 'release')} {verb} neither joined nor shown (unused)"
            )
        self.unused = unused

    def receipt(self, number: int, found: AuditedReceipt | Problem) -> None:
        """Check receipt ``number`` of the bundle."""
        if isinstance(found, Problem):
            self.fault(found.rule, found.message)
            return
        if number >= len(self.receipts):
            self.fault("receipt", "a receipt too many")
            return
        place = self.receipts[number]
        if place == NONE:
            return
        orders, order = self.case.orders, self.case.orders.get(place)
        where = f"receipt {number}"
        if (found.run, found.round, found.purpose, found.site) != (*order[:3], order.site):
            self.fault("receipt", f"{where} is of another release than the journal's next")
            return
        origin = self.case.members[order.site].log.name
        heads, match = self.case.heads[origin], self.case.texts[origin].get(found.checkpoint)
        if match is None:
            self.fault("receipt", f"the checkpoint of {where} is not in the bundle")
            return
        heads[match].named = True
        try:
            leaf = bytes(orders.leaf[32 * place : 32 * place + 32])
            root = inclusion_root(found.place, match, leaf, found.path)
        except Malformed as error:
            self.fault("receipt", f"{where}: {error}")
            return
        if found.place != orders.entry[place] or root != heads[match].root:
            self.fault("receipt", f"{where} does not prove that the release is in the ledger")
