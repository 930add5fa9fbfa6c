"""Bundles that are made to be expensive take so many compositions, and nothing passes for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from verify_kit import SITES, Federation, digest, plan_of, train_event, write

from privet.privacy.audit.verify import verify
from privet.privacy.audit.verify.cost import accounting, compositions, first_plans
from privet.privacy.audit.verify.cost.plans import AuditedPlan

ADD = "add_or_remove_one"
NORTH = SITES[0]
CAP = accounting.epsilon(AuditedPlan(plan_of()).planned, 1e-5, ADD)[0] + 1e-3
"""Every plan below fits it alone, by its composition, and by no filter."""


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the verifier composes, in turn."""
    made: list[Any] = []
    real = accounting._composed.__wrapped__

    def counted(*given: Any) -> Any:
        made.append(given)
        return real(*given)

    monkeypatch.setattr(accounting, "_composed", counted)
    accounting._pld.cache_clear()
    yield made
    accounting._pld.cache_clear()


WIDE = 1.6
"""A cap at which the Rényi filter admits no plan, and some of a plan and a small one."""


def plan_for_all(number: int, **privacy: Any) -> dict[str, Any]:
    """As above, for a bundle; what it asks for is what it may."""
    changed = {"epsilon": CAP, "noise_multiplier": 4.0 + number / 100, **privacy}
    return plan_of(name=f"plan {number}", privacy=changed)


COST = first_plans.seconds(AuditedPlan(plan_for_all(0)), ADD)


def reserve(fed: Federation, run: str, one: dict[str, Any], round_: int = 1, **where: Any) -> int:
    """Reserve a training release at the first site, for an order that is not here."""
    _, order = fed.order(run, NORTH, round_, "train", digest(one), digest(b"model"))
    return fed.reserve(NORTH, order, train_event(one), **where)


def given_back(number: int) -> Federation:
    """So many plans, each reserved, with a second one so that δ has to be split, and given back."""
    fed = Federation(cap=repr(WIDE), journal=False)
    small = plan_for_all(9999)
    fed.approve(small)
    for which in range(number):
        one = plan_for_all(which)
        fed.approve(one)
        made = [reserve(fed, f"run {which}", one), reserve(fed, f"small {which}", small)]
        for place in reversed(made):
            fed.sites[NORTH].add(
                "aborted", reservation=place, data_opened=False, reason="failed"
            )  # fmt: skip
    return fed


def many_populations(number: int) -> Federation:
    """So many populations, each with a plan of its own, and one release of it."""
    cap = repr(CAP)
    fed = Federation(cap=cap, journal=False)
    policy = fed.policy(NORTH, cap, "site")
    for which in range(number):
        name, why = f"population {which}", "of another town"
        fed.sites[NORTH].add(
            "population", population=name, unit="record", relation=ADD, epsilon=cap,
            delta="1e-05", max_records=1,
        )  # fmt: skip
        fed.sites[NORTH].add("data-set", data_set=name, population=name, disjoint=why)
        policy["populations"][name] = policy["populations"]["patients"]
        policy["data"][name] = {"population": name, "disjoint": why}
    fed.sites[NORTH].add("policy", policy=policy)
    for which in range(number):
        one, name = plan_for_all(which), f"population {which}"
        fed.approve(one)
        reserve(fed, f"run {which}", one, population=name, data_set=name)
    return fed


MADE = {"given back": given_back, "populations": many_populations}


