"""The gate's event in a bundle: the one that the plan fixes, or the one that came before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from verify_kit import (
    SITES,
    Federation,
    discrete,
    gate_event,
    gate_event_before,
    gaussian,
    plan_of,
    train_event,
    write,
    write_roster,
)

from privet.privacy.audit.verify import Verdict, verify
from privet.privacy.audit.verify.cost.plans import AuditedPlan
from privet.privacy.audit.verify.formats.events import read_event

NORTH = SITES[0]
SIGMA = 20 * 2**20


def verdict(tmp_path: Path, fed: Federation) -> Verdict:
    roster = write_roster(tmp_path / "roster.json", fed.fingerprints())
    return verify(write(tmp_path / "bundle", fed.bundle()), roster)


def planted(event: Any, kinds: tuple[str, ...] = ("reserved", "metric-released")) -> Federation:
    """A run in which North's evaluations have another event; all is signed and logged."""

    def tweak(who: str, kind: str, predicate: dict[str, Any]) -> None:
        if who == NORTH and kind in kinds and predicate["event"] == gate_event(plan_of()):
            predicate["event"] = event

    fed = Federation(tweak=tweak)
    fed.run()
    return fed


def notes(answer: Verdict) -> list[str]:
    return [note for note in answer.notes if "metrics mechanism as it was" in note]


def test_the_event_of_the_plan(tmp_path: Path) -> None:
    fed = Federation()
    fed.run()
    answer = verdict(tmp_path, fed)
    assert answer.ok and not notes(answer), answer.faults
    assert gate_event(plan_of()) == discrete(SIGMA)


def test_the_event_that_came_before_it_is_told(tmp_path: Path) -> None:
    new = verdict(tmp_path, planted(gate_event(plan_of())))
    answer = verdict(tmp_path, planted(gate_event_before(plan_of())))
    assert answer.ok, answer.faults
    assert len(notes(answer)) == 1 and notes(answer)[0].startswith(f"{NORTH}: 2 evaluations ")
    assert answer.sites[0].epsilon == pytest.approx(new.sites[0].epsilon, rel=1e-9)
    assert answer.sites[0].enforced_by == "pld"


@pytest.mark.parametrize(
    "event",
    [
        discrete(SIGMA - 1),
        discrete(SIGMA + 1),
        discrete(SIGMA, 2**20 - 1),
        discrete(SIGMA // 2, 2**19),  # the same cost, of another table
        gaussian(float(SIGMA), float(2**20)),
        gaussian(20.0, 0.5),
        gaussian(19.999, 1.0),
        {"type": "poisson_sampled", "sample_rate": "0.5", "event": discrete(SIGMA)},
        {"type": "repeated", "event": discrete(SIGMA), "count": 2},
    ],
)
def test_no_other_event_is_the_plans(tmp_path: Path, event: dict[str, Any]) -> None:
    answer = verdict(tmp_path, planted(event))
    assert ("event", NORTH) in {(fault.rule, fault.site) for fault in answer.faults}
    assert {fault.site for fault in answer.faults} == {NORTH}


@pytest.mark.parametrize(
    "value", [str(SIGMA), repr(float(SIGMA)), float(SIGMA), 0, -SIGMA, 2**53, True, None]
)
def test_its_numbers_are_integers(tmp_path: Path, value: Any) -> None:
    if value == 2**53 or isinstance(value, float):
        with pytest.raises(ValueError, match="must be an integer"):
            read_event({**discrete(SIGMA), "standard_deviation": value})
        return
    answer = verdict(tmp_path, planted({**discrete(SIGMA), "standard_deviation": value}))
    assert ("event", NORTH) in {(fault.rule, fault.site) for fault in answer.faults}


@pytest.mark.parametrize(
    ("reserved", "released"),
    [(gate_event, gate_event_before), (gate_event_before, gate_event)],
)
def test_what_ran_is_what_was_reserved(
    tmp_path: Path, reserved: Callable[..., Any], released: Callable[..., Any]
) -> None:
    def tweak(who: str, kind: str, predicate: dict[str, Any]) -> None:
        if who == NORTH and predicate.get("event") == gate_event(plan_of()):
            predicate["event"] = (reserved if kind == "reserved" else released)(plan_of())

    fed = Federation(tweak=tweak)
    fed.run()
    assert "event" in {fault.rule for fault in verdict(tmp_path, fed).faults}


def test_a_training_is_not_covered_by_the_gates_event(tmp_path: Path) -> None:
    def tweak(who: str, kind: str, predicate: dict[str, Any]) -> None:
        if who == NORTH and kind in ("reserved", "released") and predicate.get("event") == train:
            predicate["event"] = gate_event(plan_of())

    train = train_event(plan_of())
    fed = Federation(tweak=tweak)
    fed.run()
    assert "event" in {fault.rule for fault in verdict(tmp_path, fed).faults}


@pytest.mark.parametrize("noise", [1 / 3, 0.1, 20.0000001, 1e-9, 3.7])
def test_sigma_is_rounded_up_from_the_exact_number(noise: float) -> None:
    plan = AuditedPlan(plan_of(metrics={"noise_multiplier": noise}))
    assert plan.evaluate is not None
    top, bottom = noise.as_integer_ratio()
    sigma = -(-top * 2**20 // bottom)
    assert plan.evaluate.mechanism.scale == sigma >= noise * 2**20
    assert plan.evaluate_before == read_event(gaussian(noise, 1.0))


def test_noise_beyond_what_can_be_written_is_known_as_it_was() -> None:
    plan = AuditedPlan(plan_of(metrics={"noise_multiplier": 1e10}))
    assert plan.evaluate == plan.evaluate_before == read_event(gaussian(1e10, 1.0))
    assert math.isfinite(plan.evaluate.mechanism.scale)
