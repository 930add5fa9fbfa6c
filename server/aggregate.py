"""Joining the sites' updates by Flower's strategies, with public weights and in site order.

Flower weighs by an exact count of examples and adds replies as they arrive. Here the
weight is the site's declared nominal size, a constant, and replies are put in the plan's
site order first, so that the sum is the same bit for bit on every engine. What a strategy
sees is ``model + update``, so that all of Flower's strategies for averages apply; an
update of zeros is as good as any.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Strategy,
)

from privet.common.config import make
from privet.common.errors import PlanError, RunError
from privet.common.flat import Arrays
from privet.common.plan import Plan
from privet.common.wire import ARRAYS, from_record, to_record

WEIGHT = "nominal-size"
_KINDS: dict[str, Any] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
}


class Aggregator:
    """One run's strategy.

    Args:
        plan: names the strategy, its options and the sites' weights.

    Raises:
        PlanError: if the strategy or an option is unknown.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._strategy = _build(plan)
        self._place = {site.name: number for number, site in enumerate(plan.sites)}

    def configure(
        self, round_number: int, model: Arrays, grid: Grid
    ) -> tuple[ArrayRecord, ConfigRecord]:
        """Return what the strategy wants sent in this round: model and config."""
        messages = list(
            self._strategy.configure_train(round_number, to_record(model), ConfigRecord(), grid)
        )
        if not messages:
            raise RunError(f"the strategy '{self._plan.strategy.kind}' asks no site")
        content = messages[0].content
        return content.array_records[ARRAYS], content.config_records["config"]

    def aggregate(
        self, round_number: int, model: Arrays, updates: dict[str, tuple[Message, Arrays]]
    ) -> Arrays:
        """Return the next model from each site's update.

        Args:
            round_number: from 1.
            model: the model the updates start from.
            updates: by site: the reply's message and the checked update.

        Raises:
            RunError: if there is no update, or the strategy gives no or a non-finite model.
        """
        if not updates:
            raise RunError("no site released an update")
        replies = []
        for site in sorted(updates, key=self._place.__getitem__):
            message, update = updates[site]
            moved = {name: model[name] + update[name] for name in model}
            weight = MetricRecord({WEIGHT: float(self._plan.site(site).nominal_size)})
            content = RecordDict({ARRAYS: to_record(moved), "metrics": weight})
            replies.append(Message(content, reply_to=message))
        arrays, _ = self._strategy.aggregate_train(round_number, replies)
        if arrays is None:
            raise RunError(f"the strategy '{self._plan.strategy.kind}' made no model")
        joined = from_record(arrays)
        for name, array in joined.items():
            if not bool(np.isfinite(array).all()):
                raise RunError(f"round {round_number}: the joined model is not finite in '{name}'")
        return {name: joined[name].astype(model[name].dtype) for name in model}


def mean_of(models: Iterable[Arrays]) -> Arrays:
    """Return the mean of several models, in the order given."""
    total: Arrays = {}
    count = 0
    for model in models:
        count += 1
        for name, array in model.items():
            total[name] = total[name] + array if name in total else array.astype("float64")
    return {name: (array / count).astype("float32") for name, array in total.items()}


def _build(plan: Plan) -> Strategy:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    spec = plan.strategy
    if ":" in spec.kind:
        made: Strategy = make(spec.kind, Strategy, weighted_by_key=WEIGHT, **spec.options)
        return made
    if spec.kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise PlanError(f"strategy '{spec.kind}' is not known: use {known}, or 'module:object'")
    options: dict[str, Any] = dict(spec.options)
    if spec.kind == "fedprox":
        options["proximal_mu"] = spec.proximal_mu
    try:
        return _KINDS[spec.kind](
            fraction_evaluate=0.0,
            min_train_nodes=1,
            min_evaluate_nodes=0,
            min_available_nodes=1,
            weighted_by_key=WEIGHT,
            **options,
        )
    except TypeError as error:
        raise PlanError(f"strategy.options: {error}") from error
