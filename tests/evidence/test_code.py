"""The digest of the code: everything that computes moves it, and nothing is imported for it."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from privet.common import code
from privet.common.errors import InputError
from privet.common.plan import Plan

RAISES = "raise RuntimeError('this was imported')\n"
Make = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Let each test look at what is installed."""
    code._installed.cache_clear()
    yield
    code._installed.cache_clear()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the module path, with a module and a package that may not be imported."""
    folder = tmp_path / "own"
    (folder / "cover_package" / "deep").mkdir(parents=True)
    (folder / "cover_model.py").write_text(RAISES)
    (folder / "cover_package" / "__init__.py").write_text(RAISES)
    (folder / "cover_package" / "deep" / "tasks.py").write_text(RAISES)
    (folder / "cover_package" / "records.csv").write_text("1\n")
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def plan(plan_value: Make) -> Plan:
    """A plan that names a model of one's own, and a task in a package."""
    value = plan_value(model={"kind": "cover_model:make"})
    return Plan.parse({**value, "task": {"kind": "cover_package.deep.tasks:make"}})


# what the plan names


def test_a_changed_line_of_an_own_module_is_other_code(own: Path, plan: Plan) -> None:
    before = code.code_digest(plan)
    assert code.code_digest(plan) == before
    (own / "cover_model.py").write_text(RAISES + "# less noise\n")
    assert code.code_digest(plan) != before
    (own / "cover_model.py").write_text(RAISES)
    assert code.code_digest(plan) == before


def test_any_file_of_a_named_package_counts(own: Path, plan: Plan) -> None:
    """Also one that nothing of what is named lies in; but no records that lie beside the code."""
    before = code.code_digest(plan)
    (own / "cover_package" / "records.csv").write_text("2\n")
    (own / "cover_elsewhere.py").write_text("")
    assert code.code_digest(plan) == before
    added = own / "cover_package" / "deep" / "helper.py"
    added.write_text("")
    with_helper = code.code_digest(plan)
    assert with_helper != before
    added.rename(added.with_name("other.py"))
    assert code.code_digest(plan) not in (before, with_helper)


def test_files_behind_a_link_count(own: Path, plan: Plan, tmp_path: Path) -> None:
    behind = tmp_path / "behind"
    behind.mkdir()
    (behind / "part.py").write_text("")
    (behind / "round").symlink_to(own / "cover_package")  # a circle ends
    before = code.code_digest(plan)
    (own / "cover_package" / "linked").symlink_to(behind)
    linked = code.code_digest(plan)
    assert linked != before
    (behind / "part.py").write_text("# changed\n")
    assert code.code_digest(plan) not in (before, linked)


