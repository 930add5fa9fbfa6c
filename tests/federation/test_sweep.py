"""A plan that runs once for each combination of values, resumable and several at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

import privet.simulations.run
from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.common.threads import threads_of
from privet.simulations import sweep
from privet.simulations.planning import Setting
from privet.simulations.sweep import Axis, Sweep, axes_of, interval, points_of, run_sweep

Make = Callable[..., Any]
RATES = "training.learning_rate=0.1,0.5"


@pytest.fixture
def plan(plan_value: Make) -> Plan:
    return Plan.parse(plan_value(training={"rounds": 1}))


@pytest.fixture
def swept(plan: Plan, files: Path, tmp_path: Path) -> Callable[..., Sweep]:
    """Run a sweep of the tiny plan; return it."""

    def run(*words: str, folder: str = "out", **more: Any) -> Sweep:
        axes = axes_of(words)
        setting = Setting(base=files)
        return run_sweep(axes, points_of(plan, axes), setting, tmp_path / folder, **more)

    return run


# what is asked


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("1,3,8", "privacy.epsilon", (1, 3, 8)),
        ("privacy.epsilon=0.5", "privacy.epsilon", (0.5,)),
        ("seed=1,2", "seed", (1, 2)),
        ("training.optimizer=adam,sgd", "training.optimizer", ("adam", "sgd")),
        ("model.options.pre_norm=true,false", "model.options.pre_norm", (True, False)),
        ("training.clip=null,1e-1", "training.clip", (None, 0.1)),
    ],
)
def test_words_name_a_key_and_its_values(text: str, key: str, values: tuple[Any, ...]) -> None:
    assert axes_of([text]) == [Axis(key, values)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["1,x"], "takes numbers with commas"),
        ([""], "takes numbers with commas"),
        (["seed="], "write KEY=VALUE"),
        (["seed=1,,2"], "write KEY=VALUE"),
        (["=1"], "write KEY=VALUE"),
        (["seed=1,1"], "a value comes twice"),
        (["seed=1", "seed=2"], "the key comes twice"),
        (["1,3", "privacy.epsilon=2"], "the key comes twice"),
        (["seed=1,a b=2"], "write KEY=VALUE"),
    ],
)
def test_words_that_are_none_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        axes_of(words)


def test_every_combination_is_a_plan(plan: Plan) -> None:
    points = points_of(plan, axes_of(["1,3", RATES, "seed=5"]))
    assert [point.name for point in points] == [
        "epsilon-1_learning_rate-0.1_seed-5", "epsilon-1_learning_rate-0.5_seed-5",
        "epsilon-3_learning_rate-0.1_seed-5", "epsilon-3_learning_rate-0.5_seed-5",
    ]  # fmt: skip
    last = points[-1].plan
    assert last.seed == 5 and last.training.learning_rate == 0.5
    assert last.privacy is not None
    # Its noise is calibrated to the ε that is asked for, whatever the plan said.
    assert (last.privacy.epsilon, last.privacy.noise_multiplier) == (3, None)
    assert last.training.rounds == plan.training.rounds and last.privacy.delta == 1e-4
    kept = points_of(plan, axes_of([RATES]))[0].plan
    assert kept.privacy is not None and kept.privacy.noise_multiplier == 2.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training.learning_rat=1", r"learning_rat = 1: .*unknown key; did you mean"),
        ("training.steps=2,0", "training.steps = 0: "),
        ("model.kind=linaer", "did you mean 'linear'"),
        ("sites=3", "sites = 3: "),
        ("sites.0.nominal_size=10", "'sites' has no parts"),
        ("task.kind.a=1", "'task.kind.a' has no parts"),
        ("privacy.epsilon.x=1", "'privacy.epsilon.x' has no parts"),
    ],
)
def test_a_plan_that_is_impossible_is_named_before_any_runs(
    plan: Plan, text: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        points_of(plan, axes_of([text]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["3", "privacy.noise_multiplier=0.5,50"], "set one of them"),
        (["1,3", "privacy=none"], "cannot be set together"),
        (["privacy=none", "1,3"], "cannot be set together"),
        (["privacy=none", "privacy.clip=1"], "cannot be set together"),
    ],
)
def test_keys_that_exclude_each_other_are_refused(plan: Plan, words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        points_of(plan, axes_of(words))


def test_close_values_have_folders_of_their_own(plan: Plan) -> None:
    names = [p.name for p in points_of(plan, axes_of(["seed=1000000,1000001"]))]
    assert names == ["seed-1000000", "seed-1000001"]


def test_too_many_runs_are_refused(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_MAX_RUNS", 3)
    with pytest.raises(InputError, match="4 runs are more than 3"):
        points_of(plan, axes_of(["seed=1,2,3,4"]))


# what is run


def test_a_table_and_a_picture(swept: Callable[..., Sweep], tmp_path: Path) -> None:
    made = swept("1,3", "seed=1,2,3")
    assert not made.failed and len(made.rows) == 6
    table = pd.read_parquet(tmp_path / "out" / "sweep.parquet")
    assert table[["privacy.epsilon", "seed"]].values.tolist() == [
        [epsilon, seed] for epsilon in (1, 3) for seed in (1, 2, 3)
    ]
    assert (table["epsilon"] <= table["privacy.epsilon"]).all()
    assert (table["epsilon"] > 0.9 * table["privacy.epsilon"]).all()
    assert table["metrics.accuracy"].notna().all() and table["error"].isna().all()
    assert table["metrics.accuracy"].tolist() == [row["metrics"]["accuracy"] for row in made.rows]
    for name in table["out"]:
        assert json.loads((Path(name) / "result.json").read_text())["epsilon"] > 0
    text = (tmp_path / "out" / "plots" / "sweep.svg").read_text()
    assert "privacy.epsilon" in text and "95 % interval" in text
    combined = list(made.combined())
    assert [values for values, _ in combined] == [{"privacy.epsilon": 1}, {"privacy.epsilon": 3}]
    assert [len(rows) for _, rows in combined] == [3, 3]


def test_runs_in_processes_are_those_of_one(swept: Callable[..., Sweep]) -> None:
    """Without privacy nothing is random but what the seed says."""
    words = ("privacy=none", "seed=1,2,3")
    alone, told = swept(*words, folder="alone"), []
    both = swept(*words, folder="both", jobs=2, tell=told.append)
    assert [row["metrics"] for row in alone.rows] == [row["metrics"] for row in both.rows]
    assert len({row["metrics"]["auc"] for row in both.rows}) > 1
    assert len(told) == 3 and told[-1].startswith("3/3  privacy = none, seed = ")


def test_a_run_that_fails_stops_no_other(swept: Callable[..., Sweep], tmp_path: Path) -> None:
    made = swept("privacy.noise_multiplier=0.01,2.0", "seed=1,2")
    assert [row["sweep"]["privacy.noise_multiplier"] for row in made.failed] == [0.01, 0.01]
    assert all("would cost" in row["error"] for row in made.failed)
    table = pd.read_parquet(tmp_path / "out" / "sweep.parquet")
    assert table["error"].notna().tolist() == [True, True, False, False]
    assert table["metrics.accuracy"].notna().tolist() == [False, False, True, True]


def test_a_sweep_is_resumed_where_it_was_killed(
    plan_value: Make, write_toml: Callable[..., Path], files: Path, tmp_path: Path
) -> None:
    value = plan_value(training={"rounds": 3})
    for site in value["sites"]:
        site["path"] = str(files / site["path"])
    path = write_toml(tmp_path / "tiny.toml", value)
    out = tmp_path / "out"
    words = ["simulate", str(path), "--sweep", "seed=1,2,3,4", "--out", str(out), "--jobs", "1"]
    command = [sys.executable, "-c", "from privet.cli import main; main()", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (out / "seed-2" / "plan.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    ended = {run.parent.name for run in out.glob("seed-*/result.json")}
    assert 1 <= len(ended) < 4
    before = {name: (out / name / "result.json").stat().st_mtime_ns for name in ended}
    left = {run.name for run in out.glob("seed-*")} - ended
    again = subprocess.run([*command, "--resume", "--json"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"{len(ended)} of 4 runs had ended before" in again.stderr
    runs = json.loads(again.stdout)["runs"]
    assert [row["sweep"]["seed"] for row in runs] == [1, 2, 3, 4]
    after = {name: (out / name / "result.json").stat().st_mtime_ns for name in ended}
    assert after == before, "what had ended is not run again"
    aside = {folder.name for folder in (out / "interrupted").iterdir()} if left else set()
    assert aside == {f"{name}-1" for name in left}, "what was begun is kept"
    assert len(pd.read_parquet(out / "sweep.parquet")) == 4
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and "--resume continues it" in refused.stderr


@pytest.mark.long
def test_a_sweep_that_is_interrupted_waits_for_no_run(
    plan_value: Make, write_toml: Callable[..., Path], files: Path, tmp_path: Path
) -> None:
    value = plan_value(training={"rounds": 1000}, privacy="none")
    for site in value["sites"]:
        site["path"] = str(files / site["path"])
    path, out = write_toml(tmp_path / "tiny.toml", value), tmp_path / "out"
    words = ["simulate", str(path), "--sweep", "seed=1,2,3,4", "--out", str(out), "--jobs", "2"]
    command = [sys.executable, "-c", "from privet.cli import main; main()", *words]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Where the tests run in the background of a shell, they ignore it, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not list(out.glob("seed-*/plan.json")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130 and b"Traceback" not in said
    assert len(list(out.glob("seed-*/result.json"))) < 4


def test_another_sweep_is_not_continued(swept: Callable[..., Sweep], tmp_path: Path) -> None:
    swept("seed=1")
    with pytest.raises(InputError, match="holds another sweep"):
        swept("seed=2", resume=True)
    (tmp_path / "out" / "sweep.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        swept("seed=1", resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    with pytest.raises(InputError, match="is not empty"):
        swept("seed=1", folder="mine", resume=True)


def test_a_sweep_with_other_options_is_not_continued(
    plan: Plan, files: Path, tmp_path: Path
) -> None:
    """Rows with noise from a seed, or of other records, would stand beside those without."""
    axes = axes_of(["seed=1"])
    points, here = points_of(plan, axes), Setting(base=files)
    run_sweep(axes, points, here, tmp_path / "out")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for other in (Setting(base=files, noise_seed=7), Setting(base=elsewhere)):
        with pytest.raises(InputError, match="other options"):
            run_sweep(axes, points, other, tmp_path / "out", resume=True)
    assert len(run_sweep(axes, points, here, tmp_path / "out", resume=True).rows) == 1
    (tmp_path / "out" / "seed-1" / "result.json").write_text("{}")
    assert run_sweep(axes, points, here, tmp_path / "out", resume=True).rows[0]["metrics"]
    with sweep._alone(tmp_path / "out"), pytest.raises(InputError, match="is running"):
        run_sweep(axes, points, here, tmp_path / "out", resume=True)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_process_that_is_killed_or_an_error_of_ours_costs_one_run(
    swept: Callable[..., Sweep], jobs: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_DIES if jobs > 1 else "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("PRIVET_TEST_DIES", "1")
    if jobs == 1:
        run_plan = privet.simulations.run.run_plan

        def fails(plan: Plan, *given: Any) -> Any:
            if plan.seed == 2:
                raise TypeError("a fault of ours")
            return run_plan(plan, *given)

        monkeypatch.setattr("privet.simulations.run.run_plan", fails)
    made = swept("seed=1,2,3", jobs=jobs)
    assert [row["sweep"]["seed"] for row in made.failed] == [2]
    said = made.failed[0]["error"]
    assert ("was killed" if jobs > 1 else "a fault of ours") in said
    assert all(row["metrics"]["accuracy"] for row in made.rows if row not in made.failed)


_DIES = """
import os

