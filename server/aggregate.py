"""Aggregate the sites' updates by Flower's strategies, with public weights and in site order.

Flower weighs each reply by an exact count of examples, and adds replies in the order in which they
arrive. Privet weighs each site by its declared nominal size, a constant of the plan, and puts the
replies in the plan's site order first, so that the sum is the same bit for bit on every engine. A
strategy receives ``model + update`` for each site; so every averaging strategy of Flower can be
used, and an update of zeros is as valid as any other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi, Strategy

from privet.common.compat.flower import ZeroCopyArray, require_identity
from privet.common.compat.flower_strategies import begin_round, keeps
from privet.common.compress import CompressedUpdate
from privet.common.config import make
from privet.common.errors import RunError
from privet.common.flat import BLOCK, Arrays, FrozenArrays, usable
from privet.common.flower.grid import RUN_ID
from privet.common.flower.wire import ARRAYS, to_record
from privet.common.mapped import Draft
from privet.common.plan import Plan
from privet.common.sections.strategy import FedProxSpec
from privet.server import strategy_state
from privet.server.link.spool import give_back

_LOG = logging.getLogger("privet.run")
WEIGHT = "nominal-size"
KINDS: dict[str, Any] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
}


class Aggregator:
    """The strategy of one run.

    Flower's own strategies work on each number alone, so the aggregator gives them one block of the
    model at a time. Each block has a strategy instance of its own, which keeps the block's moments.
    Memory then holds the old model, the new model and one block, however many sites there are. A
    strategy of the user's receives the whole model at once.

    Args:
        plan: names the strategy, its options and the sites' weights.
        scratch: a folder for models that are made block by block; without one they are in memory.

    Raises:
        PlanError: if the strategy or an option is unknown.
    """

    def __init__(self, plan: Plan, scratch: Path | None = None) -> None:
        self._plan = plan
        self._scratch = scratch
        self._strategies = [_build(plan)]
        self._place = {site.name: number for number, site in enumerate(plan.sites)}

    def configure(
        self, round_number: int, model: Arrays, grid: Grid
    ) -> tuple[ArrayRecord, ConfigRecord]:
        """Return the model and the config that the strategy sends to sites in this round.

        Args:
            round_number: number of the round, from 1.
            model: the current global model.
            grid: lists the nodes from which the strategy chooses.

        Returns:
            The arrays to send, which may differ from ``model``, and the config beside them.

        Raises:
            RunError: if the strategy asks no site.
        """
        cuts = self._cuts(model)
        if len(cuts) == 1:
            content = self._configured(0, round_number, to_record(model), grid)
            return content.array_records[ARRAYS], content.config_records["config"]
        for number, cut in enumerate(cuts):
            part = {piece.key: piece.of(model) for piece in cut}
            content = self._configured(number, round_number, to_record(part), Nodes([1]))
        return to_record(model), content.config_records["config"]

    def state(self) -> Arrays:
        """Return the state that the strategy keeps from round to round, by block and name.

        Raises:
            RunError: as :func:`privet.server.strategy_state.state_of`.
        """
        return {
            f"{number}/{name}": array
            for number, strategy in enumerate(self._strategies)
            for name, array in strategy_state.state_of(strategy).items()
        }

    def restore(self, state: Arrays) -> None:
        """Restore what :meth:`state` returned; call it before the first round of this process.

        Raises:
            RunError: as :func:`privet.server.strategy_state.restore`.
        """
        if not state and keeps(self._strategies[0]):
            text = "the snapshot, of an earlier version, has no state of the strategy: it restarts"
            _LOG.warning(text, extra={"strategy": self._plan.strategy.kind})
        blocks: dict[int, Arrays] = {}
        for name, array in state.items():
            number, _, key = name.partition("/")
            blocks.setdefault(int(number), {})[key] = array
        for place, block in blocks.items():
            strategy_state.restore(self._strategy(place), block)

    def _strategy(self, number: int) -> Strategy:
        while len(self._strategies) <= number:
            self._strategies.append(_build(self._plan))
        return self._strategies[number]

    def _configured(self, number: int, round_number: int, arrays: Any, grid: Any) -> RecordDict:
        strategy = self._strategy(number)
        begin_round(strategy)
        messages = list(strategy.configure_train(round_number, arrays, ConfigRecord(), grid))
        if not messages:
            raise RunError(f"the strategy '{self._plan.strategy.kind}' asks no site")
        return messages[0].content

    def aggregate(
        self, round_number: int, model: Arrays, updates: dict[str, tuple[Message, Arrays]]
    ) -> Arrays:
        """Return the next model from each site's update.

        Args:
            round_number: from 1.
            model: the model that the updates start from.
            updates: by site: the reply's message and the checked update.

        Raises:
            RunError: if there is no update, or the strategy gives no or a non-finite model.
        """
        if not updates:
            raise RunError("no site released an update")
        sites = sorted(updates, key=self._place.__getitem__)
        cuts = self._cuts(model)
        scratch = None
        if len(cuts) > 1:
            give_back()  # what carried the updates here
            scratch = self._scratch
        draft = _draft(scratch, model)
        for number, cut in enumerate(cuts):
            replies = [self._reply(site, *updates[site], model, cut) for site in sites]
            arrays, _ = self._strategy(number).aggregate_train(round_number, replies)
            if arrays is None:
                raise RunError(f"the strategy '{self._plan.strategy.kind}' made no model")
            self._take(round_number, arrays, cut, draft.arrays)
            for one in (draft, model, *(update for _, update in updates.values())):
                if isinstance(one, Draft | FrozenArrays):
                    one.forget()
        return draft.seal()

    def join_made_up(self, model: Arrays, updates: dict[str, Arrays], nodes: list[int]) -> Arrays:
        """Aggregate generated updates as a first round would; only a rehearsal does this.

        Args:
            model: the model that the updates start from.
            updates: generated update of each site, by its name.
            nodes: node ids that the strategy is given, one for each site.

        Raises:
            PrivetError: as :meth:`configure` and :meth:`aggregate`.
        """
        require_identity(RUN_ID)
        self.configure(1, model, Nodes(nodes))
        asked = {
            site: (Message(RecordDict(), number, "train"), update)
            for number, (site, update) in enumerate(updates.items(), 1)
        }
        joined = self.aggregate(1, model, asked)
        # Once sites have paid, it would be late to find out that it cannot be kept.
        Aggregator(self._plan).restore(self.state())
        return joined

    def _reply(
        self, site: str, message: Message, update: Arrays, model: Arrays, cut: list[_Piece]
    ) -> Message:
        weight = MetricRecord({WEIGHT: float(self._plan.site(site).nominal_size)})
        moved = ArrayRecord()
        for piece in cut:
            moved[piece.key] = _Moved(piece, model, update)
        return Message(RecordDict({ARRAYS: moved, "metrics": weight}), reply_to=message)

    @staticmethod
    def _take(round_number: int, arrays: Any, cut: list[_Piece], joined: Arrays) -> None:
        for piece in cut:
            part, target = arrays[piece.key].numpy(), piece.of(joined)
            # Beyond this no site would take it: in its own type, and with what is added to it.
            if not usable(part):
                raise RunError(
                    f"round {round_number}: the aggregated model is not finite in '{piece.name}'"
                )
            target[...] = part

    def _cuts(self, model: Arrays) -> list[list[_Piece]]:
        whole = [_Piece(name, name) for name in model]
        if ":" in self._plan.strategy.kind or sum(a.size for a in model.values()) <= BLOCK:
            return [whole]
        cuts: list[list[_Piece]] = []
        room = 0
        for name, array in model.items():
            start = 0
            while start < array.size:
                if not room:
                    cuts.append([])
                    room = BLOCK
                stop = min(start + room, array.size)
                cuts[-1].append(_Piece(f"{name}[{start}:{stop}]", name, start, stop))
                room -= stop - start
                start = stop
        return cuts


@dataclass(frozen=True)
class _Piece:
    """A part of one array of a model: flat numbers, or all of it in its shape."""

    key: str
    name: str
    start: int = 0
    stop: int | None = None

    def of(self, arrays: Arrays) -> npt.NDArray[Any]:
        array = arrays[self.name]
        return array if self.stop is None else array.reshape(-1)[self.start : self.stop]


class _Moved(ZeroCopyArray):
    """``model + update``, computed when it is read."""

    def __init__(self, piece: _Piece, model: Arrays, update: Arrays) -> None:
        super().__init__(piece.of(model))
        self._piece, self._update = piece, update

    def numpy(self) -> npt.NDArray[Any]:
        piece, update = self._piece, self._update
        if isinstance(update, CompressedUpdate):
            part = update.part(piece.name, piece.start, piece.stop).reshape(self._array.shape)
        else:
            part = piece.of(update)
        moved: npt.NDArray[Any] = self._array + part
        return moved


class Nodes:
    """A grid for a strategy whose config alone is needed: it only lists node ids.

    Args:
        numbers: the ids.
    """

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers

    def get_node_ids(self) -> list[int]:
        """Return the ids."""
        return self._numbers


class _InMemory:
    """Arrays that are being made, as in a :class:`Draft`, but in memory."""

    def __init__(self, like: Arrays) -> None:
        self.arrays = {name: np.empty(array.shape, array.dtype) for name, array in like.items()}

    def seal(self) -> FrozenArrays:
        return FrozenArrays(self.arrays)


def _draft(scratch: Path | None, like: Arrays) -> Draft | _InMemory:
    if scratch is None:
        return _InMemory(like)
    return Draft(scratch, like)


def mean_of(models: Iterable[Arrays], scratch: Path | None = None) -> Arrays:
    """Return the mean of several models, parameter by parameter, summed in float64.

    Args:
        models: models of the same names and shapes, in the order in which they are summed.
        scratch: a folder for the file that holds the mean; None keeps the mean in memory.

    Returns:
        The mean, frozen, in the data types of the first model.
    """
    given = list(models)
    draft = _draft(scratch, given[0])
    for name, out in draft.arrays.items():
        flat, parts = out.reshape(-1), [model[name].reshape(-1) for model in given]
        for start in range(0, flat.size, BLOCK):
            total = parts[0][start : start + BLOCK].astype("float64")
            for part in parts[1:]:
                total = total + part[start : start + BLOCK]
            flat[start : start + BLOCK] = (total / len(given)).astype(flat.dtype)
            for one in (draft, *given):
                if isinstance(one, Draft | FrozenArrays):
                    one.forget()
    return draft.seal()


def _build(plan: Plan) -> Strategy:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    spec = plan.strategy
    if ":" in spec.kind:
        made: Strategy = make(spec.kind, Strategy, weighted_by_key=WEIGHT, **dict(spec.options))
        return made
    options: dict[str, Any] = dict(spec.options)
    if isinstance(spec, FedProxSpec):
        options["proximal_mu"] = spec.proximal_mu
    found: Strategy = KINDS[spec.kind](
        fraction_evaluate=0.0,
        min_train_nodes=1,
        min_evaluate_nodes=0,
        min_available_nodes=1,
        weighted_by_key=WEIGHT,
        **options,
    )
    return found