def test_a_package_without_init_counts_in_all_its_folders(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = tmp_path / "more"
    for folder, name in ((own, "one"), (more, "two")):
        (folder / "cover_spread").mkdir(parents=True)
        (folder / "cover_spread" / f"{name}.py").write_text(RAISES)
    monkeypatch.syspath_prepend(str(more))
    before = code.module_digest("cover_spread")
    for folder, name in ((own, "one"), (more, "two")):
        (folder / "cover_spread" / f"{name}.py").write_text(RAISES + f"# {name}\n")
        after = code.module_digest("cover_spread")
        assert after != before
        before = after


def test_nothing_that_a_plan_names_is_imported(own: Path, plan: Plan) -> None:
    modules = code.manifest(plan)["modules"]
    assert set(modules) == {"cover_model", "cover_package"}
    assert not {name for name in sys.modules if name.startswith("cover_")}
    with pytest.raises(RuntimeError, match="this was imported"):  # the control
        __import__("cover_model")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cover_nowhere:make", "'cover_nowhere', which is not there"),
        ("cover_nowhere.deep:make", "'cover_nowhere', which is not there"),
        ("math:sqrt", "'math', of which there is no Python source"),
        (".cover_model:make", "'', which is no name of a module"),
        ("../cover_model:make", "'', which is no name of a module"),
        ("a/b:make", "'a/b', which is no name of a module"),
        ("__main__:make", "__main__"),
    ],
)
def test_what_is_not_there_is_refused(
    own: Path, plan_value: Make, kind: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    plan = Plan.parse(plan_value(model={"kind": kind}))
    with pytest.raises(InputError) as caught:
        code.code_digest(plan)
    assert said in str(caught.value)


def test_a_plan_without_modules_of_its_own_is_as_the_release(plan_value: Make) -> None:
    plan = Plan.parse(plan_value(strategy={"kind": "cover_nowhere:make"}))  # the coordinator's
    assert code.named_modules(plan) == ()
    assert code.code_digest(plan) == code.code_digest()


# libraries


def versions(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> str:
    """The digest, where some libraries have another version or are absent."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name not in changed:
            return real(name)
        if (found := changed[name]) is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", version)
        code._installed.cache_clear()
        return code.code_digest()


@pytest.mark.parametrize("name", ["torch", "opacus", "flwr", "numpy", "cryptography"])
def test_another_version_of_a_library_is_other_code(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = versions(monkeypatch)
    assert len({here, versions(monkeypatch, **{name: "99.1"})}) == 2
    assert len({here, versions(monkeypatch, **{name: None})}) == 2
    assert versions(monkeypatch, pip="99.1") == here  # computes nothing


def test_a_site_with_a_gpu_and_one_without_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {versions(monkeypatch, torch=f"2.13.0{local}") for local in ("", "+cpu", "+cu126")}
    assert len(same) == 1
    assert versions(monkeypatch, torch="2.13.1+cpu") not in same


def test_every_library_is_one_that_privet_depends_on(root: Path) -> None:
    """Core or [train], so that every site has all of them."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    declared = {Requirement(text).name for text in named}
    assert set(code.LIBRARIES) - declared == {"tokenizers"}  # comes with transformers
    assert list(code.LIBRARIES) == sorted(code.LIBRARIES)
    assert set(code.installed_versions()) == set(code.LIBRARIES)


# Privet's own files


def copied(root: Path, to: Path, *, bundle: bool = False) -> Path:
    """Copy the package as a wheel has it, or as a Flower bundle has it: without the links."""
    package = to / "privet"
    linked = [room for room in code.ROOMS if (root / "privet" / room).is_symlink()]
    left_out = shutil.ignore_patterns("__pycache__", *(linked if bundle else ()))
    shutil.copytree(root / "privet", package, ignore=left_out)
    for room in linked if bundle else ():
        shutil.copytree(root / room, to / room, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def sources_digest(package: Path) -> str:
    return code.digest_files(code.sources(package))


def test_a_checkout_a_wheel_and_a_bundle_agree(root: Path, tmp_path: Path) -> None:
    here = sources_digest(root / "privet")
    assert sources_digest(copied(root, tmp_path / "wheel")) == here
    assert sources_digest(copied(root, tmp_path / "bundle", bundle=True)) == here


@pytest.mark.parametrize(
    "name",
    [
        "privacy/mechanism/sampling.py", "client/admission.py", "cli/client.py", "flower.py",
        "common/models/tokenizer.json",
    ],
)  # fmt: skip
def test_every_file_of_privet_counts(root: Path, tmp_path: Path, name: str) -> None:
    package = copied(root, tmp_path)
    honest = sources_digest(package)
    (package / name).write_bytes((package / name).read_bytes() + b"\n")
    changed = sources_digest(package)
    assert changed != honest
    (package / name).unlink()
    assert sources_digest(package) not in (changed, honest)


def test_every_room_is_covered(root: Path) -> None:
    folders = {path.name for path in (root / "privet").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set(code.ROOMS)


def test_the_digest_needs_no_library_that_it_names(root: Path) -> None:
    """Whoever only reads evidence can take it, too."""
    script = (
        "import sys\nfrom privet.common.code import code_digest\nprint(code_digest())\n"
        "assert not {'torch', 'flwr', 'numpy', 'pandas'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, code.code_digest()), done.stderr
    json.dumps(code.manifest())
