"""``privet.simulate`` from Python: a user's own files, both engines, the run folder."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import privet
from privet.common.config import DATA_VARIABLE, data_folder
from privet.common.errors import (
    DataError,
    DataMissingError,
    InputError,
    LedgerError,
    PlanError,
    QuorumError,
)
from privet.common.plan import Plan
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import Store
from privet.simulations import scenarios
from privet.simulations.planning import attestations
from privet.simulations.records import SiteRecords
from privet.simulations.run import Result, Setting, run_plan

Make = Callable[..., Any]


@pytest.fixture
def ran(files: Path, plan_value: Make, tmp_path: Path) -> Callable[..., Result]:
    """Simulate the tiny plan on the tiny files, or on those in ``where``."""

    def run(
        folder: str = "out", setting: dict[str, Any] | None = None, where: Path = files,
        **changes: Any,
    ) -> Result:  # fmt: skip
        plan = Plan.parse(plan_value(**changes))
        return run_plan(plan, Setting(base=where, **(setting or {})), tmp_path / folder)

    return run


def kinds(result: Result, site: str) -> list[str]:
    """The kinds of the entries that came of orders, from a site's ledger on disk."""
    leaves = Store(result.out / "sites" / site / "ledger.db").leaves()
    found = [Entry.read(leaf).kind for leaf in leaves]
    return [kind for kind in found if "rese" in kind or "release" in kind or "aborted" in kind]


def test_a_run_leaves_what_its_result_says(ran: Callable[..., Result]) -> None:
    result = ran()
    value = json.loads((result.out / "result.json").read_text())
    assert value == json.loads(json.dumps(result.to_dict()))
    assert set(value) >= {
        "run", "scenario", "rounds", "sites", "metrics", "epsilon", "delta", "unit", "relation",
        "trust", "claim", "out", "honesty",
    }  # fmt: skip
    assert value["rounds"] == 2
    assert value["epsilon"] == max(site["epsilon"] for site in value["sites"]) <= 20.0
    assert json.loads((result.out / "plan.json").read_text()) == result.plan.to_dict()
    for site in value["sites"]:
        assert kinds(result, site["name"]) == ["reserved", "released"] * 2
    for name in ("model/model.safetensors", "model/README.md"):
        assert (result.out / name).stat().st_size > 0
    assert [path.suffix for path in (result.out / "plots").iterdir()]
    assert not (result.out / "non-private").exists()


@pytest.mark.parametrize(
    ("asked", "used"), [("auto", "bookkeeping"), ("functorch", "functorch")]
)  # fmt: skip
def test_the_way_gradients_were_clipped_is_told(
    ran: Callable[..., Result], asked: str, used: str
) -> None:
    result = ran(training={"clipping": asked})
    assert (
        result.clipping == used == json.loads((result.out / "result.json").read_text())["clipping"]
    )


def test_the_model_on_disk_is_the_model_in_hand(
    ran: Callable[..., Result], same: Callable[..., bool]
) -> None:
    from privet.server.snapshot import map_model

    result = ran()
    stored, facts = map_model(result.out / "model" / "model.safetensors")
    assert same(stored, result.model)
    assert facts["plan"] == result.plan.digest


def test_epsilon_is_calibrated_for_all_that_runs(ran: Callable[..., Result]) -> None:
    result = ran(
        privacy={"epsilon": 4.0, "noise_multiplier": None},
        training={"rounds": 1, "steps": 1, "sample_rate": 1.0},
        metrics={"source": "gate", "noise_multiplier": 3.0},
    )
    assert result.loss is not None
    assert 0.97 * 4.0 <= result.loss.epsilon <= 4.0
    assert result.metrics["accuracy"] is not None
    for site in result.sites:
        assert kinds(result, site.name) == ["reserved", "released", "reserved", "metric-released"]


