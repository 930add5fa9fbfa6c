"""What a plan will do to a site's population, before any of it is done.

A plan with a [privacy] section fixes its events: each round one training release of
``training.steps`` noisy steps and, with ``metrics.source = "gate"``, evaluations. A plan of no
training rounds has one evaluation. Where sites take turns (``strategy.sites_per_round``), each has
the releases of its own rounds, and what is planned is that of the site with most of them. Neither
torch nor Flower is needed to say what that costs.
"""

from __future__ import annotations

from privet.common.errors import InputError
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
    if privacy.is_central:  # one sum of whole updates, in whose rounds everybody knows the sites
        return gaussian
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


def trainings(plan: Plan) -> int:
    """Return how many training releases a site makes, at most."""
    if plan.schedule is None:
        return plan.training.rounds
    turns = plan.sites_in_a_round * plan.training.rounds
    return -(-turns // len(plan.sites))  # a cycle has every site once


def gate_releases(plan: Plan) -> int:
    """Return how many releases a site's metrics mechanism makes, at most."""
    if plan.metrics.source != "gate":
        return 0
    rounds, every = plan.last_round, plan.metrics.every
    if plan.schedule is not None:
        return plan.schedule.most({*range(every, rounds + 1, every), rounds})
    return -(-rounds // every)  # rounded up, for the last round is always measured


def planned(plan: Plan) -> Counts:
    """Return all that a run of ``plan`` may do at one site: each event with its count.

    Raises:
        InputError: if the plan's noise is not calibrated yet.
    """
    return group(all_events(plan))


def one_round(plan: Plan) -> Counts:
    """Return what a round costs: a training release and, by the metrics mechanism, an evaluation.

    One more attempt at each kind of release adds as much.

    Raises:
        InputError: if the plan's noise is not calibrated yet.
    """
    trained = [training_event(plan)] if plan.trains else []
    gate = [gate_event(plan)] if plan.metrics.source == "gate" else []
    return group([*trained, *gate])


def all_events(plan: Plan, noise_multiplier: float | None = None) -> list[Event]:
    """Return all that a run of a plan may do at one site, in its order.

    Args:
        plan: the plan.
        noise_multiplier: σ in place of the plan's.

    Raises:
        InputError: if the plan's noise is not calibrated yet.
    """
    measured = Repeated(gate_event(plan), gate_releases(plan))
    if not plan.trains:
        return [measured]
    return [Repeated(training_event(plan, noise_multiplier), trainings(plan)), measured]
