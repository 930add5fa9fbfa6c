"""The command line: what it prints where, how it ends, and that it never shows a traceback."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rfc8785

Make = Callable[..., dict[str, Any]]
KEYS = {
    "run", "scenario", "rounds", "sites", "metrics", "epsilon", "delta", "unit", "relation",
    "trust", "claim", "out",
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def privet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Run:
    """Run the command in this process, in an empty folder, as its entry point does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRIVET_DATA", raising=False)

    def run(*words: object) -> Ended:
        from privet.cli import main

        monkeypatch.setattr(sys, "argv", ["privet", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


def process(*words: object, cwd: Path) -> Ended:
    """Run the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", "from privet.cli import main; main()", *map(str, words)],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def plan_path(
    tmp_path_factory: pytest.TempPathFactory, plan_value: Make, write_files: Callable[..., Path],
    write_toml: Callable[..., Path],
) -> Path:  # fmt: skip
    """A plan beside its files."""
    folder = write_files(tmp_path_factory.mktemp("plan"))
    return write_toml(folder / "tiny.toml", plan_value())


def refused(ended: Ended, *said: str, code: int = 2) -> None:
    """The command ended with ``code``, printed nothing, and said why in plain words."""
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
    for part in said:
        assert part in ended.err


@pytest.fixture(scope="module")
def quick_path(plan_path: Path, plan_value: Make, write_toml: Callable[..., Path]) -> Path:
    """The tiny plan with full batches, whose noise is calibrated in no time."""
    training = {"rounds": 1, "steps": 1, "sample_rate": 1.0}
    return write_toml(plan_path.parent / "quick.toml", plan_value(training=training))


# help


def test_help_says_what_there_is_and_loads_nothing_heavy(root: Path) -> None:
    code = (
        "import sys\nfrom privet.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(sorted({'torch', 'flwr', 'pandas', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], cwd=root, capture_output=True, text=True, check=True
    )
    assert "simulate" in done.stdout
    assert "init" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_each_command_helps_with_an_example(privet: Run) -> None:
    for command in ("simulate", "init", "budget"):
        ended = privet(command, "--help")
        assert ended.code == 0
        assert "Example" in ended.out
        assert f"privet {command}" in ended.out
        assert "--json" in ended.out


def test_the_version(privet: Run) -> None:
    import privet as package

    ended = privet("--version", "--json")
    value = json.loads(ended.out)
    assert (ended.code, ended.err, list(value)) == (0, "", ["privet", "code", "manifest"])
    assert set(value["manifest"]) == {"privet", "sources", "modules", "libraries"}
    assert value["code"] == sha256_of(rfc8785.dumps(value["manifest"]))
    said = f"privet {package.__version__}\ncode {value['code']}\n"
    assert privet("--version") == Ended(0, said, "")
    assert privet("--version", "--plan", "lending").out == said


def sha256_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_the_version_with_a_plan_of_ones_own(
    privet: Run, tmp_path: Path, plan_value: Make, write_toml: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The digest that a site's ledger will name, before anything of the plan is imported."""
    path = write_toml(tmp_path / "own.toml", plan_value(model={"kind": "version_net:make"}))
    refused(privet("--version", "--plan", path), "'version_net', which is not there")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "version_net.py").write_text("raise RuntimeError\n")
    monkeypatch.syspath_prepend(tmp_path / "own")
    value = json.loads(privet("--version", "--plan", path, "--json").out)
    digest = sha256_of(b"raise RuntimeError\n")
    modules = {"version_net": sha256_of(rfc8785.dumps({"version_net.py": digest}))}
    assert value["manifest"]["modules"] == modules
    assert "version_net" not in sys.modules
    assert value["code"] != json.loads(privet("--version", "--json").out)["code"]
    # As a site keeps a plan that it was offered.
    from privet.common.plan import Plan

    kept = tmp_path / "offered.json"
    kept.write_text(json.dumps(Plan.load(path).to_dict()))
    assert json.loads(privet("--version", "--plan", kept, "--json").out) == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--json"], "only with --version"),
        (["--plan", "lending", "simulate", "--list"], "only with --version"),
        (["--version", "--plan", "absent.json"], "absent.json: cannot be read: No such file"),
        (["--version", "--plan", "odd.json"], "odd.json: cannot be read: it is not JSON"),
        (["--version", "--plan", "list.json"], "list.json"),
        (["--version", "--plan", "absent.toml"], "absent.toml"),
        (["--version", "--plan", "nothing"], "there is no scenario 'nothing'"),
    ],
)
def test_the_version_says_what_is_wrong(
    privet: Run, tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "odd.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    refused(privet(*words), said)


def test_no_command_shows_the_help(privet: Run) -> None:
    ended = privet()
    assert "simulate" in ended.out + ended.err
    assert ended.code in (0, 2)


# list

SCENARIOS = [
    "lending", "medpar", "fed-heart", "sba-loans", "eicu-text", "eicu-gaps", "banking77",
    "digits", "shakespeare", "gospels",
]  # fmt: skip


def test_the_list_has_its_keys(privet: Run) -> None:
    ended = privet("simulate", "--list", "--json")
    assert ended.code == 0
    value = json.loads(ended.out)
    names = [row["name"] for row in value["scenarios"]]
    assert names == SCENARIOS
    for row in value["scenarios"]:
        assert set(row) >= {"name", "task", "model", "sites", "unit", "data", "available"}
        assert type(row["sites"]) is int
        assert type(row["available"]) is bool
        assert row["unit"] in ("record", "person")


def test_the_list_names_every_scenario(privet: Run) -> None:
    ended = privet("simulate", "--list")
    assert ended.code == 0
    for name in SCENARIOS:
        assert name in ended.out


# a run


@pytest.fixture(scope="module")
def json_run(plan_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The tiny plan in a process of its own, with --json."""
    out = tmp_path_factory.mktemp("json") / "run"
    return process("simulate", plan_path, "--json", "--out", out, cwd=plan_path.parent)


def test_json_is_one_object_on_standard_output(json_run: Ended) -> None:
    assert json_run.code == 0, json_run.err
    assert json_run.out.count("\n") == 1
    value = json.loads(json_run.out)
    assert set(value) >= KEYS
    assert [site["name"] for site in value["sites"]] == ["North", "East", "South"]
    epsilons = [site["epsilon"] for site in value["sites"]]
    assert value["epsilon"] == max(epsilons) > 0
    assert (value["delta"], value["unit"]) == (1e-4, "record")
    assert (value["relation"], value["trust"]) == ("add_or_remove_one", "local")
    assert (value["rounds"], value["scenario"]) == (2, "tiny")
    assert set(value["metrics"]) == {"accuracy", "precision", "recall", "f1", "auc", "majority"}
    assert json.loads((Path(value["out"]) / "result.json").read_text()) == value


def test_progress_is_on_standard_error(json_run: Ended) -> None:
    assert re.findall(r"round (\d)/2", json_run.err) == ["1", "2"]
    assert not re.search(r"round \d/", json_run.out)


FIGURE = re.compile(r"ε")
TERMS = re.compile(r"δ \d[^ ]*, per (record|person), (add or remove|replace) one")


def bare_epsilons(text: str) -> list[str]:
    """Return the printed blocks that show an ε and nowhere δ, unit and relation (H27).

    A block is a run of lines without an empty one: a table with its heading, a paragraph.
    """
    blocks = re.split(r"\n\s*\n|(?=\n[^\s│┃┏┡├└][^\n]*·)", text)
    return [block for block in blocks if FIGURE.search(block) and not TERMS.search(block)]


def test_people_see_every_epsilon_with_its_terms(privet: Run, plan_path: Path) -> None:
    ended = privet("simulate", plan_path, "--out", "run")
    assert ended.code == 0, ended.err
    assert "ε spent" in ended.out
    assert "Each site spent at most ε" in ended.out
    assert bare_epsilons(ended.out) == []
    for line in ended.err.splitlines():
        assert bare_epsilons(line) == []
    card = Path("run/model/README.md").read_text()
    assert "ε" in card
    assert bare_epsilons(card) == []


def test_an_epsilon_out_of_reach_is_told_with_its_terms(
    privet: Run, plan_path: Path, plan_value: Make, write_toml: Callable[..., Path]
) -> None:
    value = plan_value(
        training={"sample_rate": 1.0},
        metrics={"source": "gate", "noise_multiplier": 0.5},
        privacy={"epsilon": 1.0},
    )
    del value["privacy"]["noise_multiplier"]
    ended = privet("simulate", write_toml(plan_path.parent / "far.toml", value), "--out", "run")
    refused(ended, "no noise reaches")
    assert "the metrics mechanism's 2 evaluations cost" in ended.err
    assert bare_epsilons(ended.err) == []


def test_a_bare_epsilon_is_noticed() -> None:
    assert bare_epsilons("Each site spent ε 3.\n")
    assert bare_epsilons("Sites · a title\nsite ε spent\nNorth 2.0\n")
    assert not bare_epsilons("ε 3.000 (δ 1e-05, per record, add or remove one)")


def test_a_noise_seed_makes_the_claim_none(privet: Run, plan_path: Path) -> None:
    value = json.loads(
        privet("simulate", plan_path, "--noise-seed", 3, "--json", "--out", "run").out
    )
    assert value["claim"] == "none"
    assert value["epsilon"] > 0


def test_no_dp_has_no_epsilon_and_no_claim(privet: Run, plan_path: Path) -> None:
    value = json.loads(privet("simulate", plan_path, "--no-dp", "--json", "--out", "run").out)
    assert (value["claim"], value["epsilon"]) == ("none", None)
    assert [site["epsilon"] for site in value["sites"]] == [None] * 3
    shown = privet("simulate", plan_path, "--no-dp", "--out", "shown")
    assert "Claim: none (trained without noise)" in " ".join(shown.out.split())


def test_changes_of_the_command_line_reach_the_plan(privet: Run, plan_path: Path) -> None:
    ended = privet("simulate", plan_path, "--rounds", 1, "--sites", 2, "--seed", 9, "--no-dp",
                   "--model", "ft-transformer", "--json", "--out", "run")  # fmt: skip
    assert ended.code == 0, ended.err
    plan = json.loads(Path("run/plan.json").read_text())
    assert (plan["seed"], plan["training"]["rounds"]) == (9, 1)
    assert [site["name"] for site in plan["sites"]] == ["North", "East"]
    assert plan["model"]["kind"] == "ft-transformer"


def test_the_comparison_stays_under_non_private(
    privet: Run, plan_path: Path, tmp_path: Path
) -> None:
    words = ("simulate", plan_path, "--json", "--noise-seed", 1, "--out")
    plain = privet(*words, tmp_path / "plain")
    ended = privet(*words, tmp_path / "run", "--compare")
    assert ended.code == 0, ended.err

    def listing(name: str) -> set[str]:
        folder = tmp_path / name
        return {
            str(path.relative_to(folder)) for path in folder.rglob("*")
            if path.is_file() and path.parent.name != "outbox"  # named by the run
        }  # fmt: skip

    extra = listing("run") - listing("plain")
    assert listing("plain") <= listing("run")
    assert extra
    assert all(name.startswith("non-private/") for name in extra)
    notice = " ".join(Path("run/non-private/NOTICE.txt").read_text().split())
    assert "must not leave this machine" in notice
    assert "their bundles claim nothing" in notice and "no bundle" not in notice
    made = privet("audit", "bundle", "run/non-private/together", "--out", "together.bundle")
    assert made.code == 0, made.err
    assert json.loads(privet("audit", "verify", "together.bundle", "--json").out)["claim"] == "none"
    compared = json.loads(Path("run/non-private/compare.json").read_text())
    assert compared["private"] is False
    names = [row["name"] for row in compared["rows"]]
    assert names == [
        "federated, no privacy",
        "each site alone, mean",
        "all data pooled, no privacy",
        "all data pooled, boosted trees",
    ]
    assert not any(row["private"] for row in compared["rows"])
    # Nothing of the un-noised models is said outside.
    value = json.loads(ended.out)
    assert {key: value[key] for key in ("epsilon", "metrics")} == {
        key: json.loads(plain.out)[key] for key in ("epsilon", "metrics")
    }
    # By chance an un-noised model may be as good as the private one, whose figures are said.
    figures = {str(row["metrics"]["auc"]) for row in compared["rows"]}
    hidden = {figure for figure in figures if figure not in plain.out}
    assert hidden
    for figure in hidden:
        assert figure not in (Path("run/result.json").read_text() + ended.out)


def test_the_comparison_is_shown_marked(privet: Run, plan_path: Path, tmp_path: Path) -> None:
    ended = privet("simulate", plan_path, "--compare", "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert ended.out.count("✗") == 5
    assert "must not leave it" in ended.out
    assert bare_epsilons(ended.out) == []


def test_a_sweep_runs_once_for_each_epsilon(privet: Run, quick_path: Path) -> None:
    ended = privet("simulate", quick_path, "--sweep", "5,10", "--json", "--out", "run")
    assert ended.code == 0, ended.err
    runs = json.loads(ended.out)["runs"]
    assert [value["epsilon"] <= cap for value, cap in zip(runs, (5, 10), strict=True)] == [True] * 2
    folders = sorted(path.name for path in Path("run").iterdir() if path.is_dir())
    assert folders == ["epsilon-10", "epsilon-5", "plots"]


# wrong use


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a scenario or a plan file"),
        (("nowhere",), "there is no scenario 'nowhere'"),
        (("none.toml",), "none.toml: there is no such file"),
        (("PLAN", "--sweep", "1,x"), "--sweep takes numbers"),
        (("PLAN", "--sweep", ""), "--sweep takes numbers"),
        (("PLAN", "--sweep", "nan"), "--sweep takes numbers"),
        (("PLAN", "--sweep", "NaN"), "each ε of --sweep must be above 0"),
        (("PLAN", "--resume"), "--resume goes with --sweep"),
        (("PLAN", "--jobs", "2", "--engine", "inline"), "--jobs goes with --sweep or --engine auto"),
        (("PLAN", "--jobs", "0"), "--jobs must be at least 1"),
        (("PLAN", "--sweep", "1,3", "--resume"), "--resume goes with --out"),
        (("PLAN", "--sweep", "1,3", "--jobs", "0"), "--jobs must be at least 1"),
        (("PLAN", "--sweep", "0"), "each ε of --sweep must be above 0"),
        (("PLAN", "--no-dp", "--epsilon", "3"), "--no-dp goes without --epsilon"),
        (("PLAN", "--no-dp", "--sweep", "1,3"), "goes without --no-dp"),
        (("PLAN", "--epsilon", "-1"), "--epsilon must be above 0 and at most 1,000, not -1"),
        (("PLAN", "--epsilon", "1e9"), "--epsilon must be"),
        (("PLAN", "--epsilon", "inf"), "--epsilon must be"),
        (("PLAN", "--epsilon", "three"), "--epsilon"),
        (("PLAN", "--rounds", "0"), "--rounds must be at least 1"),
        (("PLAN", "--sites", "0"), "--sites must lie between 1 and 3"),
        (("PLAN", "--sites", "4"), "--sites must lie between 1 and 3"),
        (("PLAN", "--seed", "-1"), "--seed must be at least 0"),
        (("PLAN", "--engine", "warp"), "--engine"),
        (("PLAN", "--clipping", "none"), "--clipping"),
        (("PLAN", "--ray-address", "x:1"), "--ray-address goes with --engine ray"),
        (("PLAN", "--model", "resnet"), "resnet"),
        (("PLAN", "--fast"), "--fast"),
        (("lending", "--model", "resnet"), "has no model 'resnet'"),
        (("fed-heart",), "PRIVET_DATA"),
        (("fed-heart", "--data", "nowhere"), "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)  # fmt: skip
def test_wrong_use_ends_with_2(
    privet: Run, plan_path: Path, words: tuple[str, ...], said: str
) -> None:
    refused(privet("simulate", *(plan_path if w == "PLAN" else w for w in words)), said)


@pytest.mark.parametrize(
    "changes",
    [
        {"zzz": 1}, {"privacy": {"epsilon": 0.0}}, {"training": {"sample_rate": 2.0}},
        {"sites": [{"name": "A", "nominal_size": 1, "path": "none.csv"}]},
        {"strategy": {"kind": "fedfoo"}}, {"model": {"kind": "resnet"}},
        {"data": {"path": "tiny.toml", "site_column": "x"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_plan_ends_with_2(
    privet: Run, plan_path: Path, plan_value: Make, write_toml: Callable[..., Path],
    changes: dict[str, Any],
) -> None:  # fmt: skip
    path = plan_path.parent / "bad.toml"
    write_toml(path, plan_value(**changes))
    refused(privet("simulate", path, "--out", "run"), "privet: ")


@pytest.mark.parametrize("fault", ["device", "size", "module", "factory"])
def test_a_plan_that_breaks_a_library_shows_no_traceback(
    privet: Run, plan_path: Path, plan_value: Make, write_toml: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str,
) -> None:  # fmt: skip
    (tmp_path / "broken_net.py").write_text("def make(task:\n")
    (tmp_path / "broken_make.py").write_text("def make(task):\n    raise ValueError('mine')\n")
    monkeypatch.syspath_prepend(tmp_path)
    changes: dict[str, Any] = {
        "device": {"device": "abacus"},
        "size": {"model": {"kind": "ft-transformer", "options": {"heads": 0}}},
        "module": {"model": {"kind": "broken_net:make"}},
        "factory": {"model": {"kind": "broken_make:make"}},
    }[fault]
    path = plan_path.parent / f"bad-{fault}.toml"
    write_toml(path, plan_value(**changes))
    refused(privet("simulate", path, "--out", "run"), "privet: ")


def test_a_folder_in_use_ends_with_2(privet: Run, plan_path: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("mine")
    refused(privet("simulate", plan_path, "--out", "run"), "not an empty folder")
    refused(privet("simulate", plan_path, "--sweep", "1,3", "--out", "run"), "is not empty")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_made_ends_with_2(
    privet: Run, plan_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    refused(privet("simulate", plan_path, "--out", "file/run"), "file/run: cannot be made")
    refused(privet("simulate", plan_path, "--out", "file"), "not an empty folder")
    refused(privet("simulate", plan_path, "--out", "/proc/run"), "/proc/run: cannot be made")


def test_a_sweep_with_a_wrong_epsilon_runs_none(privet: Run, quick_path: Path) -> None:
    refused(privet("simulate", quick_path, "--sweep", "10,-1", "--out", "run"))
    assert not Path("run").exists()


@pytest.mark.parametrize("words", [("--compare",), ("--epsilon", "3")], ids=lambda w: w[0])
def test_words_that_a_sweep_does_not_take_are_refused(
    privet: Run, quick_path: Path, words: tuple[str, ...]
) -> None:
    refused(privet("simulate", quick_path, "--sweep", "10", *words, "--out", "run"))


# exit codes 1 and 3


def test_noise_that_costs_more_than_the_cap_is_refused_with_3(
    privet: Run, plan_path: Path, plan_value: Make, write_toml: Callable[..., Path]
) -> None:
    path = plan_path.parent / "dear.toml"
    write_toml(path, plan_value(privacy={"epsilon": 0.5}))
    ended = privet("simulate", path, "--out", "run")
    refused(ended, "would cost ε", "per record, add or remove one", code=3)


def test_a_federation_that_fails_ends_with_1(
    privet: Run, plan_value: Make, write_files: Callable[..., Path],
    write_toml: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    folder = write_files(tmp_path / "bad", y="maybe")
    path = write_toml(folder / "tiny.toml", plan_value(metrics={"source": "off"}))
    ended = privet("simulate", path, "--json", "--out", "run")
    refused(ended, "no site has a record to train on", "label 'maybe'", code=2)


@pytest.mark.parametrize("words", [("simulate", "--fast"), ("nothing",)])
def test_a_process_of_its_own_ends_with_2_and_no_traceback(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    refused(process(*words, cwd=tmp_path))


# init


def test_init_then_simulate(privet: Run) -> None:
    made = privet("init", "mine", "--json")
    assert made.code == 0, made.err
    value = json.loads(made.out)
    assert value["folder"] == "mine"
    assert set(value["files"]) == {path.name for path in Path("mine").iterdir()}
    assert "plan.toml" in value["files"]
    ended = privet("simulate", "mine/plan.toml", "--rounds", 2, "--json", "--out", "run")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert len(result["sites"]) == 3
    assert result["epsilon"] <= 3.0
    assert result["metrics"]["accuracy"] > 0.7


def test_inits_own_model_works(privet: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert privet("init", "mine").code == 0
    monkeypatch.syspath_prepend("mine")
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    path = Path("mine/plan.toml")
    text = path.read_text()
    assert 'kind = "linear"' in text
    path.write_text(text.replace('kind = "linear"', 'kind = "my_model:make"'))
    ended = privet("simulate", path, "--no-dp", "--rounds", 1, "--json", "--out", "run")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["model"] == "my_model:make"


def test_init_leaves_a_folder_in_use_alone(privet: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    refused(privet("init", "mine"), "nothing was written")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]
    (tmp_path / "file").write_text("")
    refused(privet("init", "file"), "nothing was written")