def test_the_person_is_the_unit_from_end_to_end(ran: Callable[..., Result], files: Path) -> None:
    result = ran(privacy={"unit": "person", "max_records": 2}, data={"person_column": "patient"})
    assert result.to_dict()["unit"] == "person"
    assert "per person" in str(result.loss)
    parts = SiteRecords(result.plan, None, files).parts()
    train, test = set(parts["train"]["person"]), set(parts["test"]["person"])
    assert train
    assert test
    assert not train & test


def test_the_person_unit_needs_a_column(ran: Callable[..., Result]) -> None:
    with pytest.raises(PlanError, match="needs data.person_column"):
        ran(privacy={"unit": "person"})
    with pytest.raises(DataError, match="no person column 'nobody'"):
        ran(privacy={"unit": "person"}, data={"person_column": "nobody"})


def test_one_file_with_a_site_column(files: Path, tmp_path: Path, plan_value: Make) -> None:
    names = ("North", "East", "South")
    tables = [pd.read_csv(files / f"{name.lower()}.csv").assign(bank=name) for name in names]
    pd.concat(tables).to_parquet(tmp_path / "all.parquet")
    sites = [{"name": name, "nominal_size": 50} for name in names]
    where = {"path": "all.parquet", "site_column": "bank"}
    plan = Plan.parse(plan_value(sites=sites, data=where))
    assert run_plan(plan, Setting(base=tmp_path), tmp_path / "one").to_dict()["rounds"] == 2


def test_the_noise_seed_makes_the_run_repeatable_and_the_claim_none(
    ran: Callable[..., Result], same: Callable[..., bool]
) -> None:
    one, two = (ran(name, {"noise_seed": 5}) for name in ("one", "two"))
    assert same(one.model, two.model)
    assert one.claim == two.claim == "none"
    free = ran("free", seed=0)
    assert not same(one.model, free.model)
    assert free.claim == "conditional"


def test_the_claim_follows_from_the_noise_that_was_drawn_and_not_from_the_setting(
    ran: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site whose stream is seeded behind everybody's back says so in its releases."""
    from privet.privacy.mechanism.noise import Stream
    from privet.simulations import run

    def seeded(maker: Any, order: Any) -> Stream | None:
        return Stream.seeded(order.slot) if order.site == "East" and order.round == 1 else None

    assert ran("honest").claim == "conditional"
    monkeypatch.setattr(run, "_stream", seeded)
    result = ran("seeded")
    assert result.claim == "none"
    assert [step.reproducible for step in result.progress] == [True, False]


def test_figures_in_the_clear_need_somebody_who_says_that_they_are_public(
    ran: Callable[..., Result],
) -> None:
    own = ran("own")
    assert own.plan.metrics.source == "public"
    assert "H13" in own.conditional_on
    for name, change in {
        "attested": {"attested": {"H13": "published records"}},
        "off": {"metrics": {"source": "off"}},
    }.items():
        result = ran(name, **change)
        assert result.claim == "conditional"
        assert "H13" not in result.conditional_on


def test_a_scenario_vouches_for_its_own_task_only() -> None:
    plan = scenarios.get("lending").make_plan()
    assert set(attestations(plan)) == {"H12", "H13", "H21"}
    assert set(attestations(plan.changed(training={"rounds": 50}))) == {"H12", "H13", "H21"}
    # A range that somebody computed from the records is none that the scenario declared.
    ranged = {"loan_amount": {"low": 1000, "high": 40_000, "log": True}}
    other = plan.changed(task={"numeric": {**plan.to_dict()["task"]["numeric"], **ranged}})
    assert attestations(other) == {}
    assert attestations(other.changed(attested={"H21": "mine"})) == {"H21": "mine"}


def test_a_plain_run_claims_nothing(ran: Callable[..., Result]) -> None:
    value = ran(privacy=None).to_dict()
    assert value["claim"] == "none"
    assert [value[key] for key in ("epsilon", "delta", "unit", "relation", "trust")] == [None] * 5
    assert {site["epsilon"] for site in value["sites"]} == {None}


def test_a_plan_file_and_its_words_from_python(
    files: Path, plan_value: Make, write_toml: Callable[..., Path], tmp_path: Path
) -> None:
    for path in files.glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = write_toml(tmp_path / "mine.toml", plan_value())
    seen: list[int] = []
    result = privet.simulate(
        path, rounds=1, dp=False, seed=3, out=tmp_path / "out",
        observe=lambda step: seen.append(step.round),
    )  # fmt: skip
    assert seen == [1]
    assert (result.plan.seed, result.plan.training.rounds, result.plan.privacy) == (3, 1, None)


def test_the_data_folder_is_the_one_named_or_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "environment"))
    assert data_folder(None) == tmp_path / "environment"
    assert data_folder(tmp_path / "named") == tmp_path / "named"
    monkeypatch.setenv(DATA_VARIABLE, "")
    assert data_folder(None) is None


