"""From a name, a file and command-line options to a plan with calibrated noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.privacy.accounting.plan_events import calibrated as resolve
from privet.simulations import scenarios


def find_plan(reference: str, model: str | None = None) -> tuple[Plan, Path]:
    """Return the plan of a scenario or a file, and the folder of its relative paths.

    Args:
        reference: name of a scenario; or path of a plan, which ends with ``.toml`` or has a ``/``.
        model: kind of another model; for a scenario, the name of another of its models. None keeps
            the plan's.

    Raises:
        InputError: if there is no such scenario, file or model.
    """
    if reference.endswith(".toml") or "/" in reference:
        path = Path(reference)
        plan = Plan.load(path)
        return (plan.changed(model={"kind": model}) if model else plan), path.parent
    return scenarios.get(reference).make_plan(model), Path()


def adjusted(
    plan: Plan,
    *,
    epsilon: float | None = None,
    rounds: int | None = None,
    seed: int | None = None,
    sites: int | None = None,
    clipping: str | None = None,
    start: str | None = None,
    dp: bool = True,
) -> Plan:
    """Return the plan with the changes of a command line; None leaves a setting as it is.

    Args:
        plan: to change.
        epsilon: ε to which the noise is calibrated again.
        rounds: number of rounds.
        seed: of split and initial weights.
        sites: number of sites, the first of the plan's.
        clipping: the way gradients are clipped.
        start: digest of the weights to start from.
        dp: False removes privacy (:func:`without_privacy`).

    Raises:
        PlanError: if a change makes the plan impossible.
        InputError: if ε or the number of sites does not apply to this plan.
    """
    changes: dict[str, Any] = {}
    if not dp:
        plan = without_privacy(plan)
    elif epsilon is not None:
        if plan.privacy is None:
            raise InputError("this plan has no [privacy] section to set ε in")
        changes["privacy"] = {"epsilon": epsilon, "noise_multiplier": None}
    if rounds is not None:
        changes["training"] = {"rounds": rounds}
        changes["strategy"] = {"average_last": max(1, min(plan.strategy.average_last, rounds))}
    if clipping is not None:
        changes.setdefault("training", {})["clipping"] = clipping
    if start is not None:
        changes["model"] = {"start": start}
    if seed is not None:
        changes["seed"] = seed
    if sites is not None:
        if not 1 <= sites <= len(plan.sites):
            raise InputError(f"--sites must lie between 1 and {len(plan.sites)}, not {sites}")
        changes["sites"] = [site.model_dump(mode="json") for site in plan.sites[:sites]]
    return plan.changed(**changes) if changes else plan


def without_privacy(plan: Plan) -> Plan:
    """Return the same plan without noise; each unit's gradient keeps its bound.

    A scenario may declare other settings for this case, chosen on the same public split.
    """
    if not plan.trains:
        raise InputError(f"plan '{plan.name}' only measures, through the gate: it needs privacy")
    changes: dict[str, Any] = {"privacy": None}
    if plan.privacy is not None:
        changes["training"] = {"clip": plan.privacy.clip}
    if plan.metrics.source == "gate":
        changes["metrics"] = {"source": "public"}
    if plan.scenario:
        name = scenarios.model_name(plan.model)
        for key, change in scenarios.get(plan.scenario).plain.get(name, {}).items():
            changes[key] = {**changes.get(key, {}), **change}
    return plan.changed(**changes)


def attestations(plan: Plan) -> dict[str, str]:
    """Return the attested rows: those of the plan, and its scenario's for its own task.

    They are written into the plan itself, so that ledgers and reports name who attests which row.
    """
    attested = {str(key): why for key, why in plan.attested.items()}
    scenario = scenarios.get(plan.scenario) if plan.scenario else None
    if scenario is None or plan.task != scenario.make_plan().task:
        return attested
    return {
        "H12": "an open data set: ranges are round numbers declared in the scenario, settings were "
        "chosen without looking, or on a validation split that counts as public",
        "H13": "an open data set: the test split counts as public",
        **scenario.attested,
        **attested,
    }


__all__ = ["adjusted", "attestations", "find_plan", "resolve", "without_privacy"]
