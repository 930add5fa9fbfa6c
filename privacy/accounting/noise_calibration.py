"""How much noise a plan needs: the smallest noise multiplier whose whole cost is within the ε."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from privet.common.errors import BudgetExceededError, InputError
from privet.common.plan import Plan
from privet.privacy.accounting.events import Event, Repeated, gate_release
from privet.privacy.accounting.plan_events import all_events, gate_event, gate_releases
from privet.privacy.accounting.pld import GRID, epsilon, privacy_loss
from privet.privacy.accounting.units import Relation, Unit

_MIN_NOISE = 0.05
_MAX_NOISE = 1e5


def calibrated(plan: Plan) -> Plan:
    """Return the plan with its noise calibrated to ε over all its rounds and evaluations.

    Raises:
        InputError: if no noise reaches the ε.
        BudgetExceededError: if the plan sets its own noise and that costs more than its ε.
    """
    privacy = plan.privacy
    if privacy is None:
        return plan
    relation = Relation(privacy.relation)
    if plan.trains and privacy.noise_multiplier is not None:
        cost = privacy_loss(all_events(plan), privacy.delta, Unit(privacy.unit), relation)
        if cost.epsilon > privacy.epsilon:
            raise BudgetExceededError(
                f"privacy.noise_multiplier {privacy.noise_multiplier:g} would cost {cost}, above "
                f"privacy.epsilon {privacy.epsilon:g}: leave it out to have it calibrated"
            )
        return plan
    if count := gate_releases(plan):
        gate = [Repeated(gate_event(plan), count)]
        cost = privacy_loss(gate, privacy.delta, Unit(privacy.unit), relation)
        if cost.epsilon > privacy.epsilon or (plan.trains and cost.epsilon == privacy.epsilon):
            said, remedy = f"{count} evaluations cost", " or metrics.every"
            if count == 1:
                said, remedy = "1 evaluation costs", ""
            raise InputError(
                f"no noise reaches privacy.epsilon {privacy.epsilon:g}: the metrics mechanism's "
                f"{said} {cost} alone. Raise metrics.noise_multiplier (now "
                f"{plan.metrics.noise_multiplier:g}){remedy}"
            )
    if not plan.trains:
        return plan
    noise = calibrate_noise(
        privacy.epsilon, privacy.delta, lambda at: all_events(plan, at), relation
    )
    return plan.with_noise(noise)


def measuring(plan: Plan, start: str, epsilon: float) -> Plan:
    """Return the plan that measures a trained model once at each site, and trains nothing.

    Args:
        plan: that the model was trained by; it gives task, unit, δ and sites.
        start: digest of the file of its weights.
        epsilon: what the metrics may cost; their noise is calibrated to it.

    Raises:
        InputError: if the plan has no privacy, or no noise reaches ε.
    """
    if plan.privacy is None:
        raise InputError(
            f"plan '{plan.name}' has no [privacy] section, which would say whose data is protected "
            "and how; the metrics mechanism needs one"
        )
    noise = calibrate_noise(
        epsilon, plan.privacy.delta, lambda at: [gate_release(at)], Relation(plan.privacy.relation)
    )
    return plan.changed(
        title=f"Measured: {plan.title or plan.name}"[:200],
        model={"start": start},
        training={"rounds": 0},
        strategy={"average_last": 1, "sites_per_round": None},
        compression=None,
        privacy={"epsilon": epsilon, "noise_multiplier": None},
        metrics={"source": "gate", "every": 1, "noise_multiplier": noise},
    )


def calibrate_noise(
    target: float,
    delta: float,
    events_at: Callable[[float], Iterable[Event]],
    relation: Relation = Relation.ADD_OR_REMOVE_ONE,
) -> float:
    """Return the smallest noise multiplier, to 1e-4, whose events cost at most ``target``.

    The root is found by Brent's method on coarse grids, whose ε is a little higher, then
    checked on the grid of record; where the coarse grid cost more than 0.1 % of the
    target, the search continues on the fine one.

    Args:
        target: ε to reach, above 0.
        delta: δ of the guarantee.
        events_at: the events of the whole plan at a given noise multiplier.
        relation: neighbouring relation.

    Raises:
        InputError: if no noise multiplier below 1e5 reaches the target.
    """
    if not 0 < target < math.inf:
        raise InputError(f"the target ε must be positive and finite, not {target}")

    def gap(noise: float, grid: float) -> float:
        """Return how far above the target the cost is, as a logarithm, within ±50."""
        cost = epsilon(events_at(noise), delta, relation, grid=grid)
        if not cost:
            return -50.0
        return max(-50.0, math.log(min(cost, math.exp(50.0) * target) / target))

    noise = _root(lambda noise: gap(noise, 100 * GRID), 1.0, 2.0)
    noise = _root(lambda noise: gap(noise, 10 * GRID), noise, 1.02)
    if gap(noise, GRID) < -1e-3:
        noise = _root(lambda noise: gap(noise, GRID), noise, 1.02)
    noise = math.ceil(noise * 1e4) / 1e4
    while gap(noise, GRID) > 0:
        noise = round(noise + 1e-4, 4)
    return noise


def _root(gap: Callable[[float], float], start: float, factor: float) -> float:
    """Return where the falling ``gap`` crosses 0, bracketed from ``start`` by ``factor``."""
    low = high = start
    while gap(high) > 0:
        low, high = high, high * factor
        if high > _MAX_NOISE:
            raise InputError(
                "no noise reaches the epsilon and delta of this plan: "
                "use fewer rounds or steps, a lower sample rate, or fewer metric releases"
            )
    while gap(low) <= 0:
        if low <= _MIN_NOISE:
            return _MIN_NOISE
        low, high = max(low / factor, _MIN_NOISE), low
    from scipy.optimize import brentq

    return float(brentq(gap, low, high, xtol=2e-5))
