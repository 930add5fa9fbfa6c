"""A site answers an order: admit, reserve, train, commit, release.

The order of these steps is the product's first promise: the debit is on disk before
data is opened, and what leaves is a committed release or a status from a closed list.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privet.client.outbox import Outbox
from privet.client.trainer import SiteData, Trainer
from privet.common.errors import (
    BudgetExceeded,
    LedgerError,
    NotReleasable,
    PrivetError,
    SelfTestFailed,
)
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.common.release import Arrays, Release, digest_arrays
from privet.privacy import events as ev
from privet.privacy import gate
from privet.privacy.dpsgd import NoisedUpdate, PlainUpdate
from privet.privacy.ledger import Budget, Ledger, Reservation
from privet.privacy.noise import Stream
from privet.privacy.units import Relation, Unit

_KEPT_RELEASES = 4

StreamFor = Callable[[Order], Stream | None]


@dataclass(frozen=True)
class Answer:
    """A status, and the release when there is one."""

    status: Status
    release: Release | None = None


class _No(Exception):
    """An order is refused with a status; the text goes to the operator's log only."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Site:
    """One site and everything it keeps: trainer, ledger, outbox, operator's log.

    Args:
        name: as in the plan.
        plan: the one plan this site has approved, noise calibrated.
        folder: where ledger, outbox and log are kept.
        ledger: pays for every release.
        open_data: reads the site's records; called after the first reservation.
        stream_for: randomness of an order; the default draws a key from the operating
            system. A simulation may fix it, and then its claim is ``none``.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        folder: Path,
        ledger: Ledger,
        open_data: Callable[[], SiteData],
        stream_for: StreamFor = lambda order: None,
    ) -> None:
        self.name = name
        self.plan = plan
        self.ledger = ledger
        self.outbox = Outbox(folder / "outbox")
        self._trainer = Trainer(plan, name)
        self._open_data = open_data
        self._data: SiteData | None = None
        self._stream_for = stream_for
        self._log = _operator_log(folder / "operator.log", name)

    def answer(self, order: Order, model: Arrays) -> Answer:
        """Answer one order; never raises for what an order or the data can do."""
        try:
            if repeated := self._already_released(order):
                return Answer(Status.RELEASED, repeated)
            event = self._admit(order, model)
            reservation = self._reserve(order, event)
        except _No as no:
            self._log.warning("%s: %s: %s", order.slot, no.status, no)
            return Answer(no.status)
        except Exception as error:
            self._log.exception("%s: failed before data was opened: %r", order.slot, error)
            return Answer(Status.FAILED)
        return self._train_and_commit(order, model, reservation)

    def _admit(self, order: Order, model: Arrays) -> ev.Event:
        """Check everything that can be checked without data; return what it will cost."""
        if order.site != self.name or order.plan != self.plan.digest:
            raise _No(Status.REFUSED_PLAN, "not the plan that this site approved")
        if order.round > self.plan.training.rounds:
            raise _No(Status.REFUSED_PLAN, f"the plan has {self.plan.training.rounds} rounds")
        if order.purpose == "evaluate" and self.plan.metrics.source != "gate":
            raise _No(Status.REFUSED_PLAN, "the plan has no metrics from the gate")
        try:
            self._trainer.self_test()
        except SelfTestFailed as error:
            raise _No(Status.REFUSED_SELF_TEST, str(error)) from error
        if order.parameters != self._trainer.parameters:
            raise _No(Status.REFUSED_PARAMETERS, "not the parameters that the plan trains (H17)")
        if fault := self._trainer.misfit(model):
            raise _No(Status.REFUSED_PARAMETERS, fault)
        if order.purpose == "evaluate":
            return gate.event(self.plan.metrics.noise_multiplier)
        return self._trainer.mechanism.event

    def _already_released(self, order: Order) -> Release | None:
        """Return the release of the same order again; refuse another one for its slot.

        A crash may have come between storing a release and committing it: its charge is
        still reserved, so it is committed now. A release without a charge is dropped.
        """
        release, committed = self.outbox.get(order.slot), self.ledger.committed(order.slot)
        if release is None:
            if committed is not None:
                raise _No(Status.REFUSED_CONFLICT, "answered before, and no longer kept")
            return None
        if release.order != order.digest:
            raise _No(Status.REFUSED_CONFLICT, "a different order was answered for this attempt")
        if committed is None:
            reservation = self.ledger.pending(order.slot)
            if reservation is None:
                self.outbox.remove(order.slot)
                return None
            event = ev.from_json(release.facts["event"])
            self.ledger.commit(reservation, event, release.facts["digest"])
        elif committed != release.facts["digest"]:
            raise LedgerError(f"{order.slot}: the stored release is not the committed one")
        return release

    def _reserve(self, order: Order, event: ev.Event) -> Reservation:
        try:
            return self.ledger.reserve(order.slot, event)
        except BudgetExceeded as error:
            raise _No(Status.REFUSED_BUDGET, str(error)) from error

    def _train_and_commit(self, order: Order, model: Arrays, reservation: Reservation) -> Answer:
        """From here on data is open: the only failure that leaves is ``failed`` (H30)."""
        try:
            if self._data is None:
                self._data = self._open_data()
            stream = self._stream_for(order)
            arrays, event, facts = self._run(order, model, self._data, stream)
            return Answer(Status.RELEASED, self._commit(order, reservation, arrays, event, facts))
        except PrivetError as error:
            self._log.error("%s: %s", order.slot, error)
        except Exception as error:
            self._log.exception("%s: failed: %r", order.slot, error)
        self._abort(reservation)
        return Answer(Status.FAILED)

    def _run(
        self, order: Order, model: Arrays, data: SiteData, stream: Stream | None
    ) -> tuple[Arrays, ev.Event, dict[str, Any]]:
        if order.purpose == "evaluate":
            table, event = self._trainer.evaluate(model, data, stream)
            return table, event, {"reproducible": bool(stream and stream.reproducible)}
        update = self._trainer.train(model, data, stream)
        releasable = PlainUpdate if self.plan.privacy is None else NoisedUpdate
        if not isinstance(update, releasable):
            raise NotReleasable(f"a {type(update).__name__} is not a release")
        arrays = {name: tensor.numpy() for name, tensor in update.tensors.items()}
        return arrays, update.event, {"reproducible": update.reproducible}

    def _commit(
        self,
        order: Order,
        reservation: Reservation,
        arrays: Arrays,
        event: ev.Event,
        facts: dict[str, Any],
    ) -> Release:
        """Store the release, then commit it: neither is lost if the process dies between."""
        digest = digest_arrays(arrays)
        release = Release(
            order.digest,
            {
                **facts,
                "site": self.name,
                "event": ev.to_json(event),
                "digest": digest,
                "spent": self.ledger.spent().to_dict(),
            },
            arrays,
        )
        self.outbox.put(order.slot, release)
        try:
            self.ledger.commit(reservation, event, digest)
        except BaseException:
            self.outbox.remove(order.slot)
            raise
        self.outbox.forget_before(order.run, _KEPT_RELEASES)
        return release

    def _abort(self, reservation: Reservation) -> None:
        try:
            self.ledger.abort(reservation, data_opened=True)
        except (LedgerError, OSError) as error:
            self._log.error("%s: %s", reservation.slot, error)


def budget_of(plan: Plan) -> Budget | None:
    """Return the budget of a site's population in a simulated run; None without privacy."""
    if plan.privacy is None:
        return None
    privacy = plan.privacy
    return Budget(privacy.epsilon, privacy.delta, Unit(privacy.unit), Relation(privacy.relation))


def _operator_log(path: Path, name: str) -> logging.Logger:
    """Return a logger that writes to the operator's file and nowhere else."""
    logger = logging.getLogger(f"privet.site.{path.resolve()}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, delay=True)
        handler.setFormatter(logging.Formatter(f"%(asctime)s {name} %(levelname)s %(message)s"))
        logger.addHandler(handler)
    return logger