@pytest.mark.parametrize("kind", list(MADE))
def test_an_expensive_bundle_takes_so_many_compositions_and_no_more(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, composed: list[Any]
) -> None:
    """Twenty plans, where there is time for two, and for two histories to report."""
    path = write(tmp_path / "bundle", MADE[kind](20).bundle())
    monkeypatch.setattr(first_plans, "MAX_SECONDS", 2 * COST + 1)
    monkeypatch.setattr(compositions, "MAX_SECONDS", 2)
    answer = verify(path)
    assert answer.faults == []
    most = 2 * (2 + (4 + 1).bit_length()) + 2
    assert 2 <= len(composed) <= most
    found = [f for f in answer.sites if f.site == NORTH and f.charges]
    held = [f.enforced_by for f in found]
    if kind == "populations":
        assert held == ["pld"] * 2 + ["filter"] * 18
        at_ceiling = [f for f in found if f.epsilon == f.rdp_epsilon]
        assert len(at_ceiling) >= 18
        said = [note for note in answer.notes if "not composed, after what else" in note]
        assert len(said) == len(at_ceiling)


def test_without_a_bound_it_would_take_ever_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, composed: list[Any]
) -> None:
    """The control: what the test before counts is what the bounds hold."""
    monkeypatch.setattr(first_plans, "MAX_SECONDS", 10**6)
    for number in (2, 5):
        accounting._pld.cache_clear()
        before = len(composed)
        assert verify(write(tmp_path / "bundle", given_back(number).bundle())).faults == []
        assert len(composed) - before >= 2 * number


@pytest.mark.parametrize("beyond", [False, True])
def test_a_cap_that_is_overrun_beyond_the_bound_is_found(
    beyond: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fits by its composition alone: where that is not made, the filter refuses it."""
    monkeypatch.setattr(first_plans, "MAX_SECONDS", COST if beyond else 2 * COST + 1)
    fed = Federation(cap=repr(CAP), journal=False)
    for which in (0, 1):
        one = plan_for_all(which, epsilon=CAP)
        fed.approve(one)
        made = [reserve(fed, f"run {which}", one, round_) for round_ in (1, 2)]
        for place in made if which == 0 else []:
            fed.sites[NORTH].add("aborted", reservation=place, data_opened=False, reason="failed")
    faults = verify(write(tmp_path / "bundle", fed.bundle())).faults
    if not beyond:
        assert faults == []
        return
    assert [(fault.rule, fault.site, fault.entry) for fault in faults] == [("cap", NORTH, made[1])]
    assert "the first plans of the ledger before its own take all the time" in faults[0].message


def test_a_plan_beyond_the_bound_may_not_run_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is accepted for want of time."""
    monkeypatch.setattr(first_plans, "MAX_SECONDS", 0)
    fed = Federation(cap="8.0", journal=False)
    one = plan_for_all(0)
    fed.approve(one)
    for number in range(60):
        reserve(fed, f"run {number}", one)
    faults = verify(write(tmp_path / "bundle", fed.bundle())).faults
    assert [fault.rule for fault in faults] == ["cap"]


def test_equal_histories_of_all_sites_are_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, composed: list[Any]
) -> None:
    monkeypatch.setattr(compositions, "MAX_SECONDS", 1)
    fed = Federation(cap="60.0")
    fed.run(close=None)
    answer = verify(write(tmp_path / "bundle", fed.bundle()))
    assert answer.faults == []
    assert len(answer.sites) == len(answer.unfinished) == 3
    for found in (*answer.sites, *answer.unfinished):
        assert found.epsilon is not None
        assert found.epsilon < (answer.sites[0].rdp_epsilon or 0.0)
    assert len(composed) == 1


def test_releases_of_no_finished_run_are_at_the_ceiling_when_time_is_out(tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, composed: list[Any]) -> None:  # fmt: skip
    monkeypatch.setattr(compositions, "MAX_SECONDS", 0)
    fed = Federation(cap="60.0")
    fed.run(close=None)
    answer = verify(write(tmp_path / "bundle", fed.bundle()))
    assert answer.faults == [] and composed == []
    for one in answer.unfinished:
        site = next(found for found in answer.sites if found.site == one.site)
        assert one.epsilon == site.epsilon == site.rdp_epsilon
    said = [note for note in answer.notes if "no finished run accounts for" in note]
    assert len(said) == 3
    assert all("the Rényi ceiling" in note for note in said)
