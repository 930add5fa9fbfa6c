"""What the entries of a site's ledger add up to, and which entry may come next.

Pure: nothing here reads or writes. :class:`~privet.privacy.evidence.ledger.Ledger` gives the
entries that are on disk to a :class:`LedgerState`, and asks it before it writes the next. The
rules are those of docs/reference/evidence-format.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from privet.common.canonical import digest_json
from privet.common.errors import InputError, LedgerError, OutOfTurnError
from privet.common.order import Order
from privet.privacy.accounting import events as ev
from privet.privacy.accounting.units import Relation, Unit
from privet.privacy.evidence.officers import OfficerSignature, ssh_text
from privet.privacy.evidence.order_keys import KeyHandover, OrderKeys
from privet.privacy.evidence.signed_note import Key
from privet.privacy.evidence.statement import Entry


@dataclass(frozen=True)
class Budget:
    """The lifetime budget of a population, with its unit and relation.

    ``epsilon`` is None where there is no cap: in simulations without privacy only.
    """

    epsilon: float | None
    delta: float
    unit: Unit
    relation: Relation
    max_records: int = 1


@dataclass(frozen=True)
class Reservation:
    """Leave to spend ``event``, given before data is opened. ``number`` is its entry."""

    number: int
    order: str
    slot: str
    event: ev.Event


class _Run(NamedTuple):
    """Under which plan a run was begun, on which data set, with which code, by which order key."""

    plan: str
    keyid: str
    data_set: str
    code: str


class _Turn(NamedTuple):
    """The last slot of a run and purpose."""

    round: int
    attempt: int
    order: str
    number: int


@dataclass
class _Population:
    budget: Budget
    charges: dict[str, Counter[ev.Event]] = field(default_factory=dict)
    closed: bool = False


class LedgerState:
    """What a ledger's entries add up to. Pure; raises LedgerError where the rules forbid."""

    def __init__(self) -> None:
        self.site = self.setting = ""
        #: First keys of other ledgers of the same people, as the site states; None: it does not.
        self.other_ledgers: tuple[str, ...] | None = None
        self.populations: dict[str, _Population] = {}
        self.data_sets: dict[str, str] = {}
        self.policy: dict[str, Any] | None = None
        self.approvals: dict[str, tuple[str, ...]] = {}
        self.refused_plans: dict[str, tuple[str, ...]] = {}
        #: By plan, the officers who signed its approval, each with the raw public key.
        self.signed: dict[str, set[tuple[str, bytes]]] = {}
        self.policy_at = -1
        self.order_keys = OrderKeys()
        self._refused_at: dict[str, int] = {}
        self._signatures: set[bytes] = set()
        self._refusals: dict[tuple[str, str], str] = {}
        self._reserved: set[tuple[str, str]] = set()
        self.open: dict[int, Reservation] = {}
        self.released: dict[str, tuple[int, str]] = {}
        self.paused = self.withdrawn = False
        self._runs: dict[str, _Run] = {}
        self._turns: dict[tuple[str, str], _Turn] = {}
        self._of: dict[int, tuple[str, str]] = {}
        self._failures: dict[str, Counter[str]] = {}
        #: Populations with the plans that were ever their first one, in that order.
        self.first_plans: dict[tuple[str, str], None] = {}

    def apply(self, entry: Entry) -> None:
        """Take in the next entry."""
        handler = _HANDLERS.get(entry.kind)
        if handler is None:
            raise LedgerError(f"entry {entry.sequence}: '{entry.kind}' is not known; update Privet")
        if self.withdrawn and entry.kind != "aborted":
            raise LedgerError(f"entry {entry.sequence}: the site has withdrawn")
        try:
            handler(self, entry.predicate)
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise LedgerError(f"entry {entry.sequence} ({entry.kind}): {error!r}") from error

    def population_of(self, data_set: str) -> str:
        """Return the population whose people are in ``data_set``.

        Raises:
            LedgerError: if the data set is not registered.
        """
        if data_set not in self.data_sets:
            known = ", ".join(self.data_sets) or "none"
            raise LedgerError(f"data set '{data_set}' is not registered; registered: {known}")
        return self.data_sets[data_set]

    def refusal(self, order: Order) -> str | None:
        """Return the status that an order was refused with, or None."""
        return self._refusals.get((order.keyid, order.digest))

    def is_answered(self, order: Order) -> bool:
        """Whether an order was reserved or refused before."""
        asked = (order.keyid, order.digest)
        return asked in self._refusals or asked in self._reserved

    def plan_of(self, run: str) -> str:
        """Return the plan (its digest) under which ``run`` was begun."""
        return self._runs[run].plan

    def data_set_of(self, run: str) -> str | None:
        """Return the data set on which ``run`` was begun, None before its first reservation."""
        begun = self._runs.get(run)
        return None if begun is None else begun.data_set

    def code_of(self, run: str) -> str | None:
        """Return the digest of the code that began ``run``, None before its first reservation."""
        begun = self._runs.get(run)
        return None if begun is None else begun.code

    def failures(self, plan: str) -> int:
        """Return how many attempts of a plan failed in a row, after data was opened.

        Training and evaluation count together, but a release forgives its own purpose alone:
        otherwise a plan that never trains and is measured in each round could fail without end. An
        approval by hand forgives both.

        Args:
            plan: its digest.
        """
        return sum(self._failures.get(plan, {}).values())

    def is_replaced(self, key: str, run: str) -> bool:
        """Whether another order key follows ``key`` (a fingerprint), which did not begin ``run``.

        A run continues under the key that began it; for a new one the old key is worth nothing.
        """
        begun = self._runs.get(run)
        follows = self.order_keys.successor(key) is not None
        return follows and (begun is None or f"sha256:{begun.keyid}" != key)

    def require_coordinator(self, order: Order) -> None:
        """Check that nobody else began the order's run.

        Raises:
            OutOfTurnError: if another coordinator did.
        """
        begun = self._runs.get(order.run)
        if begun is not None and begun.keyid != order.keyid:
            raise OutOfTurnError(f"run '{order.run}' was begun by another coordinator")

    def require_turn(self, order: Order, data_set: str, code: str) -> None:
        """Check that ``order`` is not behind what its run was asked already.

        Args:
            order: that asks.
            data_set: whose records it will open.
            code: digest of the code that will run; a run of two would not verify.

        Raises:
            OutOfTurnError: if it was refused, its slot was taken by another order, the run is
                past it, or was begun by another coordinator, under another plan, on
                another data set or with other code.
        """
        self.require_coordinator(order)
        begun = self._runs.get(order.run)
        if begun is not None and begun.plan != order.plan:
            raise OutOfTurnError(f"run '{order.run}' was begun under another plan, {begun.plan}")
        if begun is not None and begun.data_set != data_set:
            raise OutOfTurnError(f"run '{order.run}' was begun on data set '{begun.data_set}'")
        if begun is not None and begun.code != code:
            raise OutOfTurnError(
                f"run '{order.run}' was begun with code {begun.code}, and {code} is here now: "
                "Privet, a library, or a module that the plan names was changed. Put the earlier "
                "one back until the run has ended (`privet --version --json --plan PLAN` says "
                "what the digest is of)"
            )
        if self.refusal(order) is not None:
            raise OutOfTurnError(
                f"{order.slot}: this order was refused; a new attempt may be asked"
            )
        last = self._turns.get((order.run, order.purpose))
        if last is None or (order.round, order.attempt) > (last.round, last.attempt):
            return
        same = (order.round, order.attempt, order.digest) == (last.round, last.attempt, last.order)
        if not same or order.slot in self.released or last.number in self.open:
            raise OutOfTurnError(
                f"{order.slot}: round {last.round}, attempt {last.attempt} was taken before; an "
                "attempt is answered once and for one order"
            )

    def charges(self, population: str) -> Mapping[str, Counter[ev.Event]]:
        """Return what counts against the population: by run, how often each event."""
        return self.populations[population].charges

    # One handler for each kind.

    def _genesis(self, value: dict[str, Any]) -> None:
        self.site, self.setting = str(value["site"]), str(value["setting"])
        stated = value.get("other_ledgers")
        self.other_ledgers = None if stated is None else tuple(map(str, stated))

    def _add_population(self, value: dict[str, Any]) -> None:
        name = value["population"]
        if name in self.populations:
            raise ValueError(f"population '{name}' is registered already")
        epsilon = value["epsilon"]
        self.populations[name] = _Population(
            Budget(
                None if epsilon is None else float(epsilon),
                float(value["delta"]),
                Unit(value["unit"]),
                Relation(value["relation"]),
                int(value["max_records"]),
            )
        )

    def _add_data_set(self, value: dict[str, Any]) -> None:
        name, population = value["data_set"], value["population"]
        if name in self.data_sets:
            raise ValueError(f"data set '{name}' is registered already")
        if population not in self.populations:
            raise ValueError(f"population '{population}' is not registered")
        if population != next(iter(self.populations)) and not value["disjoint"].strip():
            raise ValueError(
                f"data set '{name}' is not of the first population and does not say why its "
                "people are in no other one (H32)"
            )
        self.data_sets[name] = population

    @property
    def officers(self) -> dict[str, str]:
        """The officers of the policy in force, with their public keys."""
        return dict((self.policy or {}).get("officers", {}))

    @property
    def officers_needed(self) -> int:
        """How many officers of the policy in force must sign another one."""
        allow = (self.policy or {}).get("allow", {})
        return min(int(allow.get("approvers", 1)), len(self.officers))

    def _set_policy(self, value: dict[str, Any]) -> None:
        subject = digest_json(value["policy"])
        found = [
            self._signature(value, one, "policy", subject) for one in value.get("signatures", ())
        ]
        if any(one.size <= self.policy_at for one in found):
            raise ValueError("the policy was signed before the one in force was noted")
        pairs = {(one.name, ssh_text(one.key)) for one in found}
        count = sum(pair in pairs for pair in self.officers.items())
        if count < self.officers_needed:
            raise ValueError(
                f"{count} officers of the policy in force signed, {self.officers_needed} must"
            )
        self.policy, self.policy_at = dict(value["policy"]), int(value["sequence"])

    def _approve(self, value: dict[str, Any]) -> None:
        plan, names = value["plan"], tuple(value["by"])
        signed = None
        if value.get("signature") is not None:
            signed = self._signature(value, value["signature"], "plan-approved", plan)
            if signed.size <= self._refused_at.get(plan, -1):
                raise ValueError("the approval was signed before the plan was refused")
        elif self.officers and plan in self.refused_plans and not self._lists_since(plan):
            raise ValueError("the plan was refused: an officer must sign its approval")
        self.refused_plans.pop(plan, None)
        self.approvals.pop(plan, None)  # who was approved last stands last
        self.approvals[plan] = names
        held = {pair for pair in self.signed.get(plan, ()) if pair[0] in names}
        if signed is not None:
            held.add((signed.name, signed.key))
        self.signed[plan] = held
        if value["how"] == "manual" and (signed is not None or not self.officers):
            self._failures.pop(plan, None)

    def _lists_since(self, plan: str) -> bool:
        """Whether a policy that came after a plan's refusal lists it."""
        listed = (self.policy or {}).get("allow", {}).get("plans", ())
        return self.policy_at > self._refused_at.get(plan, -1) and plan in listed

    def _signature(
        self, entry: dict[str, Any], value: dict[str, Any], kind: str, subject: str
    ) -> OfficerSignature:
        """Read an officer's signature over an entry's decision."""
        found = OfficerSignature.from_json(value)
        if found.size > entry["sequence"] or not found.signs(entry["log"], kind, subject):
            raise ValueError("the officer's signature is not over this decision")
        if found.signature in self._signatures:
            raise ValueError("the officer's signature was used before; a decision counts once")
        self._signatures.add(found.signature)
        return found

    def _refuse_plan(self, value: dict[str, Any]) -> None:
        self.approvals.pop(value["plan"], None)
        self.signed.pop(value["plan"], None)
        self._refused_at[value["plan"]] = int(value["sequence"])
        self.refused_plans[value["plan"]] = tuple(value["by"])

    def _reserve(self, value: dict[str, Any]) -> None:
        population = self.populations[value["population"]]
        if self.data_sets[value["data_set"]] != value["population"]:
            raise ValueError("the data set is of another population")
        if self.paused or population.closed or value["plan"] not in self.approvals:
            raise ValueError("paused, closed, or the plan is not approved")
        if self.policy is None:
            raise ValueError("no policy is noted")
        if self.is_replaced(f"sha256:{value['keyid']}", value["run"]):
            raise ValueError("another order key follows the one that signed")
        event, number = ev.from_json(value["event"]), int(value["sequence"])
        slot = f"{value['run']}/{value['purpose']}/{value['round']}/{value['attempt']}"
        self.open[number] = Reservation(number, value["order"], slot, event)
        population.charges.setdefault(value["run"], Counter()).update(dict(ev.group([event])))
        self._reserved.add((value["keyid"], value["order"]))
        self._of[number] = (value["population"], value["run"])
        self._runs.setdefault(
            value["run"], _Run(value["plan"], value["keyid"], value["data_set"], value["code"])
        )
        self._turns[value["run"], value["purpose"]] = _Turn(
            int(value["round"]), int(value["attempt"]), value["order"], number
        )
        self._note_first(value["population"])

    def _refuse(self, value: dict[str, Any]) -> None:
        self._refusals.setdefault((value["keyid"], value["order"]), str(value["status"]))

    def _release(self, value: dict[str, Any]) -> None:
        reservation = self.open.pop(value["reservation"])
        self.released[reservation.slot] = (int(value["sequence"]), value["digest"])
        plan, purpose = self._work_of(reservation)
        if plan in self._failures:
            self._failures[plan].pop(purpose, None)

    def _abort(self, value: dict[str, Any]) -> None:
        reservation = self.open.pop(value["reservation"])
        if not value["data_opened"]:
            population, run = self._of[reservation.number]
            charges = self.populations[population].charges
            charges[run].subtract(dict(ev.group([reservation.event])))
            charges[run] = +charges[run]
            if not charges[run]:
                del charges[run]  # it never was; if it is charged again, others were first
            self._note_first(population)
            return
        # Whatever the reason: to close on some would tell which one it was.
        plan, purpose = self._work_of(reservation)
        self._failures.setdefault(plan, Counter())[purpose] += 1

    def _note_first(self, population: str) -> None:
        """Keep the plan of the run that was charged first, of those that still are."""
        found = self.populations[population]
        if found.charges and found.budget.epsilon is not None:
            first = self._runs[next(iter(found.charges))]
            self.first_plans.setdefault((population, first.plan))

    def _work_of(self, reservation: Reservation) -> tuple[str, str]:
        """Return the plan and the purpose of a reservation."""
        _, run = self._of[reservation.number]
        return self._runs[run].plan, reservation.slot.split("/")[-3]

    def _rotate(self, value: dict[str, Any]) -> None:
        Key.parse(value["key"])

    def _follow(self, value: dict[str, Any]) -> None:
        self.order_keys.note(KeyHandover.from_json(value))

    def _close(self, value: dict[str, Any]) -> None:
        self.populations[value["population"]].closed = True

    def _pause(self, value: dict[str, Any]) -> None:
        self.paused = True

    def _resume(self, value: dict[str, Any]) -> None:
        self.paused = False

    def _withdraw(self, value: dict[str, Any]) -> None:
        self.withdrawn = True


_HANDLERS = {
    "genesis": LedgerState._genesis,
    "population": LedgerState._add_population,
    "data-set": LedgerState._add_data_set,
    "policy": LedgerState._set_policy,
    "plan-approved": LedgerState._approve,
    "plan-refused": LedgerState._refuse_plan,
    "reserved": LedgerState._reserve,
    "refused": LedgerState._refuse,
    "released": LedgerState._release,
    "metric-released": LedgerState._release,
    "aborted": LedgerState._abort,
    "key-rotated": LedgerState._rotate,
    "order-key": LedgerState._follow,
    "budget-closed": LedgerState._close,
    "paused": LedgerState._pause,
    "resumed": LedgerState._resume,
    "withdrawn": LedgerState._withdraw,
}
