"""Central noise, in simulations alone: what a round changes, what it costs, and who refuses it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from privet.client.training.trainer import mechanism
from privet.common.errors import InputError, PlanError, PrivetError
from privet.common.models import initial_model
from privet.common.plan import Plan
from privet.privacy.accounting.noise_calibration import calibrated
from privet.privacy.audit.verify.cost.plans import AuditedPlan
from privet.privacy.audit.verify.formats.strict import Malformed
from privet.privacy.mechanism.noise import Stream
from privet.privacy.policy import Policy
from privet.server import queue
from privet.server.app import create_app
from privet.server.membership.registry import MemberRegistry
from privet.simulations.central import clip_factor, loss_of_turns, noised_mean
from privet.simulations.planning import Setting, without_privacy
from privet.simulations.run import Result, run_plan

Make = Callable[..., Any]
CENTRAL = {"unit": "site", "trust": "central", "epsilon": 8.0, "delta": 1e-3, "clip": 0.5}


@pytest.fixture
def central(many: Make) -> Make:
    """Return a plan of sites with central noise, three of which take part in a round."""

    def make(count: int = 5, **changes: Any) -> Plan:
        privacy = {**CENTRAL, "noise_multiplier": None, **changes.pop("privacy", {})}
        strategy = {"sites_per_round": 3, **changes.pop("strategy", {})}
        training = {"rounds": 5, "steps": 2, **changes.pop("training", {})}
        plan: Plan = many(count, privacy=privacy, strategy=strategy, training=training, **changes)
        return plan

    return make


def updates(count: int, scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    chance = np.random.default_rng(count)
    return [
        {"a": scale * chance.normal(size=(3, 4)), "b": scale * chance.normal(size=5)}
        for _ in range(count)
    ]


class NoNoise(Stream):
    """Adds nothing, so that what the noise protects can be seen."""

    def add_normal(self, values: Any, standard_deviation: float) -> None:
        del values, standard_deviation


def still() -> Stream:
    return NoNoise(bytes(32), reproducible=True)


def flat(arrays: dict[str, Any]) -> np.ndarray:
    return np.concatenate(
        [np.asarray(array, dtype=np.float64).ravel() for array in arrays.values()]
    )


# what a round changes


@pytest.mark.parametrize("scale", [1e-200, 1e-9, 0.1, 1.0, 1e6, 1e200])
@pytest.mark.parametrize("clip", [0.5, 3.0])
def test_with_or_without_a_site_the_sum_moves_by_the_bound(
    central: Make, scale: float, clip: float
) -> None:
    plan = calibrated(central(privacy={"clip": clip}))
    some = updates(3, scale)
    for left_out in range(3):
        fewer = [one for k, one in enumerate(some) if k != left_out]
        whole, without = (flat(dict(noised_mean(plan, u, still()))) for u in (some, fewer))
        # Three sites of a round, also where two answered.
        assert np.linalg.norm(3 * (whole - without)) <= clip * (1 + 1e-5)


def test_the_control_a_mean_of_those_that_answered_moves_more(central: Make) -> None:
    plan = calibrated(central())
    some = updates(3, 100.0)
    whole, fewer = (flat(dict(noised_mean(plan, u, still()))) for u in (some, some[:2]))
    assert np.linalg.norm(3 * (whole - fewer)) <= 0.5 * (1 + 1e-5)
    assert np.linalg.norm(3 * (whole - fewer * 3 / 2)) > 0.55


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_update_that_is_not_finite_counts_for_nothing(central: Make, bad: float) -> None:
    plan, some = calibrated(central()), updates(3)
    some[1]["a"][0, 0] = bad
    found = flat(dict(noised_mean(plan, some, still())))
    assert np.array_equal(found, flat(dict(noised_mean(plan, [some[0], some[2]], still()))))
    assert np.all(flat(dict(noised_mean(plan, some[1:2], still()))) == 0)


def test_a_clip_factor_scales_to_the_bound_and_no_further() -> None:
    assert clip_factor({"a": np.array([3.0, 4.0])}, 1.0) == pytest.approx(0.2)
    assert clip_factor({"a": np.array([3.0, 4.0])}, 6.0) == 1.0
    assert clip_factor({"a": np.zeros(3)}, 1.0) == clip_factor({}, 1.0) == 1.0


def test_the_noise_is_that_of_the_plan(central: Make) -> None:
    plan = calibrated(central(privacy={"clip": 2.0}))
    assert plan.privacy is not None and plan.privacy.noise_multiplier is not None
    nothing = [{"a": np.zeros(40_000)}] * 3
    found = flat(dict(noised_mean(plan, nothing, Stream.fresh())))
    assert found.std() == pytest.approx(plan.privacy.noise_multiplier * 2.0 / 3, rel=0.03)
    again = flat(dict(noised_mean(plan, nothing, Stream.fresh())))
    assert not np.array_equal(found, again)


# what it costs


def gaussian_epsilon(noise: float, times: int, delta: float) -> float:
    """ε of so many Gaussian mechanisms together (Balle and Wang 2018), by bisection."""
    mu = math.sqrt(times) / noise

    def delta_at(epsilon: float) -> float:
        return float(
            norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
        )

    low, high = 0.0, 200.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize("rounds", [1, 5, 20])
def test_a_site_pays_for_the_rounds_in_which_it_has_its_turn(central: Make, rounds: int) -> None:
    plan = calibrated(central(training={"rounds": rounds}))
    assert plan.privacy is not None and plan.privacy.noise_multiplier is not None
    most = -(-3 * rounds // 5)
    spent = loss_of_turns(plan, most)
    exact = gaussian_epsilon(plan.privacy.noise_multiplier, most, 1e-3)
    assert exact <= spent.epsilon <= min(8.0, exact + 0.02) and spent.epsilon > 7.9
    assert str(spent.unit) == "site" and loss_of_turns(plan, 0).epsilon == 0


def test_neither_steps_nor_sampling_of_records_change_the_price(central: Make) -> None:
    noise = {
        calibrated(central(training={"steps": steps, "sample_rate": rate})).privacy
        for steps, rate in itertools.product((1, 9), (0.1, 1.0))
    }
    assert len({one.noise_multiplier for one in noise if one is not None}) == 1


def test_a_run_says_what_each_site_spent_and_that_nothing_is_claimed(
    central: Make, simulated: Callable[..., Result]
) -> None:
    seen: list[Any] = []
    plan = central()
    result = simulated(plan, observe=seen.append)
    assert (result.evidence, result.claim) == ("off", "none")
    assert result.loss is not None and str(result.loss.unit) == "site"
    done = calibrated(plan)
    for site in result.sites:
        turns = sum(done.takes_part(site.name, n) for n in range(1, 6))
        assert site.released == site.rounds == turns == 3
        assert site.loss == loss_of_turns(done, turns)
    assert [set(step.spent) for step in seen] == [
        set(done.schedule.sites_in(n)) for n in range(1, 6)
    ]
    assert seen[-1].spent == result.progress[-1].spent
    facts = result.to_dict()
    assert facts["trust"] == "central" and facts["unit"] == "site"
    assert result.standing.trust == "central"
    assert "a simulated coordinator added the noise" in result.standing.claim.why
    rows = {row.id: (row.state, row.why) for row in result.standing.rows}
    assert {rows[key][0] for key in ("H9", "H10", "H14", "H15", "H23", "H25")} == {"unknown"}
    assert "site" in rows["H20"][1] and "seed" in rows["H14"][1] + result.standing.claim.why
    fresh = simulated(plan, "fresh", None)
    assert not any(step.reproducible for step in fresh.progress)
    rows = {row.id: (row.state, row.why) for row in fresh.standing.rows}
    assert rows["H14"][0] == "enforced" and "seed" not in fresh.standing.claim.why


def test_the_noise_is_fresh_unless_a_seed_fixes_it(
    central: Make, simulated: Callable[..., Result]
) -> None:
    plan = central()
    models = [simulated(plan, name, seed).model for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    models += [simulated(plan, name, None).model for name in ("d", "e")]
    vectors = [flat(dict(model)) for model in models]
    assert np.array_equal(vectors[0], vectors[1])
    for one, other in itertools.combinations(vectors[1:], 2):
        assert not np.allclose(one, other)


@pytest.mark.parametrize("engine", ["inline", "auto"])
@pytest.mark.parametrize(("clip", "same"), [(100.0, True), (0.01, False)])
def test_without_noise_and_clip_it_is_the_plain_mean(
    central: Make,
    simulated: Callable[..., Result],
    monkeypatch: Any,
    engine: str,
    clip: float,
    same: bool,
) -> None:
    monkeypatch.setattr(Stream, "add_normal", NoNoise.add_normal)
    value = calibrated(central(privacy={"clip": clip}, training={"rounds": 1})).to_dict()
    for spec in value["sites"]:
        spec["nominal_size"] = 15  # a site is a unit, whatever its size
    plan = Plan.parse(value)
    start = flat(dict(initial_model(plan)))
    central_mean = flat(dict(simulated(plan, "central", engine=engine).model)) - start
    plain = simulated(plan.changed(privacy=None), "plain", engine=engine, evidence="off")
    mean = flat(dict(plain.model)) - start
    assert np.linalg.norm(mean) > 0.05
    assert np.allclose(central_mean, mean, atol=1e-6) == same
    assert np.linalg.norm(central_mean) <= clip + 1e-6


@pytest.mark.parametrize("kind", ["fedadam", "fedavgm"])
def test_any_strategy_takes_the_noised_mean(
    central: Make, simulated: Callable[..., Result], kind: str
) -> None:
    result = simulated(central(strategy={"kind": kind}))
    assert all(np.isfinite(array).all() for array in dict(result.model).values())


# who refuses it


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"privacy": {"unit": "record"}}, "go together"),
        ({"privacy": {"unit": "person"}}, "go together"),
        ({"privacy": {"trust": "local"}}, "go together"),
        ({"privacy": {"max_records": 2}}, "max_records"),
        ({"metrics": {"source": "gate"}}, "noised at the sites"),
        ({"compression": {"kind": "int8"}}, "compression"),
        ({"privacy": {"trust": "distributed"}}, r"privacy\.trust"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    central: Make, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(PlanError, match=said):
        central(**changes)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"evidence": "full"}, "--evidence full"), ({"evidence": "light"}, "--evidence light"),
        ({"ledgers": Path("x")}, "--ledgers"), ({"cap": 5.0}, "--cap"),
        ({"engine": "ray"}, "--engine ray"),
    ],
)  # fmt: skip
def test_it_leaves_no_evidence(
    central: Make, tmp_path: Path, setting: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        run_plan(central(), Setting(**setting), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_real_party_takes_it(central: Make, tmp_path: Path) -> None:
    plan = calibrated(central(metrics={"source": "off"}))
    with pytest.raises(PrivetError, match="simulations"):
        mechanism(plan)
    with pytest.raises(InputError, match="simulate"):
        create_app("run", plan, dict, None, lambda: None)  # type: ignore[arg-type]
    key = "sha256:" + "a" * 64
    policy = Policy.for_simulation(plan.changed(privacy=None), "Site 0", key)
    assert "for simulations" in str(policy.fault(plan))
    hub = MemberRegistry.found(tmp_path / "hub", "hub", "127.0.0.1:1", "127.0.0.1:0")
    with pytest.raises(InputError, match="for simulations"):
        queue.submit(hub, plan, "run")
    assert not (tmp_path / "hub" / "runs" / "run").exists()
    with pytest.raises(Malformed, match="local"):
        AuditedPlan(plan.to_dict())


def test_without_privacy_it_trains_as_its_sites_do(central: Make) -> None:
    """The bound of a whole update is none of a record's gradient."""
    plain = without_privacy(central(privacy={"clip": 0.01}))
    assert plain.privacy is None and plain.training.clip is None
    assert plain == central(privacy={"clip": 0.01}).changed(privacy=None)
