"""The state machine of one site's ledger."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from privet.privacy.audit.verify.cost import accounting
from privet.privacy.audit.verify.cost.budget import AuditedCharge
from privet.privacy.audit.verify.formats.events import NON_PRIVATE, Event, read_event
from privet.privacy.audit.verify.formats.roster import AuditedMember
from privet.privacy.audit.verify.formats.rows import (
    AbortedRow,
    EntryRow,
    RefusedRow,
    ReleasedRow,
    ReservedRow,
)
from privet.privacy.audit.verify.formats.strict import Malformed, read
from privet.privacy.audit.verify.result import NEW_RULE, SiteFinding, count, count_are, finite, show
from privet.privacy.audit.verify.rules.orders import OrderOutcome, OrderRelease
from privet.privacy.audit.verify.rules.registered import AuditedPopulation, RegisteredLog
from privet.privacy.audit.verify.rules.state import VerificationState

_MAX_EVENTS = 20_000


@dataclass
class Slot:
    """The latest reservation of one run and purpose; ``state`` is open, done or aborted."""

    place: tuple[int, int]
    order: str
    state: str = "open"


@dataclass
class AuditedReservation:
    """An open reservation.

    Attributes:
        population: whose budget it charges; None if it is not registered.
        order: digest of the order that it answers.
        purpose: of the order.
        charge: what it costs.
        slot: that it takes.
        asked: the order with this digest; None if it is not of this coordinator, or not here.
    """

    population: AuditedPopulation | None
    order: str
    purpose: str
    charge: AuditedCharge
    slot: Slot
    asked: OrderOutcome | None


class AuditedLedger(RegisteredLog):
    """A site's ledger; :meth:`apply` takes its entries in turn."""

    def __init__(self, state: VerificationState, member: AuditedMember, wanted: set[int]) -> None:
        super().__init__(state, member, wanted)
        self._paused = self._withdrawn = False
        #: Order key, population and data set with which each run was begun.
        self._begun: dict[str, tuple[str, str, str]] = {}
        #: The entries that charge a population.
        self.charged = array("q")
        #: Releases by population, run (None: no order of it is here), purpose and event.
        self.released: Counter[tuple[str, str | None, str, Event]] = Counter()
        #: Entries that answer orders of another key than the roster's, by key.
        self._elsewhere: Counter[str] = Counter()
        #: Reservations whose charge was given back.
        self.given_back: set[int] = set()
        self._other_code: set[tuple[str, str]] = set()
        self._open: dict[int, AuditedReservation] = {}
        self._slots: dict[tuple[str, str], Slot] = {}
        self._events: dict[str, Event] = {}
        self._rules: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
            "reserved": (ReservedRow, self._reserved), "refused": (RefusedRow, self._refused),
            "released": (ReleasedRow, self._released), "aborted": (AbortedRow, self._aborted),
            "metric-released": (ReleasedRow, self._metric_released),
        }  # fmt: skip

    def apply(self, row: EntryRow) -> None:
        """Apply the rules of a ledger to its next entry; rule 1 (``sequence``) ends one."""
        if self._withdrawn and row.kind != "aborted":
            self.fault("sequence", "after 'withdrawn' nothing follows but 'aborted'")
        if row.kind in self._rules:
            fields, rule = self._rules[row.kind]
            rule(fields._make(row.pick(fields._fields)))
            return
        if row.kind in ("paused", "resumed"):
            self._paused = row.kind == "paused"
        self._withdrawn = self._withdrawn or row.kind == "withdrawn"
        self.register(row.kind, row.predicate)

    def _event(self, text: str) -> Event:
        """Return the event of a text (``event``); a malformed one is not private."""
        event = self._events.get(text)
        if event is None:
            try:
                event = read_event(read(text.encode())) if text else Event(NON_PRIVATE)
            except Malformed:
                event = Event(NON_PRIVATE)
            if len(self._events) >= _MAX_EVENTS:
                self.fault("event", "more different events than a verifier keeps")
                return Event(NON_PRIVATE)
            self._events[text] = event
        return event

    # reservations

    def _reserved(self, entry: ReservedRow) -> None:
        """Rule 3 (``reservation``): nothing is reserved in a pause; then it is charged (rule 6)."""
        owner = self.owner(entry)
        if self._paused:
            self.fault("reservation", "a reservation while the site is paused")
        event = self._event(entry.event)
        known = self.check_plan(entry, owner, event)
        self.check_policy(entry, owner)
        self._check_begun(entry)
        self._note_code(entry.run, entry.code)
        asked = None
        if self._is_asked_here(entry.keyid):
            self._check_same(entry)
            asked = self._find_order(entry)
        if asked is not None:
            asked.reserved = True
        slot = self._take_slot(entry)
        charge = AuditedCharge(entry.run, entry.purpose, event, known)
        self.charged.append(self._here)
        if owner is not None:
            owner.budget.add(self._here, charge)
        self._open[self._here] = AuditedReservation(
            owner, entry.order, entry.purpose, charge, slot, asked
        )

    def _check_begun(self, entry: ReservedRow) -> None:
        """Rules 3 and 18: a run has one order key (``reservation``) and one ``population``.

        It begins under a key that no other one follows (``policy``).
        """
        keyid, run = entry.keyid, entry.run
        first = self._begun.get(run)
        if self._order_keys.is_replaced(keyid) and (first is None or first[0] != keyid):
            self.fault("policy", "a new run under an order key that another one follows")
        begun = self._begun.setdefault(run, (keyid, entry.population, entry.data_set))
        if begun[0] != keyid:
            self.fault("reservation", f"run {show(run)} was begun by another coordinator")
        if begun[1:] != (entry.population, entry.data_set):
            message = f"run {show(run)} was begun on another population or data set"
            self.fault("population", message + NEW_RULE)

    def _take_slot(self, entry: ReservedRow) -> Slot:
        """Rule 3 (``reservation``): slots of a run and purpose do not go back.

        One is taken again only for the same order, after it was aborted.
        """
        place, last = (entry.round, entry.attempt), self._slots.get((entry.run, entry.purpose))
        if last is not None and place < last.place:
            self.fault("reservation", "the slots of a run go back")
        elif last is not None and place == last.place:
            if entry.order != last.order:
                self.fault("reservation", "a slot is reserved again for another order")
            if last.state != "aborted":
                self.fault("reservation", "a slot is reserved again that was not aborted")
        slot = self._slots[entry.run, entry.purpose] = Slot(place, entry.order)
        return slot

    def _is_asked_here(self, keyid: str) -> bool:
        """Whether an order came from the coordinator of the roster; others are counted."""
        own = keyid == self.state.roster.orders_keyid
        if not own:
            self._elsewhere[keyid] += 1
        return own

    def _check_same(self, entry: ReservedRow) -> None:
        """Rule 27: a run has one ``plan`` and one ``code``, at all sites."""
        seen = self.state.runs[entry.run]
        seen.plan, seen.code = seen.plan or entry.plan, seen.code or entry.code
        if seen.plan != entry.plan:
            self.fault("plan", f"run {show(entry.run)} has another plan than elsewhere")
        if seen.code != entry.code:
            self.fault("code", f"run {show(entry.run)} runs other code than elsewhere")

    def _note_code(self, run: str, code: str) -> None:
        """Keep which code a run names; where codes are pinned it is one of them (``code``)."""
        found = self.state.findings.code
        found.runs.setdefault(run, set()).add(code)
        if found.pinned and code not in found.pinned and (run, code) not in self._other_code:
            self._other_code.add((run, code))
            self.fault(
                "code",
                f"run {show(run)} runs code {code}, which is none of those pinned. It is the digest"
                " of Privet, of what the plan names and of the libraries' versions, as installed at"
                " the sites: was yours computed in an install like theirs?",
            )

    def _find_order(self, entry: ReservedRow | RefusedRow) -> OrderOutcome | None:
        """Return the order that an entry answers; rule 23 (``order``): it asked for just that."""
        found = self.state.orders.get(entry.order)
        if found is None:
            self.state.runs[entry.run].without_order.setdefault(self.name, self._here)
            return None
        said = (
            entry.run, entry.round, entry.purpose, entry.attempt, self.name, entry.plan,
            entry.model,
        )  # fmt: skip
        if found.order[:7] != said:
            self.fault("order", "the entry is not what its order asked for")
        return found

    def _refused(self, entry: RefusedRow) -> None:
        """Rule 23 (``order``): an order is refused with one status."""
        self.state.referred.add(entry.plan)
        if not self._is_asked_here(entry.keyid):
            return
        asked = self._find_order(entry)
        if asked is not None:
            if asked.refused not in (None, entry.status):
                self.fault("order", "an order is refused with two statuses")
            asked.refused = entry.status

    def _close(self, reservation: int, rule: str) -> AuditedReservation | None:
        """Rules 4 and 5 (``release``, ``reservation``): what is closed was open."""
        found = self._open.pop(reservation, None)
        if found is None:
            self.fault(rule, f"there is no open reservation {reservation}")
        return found

    def _metric_released(self, entry: ReleasedRow) -> None:
        self._released(entry, "evaluate")

    def _released(self, entry: ReleasedRow, purpose: str = "train") -> None:
        """Rule 4 (``release``): it closes a reservation of its order, with its ``event`` or less.

        Args:
            entry: the release.
            purpose: for which its kind is.
        """
        event = self._event(entry.event)
        found = self._close(entry.reservation, "release")
        if found is None:
            return
        found.slot.state = "done"
        if found.order != entry.order:
            self.fault("release", "a release of another order than was reserved")
        if found.purpose != purpose:
            self.fault("release", f"'{found.purpose}' is released as another kind")
        if not found.charge.event.covers(event):
            self.fault("event", "the event that ran is not the reserved one, or more of it")
        name = "" if found.population is None else found.population.name
        # What another coordinator asked for, no journal here can account for.
        run = None if found.asked is None else found.charge.run
        self.released[name, run, purpose, event] += 1
        if event.mechanism != NON_PRIVATE and not entry.reproducible:
            self._check_once(entry.digest)
        if found.asked is not None:
            found.asked.release = OrderRelease(self._here, entry.digest, entry.leaf)

    def _check_once(self, digest: str) -> None:
        """Rule 10 (``release``): no two noised releases are the same, unless one was copied."""
        # Half a digest in an integer: a bundle may hold a million releases.
        short = int.from_bytes(hashlib.sha256(digest.encode()).digest()[:16])
        if short in self.state.releases:
            other = self.state.releases[short]
            self.fault("release", f"the release is the same as another of {other}" + NEW_RULE)
        self.state.releases[short] = self.name

    def _aborted(self, entry: AbortedRow) -> None:
        """Rule 5 (``reservation``): a charge is given back only if no data was opened."""
        found = self._close(entry.reservation, "reservation")
        if found is None:
            return
        found.slot.state = "aborted"
        if entry.data_opened:
            return
        if entry.reason == "does-not-fit":
            message = "the entry says that what ran did not fit, and that no data was opened"
            self.fault("reservation", message + NEW_RULE)
        self.given_back.add(entry.reservation)
        if found.population is not None:
            found.population.budget.add(self._here, found.charge, -1)

    # the end

    def close(self) -> None:
        """Finish the accounting of every population."""
        super().close()
        self._note_elsewhere()
        if self.gate_before:
            found = count(self.gate_before, "evaluation")
            self.state.findings.note(
                f"{self.name}: {found} charged as continuous Gaussian noise, by the metrics"
                " mechanism as it was before it had integer weights: epsilon holds in real"
                " arithmetic only, the low bits of those tables may reveal more (H15)"
            )
        if returned := len(self.given_back):
            found = count_are(returned, "charge", "was", "were")
            self.state.findings.note(
                f"{self.name}: {found} given back, on its word that no record had been read"
            )
        if self._open and not self.cut:
            found = count(len(self._open), "reservation")
            self.state.findings.note(f"{self.name}: {found} left open")
        if self.other_ledgers:
            self.state.findings.note(
                f"{self.name}: states that other ledgers keep a budget of the same people"
                f" ({', '.join(self.other_ledgers)}): what they spent is not in epsilon (H32)"
            )
        for population in self.populations.values():
            self.state.findings_of_sites.append(self._finding(population))

    def _note_elsewhere(self) -> None:
        """Say how many entries answer orders that no journal here accounts for."""
        own, counts = self.state.roster.orders_keyid, {"another": 0, "another order key of this": 0}
        for keyid, number in self._elsewhere.items():
            whose = "another"
            if self._order_keys.are_kin(keyid, own):
                whose = "another order key of this"
            counts[whose] += number
        for whose, number in counts.items():
            if number:
                said = count_are(number, "entry", "answers", "answer")
                self.state.findings.note(
                    f"{self.name}: {said} {whose} coordinator: charged, and"
                    " not compared with its orders"
                )

    def _finding(self, population: AuditedPopulation) -> SiteFinding:
        """Rule 6 (``cap``), where it was broken first; the two accountants (``accounting``)."""
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
            value, ceiling, remark = self.state.compositions.epsilon(
                events, budget.delta, budget.relation
            )
        if remark:
            self.state.findings.note(f"{self.name}: epsilon of {show(population.name)} is {remark}")
        if not self.unread and accounting.contradict(value, ceiling, events):
            self.fault("accounting", "the epsilon of the distributions is above the Renyi ceiling")
        return SiteFinding(
            self.name, population.name, population.terms.unit, budget.relation, budget.delta,
            finite(value), budget.cap, self.tree.size,
            charges=budget.charges, runs=budget.runs,
            conditional=("H29",) * (budget.runs > 1) + ("H32",) * bool(self.other_ledgers),
            enforced_by=budget.enforced_by,
            rdp_epsilon=finite(ceiling),
        )  # fmt: skip
