"""What a plan's file leaves out of its training follows from what is public."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from privet.common.errors import PlanError
from privet.common.plan import Plan
from privet.common.plan_file import plan_toml
from privet.privacy.accounting.noise_calibration import calibrated, measuring
from privet.simulations import scenarios
from privet.simulations.planning import adjusted

RULED = {
    "training.rounds": 12,
    "training.steps": 3,
    "training.sample_rate": 0.5,
    "training.learning_rate": 0.7,
    "privacy.clip": 0.3,
    "strategy.kind": "fedavg",
    "strategy.average_last": 2,
    "model.kind": "dense",
}


def drafted(**sections: Any) -> Plan:
    """Return the plan of a file that says little."""
    said: dict[str, Any] = {
        "name": "little",
        "task": {
            "kind": "tabular",
            "label": "y",
            "classes": ["0", "1"],
            "numeric": {f"x{n}": {"low": 0, "high": 1} for n in range(8)},
        },
        "privacy": {"epsilon": 3.0, "delta": 1e-5},
        "sites": [{"name": f"s{n}", "nominal_size": 400} for n in range(4)],
    }
    for name, section in sections.items():
        is_merged = isinstance(section, dict) and isinstance(said.get(name), dict)
        said[name] = {**said[name], **section} if is_merged else section
    return Plan.draft(said)


def value(plan: Plan, key: str) -> Any:
    found: Any = plan
    for part in key.split("."):
        found = getattr(found, part)
    return found


def test_each_choice_has_its_reason_and_a_mapping_keeps_the_formats_defaults() -> None:
    plan = drafted()
    assert plan.model.kind == "linear"
    assert plan.strategy.kind == "fedavgm"
    assert set(plan.chosen) >= {"model.kind", "training.learning_rate", "privacy.clip"}
    assert all(why and "\n" not in why for why in plan.chosen.values())
    parsed = Plan.parse(plan.written())
    assert not parsed.chosen
    assert parsed.training.learning_rate == 0.1
    assert parsed.privacy is not None
    assert parsed.privacy.clip == 1.0


@pytest.mark.parametrize(("key", "said"), RULED.items())
def test_what_the_author_says_stays(key: str, said: Any) -> None:
    section, name = key.split(".")
    plan = drafted(**{section: {name: said}})
    assert value(plan, key) == said
    assert key not in plan.chosen


def test_the_way_is_as_long_whatever_the_bound() -> None:
    """A smaller bound has smaller steps: the rate makes up for it."""
    plan = drafted(privacy={"clip": 0.3})
    assert "privacy.clip" not in plan.chosen
    usual = drafted()
    assert usual.privacy is not None
    ratio = plan.training.learning_rate / usual.training.learning_rate
    assert ratio == pytest.approx(usual.privacy.clip / 0.3, rel=0.05)


def test_a_file_gives_the_same_plan_and_no_record_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(plan_toml(drafted(data={"path": "none.csv", "site_column": "s"})))
    text = path.read_text()
    begin = text.index("[training]")
    path.write_text(text[:begin] + text[text.index("[privacy]") :])
    first, again = Plan.load(path), Plan.load(path)
    assert first.digest == again.digest
    assert "training.learning_rate" in first.chosen


@pytest.mark.parametrize("dp", [True, False])
def test_a_whole_file_is_the_same_plan_and_leaves_nothing_out(dp: bool) -> None:
    plan = adjusted(drafted(), dp=dp)
    text = plan_toml(plan)
    again = Plan.draft(tomllib.loads(text))
    assert again.digest == plan.digest
    assert not again.chosen
    for key, why in plan.chosen.items():
        *_, name = key.split(".")
        assert any(line.startswith(name) and why in line for line in text.splitlines())


@pytest.mark.parametrize("name", scenarios.names())
def test_scenarios_say_all(name: str) -> None:
    for model in (None, *scenarios.get(name).models):
        plan = scenarios.get(name).make_plan(model)
        assert not plan.chosen
        assert Plan.draft(tomllib.loads(plan_toml(plan))).digest == plan.digest


def test_nothing_is_chosen_again_once_a_plan_is_used() -> None:
    """What a site approves, a run trains and a measurement reads is one plan."""
    head = {
        "task": {"kind": "text", "label": "y", "classes": ["0", "1"], "text": "t"},
        "name": "head", "privacy": {"epsilon": 3.0, "delta": 1e-5},
        "sites": [{"name": "A", "nominal_size": 777}],
    }  # fmt: skip
    for plan in (drafted(), Plan.draft(head)):
        noised = calibrated(plan)
        later = noised.changed(metrics={"every": 3}, device="cpu")
        for section in ("training", "strategy", "model"):
            assert getattr(later, section) == getattr(plan, section)
        measured = measuring(noised, "sha256:" + "0" * 64, 1.0)
        assert measured.model.options == plan.model.options
        assert later.chosen == plan.chosen
    moved = drafted().changed(training={"learning_rate": 9.0})
    assert moved.training.learning_rate == 9.0
    assert "training.learning_rate" not in moved.chosen


def test_a_change_of_its_author_chooses_again_what_was_chosen() -> None:
    plan = drafted()
    more = adjusted(plan, epsilon=8.0)
    assert more.training.learning_rate > 1.5 * plan.training.learning_rate
    fixed = adjusted(plan, values={"training.learning_rate": 0.5}, epsilon=8.0)
    assert fixed.training.learning_rate == 0.5
    assert "training.rounds" in fixed.chosen
    short = adjusted(plan, rounds=8)
    assert (short.training.rounds, short.strategy.average_last) == (8, 2)
    # As long a way in fewer rounds.
    assert short.training.learning_rate == pytest.approx(5 * plan.training.learning_rate, rel=0.05)


def test_without_privacy_there_are_local_steps_and_no_bound() -> None:
    plain = adjusted(drafted(), dp=False)
    assert plain.training.clip is None
    assert plain.training.steps > 1
    # But a bound that the author said stays, as it does in a plan that says all.
    assert adjusted(drafted(privacy={"clip": 0.3}), dp=False).training.clip == 0.3


def test_the_rate_follows_the_noise_of_all_sites() -> None:
    """Noise in the mean falls with the units, and grows with the root of the number of sites."""
    rate = drafted().training.learning_rate
    sites = [{"name": f"s{n}", "nominal_size": 100} for n in range(16)]
    assert drafted(sites=sites).training.learning_rate == pytest.approx(rate / 2, rel=0.05)
    few = [{"name": f"s{n}", "nominal_size": 200} for n in range(4)]
    assert drafted(sites=few).training.learning_rate == pytest.approx(rate / 2, rel=0.05)
    replaced = drafted(privacy={"relation": "replace_one"})
    assert replaced.training.learning_rate == pytest.approx(rate / 2, rel=0.05)
    halved = drafted(privacy={"noise_multiplier": 40.0, "epsilon": 1.0})
    doubled = drafted(privacy={"noise_multiplier": 80.0, "epsilon": 1.0})
    ratio = halved.training.learning_rate / doubled.training.learning_rate
    assert ratio == pytest.approx(2, rel=0.05)


def test_the_way_is_bounded_where_there_is_little_noise() -> None:
    sites = [{"name": f"s{n}", "nominal_size": 10**6} for n in range(4)]
    large = drafted(sites=sites).training.learning_rate
    assert large == drafted(sites=sites, privacy={"epsilon": 8.0}).training.learning_rate
    assert large > drafted().training.learning_rate


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_the_noise_that_rules_reckon_with_is_about_that_of_the_accounting(
    rate: float, epsilon: float
) -> None:
    plan = drafted(
        privacy={"epsilon": epsilon}, training={"sample_rate": rate}, metrics={"source": "off"}
    )
    about = plan._facts.noise(plan.training.rounds, plan.training.steps, rate)
    privacy = calibrated(plan).privacy
    assert privacy is not None
    assert about == pytest.approx(privacy.noise_multiplier, rel=0.01 if rate == 1 else 0.25)


def test_one_site_a_round_has_more_noise_in_each() -> None:
    few = drafted(strategy={"sites_per_round": 1})
    assert few.strategy.sites_per_round == 1
    assert few.strategy.kind == "fedavgm"
    assert 0 < few.training.learning_rate < math.inf


def test_central_noise_and_other_models_keep_the_formats_defaults() -> None:
    central = drafted(privacy={"trust": "central", "unit": "site"}, model={"kind": "linear"})
    assert not central.chosen
    transformer = drafted(model={"kind": "ft-transformer"})
    assert "training.learning_rate" not in transformer.chosen


def test_another_model_has_its_own_rule_whichever_the_file_named() -> None:
    named = drafted(model={"kind": "ft-transformer"})
    assert not named.chosen
    linear = named.redrafted(model={"kind": "linear"})
    assert linear.digest == drafted(model={"kind": "linear"}).digest


def test_what_was_said_is_kept_when_privacy_comes_back() -> None:
    plain = drafted(training={"rounds": 7}).redrafted(privacy=None)
    again = plain.redrafted(privacy={"epsilon": 3.0, "delta": 1e-5})
    assert again.training.rounds == 7
    assert "privacy.clip" in again.chosen


def test_rounds_that_are_chosen_leave_room_for_what_is_said() -> None:
    plan = drafted(strategy={"average_last": 30})
    assert (plan.training.rounds, plan.strategy.average_last) == (40, 30)
    with pytest.raises(PlanError, match="average_last"):
        drafted(strategy={"average_last": 50})
    with pytest.raises(PlanError, match="average_last"):
        # Another model has the rounds of the format, of which there are too few.
        drafted(strategy={"average_last": 30}, model={"kind": "ft-transformer"})


def test_many_classes_have_a_longer_way() -> None:
    sites = [{"name": f"s{n}", "nominal_size": 10**6} for n in range(4)]
    few = drafted(sites=sites)
    many = drafted(sites=sites, task={"classes": [str(n) for n in range(72)]})
    ratio = many.training.learning_rate / few.training.learning_rate
    assert ratio == pytest.approx(3, rel=0.1)


def test_what_no_rate_follows_from_is_our_error() -> None:
    with pytest.raises(PlanError, match=r"write training\.learning_rate"):
        drafted(model={"kind": "linear", "options": {"scale": 1e200}})
    small = drafted(model={"kind": "linear", "options": {"scale": 1e-300}})
    assert 0 < small.training.learning_rate < math.inf


def test_a_wrong_file_is_an_error_as_before() -> None:
    with pytest.raises(PlanError, match="epsilon"):
        drafted(privacy={"epsilon": -1})
    with pytest.raises(PlanError, match="unknown key"):
        drafted(training={"roundz": 3})
