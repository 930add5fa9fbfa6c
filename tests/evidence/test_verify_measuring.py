"""What a bundle can get wrong about a run that trains nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from verify_kit import (
    SITES,
    Federation,
    digest,
    plan_of,
    train_event,
    write,
    write_roster,
)

from privet.privacy.audit.verify import Verdict, verify

NORTH = SITES[0]


def measuring(**changes: Any) -> dict[str, Any]:
    """A plan as it is written: its noise for training is not calibrated."""
    return plan_of(
        training={"rounds": 0}, privacy={"epsilon": 1.0, "noise_multiplier": None}, **changes
    )


def verdict(tmp_path: Path, fed: Federation) -> Verdict:
    roster = write_roster(tmp_path / "roster.json", fed.fingerprints())
    return verify(write(tmp_path / "bundle", fed.bundle()), roster)


def rules(answer: Verdict) -> set[str]:
    return {fault.rule for fault in answer.faults}


def delta_at(epsilon: float, sigma: float) -> float:
    """δ of one Gaussian release of sensitivity 1 (Balle and Wang 2018, theorem 8)."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    half = 0.5 / sigma
    return phi(half - epsilon * sigma) - math.exp(epsilon) * phi(-half - epsilon * sigma)


def test_a_sound_measurement(tmp_path: Path) -> None:
    fed = Federation()
    fed.run(plan=measuring())
    answer = verdict(tmp_path, fed)
    assert answer.ok, answer.faults
    first = answer.sites[0]
    assert (first.charges, first.runs, first.enforced_by) == (1, 1, "pld")
    assert delta_at(first.epsilon, 20.0) == pytest.approx(1e-5, rel=0.02)
    assert delta_at(first.epsilon, 2.0) > 1e-3  # the control: less noise would not do


def test_after_a_training_both_count(tmp_path: Path) -> None:
    one, fed = Federation(cap="20.0"), Federation(cap="20.0")
    for federation in (one, fed):
        federation.run("first")
    alone = verdict(tmp_path, one).sites[0]
    fed.run("second", plan=measuring())
    answer = verdict(tmp_path, fed)
    assert answer.ok, answer.faults
    both = answer.sites[0]
    assert (both.charges, both.runs) == (alone.charges + 1, 2)
    assert both.epsilon > alone.epsilon


def test_a_measurement_that_changes_the_model(tmp_path: Path) -> None:
    fed = Federation()
    fed.run(plan=measuring(), moves=True)
    assert "model" in rules(verdict(tmp_path, fed))


@pytest.mark.parametrize(("purpose", "round_"), [("train", 1), ("evaluate", 2)])
def test_a_measurement_with_more_than_it_has(tmp_path: Path, purpose: str, round_: int) -> None:
    """An order to train, or a second table, that a site answered and paid for."""
    fed = Federation()
    plan = measuring()
    fed.run(plan=plan, close=None)
    model = digest(b"run-1 0")
    _, order = fed.order("run-1", NORTH, round_, purpose, digest(plan), model)
    event = train_event(plan_of()) if purpose == "train" else None
    if event is None:
        fed.ask("run-1", round_, purpose, plan, model)
    else:
        fed.release(NORTH, order, fed.reserve(NORTH, order, event), event)
    answer = verdict(tmp_path, fed)
    assert not answer.ok
    assert {"event", "plan", "order", "round"} & rules(answer), answer.faults


def opened(fed: Federation, plan: dict[str, Any]) -> str:
    """Open a run of the plan; return its model."""
    fed.approve(plan)
    model = digest(b"run-1 0")
    sites = [site["name"] for site in plan["sites"]]
    fed.hub.add("run-opened", run="run-1", plan=digest(plan), model=model, sites=sites)
    return model


@pytest.mark.parametrize(("other", "sound"), [(b"run-1 0", True), (b"another", False)])
def test_an_unfinished_measurement_is_of_its_model(
    tmp_path: Path, other: bytes, sound: bool
) -> None:
    fed, plan = Federation(), measuring()
    opened(fed, plan)
    fed.ask("run-1", 1, "evaluate", plan, digest(other))
    answer = verdict(tmp_path, fed)
    assert answer.ok is sound
    assert sound or rules(answer) == {"model"}


def test_what_is_measured_is_no_average(tmp_path: Path) -> None:
    """A plan of another tool that says so all the same: the engine refuses it."""
    fed, plan = Federation(), measuring(strategy={"average_last": 2})
    model, other = opened(fed, plan), digest(b"another")
    done = fed.ask("run-1", 1, "evaluate", plan, other)
    add = fed.hub.add

    def shown(kind: str, **fields: Any) -> Any:
        return add(kind, **{**fields, **({"shown": other} if kind == "round" else {})})

    fed.hub.add = shown  # type: ignore[method-assign]
    fed.close_round("run-1", 1, model, model, done)
    add("run-closed", run="run-1", rounds=1, model=other, how="done", fault=None)
    assert "model" in rules(verdict(tmp_path, fed))


def test_a_plan_that_does_nothing_is_no_plan(tmp_path: Path) -> None:
    fed = Federation()
    fed.run(plan=measuring(metrics={"source": "off"}))
    assert "plan" in rules(verdict(tmp_path, fed))


@pytest.mark.parametrize("rounds", [-1, True, 0.5, "0", None])
def test_rounds_are_a_number(tmp_path: Path, rounds: Any) -> None:
    fed = Federation()
    plan = measuring()
    fed.approve({**plan, "training": {**plan["training"], "rounds": rounds}})
    answer = verdict(tmp_path, fed)
    assert "plan" in rules(answer) or any("plan" in note for note in answer.notes), answer
