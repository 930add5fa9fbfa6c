"""The state machine of one site's ledger."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from privet.privacy.audit.verify import accounting
from privet.privacy.audit.verify.budget import AuditedCharge
from privet.privacy.audit.verify.events import NON_PRIVATE, Event, read_event
from privet.privacy.audit.verify.orders import NONE, REFUSED, RESERVED
from privet.privacy.audit.verify.plans import AuditedPlan
from privet.privacy.audit.verify.registered import AuditedPopulation, RegisteredLog
from privet.privacy.audit.verify.result import NEW_RULE, SiteFinding, count, show
from privet.privacy.audit.verify.roster import AuditedMember
from privet.privacy.audit.verify.state import VerificationState
from privet.privacy.audit.verify.strict import Malformed, read

_MOST_EVENTS = 20_000


@dataclass
class Slot:
    """The latest reservation of one run and purpose; ``state`` is open, done or aborted."""

    place: tuple[int, int]
    order: str
    state: str = "open"


@dataclass
class AuditedReservation:
    """An open reservation."""

    population: AuditedPopulation | None
    order: str
    purpose: str
    charge: AuditedCharge
    slot: Slot
    index: int


class AuditedLedger(RegisteredLog):
    """A site's ledger; :meth:`apply` takes its entries in turn."""

    def __init__(self, case: VerificationState, member: AuditedMember, wanted: set[int]) -> None:
        super().__init__(case, member, wanted)
        self._paused = self._withdrawn = False
        self._begun: dict[str, tuple[str, str, str]] = {}
        #: The entries that charge a population.
        self.charged = array("q")
        #: Releases by population, run (None: no order of it is here), purpose and event.
        self.released: Counter[tuple[str, str | None, str, Event]] = Counter()
        #: Entries that answer orders of another key than the roster's, by key.
        self._elsewhere: Counter[str] = Counter()
        #: Reservations whose charge was given back.
        self.given_back: set[int] = set()
        self._gate_before = 0
        self._other_code: set[tuple[str, str]] = set()
        self._open: dict[int, AuditedReservation] = {}
        self._slots: dict[tuple[str, str], Slot] = {}
        self._events: dict[str, Event] = {}
        self._fits: dict[tuple[str, str], str | None] = {}
        self._rules: dict[str, Callable[..., None]] = {
            "reserved": self._reserved, "refused": self._refused, "aborted": self._aborted,
            "released": self._released, "metric-released": self._metric_released,
        }  # fmt: skip

    def apply(
        self, kind: str, values: tuple[Any, ...] | None, predicate: dict[str, Any] | None,
        hashed: bytes,
    ) -> None:  # fmt: skip
        """Apply the rules of a ledger to its next entry."""
        if self._withdrawn and kind != "aborted":
            self.fault("sequence", "after 'withdrawn' nothing follows but 'aborted'")
        if values is not None:
            if kind in ("released", "metric-released"):
                self._rules[kind](hashed, *values)
            else:
                self._rules[kind](*values)
        elif predicate is not None:
            if kind in ("paused", "resumed"):
                self._paused = kind == "paused"
            self._withdrawn = self._withdrawn or kind == "withdrawn"
            self.register(kind, predicate)

    def _event(self, place: int) -> Event:
        """Return the event of the batch's text at ``place``."""
        text = self._texts[place]
        event = self._events.get(text)
        if event is None:
            try:
                event = read_event(read(text.encode())) if text else Event(NON_PRIVATE)
            except Malformed:
                event = Event(NON_PRIVATE)
            if len(self._events) >= _MOST_EVENTS:
                self.fault("event", "more different events than a verifier keeps")
                return Event(NON_PRIVATE)
            self._events[text] = event
        return event

    # reservations

    def _reserved(
        self, population: str, data_set: str, run: str, round_: int, attempt: int, purpose: str,
        order: str, keyid: str, plan: str, model: str, code: str, event_place: int,
    ) -> None:  # fmt: skip
        owner = self.owner(population, data_set, plan)
        if self._paused:
            self.fault("reservation", "a reservation while the site is paused")
        event = self._event(event_place)
        known = self._check_plan(plan, owner, purpose, round_, event)
        self.check_policy(plan, owner, data_set, keyid)
        first = self._begun.get(run)
        if self._order_keys.is_replaced(keyid) and (first is None or first[0] != keyid):
            self.fault("policy", "a new run under an order key that another one follows")
        begun = self._begun.setdefault(run, (keyid, population, data_set))
        if begun[0] != keyid:
            self.fault("reservation", f"run {show(run)} was begun by another coordinator")
        if begun[1:] != (population, data_set):
            message = f"run {show(run)} was begun on another population or data set"
            self.fault("population", message + NEW_RULE)
        self._note_code(run, code)
        index = NONE
        if self._is_asked_here(keyid):
            self._check_run(run, plan, code)
            index = self._check_order(run, round_, attempt, purpose, order, plan, model, RESERVED)
        slot = self._take_slot(run, purpose, (round_, attempt), order)
        charge = AuditedCharge(run, purpose, event, known)
        self.charged.append(self._here)
        if owner is not None:
            owner.budget.add(self._here, charge)
        self._open[self._here] = AuditedReservation(owner, order, purpose, charge, slot, index)

    def _take_slot(self, run: str, purpose: str, place: tuple[int, int], order: str) -> Slot:
        last = self._slots.get((run, purpose))
        if last is not None and place < last.place:
            self.fault("reservation", "the slots of a run go back")
        elif last is not None and place == last.place:
            if order != last.order:
                self.fault("reservation", "a slot is reserved again for another order")
            if last.state != "aborted":
                self.fault("reservation", "a slot is reserved again that was not aborted")
        slot = self._slots[run, purpose] = Slot(place, order)
        return slot

    def _check_plan(
        self, name: str, owner: AuditedPopulation | None, purpose: str, round_: int, event: Event
    ) -> AuditedPlan | None:
        """Return the plan if it fixes this charge."""
        self.case.needed.add(name)
        plan = self.case.plans.get(name)
        if plan is None:
            return None
        where = (name, "" if owner is None else owner.name)
        if where not in self._fits:
            self._fits[where] = self._misfit(plan, owner)
        if (misfit := self._fits[where]) is not None:
            self.fault("plan", misfit)
        if not plan.has(purpose, round_):
            self.fault("plan", f"the plan has no '{purpose}' in round {round_}")
        if purpose == "evaluate" and event == plan.evaluate_before != plan.evaluate:
            self._gate_before += 1
        elif event != plan.event(purpose):
            self.fault("event", "the event is not the one that the plan fixes")
            return None
        return plan

    def _misfit(self, plan: AuditedPlan, owner: AuditedPopulation | None) -> str | None:
        if self.name not in plan.sites:
            return "the plan does not name the site"
        if owner is None:
            return None
        if self.case.may_compose(plan) and plan.overspends:
            return "the plan costs more than the epsilon that it asks for" + NEW_RULE
        size, delta = plan.sizes.get(self.name), owner.terms.delta
        if plan.budget is not None and size is not None and delta * size > 1:
            self.case.findings.note(
                f"{self.name}: delta {delta:g} of population {show(owner.name)} is above one in"
                f" {size}, the nominal size: it allows to let out one record whole"
            )
        return plan.misfit(owner.terms)

    def _is_asked_here(self, keyid: str) -> bool:
        """Whether an order came from the coordinator of the roster; others are counted."""
        own = keyid == self.case.roster.orders_keyid
        if not own:
            self._elsewhere[keyid] += 1
        return own

    def _check_run(self, run: str, plan: str, code: str) -> None:
        """Compare a run's plan and code with what they are elsewhere in the bundle."""
        seen = self.case.run(run)
        seen.plan, seen.code = seen.plan or plan, seen.code or code
        if seen.plan != plan:
            self.fault("plan", f"run {show(run)} has another plan than elsewhere")
        if seen.code != code:
            self.fault("code", f"run {show(run)} runs other code than elsewhere")

    def _note_code(self, run: str, code: str) -> None:
        """Keep which code a run names; where codes are pinned it must be one of them."""
        found = self.case.findings.code
        found.runs.setdefault(run, set()).add(code)
        if found.pinned and code not in found.pinned and (run, code) not in self._other_code:
            self._other_code.add((run, code))
            self.fault(
                "code",
                f"run {show(run)} runs code {code}, which is none of those pinned. It is the digest"
                " of Privet, of what the plan names and of the libraries' versions, as installed at"
                " the sites: was yours computed in an install like theirs?",
            )

    def _check_order(
        self, run: str, round_: int, attempt: int, purpose: str, order: str, plan: str, model: str,
        flag: int,
    ) -> int:  # fmt: skip
        """Compare an entry with its order; return the order's place."""
        orders = self.case.orders
        index = orders.find_text(order)
        if index == NONE:
            self.case.run(run).without_order.setdefault(self.name, self._here)
            return NONE
        if orders.get(index)[:7] != (run, round_, purpose, attempt, self.name, plan, model):
            self.fault("order", "the entry is not what its order asked for")
        orders.state[index] |= flag
        return index

    def _refused(
        self, run: str, round_: int, attempt: int, purpose: str, order: str, keyid: str, plan: str,
        model: str, status: str,
    ) -> None:  # fmt: skip
        self.case.referred.add(plan)
        if not self._is_asked_here(keyid):
            return
        index = self._check_order(run, round_, attempt, purpose, order, plan, model, REFUSED)
        if index != NONE:
            orders = self.case.orders
            number = orders.texts.add(status)
            if orders.status[index] not in (NONE, number):
                self.fault("order", "an order is refused with two statuses")
            orders.status[index] = number

    def _close(self, reservation: int, rule: str) -> AuditedReservation | None:
        found = self._open.pop(reservation, None)
        if found is None:
            self.fault(rule, f"there is no open reservation {reservation}")
        return found

    def _metric_released(
        self, hashed: bytes, reservation: int, order: str, digest: str, reproducible: bool,
        event_place: int,
    ) -> None:  # fmt: skip
        self._released(hashed, reservation, order, digest, reproducible, event_place, "evaluate")

    def _released(
        self, hashed: bytes, reservation: int, order: str, digest: str, reproducible: bool,
        event_place: int, purpose: str = "train",
    ) -> None:  # fmt: skip
        event = self._event(event_place)
        found = self._close(reservation, "release")
        if found is None:
            return
        found.slot.state = "done"
        if found.order != order:
            self.fault("release", "a release of another order than was reserved")
        if found.purpose != purpose:
            self.fault("release", f"'{found.purpose}' is released as another kind")
        if not found.charge.event.covers(event):
            self.fault("event", "the event that ran is not the reserved one, or more of it")
        name = "" if found.population is None else found.population.name
        # What another coordinator asked for, no journal here can account for.
        run = found.charge.run if found.index != NONE else None
        self.released[name, run, purpose, event] += 1
        if event.mechanism != NON_PRIVATE and not reproducible:
            self._check_once(digest)
        if found.index != NONE:
            self.case.orders.released(found.index, self._here, digest, hashed)

    def _check_once(self, digest: str) -> None:
        """No two noised releases are the same, unless one was copied."""
        # Half a digest in an integer: a bundle may hold a million releases.
        short = int.from_bytes(hashlib.sha256(digest.encode()).digest()[:16])
        if short in self.case.releases:
            other = self.case.releases[short]
            self.fault("release", f"the release is the same as another of {other}" + NEW_RULE)
        self.case.releases[short] = self.name

    def _aborted(self, reservation: int, data_opened: bool, reason: str) -> None:
        found = self._close(reservation, "reservation")
        if found is None:
            return
        found.slot.state = "aborted"
        if reason == "does-not-fit" and not data_opened:
            message = "what ran is said not to fit its reservation, and no data to be opened"
            self.fault("reservation", message + NEW_RULE)
        if not data_opened:
            self.given_back.add(reservation)
        if not data_opened and found.population is not None:
            found.population.budget.add(self._here, found.charge, -1)

    # the end

    def close(self) -> None:
        """Finish the accounting of every population."""
        super().close()
        self._note_elsewhere()
        if self._gate_before:
            found = count(self._gate_before, "evaluation")
            self.case.findings.note(
                f"{self.name}: {found} charged as continuous Gaussian noise, by the metrics gate as"
                " it was before it had integer weights: epsilon holds in real arithmetic only, the"
                " low bits of those tables may tell more (H15)"
            )
        if returned := len(self.given_back):
            verb = "was" if returned == 1 else "were"
            self.case.findings.note(
                f"{self.name}: {count(returned, 'charge')} {verb} given back, on its word"
                " that no record had been read"
            )
        if self._open and not self.cut:
            found = count(len(self._open), "reservation")
            self.case.findings.note(f"{self.name}: {found} left open")
        if self.other_ledgers:
            self.case.findings.note(
                f"{self.name}: states that other ledgers keep a budget of the same people"
                f" ({', '.join(self.other_ledgers)}): what they spent is not in epsilon (H32)"
            )
        for population in self.populations.values():
            self.case.findings_of_sites.append(self._finding(population))

    def _note_elsewhere(self) -> None:
        """Say how many entries answer orders that no journal here accounts for."""
        own, counts = self.case.roster.orders_keyid, {"another": 0, "another order key of this": 0}
        for keyid, number in self._elsewhere.items():
            kin = self._order_keys.are_kin(keyid, own)
            counts["another order key of this" if kin else "another"] += number
        for whose, number in counts.items():
            if number:
                answer = "entry answers" if number == 1 else "entries answer"
                self.case.findings.note(
                    f"{self.name}: {number} {answer} {whose} coordinator: charged, and"
                    " not compared with its orders"
                )

    def _finding(self, population: AuditedPopulation) -> SiteFinding:
        budget = population.budget
        if budget.fault is not None:
            entry, message = budget.fault
            self._here = entry
            self.fault("cap", f"population {show(population.name)}: {message}")
            self._here = -1
        events = [Event(e.mechanism, e.count * n) for e, n in budget.counts.items()]
        if self.unread:
            # Each of them may be a charge.
            value = ceiling = math.inf
            remark = f"not known: {self.unread} of the entries cannot be read"
        else:
            value, ceiling, remark = self.case.compositions.epsilon(
                events, budget.delta, budget.relation
            )
        if remark:
            self.case.findings.note(f"{self.name}: epsilon of {show(population.name)} is {remark}")
        if not self.unread and accounting.contradict(value, ceiling, events):
            self.fault("accounting", "the epsilon of the distributions is above the Renyi ceiling")
        return SiteFinding(
            self.name, population.name, population.terms.unit, budget.relation, budget.delta,
            None if math.isinf(value) else value, budget.cap, self.tree.size,
            charges=budget.charges, runs=budget.runs,
            conditional=("H29",) * (budget.runs > 1) + ("H32",) * bool(self.other_ledgers),
            enforced_by=budget.enforced_by,
            rdp_epsilon=None if math.isinf(ceiling) else ceiling,
        )  # fmt: skip
