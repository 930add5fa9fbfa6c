"""A simulation without ledgers: what is spent is counted in memory, and nothing proves it.

The sites train as ever, with the same noise; ε is added up from the events that ran. There is no
budget, no signature, no journal and no bundle, and the claim is ``none``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from privet.client.admission import RefusalError
from privet.client.order_check import require_planned, require_trainable
from privet.client.site import Answer, LogQuery
from privet.client.training.protocol import TrainerProtocol
from privet.common.errors import InputError, PrivetError, SelfTestError
from privet.common.flat import Arrays, digest_arrays
from privet.common.order import Order, Status
from privet.common.output.operator_log import operator_logger
from privet.common.plan import Plan
from privet.common.release import Release
from privet.privacy.accounting import events as ev
from privet.privacy.accounting.pld import GRID, privacy_loss
from privet.privacy.accounting.units import PrivacyLoss, Relation, Unit
from privet.server.evidence.run_evidence import Show, Wait
from privet.server.round_models import RoundModels

_DELTA = 1e-5
"""δ of a plan without privacy, whose ε is infinite at any δ."""
_DISPLAY_GRID = 10 * GRID
"""Of an ε that is displayed before the last round."""


class UnrecordedSite:
    """A site without a ledger. It answers as :class:`privet.client.site.Site` does.

    Args:
        name: as in the plan.
        plan: with its noise calibrated.
        folder: of the operator's log; made when there is something to say.
        training: does the work.
    """

    def __init__(self, name: str, plan: Plan, folder: Path, training: TrainerProtocol) -> None:
        self.name = name
        self.plan = plan
        self._folder = folder
        self._trainer = training
        self._spent: Counter[ev.Event] = Counter()

    def reserve_ahead(self, order: Order, model: Arrays, head: str = "") -> bool:
        """Return whether an order may be trained ahead.

        Args:
            order: as :meth:`answer`.
            model: that came with it.
            head: of no effect.
        """
        return self._refused(order, model) is None

    def answer(self, order: Order, model: Arrays, head: str = "") -> Answer:
        """Answer one order; no order and no data makes this raise.

        Args:
            order: of the coordinator in this process.
            model: that came with the order.
            head: of no effect.
        """
        if (no := self._refused(order, model)) is not None:
            self._say(f"{order.slot}: {no.status}: {no}", error=False)
            return Answer(no.status)
        try:
            made = self._trainer.release(order, model)
            for note in made.notes:
                self._say(note, error=False)
            self._spent[made.event] += 1
            facts = {
                "reproducible": made.reproducible,
                "site": self.name,
                "event": ev.to_json(made.event),
                "digest": digest_arrays(made.arrays),
                "spent": self._loss_after(order.round).to_dict(),
            }
            if self.plan.compression is not None:
                self._trainer.committed(order)
            return Answer(Status.RELEASED, Release(order.digest, facts, made.arrays))
        except PrivetError as error:
            self._say(f"{order.slot}: {error}")
        except Exception as error:
            self._say(f"{order.slot}: failed: {error!r}")
        return Answer(Status.FAILED)

    def shown(self, ask: LogQuery) -> dict[str, Any]:
        """Return that there is no log.

        Args:
            ask: about the log.
        """
        return {"status": str(Status.FAILED)}

    def _refused(self, order: Order, model: Arrays) -> RefusalError | None:
        try:
            require_planned(order, self.name, self.plan)
            self._trainer.require_source()
            self._trainer.self_test()
            require_trainable(order, model, self.plan, self._trainer)
        except RefusalError as no:
            return no
        except SelfTestError as error:
            return RefusalError(Status.REFUSED_SELF_TEST, str(error))
        except InputError as error:
            return RefusalError(Status.REFUSED_POLICY, str(error))
        return None

    def _loss_after(self, number: int) -> PrivacyLoss:
        """Return what was spent until a round.

        Before the last one it is for display alone, and its grid is coarser: a bound, too.
        """
        is_last = self.plan.schedule is not None or number == self.plan.last_round
        return loss_of(self.plan, self._spent, grid=GRID if is_last else _DISPLAY_GRID)

    def _say(self, text: str, *, error: bool = True) -> None:
        """Write a line into the operator's log, as a recording site does."""
        self._folder.mkdir(parents=True, exist_ok=True)
        log = operator_logger(self._folder / "operator.log", self.name)
        (log.error if error else log.warning)("%s", text)


def loss_of(plan: Plan, spent: Mapping[ev.Event, int], *, grid: float = GRID) -> PrivacyLoss:
    """Return what events cost, in the terms of a plan; infinite for a plan without privacy.

    Args:
        plan: says δ, unit and relation.
        spent: how often each event ran.
        grid: distance between two privacy losses; a coarser one gives a higher bound.
    """
    privacy = plan.privacy
    events = [ev.Repeated(event, count) for event, count in spent.items()]
    if privacy is None:
        return PrivacyLoss(math.inf, _DELTA, Unit.RECORD, Relation.ADD_OR_REMOVE_ONE)
    unit, relation = Unit(privacy.unit), Relation(privacy.relation)
    return privacy_loss(events, privacy.delta, unit, relation, grid=grid)


class NoEvidence:
    """As :class:`privet.server.evidence.run_evidence.RunEvidence`, and nothing is written down."""

    can_restore = False

    def __init__(self) -> None:
        self.resumes = ""
        self.on_restored: Callable[[str], None] = lambda text: None

    def restore(self, sites: list[str], show: Show) -> int:
        """Return 0: there is nothing to fetch."""
        return 0

    def is_done(self, run: str) -> bool:
        """Return False: a run without evidence is never continued."""
        return False

    has_failed = is_resumed = is_done

    def begun_with(self, run: str) -> None:
        """Return None: every run is new."""

    def rounds_of(self, run: str) -> dict[int, dict[str, Any]]:
        """Return nothing."""
        return {}

    def kept_order(self, digest: str) -> None:
        """Return None: no order is kept."""

    def begin(
        self, run: str, plan: str, model: str, sites: list[str], show: Show, *, ended: bool = False
    ) -> None:
        """Do nothing."""

    def resume(self, run: str, number: int) -> dict[str, int]:
        """Return nothing: no earlier process signed an order."""
        return {}

    def head(self, site: str) -> str:
        """Return "": a site has no log."""
        return ""

    def sign(self, orders: Iterable[Order]) -> list[Order]:
        """Return the orders as they are."""
        return list(orders)

    def ask(self, orders: Mapping[str, Order], send: Show) -> dict[str, dict[str, Any]]:
        """Send the orders, without questions."""
        return send({})

    def receive(
        self,
        releases: Mapping[str, tuple[Order, str]],
        show: Show,
        shown: Mapping[str, dict[str, Any]] | None = None,
    ) -> set[str]:
        """Return all sites that released."""
        return set(releases)

    def answered(self, order: Order, status: Status) -> None:
        """Do nothing."""

    def witness(
        self,
        sites: list[str],
        show: Show,
        wait: Wait = lambda sites: False,
        *,
        turn: Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Return nothing: there are no logs."""
        return []

    def record(
        self,
        run: str,
        number: int,
        models: RoundModels[str],
        witnessed: list[dict[str, Any]],
        used: Iterable[str],
    ) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def close_round(self, record: dict[str, Any]) -> None:
        """Do nothing."""

    def close_run(
        self, run: str, model: str, sites: list[str], show: Show, *, fault: str = ""
    ) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