if os.environ.get("PRIVET_TEST_DIES"):
    from privet.simulations import run

    run_plan = run.run_plan

    def dies(plan, *given):
        if plan.seed == 2:
            os.kill(os.getpid(), 9)
        return run_plan(plan, *given)

    run.run_plan = dies
"""


def test_the_interval_is_students() -> None:
    values = [0.71, 0.74, 0.69, 0.72]
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 3, loc=mean, scale=stats.sem(values))
    assert (mean - (half or 0), mean + (half or 0)) == pytest.approx((low, high))
    assert interval([0.5]) == (0.5, None)


def test_a_run_that_is_interrupted_says_where_its_ledgers_are(
    plan_value: Make, write_toml: Callable[..., Path], files: Path, tmp_path: Path
) -> None:
    value = plan_value(training={"rounds": 2000}, privacy="none")
    for site in value["sites"]:
        site["path"] = str(files / site["path"])
    path, out = write_toml(tmp_path / "tiny.toml", value), tmp_path / "out"
    words = ["simulate", str(path), "--out", str(out), "--jobs", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from privet.cli import main; main()", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not list(out.glob("sites/*/ledger.db")):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said
    assert f"privet audit bundle {out}" in said and said.rstrip().endswith("privet: stopped")


# threads


@pytest.mark.parametrize(
    ("said", "asked", "found"),
    [("", 4, 4), ("2", 4, 2), ("8", 4, 4), ("0", 4, 1), ("4,2", 4, 4), ("-1", 4, 4), ("²", 4, 4)],
)
def test_who_starts_a_process_limits_its_threads(
    said: str, asked: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert threads_of(asked) == found