# what is wrong with files


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ('"a,b\n1,2,3\n4,5,6,7\n', "line 1, which names the columns, cannot be read"),
        (
            "x1;x2;colour;y\n1;2;red;1\n",
            "line 1 names one column, 'x1;x2;colour;y': cells are to be separated by ','",
        ),
    ],
)
def test_a_file_that_is_no_table_is_named(
    ran: Callable[..., Result], write_files: Make, tmp_path: Path, text: str, said: str
) -> None:
    data = write_files(tmp_path / "data")
    (data / "east.csv").write_text(text)
    with pytest.raises(DataError, match=f"east.csv: {said}"):
        ran(where=data)


def test_a_missing_file_is_named(
    ran: Callable[..., Result], write_files: Make, tmp_path: Path
) -> None:
    data = write_files(tmp_path / "data")
    (data / "east.csv").unlink()
    with pytest.raises(DataMissingError, match=r"east\.csv: there is no such file"):
        ran(where=data)


def test_a_label_never_declared_leaves_its_records_out_and_says_so(
    ran: Callable[..., Result], write_files: Make, tmp_path: Path
) -> None:
    data = write_files(tmp_path / "data")
    table = pd.read_csv(data / "east.csv").assign(y=7)
    table.to_csv(data / "east.csv", index=False)
    result = ran(where=data, strategy={"min_sites": 3}, metrics={"source": "off"})
    assert [site.released for site in result.sites] == [2, 2, 2]
    # The one who simulates is every site's operator, and is told.
    (remark,) = result.remarks
    assert remark.startswith("East: ")
    assert "records of " in remark and "are left out" in remark
    assert "the label '7' in 'y'" in result.sites[1].log.read_text()
    for name in ("north", "south"):
        other = pd.read_csv(data / f"{name}.csv").assign(y=7)
        other.to_csv(data / f"{name}.csv", index=False)
    with pytest.raises(DataError, match=r"no site has a record .*csv, line \d+: the label '7'"):
        ran("second", where=data)


def test_a_column_that_one_site_lacks_fails_it(
    ran: Callable[..., Result], write_files: Make, tmp_path: Path
) -> None:
    data = write_files(tmp_path / "data")
    pd.read_csv(data / "east.csv").drop(columns="x2").to_csv(data / "east.csv", index=False)
    with pytest.raises((DataError, QuorumError), match="x2"):
        ran(where=data, strategy={"min_sites": 3}, metrics={"source": "off"})


def test_a_category_called_none_is_a_category(
    write_files: Make, tmp_path: Path, plan_value: Make
) -> None:
    from privet.client.data.tables import read_table
    from privet.common.tasks import build_task

    data = write_files(tmp_path / "data", colour="None")
    task = build_task(Plan.parse(plan_value(task={"categorical": {"colour": ["red", "None"]}})))
    frame = read_table(data / "east.csv").frame
    assert set(task.encode(frame)["categorical"][:, 0].tolist()) == {2}


