"""The offline kit: what goes into it, and that it installs where there is no network."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import rfc8785
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

NO_REGISTRY = ("connection broken by", "Connection refused", "timed out", "name resolution")
ALONE = ("unshare", "--map-root-user", "--net", "--mount")


@pytest.fixture(scope="module")
def kit(root: Path) -> ModuleType:
    """``deploy/kit.py``, as a module."""
    sys.path.insert(0, str(root / "deploy"))
    try:
        spec = importlib.util.spec_from_file_location("privet_kit", root / "deploy" / "kit.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["privet_kit"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(root / "deploy"))
    return module


# what is taken


def test_extras_are_unfolded(kit: ModuleType) -> None:
    project = {
        "name": "privet", "dependencies": ["a>=1"],
        "optional-dependencies": {"train": ["b"], "demo": ["privet[train]", "c"], "x": ["d"]},
    }  # fmt: skip
    assert kit.requirements(project, []) == ["a>=1"]
    assert kit.requirements(project, ["demo"]) == ["a>=1", "b", "c"]
    with pytest.raises(kit.KitError, match="no extra 'trian'; there are demo, train, x"):
        kit.requirements(project, ["trian"])


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("nvidia-cublas-cu12", "12.8"),
        ("triton", "3"),
        ("cuda-bindings", "12"),
        ("torch", "1+cu130"),
    ],
)
def test_cuda_is_never_taken_unasked(kit: ModuleType, name: str, version: str) -> None:
    pins = [kit.Pin(name, version, "0" * 64)]
    with pytest.raises(kit.KitError, match="Nothing was downloaded"):
        kit.check(pins, {name: version}, cuda=False)
    kit.check(pins, {name: version}, cuda=True)


def test_only_pinned_versions_are_taken(kit: ModuleType) -> None:
    kit.check([kit.Pin("torch", "2.13.0+cpu", "")], {"torch": "2.13.0"}, cuda=False)
    for constraints in ({}, {"torch": "2.12.0"}):
        with pytest.raises(kit.KitError, match=r"torch 2\.13\.0 is not what"):
            kit.check([kit.Pin("torch", "2.13.0", "")], constraints, cuda=False)


def test_every_package_of_the_dev_install_is_pinned(kit: ModuleType, root: Path) -> None:
    """A kit of any extra needs that; here the names that pyproject itself gives."""
    from packaging.requirements import Requirement

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pins = kit.pinned((root / "constraints.txt").read_text())
    named = kit.requirements(project, project["optional-dependencies"])
    assert [
        text for text in named if kit.canonicalize_name(Requirement(text).name) not in pins
    ] == []


def test_the_oldest_glibc(kit: ModuleType) -> None:
    wide = "a-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_28_x86_64.whl"
    narrow = "b-1-cp311-abi3-manylinux_2_34_x86_64.whl"
    assert kit.glibc(["c-1-py3-none-any.whl"]) == (0, 0)
    assert kit.glibc([wide]) == (2, 17)
    assert kit.glibc([wide, narrow, "c-1-py3-none-any.whl"]) == (2, 34)


def test_a_tar_depends_on_content_alone(kit: ModuleType, tmp_path: Path) -> None:
    for number in (1, 2):
        folder = tmp_path / str(number) / "k"
        (folder / "sub").mkdir(parents=True)
        for name in ("b.sh", "a", "sub/c")[:: 1 if number == 1 else -1]:
            (folder / name).write_text(name)
            os.utime(folder / name, (number, number))
            (folder / name).chmod(0o600 if number == 1 else 0o777)
        kit.pack(folder, tmp_path / f"{number}.tar", 1_700_000_000)
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    with tarfile.open(tmp_path / "1.tar") as archive:
        modes = {entry.name: entry.mode for entry in archive}
    assert (modes["k/a"], modes["k/b.sh"]) == (0o644, 0o755)


def test_the_code_of_a_kit_is_that_of_its_wheels(
    kit: ModuleType, root: Path, tmp_path: Path
) -> None:
    """Not of what is installed where the kit is made."""
    from privet.common import code

    def wheel(name: str, version: str) -> Any:
        return kit.sbom.Wheel(name, version, f"{name}.whl", "", None, (), ())

    own = tmp_path / "privet-0.0.9-py3-none-any.whl"
    with zipfile.ZipFile(own, "w") as archive:
        for name, content in code.sources(root / "privet").items():
            archive.writestr(name, content)
        archive.writestr("privet/py.typed", "")
        archive.writestr("privet-0.0.9.dist-info/metadata.json", "{}")
    found = [wheel("privet", "0.0.9"), wheel("torch", "9.9.0+cpu"), wheel("attrs", "1")]
    told = kit.code_of([tmp_path / "torch.whl", own], found)
    assert told["manifest"] == {
        "privet": "0.0.9", "modules": {}, "libraries": {"torch": "9.9.0"},
        "sources": code.manifest()["sources"],
    }  # fmt: skip
    assert told["code"] == f"sha256:{hashlib.sha256(rfc8785.dumps(told['manifest'])).hexdigest()}"
    found[1] = wheel("torch", "9.9.0+cu126")
    assert kit.code_of([own], found) == told
    with zipfile.ZipFile(own, "a") as archive:
        archive.writestr("privet/more.py", "")
    assert kit.code_of([own], found)["manifest"]["sources"] != told["manifest"]["sources"]


# what the page types


def kit_commands(checkout: Path) -> list[str]:
    """Return the commands of `make kit`, without those that install its tools."""
    said = subprocess.run(
        ["make", "--dry-run", "--old-file=install", "kit"], cwd=checkout, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return [line for line in said.stdout.splitlines() if "deploy/kit.py" in line]


def copied_checkout(root: Path, to: Path) -> None:
    """Clone the checkout, with what was changed in it and not committed."""
    if not (root / ".git").exists():
        pytest.skip("needs a git checkout")
    subprocess.run(["git", "clone", "--quiet", "--shared", root, to], check=True)
    names = subprocess.run(
        ["git", "ls-files", "-z", "--modified"], cwd=root, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    for name in filter(None, names.stdout.split("\0")):
        if (root / name).exists():
            shutil.copy2(root / name, to / name, follow_symlinks=False)


def test_the_page_names_the_kits_that_make_writes(kit: ModuleType, root: Path) -> None:
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    made = []
    for command in kit_commands(root):
        words = command.split()
        assert "--out" not in words and "--cuda" not in words
        extras = [words[k + 1] for k, word in enumerate(words) if word == "--extra"]
        made.append(kit.kit_name(version, extras, cuda=False))
    assert len(made) == 2 and "-auditor-" in made[0]
    page = (root / "docs" / "how-to" / "install.md").read_text()
    named = set(re.findall(r"privet-kit-[0-9][\w.-]*?(?=\.tar|/|\n|\s)", page))
    assert len(named) == 1

    def everywhere(name: str) -> str:
        """Without what is of the machine: Python and platform."""
        return re.sub(r"cp\d+-.*", "", name)

    assert {everywhere(name) for name in named} <= {everywhere(name) for name in made}
    for what in re.findall(r"`…-([\w-]+)-…`", page):
        assert any(f"-{what}-cp" in name for name in made), what


def test_a_wheel_is_built_into_a_relative_folder(
    kit: ModuleType, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `make kit` names it; Python 3.11 makes a relative folder of a relative one."""
    if not (root / ".git").exists():
        pytest.skip("needs a git checkout")
    monkeypatch.chdir(tmp_path)
    found = kit.build(Path("dist"), 1_700_000_000)
    assert (tmp_path / found).is_file()


