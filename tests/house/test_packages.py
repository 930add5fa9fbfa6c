"""What is shipped: wheel, sdist, and the bundle that Flower sends to every node."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import warnings
import zipfile
from pathlib import Path

import pytest

ROOMS = ("common", "privacy", "client", "server", "simulations")
DATA_FILES = {
    "privet/common/link/link.proto", "privet/common/link/link_pb2.pyi",
    "privet/common/models/tokenizer.json", "privet/common/models/tokenizer.md",
    "privet/delivery/explain.html.j2",
    "privet/privacy/audit/report/page.html.j2", "privet/privacy/audit/report/style.css",
}  # fmt: skip
PLANTED = (
    "site.toml", "ledger.jsonl", "data.csv", "data.json", "patients.md", "planted.py",
    "runs/lending/result.json", "runs/lending/planted.py", "data/planted.py",
    "client/site.toml", "client/ledger.jsonl", "common/models/patients.json",
    "simulations/scenarios/data.jsonl", "privet/site.toml", "tests/cli/planted.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkout(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would take of this tree, links kept."""
    if not (root / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    copy = tmp_path_factory.mktemp("checkout") / "privet_copy"
    for name in filter(None, listed.stdout.split("\0")):
        source, target = root / name, copy / name
        if source.is_symlink() or source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return copy


def plans(checkout: Path) -> set[str]:
    """Return the paths of the scenarios' plans, as they are in the tree."""
    found = {str(path.relative_to(checkout)) for path in checkout.glob("simulations/**/*.toml")}
    assert "simulations/scenarios/lending.toml" in found
    return found


def modules(checkout: Path) -> set[str]:
    """Return the paths that the package's modules have once they are installed."""
    found = {
        f"privet/{path.relative_to(checkout)}"
        for room in ROOMS
        for path in (checkout / room).rglob("*.py")
    }
    return found | {
        str(path.relative_to(checkout))
        for path in (checkout / "privet").rglob("*.py")
        if path.relative_to(checkout / "privet").parts[0] not in ROOMS
    }


def run_there(folder: Path, code: str) -> str:
    """Run ``code`` in a new process that finds ``privet`` in ``folder`` and nowhere else."""
    no_editable = (
        "import sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", no_editable + code],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# wheel and sdist


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    tree = tmp_path_factory.mktemp("build") / "privet_tree"
    shutil.copytree(checkout, tree, symlinks=True)
    for name in PLANTED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("planted = 1\n")
    out = tree / "out"
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built: Path, checkout: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
    tops = {name.split("/")[0] for name in names}
    assert tops == {"privet", next(top for top in tops if top.endswith(".dist-info"))}
    package = {name for name in names if name.startswith("privet/")}
    plans_there = {f"privet/{name}" for name in plans(checkout)}
    assert package == modules(checkout) | DATA_FILES | plans_there | {"privet/py.typed"}


@pytest.mark.slow
def test_the_sdist_holds_no_tests_and_no_data(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        members = sdist.getmembers()
    names = {member.name.split("/", 1)[1] for member in members if "/" in member.name}
    allowed = {"privet", "privet.egg-info", "LICENSE", "README.md", "PKG-INFO", "pyproject.toml",
               "setup.cfg"}  # fmt: skip
    assert {name.split("/")[0] for name in names} <= allowed
    assert not any(member.issym() or member.islnk() for member in members)
    assert {name for name in names if name.endswith("planted.py")} == set()


@pytest.mark.slow
def test_an_unpacked_wheel_imports(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path)
        metadata = next(n for n in wheel.namelist() if n.endswith("/METADATA"))
        lines = wheel.read(metadata).decode().splitlines()
    said = run_there(
        tmp_path,
        "import privet, privet.common.errors as e, privet.privacy.accounting.pld\n"
        "print(e.__file__, privet.__version__)",
    )
    assert said.split()[0] == str(tmp_path / "privet" / "common" / "errors.py")
    required = [line for line in lines if line.startswith("Requires-Dist:") and "extra" not in line]
    assert not any(heavy in line for line in required for heavy in ("torch", "flwr", "opacus"))


# Flower's bundle


def bundle_of(tree: Path) -> zipfile.ZipFile:
    from flwr.cli.build import build_fab_from_disk

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Flower's use of pathspec
        return zipfile.ZipFile(io.BytesIO(build_fab_from_disk(tree)))


@pytest.fixture(scope="module")
def littered(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout with a site's files lying about in it."""
    tree = tmp_path_factory.mktemp("littered") / "privet_tree"
    shutil.copytree(checkout, tree, symlinks=True)
    for name in PLANTED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("planted = 1\n")
    return tree


def test_a_flower_bundle_contains_what_is_meant(littered: Path, checkout: Path) -> None:
    names = set(bundle_of(littered).namelist())
    in_rooms = {name.removeprefix("privet/") if name.split("/")[1] in ROOMS else name
                for name in modules(checkout)}  # fmt: skip
    meant = in_rooms | {"common/models/tokenizer.json", "pyproject.toml", ".info/CONTENT"}
    meant |= plans(checkout)
    assert names == meant
    assert not names & set(PLANTED)


def test_without_its_list_a_bundle_would_take_the_sites_files(
    littered: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "privet_tree"
    shutil.copytree(littered, tree, symlinks=True)
    text = (tree / "pyproject.toml").read_text()
    start = text.index("fab-include")
    end = text.index("]", start) + 1
    (tree / "pyproject.toml").write_text(text[:start] + text[end:])
    names = set(bundle_of(tree).namelist())
    assert {"site.toml", "ledger.jsonl", "client/ledger.jsonl"} <= names


def test_a_bundle_works_without_its_links(littered: Path, tmp_path: Path) -> None:
    bundle_of(littered).extractall(tmp_path)
    assert not (tmp_path / "privet" / "common").exists()
    said = run_there(
        tmp_path,
        "import privet, privet.common.errors as e, privet.client.site, privet.server.app\n"
        "import privet.cli, sys\n"
        "assert 'common' not in sys.modules\n"
        "print(privet.__file__, e.__file__)",
    )
    assert said.split() == [
        str(tmp_path / "privet" / "__init__.py"), str(tmp_path / "common" / "errors.py")
    ]  # fmt: skip


def test_without_the_path_line_a_bundle_would_not_work(littered: Path, tmp_path: Path) -> None:
    bundle_of(littered).extractall(tmp_path)
    init = tmp_path / "privet" / "__init__.py"
    kept = [line for line in init.read_text().splitlines() if "__path__.append" not in line]
    kept = [line + "\n    pass" if line.startswith("if not (Path") else line for line in kept]
    init.write_text("\n".join(kept) + "\n")
    with pytest.raises(AssertionError, match="No module named 'privet.common'"):
        run_there(tmp_path, "import privet.common.errors")


@pytest.mark.parametrize("component", ["serverapp", "clientapp"])
def test_the_apps_that_flower_is_told_of_are_in_the_bundle(
    littered: Path, tmp_path: Path, component: str
) -> None:
    from flwr.supercore.object_ref import validate

    bundle_of(littered).extractall(tmp_path)
    value = tomllib.loads((tmp_path / "pyproject.toml").read_text())
    reference = value["tool"]["flwr"]["app"]["components"][component]
    module, name = reference.split(":")
    assert validate(reference, check_module=True, project_dir=tmp_path) == (True, None)
    assert not validate(f"{module}:nothing", check_module=True, project_dir=tmp_path)[0]
    said = run_there(tmp_path, f"import {module} as m; print(type(m.{name}).__name__)")
    assert said == {"serverapp": "ServerApp", "clientapp": "ClientApp"}[component]