@pytest.mark.parametrize(
    "changes", [{"model": {"kind": "resnet"}}, {"strategy": {"kind": "fedfoo"}}]
)
def test_a_plan_that_cannot_run_leaves_no_folder(
    ran: Callable[..., Result], tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        ran(**changes)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(
    ran: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        ran()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_used(ran: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert ran().out == tmp_path / "out"


def test_files_that_changed_are_read_again(
    ran: Callable[..., Result], write_files: Make, tmp_path: Path
) -> None:
    """As in a notebook: look at the result, mend the file, run again."""
    data = write_files(tmp_path / "data")
    ran("one", where=data, metrics={"source": "off"})
    write_files(data, y=7)
    with pytest.raises(DataError, match="label '7'"):
        ran("two", where=data, metrics={"source": "off"})


def test_a_folder_that_was_removed_starts_anew(
    files: Path, plan_value: Make, tmp_path: Path
) -> None:
    import shutil

    from privet.simulations.compare import train_once

    plan = Plan.parse(plan_value())
    for _ in range(2):
        train_once(plan, SiteRecords(plan, None, files), tmp_path / "run")
        shutil.rmtree(tmp_path / "run")


# a model and a task of one's own

_OWN = """
import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    def forward(self, points):
        return self.layers(points)


def make(task, *, hidden=3):
    return Net(hidden)


class Points:
    def __init__(self, spec):
        self.scale = spec.options["scale"]

    def encode(self, frame):
        points = torch.tensor(frame[["x1", "x2"]].to_numpy(dtype="float32") * self.scale)
        return {"points": points, "label": torch.tensor(frame["y"].to_numpy(dtype="int64"))}

    def loss(self, model, batch):
        return functional.cross_entropy(model(batch["points"]), batch["label"], reduction="none")

    def scores(self, model, batch):
        return model(batch["points"]).softmax(-1)

    def random_batch(self, records, seed):
        generator = torch.Generator().manual_seed(seed)
        return {
            "points": torch.randn((records, 2), generator=generator),
            "label": torch.randint(0, 2, (records,), generator=generator),
        }
"""


def test_a_model_and_a_task_of_ones_own(
    ran: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_parts.py").write_text(_OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    result = ran(
        task={"kind": "own_parts:Points", "numeric": {}, "categorical": {},
              "options": {"scale": 0.5}},
        model={"kind": "own_parts:make", "options": {"hidden": 5}},
    )  # fmt: skip
    assert result.model["layers.0.weight"].shape == (5, 2)
    assert 0.0 <= result.metrics["accuracy"] <= 1.0


def test_a_task_of_ones_own_that_makes_no_random_batch_is_named(
    ran: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = _OWN.replace("generator = torch.Generator().manual_seed(seed)", "self.nothing", 1)
    (tmp_path / "own_broken.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_broken", raising=False)
    named = r"task 'own_broken:Points': random_batch\(1, 0\) fails: AttributeError"
    with pytest.raises(InputError, match=named):
        ran(
            task={"kind": "own_broken:Points", "numeric": {}, "categorical": {},
                  "options": {"scale": 0.5}},
            model={"kind": "own_broken:make", "options": {"hidden": 5}},
        )  # fmt: skip


# engines

RAY = {"engine": "ray"}
# The first answer waits for Ray's cluster and for its workers' imports: minutes on a busy machine.
PATIENT = {"timeout": 1200.0}
ray_test = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")


in_its_own_process = pytest.mark.skipif(
    not os.environ.get("PRIVET_TEST_ALONE"), reason="run by test_runs_on_ray"
)


@ray_test
@pytest.mark.slow
@pytest.mark.parametrize(
    "test",
    [
        "test_a_private_run_pays_at_every_site_on_ray_alone",
        pytest.param("test_both_engines_give_the_same_bits_on_ray_alone", marks=pytest.mark.long),
        pytest.param(
            "test_a_site_that_lacks_a_column_says_so_on_ray_alone", marks=pytest.mark.long
        ),
    ],
)
def test_runs_on_ray(request: pytest.FixtureRequest, test: str) -> None:
    """Ray leaves threads, sockets and loops open in a process: each test below gets one."""
    plugins = ["-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    words = [sys.executable, "-m", "pytest", "-q", *plugins]
    done = subprocess.run(
        [*words, f"{request.path}::{test}"],
        cwd=request.config.rootpath, capture_output=True, text=True,
        env={**os.environ, "PRIVET_TEST_ALONE": "1"}, timeout=3000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert "1 passed" in done.stdout


@ray_test
@in_its_own_process
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_both_engines_give_the_same_bits_on_ray_alone(
    ran: Callable[..., Result], same: Callable[..., bool]
) -> None:
    inline = ran("inline", {"engine": "inline"}, privacy=None, strategy=PATIENT)
    ray = ran("ray", RAY, privacy=None, strategy=PATIENT)
    assert same(inline.model, ray.model)
    assert inline.metrics == ray.metrics
    moved = ran("moved", {"engine": "inline"}, privacy=None, strategy=PATIENT, seed=1)
    assert not same(inline.model, moved.model)


@ray_test
@in_its_own_process
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_private_run_pays_at_every_site_on_ray_alone(ran: Callable[..., Result]) -> None:
    """Each site's ledger is written by the process that trained."""
    private = ran("private", RAY, strategy=PATIENT)
    assert private.loss is not None
    assert {site.status for site in private.sites} == {"released"}
    for site in private.sites:
        assert kinds(private, site.name) == ["reserved", "released"] * 2


@ray_test
@in_its_own_process
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_site_that_lacks_a_column_says_so_on_ray_alone(
    ran: Callable[..., Result], write_files: Make, tmp_path: Path
) -> None:
    data = write_files(tmp_path / "data")
    for path in data.glob("*.csv"):
        pd.read_csv(path).drop(columns="x2").to_csv(path, index=False)
    try:
        ran("ray", RAY, where=data, metrics={"source": "off"}, strategy=PATIENT)
    except QuorumError as error:
        assert "3 refused-policy" in str(error)
        assert "no column 'x2'" in str(error)
    else:
        pytest.fail("the quorum was met")


@pytest.mark.long
@ray_test
@pytest.mark.slow
def test_another_ray_cluster_is_left_alone_unless_it_is_named(
    files: Path, plan_value: Make, write_toml: Callable[..., Path], tmp_path: Path
) -> None:
    site = {"name": "North", "nominal_size": 60, "path": str(files / "north.csv")}
    path = write_toml(tmp_path / "tiny.toml", plan_value(sites=[site]))
    host = (
        "import ray\n"
        "at = ray.init(address='local', num_cpus=1, include_dashboard=False).address_info\n"
        "print('ready', at['gcs_address'], flush=True)\ninput()\n"
        "print('alive', len(ray.nodes()), flush=True)"
    )

    def simulate(out: str, *more: str) -> subprocess.CompletedProcess[str]:
        words = ["simulate", str(path), "--engine", "ray", "--json", "--out", out, *more]
        return subprocess.run(
            [sys.executable, "-c", "from privet.cli import main; main()", *words],
            capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
        )  # fmt: skip

    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", host], **pipe) as cluster:
        address = next(line for line in cluster.stdout or () if "ready" in line).split()[1]
        alone = simulate("alone")
        used = simulate("used", "--ray-address", address)
        left, _ = cluster.communicate("\n")
    for run in (alone, used):
        assert run.returncode == 0, run.stderr
    assert "alive 1" in left
    for out in ("alone", "used"):
        assert (tmp_path / out / "sites" / "North" / "ledger.db").exists()


def test_a_released_update_without_a_history_gives_no_epsilon(
    files: Path, plan_value: Make, tmp_path: Path
) -> None:
    """As on a cluster whose workers write elsewhere: an empty history must not read as ε 0."""

    def lose(step: Any) -> None:
        for path in tmp_path.rglob("North/ledger.db*"):
            path.unlink()

    with pytest.raises(LedgerError, match="its ledger does not say so"):
        run_plan(Plan.parse(plan_value()), Setting(base=files), tmp_path / "out", lose)
