"""What an auditor installs: the wheel with its core dependencies, in a folder of its own.

Slow, and needs the registry: the wheel is built here, pip fetches what it depends on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privet.privacy.audit.bundle import write_bundle
from privet.simulations.run import simulate

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("core-install")]
ABSENT = ("torch", "flwr", "opacus", "transformers", "pandas", "sklearn", "safetensors", "ray")
NO_REGISTRY = ("connection broken by", "Connection refused", "timed out", "name resolution")


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from what git would take of this tree."""
    if not (root / ".git").exists():
        pytest.skip("needs a git checkout")
    tree = tmp_path_factory.mktemp("build") / "privet_tree"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_symlink() or (root / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, tree / name, follow_symlinks=False)
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", str(tree)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((tree / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def core(wheel: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment that holds the wheel and what it requires."""
    home = tmp_path_factory.mktemp("core")
    venv.create(home, with_pip=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    # What runs is compiled when it runs; the rest of what pip fetches need not be.
    command = [*pip, "install", "--quiet", "--no-compile"]
    command += ["-c", str(root / "constraints.txt"), str(wheel)]
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=home, env=environment
    )
    if done.returncode and any(sign in done.stderr for sign in NO_REGISTRY):
        pytest.skip(f"the registry cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return home / "bin"


@pytest.fixture(scope="module")
def evidence(
    plan_value: Callable[..., dict[str, Any]],
    write_files: Callable[..., Path],
    write_toml: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with the bundle and the fingerprints of a run of the whole install."""
    work, away = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("auditor")
    plan = write_toml(write_files(work) / "plan.toml", plan_value())
    run = simulate(plan, out=work / "run").out
    write_bundle([run], away / "tiny.bundle")
    shutil.copy(run / "roster-fingerprints.json", away)
    shutil.copy(plan, away)
    return away


@pytest.fixture
def run(core: Path, evidence: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program of the core install in the auditor's folder."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "PRIVET_", "VIRTUAL_ENV"))
    }

    def run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(core / program), *words], cwd=evidence, capture_output=True, text=True,
            check=False, env={**environment, "PATH": f"{core}:/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


Run = Callable[..., subprocess.CompletedProcess[str]]
ROSTER = ("--roster", "roster-fingerprints.json")


def test_the_core_is_small_and_whole(run: Run, core: Path) -> None:
    code = (
        "import importlib.util, privet, privet.common.errors\n"
        f"print([name for name in {ABSENT!r} if importlib.util.find_spec(name)])\n"
        "print(privet.__file__)"
    )
    done = run("python", "-W", "error", "-c", code)
    assert done.returncode == 0, done.stderr
    absent, place = done.stdout.splitlines()
    assert absent == "[]"
    assert Path(place).is_relative_to(core.parent)
    assert run("python", "-m", "pip", "check").returncode == 0


_IMPORTS = """
import ast, importlib, importlib.metadata as metadata, json, pathlib, pkgutil, re, sys
import privet

sys.argv = ["privet"]
failed = {}
for found in pkgutil.walk_packages(privet.__path__, "privet.", onerror=lambda name: None):
    try:
        importlib.import_module(found.name)
    except ModuleNotFoundError as error:
        failed[found.name] = error.name.split(".")[0]

def plain(name):
    return re.split("[^A-Za-z0-9_.-]", name)[0].lower().replace("_", "-")

def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]

owners = metadata.packages_distributions()
required = {plain(r) for r in metadata.requires("privet") if "extra" not in r} | {"privet"}
loaded = {name: module for name, module in sys.modules.items() if name.startswith("privet.")}
direct = {name for m in loaded.values() for name in imported(pathlib.Path(m.__file__))}
missing = {n for n in direct & set(owners) if not {plain(o) for o in owners[n]} & required}
print(json.dumps([sorted(loaded), failed, sorted(missing), sorted(direct & set(owners))]))
"""


def test_the_wheel_requires_what_the_core_imports(run: Run) -> None:
    """What comes by luck with something else may stop coming."""
    done = run("python", "-c", _IMPORTS)
    assert done.returncode == 0, done.stderr
    loaded, failed, missing, direct = json.loads(done.stdout)
    assert {"privet.privacy.evidence.ledger", "privet.privacy.audit.report", "privet.cli"} <= set(
        loaded
    )
    assert {"numpy", "scipy", "cryptography"} <= set(direct)
    assert missing == []
    assert set(failed.values()) <= {
        *ABSENT,
        "google",
        "grpc",
        "peft",
        "prometheus_client",
        "pyarrow",
        "sqlalchemy",
        "sqlglot",
    }


def test_help(run: Run) -> None:
    done = run("privet", "--help")
    assert done.returncode == 0, done.stderr
    assert "audit" in done.stdout


def test_an_auditor_verifies(run: Run) -> None:
    done = run("privet", "audit", "verify", "tiny.bundle", *ROSTER, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["ok"], said["roster"], len(said["sites"])) == (True, "pinned", 3)
    assert run("privet", "audit", "verify", "tiny.bundle", *ROSTER).returncode == 0


def test_a_changed_copy_is_noticed(run: Run, evidence: Path) -> None:
    lines = (evidence / "tiny.bundle").read_bytes().splitlines(keepends=True)
    del lines[len(lines) // 2]
    (evidence / "changed.bundle").write_bytes(b"".join(lines))
    done = run("privet", "audit", "verify", "changed.bundle", *ROSTER, "--json")
    assert done.returncode == 4, done.stderr
    assert json.loads(done.stdout)["faults"]


def test_an_auditor_reports(run: Run, evidence: Path) -> None:
    done = run("privet", "audit", "report", "tiny.bundle", *ROSTER, "--out", "report")
    assert done.returncode == 0, done.stderr
    made = {path.name: path.stat().st_size for path in (evidence / "report").iterdir()}
    assert set(made) == {"report.html", "report.json", "registry.json"}
    assert made["report.html"] > 10_000
    done = run("privet", "audit", "report", "tiny.bundle", "--out", "more", "--interval")
    assert "Traceback" not in done.stderr
    assert "should not have happened" not in done.stderr


def test_an_operator_makes_a_site_and_asks_what_a_plan_costs(run: Run, evidence: Path) -> None:
    words = ("client", "init", "north", "--site", "North", "--plain-keys")
    assert run("privet", *words).returncode == 0
    done = run("privet", "client", "status", "--policy", "north/site.toml", "--json")
    assert done.returncode == 0, done.stderr
    done = run("privet", "budget", "plan.toml", "north/site.toml", "--json")
    assert done.returncode in (0, 3), done.stderr
    assert json.loads(done.stdout)["cost"]["total"] > 0


@pytest.mark.parametrize(
    "words", [("simulate", "--list"), ("simulate", "plan.toml"), ("init", "mine")]
)
def test_what_needs_more_says_what_to_install(run: Run, words: tuple[str, ...]) -> None:
    done = run("privet", *words)
    assert done.returncode == 2
    assert "install Privet with the extra [train]" in done.stderr
    assert "should not have happened" not in done.stderr


def test_the_clients_room_is_not_an_auditors(run: Run) -> None:
    """The negative control: what needs torch does not import here."""
    done = run("python", "-c", "import privet.privacy.mechanism.dpsgd")
    assert done.returncode == 1
    assert "No module named" in done.stderr
