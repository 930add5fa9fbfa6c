"""What a plan will do to a site's population, before any of it is done.

A plan with a [privacy] section fixes its events: each round one training release of
``training.steps`` noisy steps and, with ``metrics.source = "gate"``, evaluations. A plan of no
training rounds has one evaluation. Neither torch nor Flower is needed to say what that costs,
or to calibrate its noise.
"""

from __future__ import annotations

from privet.common.errors import BudgetExceededError, InputError
from privet.common.plan import Plan
from privet.privacy.accounting.events import (
    Counts,
    Event,
    Gaussian,
    NonPrivate,
    PoissonSampled,
    Repeated,
    gate_release,
    group,
)
from privet.privacy.accounting.pld import calibrate_noise, privacy_loss
from privet.privacy.accounting.units import Relation, Unit


def training_event(plan: Plan, noise_multiplier: float | None = None) -> Event:
    """Return the event of one training release.

    Args:
        plan: the plan.
        noise_multiplier: σ in place of the plan's.

    Raises:
        InputError: if the plan's noise is not calibrated yet.
    """
    privacy, training = plan.privacy, plan.training
    if privacy is None:
        return NonPrivate("training without noise")
    noise = noise_multiplier or privacy.noise_multiplier
    if noise is None:
        raise InputError(f"plan '{plan.name}' has no noise_multiplier yet: calibrate it first")
    gaussian = Gaussian(noise * privacy.clip, privacy.clip)
    q = training.sample_rate
    return Repeated(gaussian if q >= 1 else PoissonSampled(q, gaussian), training.steps)


def gate_event(plan: Plan) -> Event:
    """Return the event of one evaluation by the metrics mechanism.

    Raises:
        InputError: if its noise is too large to be written.
    """
    return gate_release(plan.metrics.noise_multiplier)


def is_measured(plan: Plan, number: int) -> bool:
    """Whether the model is measured, by whatever means, in round ``number``."""
    return number % plan.metrics.every == 0 or number == plan.last_round


def has_gate_release(plan: Plan, number: int) -> bool:
    """Whether each site's metrics mechanism makes a release in round ``number``."""
    return plan.metrics.source == "gate" and is_measured(plan, number)


def gate_releases(plan: Plan) -> int:
    """Return how many releases each site's metrics mechanism makes."""
    if plan.metrics.source != "gate":
        return 0
    rounds, every = plan.last_round, plan.metrics.every
    return -(-rounds // every)  # rounded up, for the last round is always measured


def planned(plan: Plan) -> Counts:
    """Return all that a run of ``plan`` may do at one site: each event with its count.

    Raises:
        InputError: if the plan's noise is not calibrated yet.
    """
    return group(_all_events(plan, None))


def one_round(plan: Plan) -> Counts:
    """Return what a round costs: a training release and, by the metrics mechanism, an evaluation.

    One more attempt at each kind of release adds as much.

    Raises:
        InputError: if the plan's noise is not calibrated yet.
    """
    trained = [training_event(plan)] if plan.trains else []
    gate = [gate_event(plan)] if plan.metrics.source == "gate" else []
    return group([*trained, *gate])


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
        cost = privacy_loss(_all_events(plan, None), privacy.delta, Unit(privacy.unit), relation)
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
        privacy.epsilon, privacy.delta, lambda at: _all_events(plan, at), relation
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
        strategy={"average_last": 1},
        compression=None,
        privacy={"epsilon": epsilon, "noise_multiplier": None},
        metrics={"source": "gate", "every": 1, "noise_multiplier": noise},
    )


def _all_events(plan: Plan, noise_multiplier: float | None) -> list[Event]:
    measured = Repeated(gate_event(plan), gate_releases(plan))
    if not plan.trains:
        return [measured]
    return [Repeated(training_event(plan, noise_multiplier), plan.training.rounds), measured]
