"""What a site spent, promised and refused: reserve before data is read, commit what ran.

::

    Site ── Ledger ── Log ── Store (SQLite)
              │         └─ Merkle tree, signed head
              └─ Book (ledger_state.py): what the entries add up to, and which may come next

:class:`Ledger` turns a site's wishes into entries, under the store's lock, and promises
nothing that is not on disk. A reservation that was not given back counts in full, so a
crash over-counts and never forgets. The budget belongs to a **population**, over all its
runs and data sets. The rules are those of docs/reference/evidence-format.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privet import __version__
from privet.common.canonical import digest, digest_json
from privet.common.errors import (
    BudgetExceeded,
    InputError,
    KeyFault,
    LedgerError,
    NoteError,
    PlanClosed,
    Refused,
    SiteClosed,
    SitePaused,
    WrongLedger,
)
from privet.common.order import Order
from privet.privacy.accounting import events as ev
from privet.privacy.accounting.events import Counts
from privet.privacy.accounting.pld import GRID, privacy_loss
from privet.privacy.accounting.renyi_filter import Cap, History, decide, decide_whole
from privet.privacy.accounting.units import PrivacyLoss, Relation
from privet.privacy.evidence.charges import history_of, is_composed, plan_attempts, plan_events
from privet.privacy.evidence.ledger_state import Budget, LedgerState, Reservation
from privet.privacy.evidence.log import Log
from privet.privacy.evidence.officers import OfficerSignature, ssh_text
from privet.privacy.evidence.order_keys import KeyHandover
from privet.privacy.evidence.signed_note import Key, Signer
from privet.privacy.evidence.statement import LEDGER, Entry
from privet.privacy.evidence.store import Store

FILE = "ledger.db"
PAUSED = "the site has paused: `privet client pause --end` ends that"


@dataclass(frozen=True)
class Request:
    """What is to be reserved.

    Attributes:
        order: the order that asks.
        event: what it will cost.
        data_set: whose records will be opened.
        code: digest of the code that will run.
        self_tests: rows of the honesty list that were tested for this model.
    """

    order: Order
    event: ev.Event
    data_set: str
    code: str = ""
    self_tests: tuple[str, ...] = ()


class Ledger:
    """The ledger of one site, in ``folder``.

    Args:
        folder: holds ``ledger.db``.
        signer: the site's ledger key.
        site: its name.
        witness: the site's own witness key; needed to make a new ledger.
        recovery: a key kept elsewhere that may replace a lost ledger key.
        setting: ``site``, ``simulation``, or ``bundle``: one whose app the coordinator shipped.
        create: make a new ledger where there is none.
        patience: seconds to wait for another process.
        key_now: finds the key in force once another process has replaced ``signer``.
        other_ledgers: first keys of other ledgers of the same persons, as a new ledger states;
            None states nothing.

    Raises:
        WrongLedger: if there is no ledger, or it is another site's.
        LedgerError: if it is damaged.
        KeyFault: if ``signer`` is not its key.
    """

    def __init__(
        self,
        folder: Path,
        signer: Signer,
        site: str,
        *,
        witness: Key | None = None,
        recovery: Key | None = None,
        setting: str = "site",
        create: bool = False,
        patience: float = 30.0,
        key_now: Callable[[], Signer] | None = None,
        other_ledgers: Sequence[str] | None = None,
    ) -> None:
        self.log = Log(
            folder / FILE, signer, LEDGER, site, LedgerState,
            create=create, patience=patience, key_now=key_now,
        )  # fmt: skip
        if not len(self.log):
            if witness is None:
                raise LedgerError(f"{folder}: the ledger is empty")
            with self.log.writing():
                if not len(self.log):
                    self._begin(site, witness, recovery, setting, other_ledgers)
        if self.book.site != site:
            raise WrongLedger(
                f"{folder}: this is the ledger of '{self.book.site}', not of '{site}'"
            )

    @classmethod
    def read(cls, folder: Path, site: str | None = None) -> Ledger:
        """Open a ledger without its key: all can be read and is checked, nothing written.

        Args:
            folder: holds ``ledger.db``.
            site: whose ledger it must be; default whoever's it is.

        Raises:
            WrongLedger: if there is no ledger, or it is another site's.
            LedgerError: if it is damaged.
        """
        store = Store(folder / FILE)
        named = [
            entry.predicate
            for entry in map(Entry.read, store.leaves())
            if entry.kind in ("genesis", "key-rotated")
        ]
        store.close()
        if not named:
            raise LedgerError(f"{folder}: the ledger is empty")
        try:
            signer = _Keyless(Key.parse(str(named[-1].get("key"))).public)
        except NoteError as error:
            raise LedgerError(f"{folder}: the ledger names no key: {error}") from error
        return cls(folder, signer, site or str(named[0].get("site")))

    @property
    def book(self) -> LedgerState:
        """What the entries add up to, as of the last read."""
        return self.log.book

    def register(self, population: str, budget: Budget) -> None:
        """Register a population; the same again changes nothing.

        Raises:
            LedgerError: if it is registered with other terms, which are for its life.
        """
        with self.log.writing():
            known = self.book.populations.get(population)
            if known is not None:
                if known.budget != budget:
                    raise LedgerError(
                        f"population '{population}' is registered with {known.budget}; unit, "
                        "relation and cap are for its life"
                    )
                return
            self.require_present()
            self._append_plain(
                "population",
                population=population,
                unit=str(budget.unit),
                relation=str(budget.relation),
                epsilon=None if budget.epsilon is None else ev.decimal(budget.epsilon),
                delta=ev.decimal(budget.delta),
                max_records=budget.max_records,
            )

    def add_data_set(self, data_set: str, population: str, disjoint: str = "") -> None:
        """Register a data set of a population; the same again changes nothing.

        Raises:
            LedgerError: if it belongs to another population already, or names a new one
                without saying why its persons are in no other (H32).
        """
        with self.log.writing():
            known = self.book.data_sets.get(data_set)
            if known is not None:
                if known != population:
                    raise LedgerError(
                        f"data set '{data_set}' belongs to population '{known}' for its life"
                    )
                return
            if population in list(self.book.populations)[:1]:
                disjoint = ""  # from what? The others are disjoint from this one.
            self.require_present()
            self._append_plain(
                "data-set", data_set=data_set, population=population, disjoint=disjoint
            )

    def set_policy(
        self, policy: dict[str, Any], signatures: Sequence[OfficerSignature] = ()
    ) -> None:
        """Note the policy that holds from now on; the same again changes nothing.

        Args:
            policy: what is published of it.
            signatures: of officers of the policy in force, where that has officers.

        Raises:
            Refused: if officers must sign, and too few did.
        """
        with self.log.writing():
            if self.book.policy != policy:
                self.require_present()
                self._require_officers(signatures)
                values = [one.to_json() for one in signatures]
                signed: dict[str, Any] = {"signatures": values} if values else {}
                self.log.append("policy", "policy", digest_json(policy), policy=policy, **signed)

    def _require_officers(self, signatures: Sequence[OfficerSignature]) -> None:
        officers, needed = self.book.officers, self.book.officers_needed
        pairs = {(one.name, ssh_text(one.key)) for one in signatures}
        count = sum(pair in pairs for pair in officers.items())
        if count < needed:
            raise Refused(
                f"the policy was changed, and {count} of {needed} officers of the one in force "
                f"({', '.join(officers)}) signed it: `privet client sign-policy`. Until then the "
                "site does not work under it"
            )

    def approve(
        self,
        plan: str,
        by: Iterable[str],
        how: str,
        *,
        again: bool = False,
        signature: OfficerSignature | None = None,
    ) -> None:
        """Note that a plan (by digest) is approved; the same again changes nothing.

        Args:
            plan: its digest.
            by: who approved it.
            how: ``manual``, ``listed`` or ``simulation``. By hand also opens a plan that failures
                closed.
            again: note it also where the same was noted before.
            signature: of the officer who approves now, who is among ``by``.
        """
        names = sorted(set(by))
        with self.log.writing():
            if again or signature or self.book.approvals.get(plan) != tuple(names):
                self.require_present()
                self.log.append(
                    "plan-approved", "plan", plan, plan=plan, by=names, how=how,
                    **_signed(signature),
                )  # fmt: skip

    def refuse_plan(self, plan: str, by: Iterable[str], how: str = "manual") -> None:
        """Note that a plan is refused from now on."""
        with self.log.writing():
            # Where officers sign, another refusal counts: what was signed before it does not.
            if plan not in self.book.refused_plans or self.book.officers:
                self.require_present()
                self.log.append(
                    "plan-refused", "plan", plan, plan=plan, by=sorted(set(by)), how=how
                )

    def follow(self, handover: KeyHandover) -> bool:
        """Note that one order key follows another; the same again changes nothing.

        Returns:
            Whether an entry was written.

        Raises:
            InputError: if another key follows the old one already.
        """
        with self.log.writing():
            if self.book.order_keys.has(handover) or self.book.withdrawn:
                return False
            if fault := self.book.order_keys.fault(handover):
                raise InputError(fault)
            self.require_present()
            new = digest(handover.new.public)
            self.log.append("order-key", "key", new, **handover.to_json())
        return True

    def require_not_paused(self) -> None:
        """Check that the site has not paused; one that withdrew is none that paused.

        Raises:
            SitePaused: if it has.
        """
        self.log.refresh()
        if self.book.paused and not self.book.withdrawn:
            raise SitePaused(PAUSED)

    def keep(self, kind: str, name: str, value: Any) -> None:
        """Keep a paper beside the ledger, such as a plan, for those who verify it later."""
        with self.log.store.transaction():
            self.log.store.file(kind, name, json.dumps(value))

    def reserve(
        self, request: Request, still_allowed: Callable[[], None] = lambda: None
    ) -> Reservation:
        """Debit the request's event durably, or leave everything as it was.

        Args:
            request: what is to be reserved.
            still_allowed: raises where policy or approval forbid it. It is called under the lock:
                what other processes decided until then counts, and nothing can be decided between
                it and the debit.

        Raises:
            BudgetExceeded: if the population's cap does not cover it.
            OutOfTurn: if the order's slot was taken, or its run was begun with other code.
            PlanClosed: if the plan failed as often in a row as it may.
            SiteClosed: if the site has withdrawn, or the budget was closed.
            SitePaused: if the site has paused.
            LedgerError: if it cannot be stored.
        """
        order = request.order
        with self.log.writing():
            name = self.book.population_of(request.data_set)
            population = self.book.populations[name]
            if self.book.withdrawn or population.closed:
                raise SiteClosed("the site has withdrawn, or closed this budget")
            if self.book.paused:
                raise SitePaused(PAUSED)
            self.book.require_turn(order, request.data_set, request.code)
            self._require_open_plan(order.plan)
            still_allowed()
            self._require_cover(name, request)
            entry = self.log.append(
                "reserved",
                "order",
                order.digest,
                population=name,
                data_set=request.data_set,
                **_slot_fields(order),
                code=request.code,
                event=ev.to_json(request.event),
                self_tests=list(request.self_tests),
            )
            return self.book.open[entry.sequence]

    def attempts(self, plan: str) -> tuple[int, int]:
        """Return how many attempts of a plan (by digest) failed in a row, and how many may."""
        self.log.refresh()
        return self.book.failures(plan), plan_attempts(self.log.store, plan)

    def require_open_plan(self, plan: str) -> None:
        """Check that a plan (by digest) was not closed by its failures.

        Raises:
            PlanClosed: if it failed as often in a row as it may.
        """
        self.log.refresh()
        self._require_open_plan(plan)

    def refuse(self, order: Order, status: str) -> bool:
        """Note that an order was refused: once, and not one that was reserved before.

        Returns:
            Whether an entry says so with this status, now or before.
        """
        with self.log.writing():
            if not self.book.is_answered(order) and not self.book.withdrawn:
                self.log.append(
                    "refused", "order", order.digest, **_slot_fields(order), status=status
                )
            return self.book.refusal(order) == status

    def require_coordinator(self, order: Order) -> None:
        """Check that nobody else began the order's run.

        Raises:
            OutOfTurn: if another coordinator did.
        """
        self.log.refresh()
        self.book.require_coordinator(order)

    def refusal(self, order: Order) -> str | None:
        """Return the status that an order was refused with, or None."""
        self.log.refresh()
        return self.book.refusal(order)

    def commit(
        self, reservation: Reservation, event: ev.Event, release: str, *, reproducible: bool = False
    ) -> int:
        """Say that ``event`` ran and which release came of it; return the entry's number.

        Args:
            reservation: it must be open.
            event: must fit what was reserved.
            release: digest of the release.
            reproducible: its noise came from a seed, so it protects nobody.

        Raises:
            LedgerError: if the reservation is not open, or what ran does not fit. The
                charge then stays, under an entry that says so.
        """
        fitting = True
        with self.log.writing():
            reserved = self._require_open(reservation)
            fitting = ev.covers(reserved.event, event)
            if fitting:
                kind = "metric-released" if "/evaluate/" in reserved.slot else "released"
                return self.log.append(
                    kind,
                    "release",
                    release,
                    reservation=reserved.number,
                    order=reserved.order,
                    digest=release,
                    event=ev.to_json(event),
                    reproducible=reproducible,
                ).sequence
            self._abort(reserved, data_opened=True, reason="does-not-fit")
        raise LedgerError(
            f"{reservation.slot}: what ran ({ev.to_json(event)}) does not fit what was "
            f"reserved ({ev.to_json(reservation.event)}); the charge is kept"
        )

    def abort(self, reservation: Reservation, *, data_opened: bool, reason: str = "failed") -> None:
        """End a reservation without a release; the charge stays once data was opened."""
        with self.log.writing():
            self._abort(self._require_open(reservation), data_opened=data_opened, reason=reason)

    def committed(self, slot: str) -> str | None:
        """Return the digest of the release committed for ``slot``, or None."""
        self.log.refresh()
        found = self.book.released.get(slot)
        return found[1] if found else None

    def entry_of(self, slot: str) -> int | None:
        """Return the number of the entry that released ``slot``, or None."""
        self.log.refresh()
        found = self.book.released.get(slot)
        return found[0] if found else None

    def pending(self, slot: str | None = None) -> list[Reservation]:
        """Return the reservations that are open, of ``slot`` or of all."""
        self.log.refresh()
        return [item for item in self.book.open.values() if slot in (None, item.slot)]

    def history(self, population: str | None = None) -> list[ev.Event]:
        """Return every event that counts against a population (the only one by default)."""
        self.log.refresh()
        charges = self.book.charges(self._population(population)).values()
        return [
            event if count == 1 else ev.Repeated(event, count)
            for run in charges
            for event, count in run.items()
        ]

    def spent(self, population: str | None = None, *, grid: float = GRID) -> PrivacyLoss:
        """Return what a population's history costs: the ε of record, or on a coarser grid."""
        self.log.refresh()
        name = self._population(population)
        budget = self.book.populations[name].budget
        return privacy_loss(
            self.history(name), budget.delta, budget.unit, budget.relation, grid=grid
        )

    def charges(self, population: str) -> History:
        """Return what was charged to a population, by run; nothing if it is not registered."""
        self.log.refresh()
        return history_of(self.log.store, self.book, population)

    def is_composed(
        self, population: str, plan: str, events: tuple[Counts, Counts], relation: Relation
    ) -> bool | None:
        """Return whether a plan counts as known if it is a population's first one.

        None where it may count as either (privacy/accounting/first_plans.py).

        Args:
            population: registered or not.
            plan: its digest.
            events: all that a run of it may do, and what one more attempt adds.
            relation: of the population.
        """
        return is_composed(self.log.store, self.book, population, plan, events, relation)

    @classmethod
    def recover(cls, folder: Path, site: str, recovery: Signer, new: Signer) -> Ledger:
        """Replace a lost ledger key with the recovery key that the genesis names.

        Raises:
            KeyFault: if the genesis names no recovery key, or another one.
        """
        ledger = cls.read(folder, site)
        ledger.rotate(new, recovery=recovery)
        return ledger

    def rotate(self, new: Signer, *, recovery: Signer | None = None) -> None:
        """Replace the ledger key; with ``recovery`` where the key in force is lost.

        Raises:
            KeyFault: if the genesis does not name the recovery key.
            LedgerError: if ``new`` was in force before.
            SitePaused: if the site has withdrawn.
        """
        key = Key(self.log.origin, new.public)
        if recovery is not None:
            self.require_recovery(recovery)
        with self.log.writing():
            self.require_present()
            self.log.append(
                "key-rotated",
                "key",
                digest(new.public),
                signers=(recovery or self.log.signer, new),
                key=str(key),
                why="recovery" if recovery else "rotation",
            )

    def require_recovery(self, key: Signer) -> None:
        """Check that ``key`` is the recovery key that the genesis names.

        Raises:
            KeyFault: if it is not.
        """
        named = Entry.read(self.log.store.leaf(0)).predicate["recovery"]
        if not named or Key.parse(named).public != key.public:
            raise KeyFault("the genesis of this ledger does not name this recovery key")

    def require_present(self) -> None:
        """Check that the site may still decide something.

        Raises:
            SiteClosed: if it has withdrawn.
        """
        if self.book.withdrawn:
            raise SiteClosed("the site has withdrawn: nothing can be decided any more")

    def pause(self, by: str) -> None:
        """Reserve nothing until :meth:`resume`."""
        self._once("paused", self.book.paused, by=by)

    def resume(self, by: str) -> None:
        """End a pause."""
        self._once("resumed", not self.book.paused, by=by)

    def withdraw(self, by: str) -> None:
        """Reserve nothing ever again."""
        self._once("withdrawn", self.book.withdrawn, by=by)

    def _once(self, kind: str, done: bool, **fields: Any) -> None:
        if not done:
            with self.log.writing():
                self.require_present()
                self._append_plain(kind, **fields)

    def _begin(
        self,
        site: str,
        witness: Key,
        recovery: Key | None,
        setting: str,
        other_ledgers: Sequence[str] | None,
    ) -> None:
        key = self.log.key
        stated: dict[str, Any] = (
            {} if other_ledgers is None else {"other_ledgers": sorted(set(other_ledgers))}
        )
        self.log.append(
            "genesis",
            "key",
            digest(key.public),
            site=site,
            key=str(key),
            recovery=str(recovery) if recovery else None,
            witness=str(witness),
            setting=setting,
            software=f"privet {__version__}",
            **stated,
        )

    def _append_plain(self, kind: str, **fields: Any) -> None:
        origin = hashlib.sha256(self.log.origin.encode()).hexdigest()
        self.log.append(kind, "ledger", f"sha256:{origin}", **fields)

    def require_whole_run(self, data_set: str, run: str, plan: str) -> None:
        """Check, for a run that was not charged yet, that its whole plan would be covered.

        A run that cannot come to its end would only waste what is left.

        Raises:
            BudgetExceeded: if the population's cap does not cover the plan (by digest).
        """
        self.log.refresh()
        name = self.book.population_of(data_set)
        cap, history, events = self._standing(name, plan)
        if run in history or events is None:
            return
        composed = self.is_composed(name, plan, events, cap.relation)
        decision = decide_whole(cap, history, *events, composed=composed)
        if not decision.allowed:
            raise BudgetExceeded(
                f"run '{run}' would not come to its end: {decision.against(cap)}; "
                f"{self.spent(name)} is spent"
            )

    def _require_open_plan(self, plan: str) -> None:
        failed, most = self.book.failures(plan), plan_attempts(self.log.store, plan)
        if failed >= most:
            raise PlanClosed(
                f"plan {plan} is closed here: {failed} of its attempts failed in a row, and their "
                f"charges stay (training.max_attempts = {most})"
            )

    def _require_cover(self, name: str, request: Request) -> None:
        """Check that the population's cap covers the request (accounting/renyi_filter.py)."""
        order = request.order
        cap, history, events = self._standing(name, order.plan)
        composed = events is None or self.is_composed(name, order.plan, events, cap.relation)
        decision = decide(
            cap, history, order.run, request.event, *(events or (None,)), composed=composed
        )
        if not decision.allowed:
            raise BudgetExceeded(
                f"{order.slot}: {decision.against(cap)}; {self.spent(name)} is spent"
            )

    def _standing(
        self, population: str, plan: str
    ) -> tuple[Cap, History, tuple[Counts, Counts] | None]:
        """Return a population's cap and charges, and :func:`plan_events` of ``plan``."""
        store, budget = self.log.store, self.book.populations[population].budget
        cap = Cap(budget.epsilon, budget.delta, budget.unit, budget.relation)
        return cap, history_of(store, self.book, population), plan_events(store, plan)

    def _require_open(self, reservation: Reservation) -> Reservation:
        found = self.book.open.get(reservation.number)
        if found is None or found != reservation:
            raise LedgerError(f"{reservation.slot}: reservation {reservation.number} is not open")
        return found

    def _abort(self, reservation: Reservation, *, data_opened: bool, reason: str) -> None:
        self._append_plain(
            "aborted", reservation=reservation.number, data_opened=data_opened, reason=reason
        )

    def _population(self, name: str | None) -> str:
        if name is not None:
            return name
        if len(self.book.populations) != 1:
            raise LedgerError("name a population: the ledger has several, or none")
        return next(iter(self.book.populations))