# a whole kit, the auditor's


@pytest.fixture(scope="module")
def unpacked(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An auditor's kit, made as `make kit` makes it, in a checkout of its own, and unpacked."""
    checkout = tmp_path_factory.mktemp("kit") / "privet"
    copied_checkout(root, checkout)
    (checkout / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(
        kit_commands(checkout)[0], shell=True, cwd=checkout, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode and any(sign in done.stderr for sign in NO_REGISTRY):
        pytest.skip(f"the registry cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    digest, path = done.stdout.split()
    made = checkout / path
    assert len(digest) == 64 and made.suffix == ".tar" and made.parent == checkout / "dist"
    shutil.unpack_archive(made, made.parent, filter="data")
    return made.with_suffix("")


def install(kit: Path, to: Path) -> subprocess.CompletedProcess[str]:
    """Run the installer with no network, where the kernel lets a user do that."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "PIP_"))}
    alone = () if subprocess.run([*ALONE, "true"], check=False).returncode else ALONE
    return subprocess.run(
        [*alone, "sh", str(kit / "install.sh"), str(to)], capture_output=True, text=True,
        check=False, cwd="/", env={**environment, "PYTHON": sys.executable},
    )  # fmt: skip


@pytest.fixture(scope="module")
def installed(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("opt") / "privet"
    done = install(unpacked, to)
    assert done.returncode == 0, done.stderr
    return to


SLOW = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("kit")]


class TestKit:
    pytestmark = SLOW

    def test_it_installs_without_a_network(self, installed: Path) -> None:
        for words in (["--version"], ["audit", "verify", "--help"]):
            done = subprocess.run(
                [str(installed / "bin" / "privet"), *words], capture_output=True, text=True,
                check=False, cwd="/",
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        where = [
            str(installed / "bin" / "python"),
            "-I",
            "-c",
            "import privet; print(privet.__file__)",
        ]
        done = subprocess.run(where, capture_output=True, text=True, check=True)
        assert Path(done.stdout.strip()).is_relative_to(installed)

    def test_it_publishes_the_code_that_it_installs(self, installed: Path, unpacked: Path) -> None:
        done = subprocess.run(
            [str(installed / "bin" / "privet"), "--version", "--json"], capture_output=True,
            text=True, check=True, cwd="/",
        )  # fmt: skip
        published = json.loads((unpacked / "code.json").read_text())
        assert json.loads(done.stdout) == published
        assert json.loads((unpacked.parent / f"{unpacked.name}.code.json").read_text()) == published
        assert "torch" not in published["manifest"]["libraries"]

    def test_it_runs_where_only_its_state_is_writable(
        self, installed: Path, tmp_path: Path
    ) -> None:
        if subprocess.run([*ALONE, "true"], check=False).returncode:
            pytest.skip("no namespaces here")
        state = tmp_path / "state"
        state.mkdir()
        script = (
            'mount -t tmpfs none "$1" && mount -o remount,bind,ro / && cd "$1" && '
            '! touch "$2" 2>/dev/null && '
            '"$0" client init north --site North && "$0" client status --policy north/site.toml'
        )
        done = subprocess.run(
            [*ALONE, "sh", "-c", script, str(installed / "bin" / "privet"), str(state),
             str(tmp_path / "elsewhere")],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", "PRIVET_PASSPHRASE": "correct horse", "HOME": str(state)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "ledger key" in done.stdout

    def test_the_bill_names_the_wheels_and_nothing_else(self, unpacked: Path) -> None:
        text = (unpacked / "sbom.cdx.json").read_text()
        validator = JsonStrictValidator(SchemaVersion.V1_6)
        assert validator.validate_str(text) is None
        assert validator.validate_str(text.replace('"components"', '"compnents"')) is not None
        bill: dict[str, Any] = json.loads(text)
        named = {
            Path(component["externalReferences"][0]["url"]).name: component
            for component in bill["components"]
        }
        assert set(named) == {path.name for path in (unpacked / "wheels").iterdir()}
        sums = dict(
            reversed(line.split()) for line in (unpacked / "SHA256SUMS").read_text().splitlines()
        )
        for file, component in named.items():
            name, version, *_ = file.split("-")
            assert component["name"].replace(".", "-") == name.lower().replace("_", "-")
            assert component["version"] == version
            assert component["hashes"] == [{"alg": "SHA-256", "content": sums[f"wheels/{file}"]}]
            assert component["licenses"], file
        kit = json.loads((unpacked / "kit.json").read_text())
        assert kit["without_licence"] == []
        # The graph leads from the kit to every wheel.
        edges = {one["ref"]: one.get("dependsOn", []) for one in bill["dependencies"]}
        reached, waiting = set(), ["kit"]
        while waiting:
            if (ref := waiting.pop()) not in reached:
                reached.add(ref)
                waiting.extend(edges[ref])
        assert reached == {"kit", *(component["bom-ref"] for component in bill["components"])}

    def test_its_charts_are_whole(self, unpacked: Path, root: Path) -> None:
        """In the checkout they share files by links, which lead nowhere here."""
        for chart in ("privet-site", "privet-coordinator"):
            inside = {
                path.relative_to(unpacked / "helm" / chart): path.read_bytes()
                for path in (unpacked / "helm" / chart).rglob("*")
                if path.is_file()
            }
            own = root / "deploy" / "helm" / chart
            assert inside == {
                path.relative_to(own): path.read_bytes()
                for path in own.rglob("*")
                if path.is_file()
            }
            assert Path("files/privet.rules.yml") in inside
        assert not [path for path in (unpacked / "helm").rglob("*") if path.is_symlink()]
        assert not (unpacked / "helm" / "shared").exists()

    def test_the_core_is_the_auditors(self, unpacked: Path) -> None:
        names = {path.name.split("-")[0].lower() for path in (unpacked / "wheels").iterdir()}
        assert "privet" in names and not names & {"torch", "flwr", "opacus", "grpcio", "pandas"}

    @pytest.mark.parametrize("sums_too", [False, True])
    def test_a_changed_wheel_is_refused(
        self, kit: ModuleType, unpacked: Path, tmp_path: Path, sums_too: bool
    ) -> None:
        """By the sums, and by pip where the sums were made anew."""
        copy = tmp_path / "kit"
        shutil.copytree(unpacked, copy, copy_function=os.link)
        wheel = next((copy / "wheels").glob("rfc8785-*.whl"))
        content = wheel.read_bytes()
        wheel.unlink()
        wheel.write_bytes(content + b"\0")
        if sums_too:
            sums = (copy / "SHA256SUMS").read_text()
            (copy / "SHA256SUMS").unlink()
            old = kit.sha256(unpacked / "wheels" / wheel.name)
            (copy / "SHA256SUMS").write_text(sums.replace(old, kit.sha256(wheel)))
        done = install(copy, tmp_path / "opt")
        assert done.returncode != 0
        said = "DO NOT MATCH THE HASHES" if sums_too else "this kit was changed"
        assert said in done.stderr
        assert not (tmp_path / "opt").exists()

    def test_another_python_is_told(self, unpacked: Path, kit: ModuleType, tmp_path: Path) -> None:
        copy = tmp_path / "kit"
        shutil.copytree(unpacked, copy, copy_function=os.link)
        facts = json.loads((copy / "kit.json").read_text())
        old = kit.sha256(copy / "kit.json")
        (copy / "kit.json").unlink()
        (copy / "kit.json").write_text(json.dumps({**facts, "python": "3.99"}))
        sums = (copy / "SHA256SUMS").read_text().replace(old, kit.sha256(copy / "kit.json"))
        (copy / "SHA256SUMS").unlink()
        (copy / "SHA256SUMS").write_text(sums)
        done = install(copy, tmp_path / "opt")
        assert done.returncode == 1 and "this kit is for Python 3.99" in done.stderr


def test_the_kit_says_what_is_wrong(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(root / "deploy" / "kit.py"), "--extra", "nothing"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("kit: there is no extra 'nothing'")
    assert "Traceback" not in done.stderr
