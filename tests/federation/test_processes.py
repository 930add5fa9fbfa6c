"""Sites that are trained in several processes: the same result, and none where one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privet.common.plan import Plan
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.verify import verify
from privet.simulations.cohort import processes
from privet.simulations.cohort.processes import TrainingProcesses, processes_that_fit
from privet.simulations.run import Result

Make = Callable[..., Any]
pytestmark = pytest.mark.slow


def verified(result: Result, path: Path) -> bool:
    return verify(write_bundle([result.out], path).path).ok


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="private"),
        pytest.param({"privacy": None}, id="plain", marks=LONG),
        pytest.param({"metrics": {"source": "gate"}}, id="gate", marks=LONG),
        pytest.param(
            {"strategy": {"kind": "fedprox", "proximal_mu": 0.3}}, id="fedprox", marks=LONG
        ),
        pytest.param(
            {"privacy": {"unit": "person", "max_records": 3}, "data": {"person_column": "patient"}},
            id="people",
            marks=LONG,
        ),
        pytest.param({"strategy": {"sites_per_round": 3}, "training": {"rounds": 4}}, id="turns"),
        pytest.param({"training": {"clipping": "functorch"}}, id="no cohort"),
    ],
)
def test_two_processes_make_what_one_makes(
    many: Make, simulated: Callable[..., Result], tmp_path: Path, changes: dict[str, Any]
) -> None:
    plan = many(**changes)
    alone, shared = (simulated(plan, f"jobs-{jobs}", jobs=jobs) for jobs in (1, 2))
    assert (alone.processes, shared.processes) == (1, 2)
    assert shared.to_dict()["processes"] == 2
    for name, array in dict(alone.model).items():
        assert np.allclose(dict(shared.model)[name], array, rtol=1e-4, atol=1e-6)
    for one, other in zip(alone.sites, shared.sites, strict=True):
        assert (one.status, one.released, one.loss) == (other.status, other.released, other.loss)
    assert verified(shared, tmp_path / "shared.bundle")


def test_each_process_draws_noise_of_its_own(many: Make, simulated: Callable[..., Result]) -> None:
    """Without a seed no two sites and no two runs have the same noise."""
    plan = many(4, training={"rounds": 1})
    one, other = (simulated(plan, name, None, jobs=2) for name in ("a", "b"))
    assert one.processes == other.processes == 2
    flat = [np.concatenate([a.ravel() for a in dict(r.model).values()]) for r in (one, other)]
    assert not np.allclose(*flat)


def test_what_is_left_out_is_told_wherever_it_is_found(
    many: Make, simulated: Callable[..., Result], tmp_path: Path
) -> None:
    plan = many()
    for k in (0, 4):  # of this process, and of the other
        path = tmp_path / f"s{k}.csv"
        lines = path.read_text().splitlines()
        lines[1] = "x" + lines[1]
        path.write_text("\n".join([*lines, lines[2].replace(",", ";")]) + "\n")
    told = {}
    for jobs in (1, 2):
        result = simulated(plan, f"jobs-{jobs}", jobs=jobs)
        logs = [result.out / "sites" / f"Site {k}" / "operator.log" for k in (0, 4)]
        told[jobs] = [
            [line.split(" WARNING ")[1].split(": ", 1)[1] for line in log.read_text().splitlines()]
            for log in logs
            if log.exists()
        ]
    assert told[1] == told[2] and told[1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_process_that_is_killed_or_hangs_costs_nothing(
    many: Make,
    simulated: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: signal.Signals,
) -> None:
    monkeypatch.setattr(processes, "_LIMIT_S", 3.0)
    monkeypatch.setattr(processes, "_LIMIT", 1.0)
    made: list[TrainingProcesses] = []
    begin = TrainingProcesses.__init__

    def noted(self: TrainingProcesses, *given: Any, **more: Any) -> None:
        begin(self, *given, **more)
        made.append(self)

    monkeypatch.setattr(TrainingProcesses, "__init__", noted)

    def kill(progress: Any) -> None:
        if progress.round == 2:
            os.kill(made[0]._others[0]._process.pid, how)

    plan = many(training={"rounds": 4})
    result = simulated(plan, "killed", jobs=2, observe=kill)
    whole = simulated(plan, "whole", jobs=1)
    assert [site.released for site in result.sites] == [4] * 5
    for name, array in dict(whole.model).items():
        assert np.allclose(dict(result.model)[name], array, rtol=1e-4, atol=1e-6)
    assert verified(result, tmp_path / "killed.bundle")
    assert made[0]._others == []


@pytest.mark.long
def test_no_process_is_left(many: Make, simulated: Callable[..., Result]) -> None:
    before = set(_children())
    assert simulated(many(3), "run", jobs=9).processes == 3, "as many as sites have work"
    with pytest.raises(RuntimeError, match="enough"):
        simulated(many(3), "broken", jobs=2, observe=_enough)
    assert set(_children()) == before


def _enough(progress: Any) -> None:
    raise RuntimeError("enough")


def _children() -> list[str]:
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"compression": {"kind": "int8"}}, {"jobs": 2}),
        ({}, {"jobs": 2, "engine": "inline"}),
        ({}, {"jobs": 1}),
    ],
)
def test_what_cannot_be_shared_is_not(
    many: Make, simulated: Callable[..., Result], changes: dict[str, Any], setting: dict[str, Any]
) -> None:
    assert simulated(many(3, **changes), "run", **setting).processes == 1


def test_processes_start_where_much_is_left(
    many: Make, simulated: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    monkeypatch.setattr(processes, "processes_that_fit", lambda: 3)
    monkeypatch.setattr(TrainingProcesses, "_start", lambda self, more: started.append(more))
    simulated(many(3), "short", None)
    assert started == []
    monkeypatch.setattr(processes, "_START_S", -1.0)
    simulated(many(3), "seeded", 1)
    assert started == [], "a fixed seed gives the same model to the last bit"
    simulated(many(3), "long", None)
    assert set(started) == {2}


def test_shares_follow_what_each_side_took() -> None:
    class Ready:
        seconds = 1.0
        is_lost = False

        def look(self) -> bool:
            return True

        def end(self, limit: float) -> dict[str, Any]:
            return {}

        def begin(self, orders: Any, model: Any) -> None:
            assert orders

    made = TrainingProcesses(None, 1)  # type: ignore[arg-type]
    assert made.shares(10) == [10]
    made._others = [Ready(), Ready(), Ready()]  # type: ignore[list-item]
    for sites in (2, 3, 4, 9, 100):
        shares = made.shares(sites)
        assert len(shares) == 4 and sum(shares) == sites and shares[0] >= 1
    assert made.shares(100) == [25, 25, 25, 25] and made.shares(1) == [1]
    for _ in range(20):  # this process takes three times as long for as much
        shares = made.shares(100)
        made.begin(shares, list(range(100)), {})  # type: ignore[arg-type]
        for one in made._others:
            one.seconds = shares[1] / 25
        made.end(3 * shares[0] / 25)
    assert 8 <= made.shares(100)[0] <= 12


def test_as_many_processes_as_the_machine_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= processes_that_fit() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sysconf", lambda name: 1)
    assert processes_that_fit() == 1


@pytest.mark.long
def test_a_script_without_a_guard_may_use_them(many: Make, tmp_path: Path) -> None:
    """Processes of `multiprocessing` would run such a script once more."""
    import tomli_w

    value = many(3).to_dict()
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps(_without_none(value)))
    script = tmp_path / "script.py"
    script.write_text(
        "import privet\n"
        f"result = privet.simulate({str(path)!r}, jobs=2, out={str(tmp_path / 'run')!r})\n"
        "print('ran', result.processes)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ran", "2"]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


def test_records_of_sites_that_the_plan_does_not_name_are_told(
    frame_of: Make, plan_value: Make, tmp_path: Path, simulated: Callable[..., Result]
) -> None:
    """A name in the plan may be misspelt; that site then trains on nothing, and nobody knows."""
    frame = frame_of(60, 1)
    frame["where"] = ["North", "Soth", "South "] * 20
    frame.to_csv(tmp_path / "all.csv", index=False)
    sites = [{"name": name, "nominal_size": 15} for name in ("North", "South")]
    data = {"path": str(tmp_path / "all.csv"), "site_column": "where"}
    result = simulated(Plan.parse(plan_value(sites=sites, data=data)), "run", jobs=1)
    (remark,) = [one for one in result.remarks if not one.startswith("the model")]
    assert "20 records" in remark and "'Soth' (20)" in remark