class _Keyless:
    """Stands for a key that is not at hand: it opens a ledger and signs nothing."""

    def __init__(self, public: bytes) -> None:
        self.public = public

    def sign(self, message: bytes) -> bytes:
        raise LedgerError("the ledger was opened without its key, so nothing can be signed")


def read_history(folder: Path, population: str) -> History:
    """Return what was charged to ``population`` by the ledger in ``folder``, by run.

    Needs no key. No ledger yet, or a population that is not in it, means no charges.

    Raises:
        LedgerError: if the ledger cannot be read.
    """
    if not (folder / FILE).exists():
        return {}
    ledger = Ledger.read(folder)
    found = ledger.charges(population)
    ledger.log.store.close()
    return found


def _signed(signature: OfficerSignature | None) -> dict[str, Any]:
    """Return the field of an entry that an officer signed; other entries do not have it."""
    return {} if signature is None else {"signature": signature.to_json()}


def _slot_fields(order: Order) -> dict[str, Any]:
    if len(order.keyid) != 64:
        raise LedgerError(f"{order.slot}: an order that nobody signed has no place in a ledger")
    return {
        "run": order.run,
        "round": order.round,
        "attempt": order.attempt,
        "purpose": order.purpose,
        "order": order.digest,
        "keyid": order.keyid,
        "plan": order.plan,
        "model": order.model,
    }
