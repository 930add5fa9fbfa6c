"""common ← privacy ← client | server ← simulations ← privet.cli, and who may import what."""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOMS = ("common", "privacy", "client", "server", "simulations")
RANK = {"common": 0, "privacy": 1, "client": 2, "server": 2, "simulations": 3, "cli": 4}
FLOWER = (
    "*/app.py", "*/grid.py", "server/aggregate.py", "simulations/run.py", "simulations/ray.py",
    "common/wire.py", "client/stock.py", "server/stock.py",
)  # fmt: skip
OPACUS = ("privacy/dpsgd.py", "privacy/clipping/*.py")
EVIDENCE = (
    "events", "units", "accounting", "honesty", "program", "policy", "database", "filter", "merkle",
    "ceiling", "gaussian_dp", "pld_size", "renyi", "shares",
    "signed_note", "keys", "pkcs11", "statement", "store", "log", "book", "ledger", "witness",
    "roster",
)  # fmt: skip
VERIFIER = "privacy/audit/verify/"
VERIFIER_MAY = ("privet.common.errors", "privet.privacy.audit.verify")


def sources(root: Path) -> dict[str, str]:
    """Return every module of the five rooms and the command line, by path from the root."""
    paths = [path for room in ROOMS for path in (root / room).rglob("*.py")]
    paths += (root / "privet" / "cli").rglob("*.py")
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in paths}


def imported(text: str) -> Iterator[str]:
    """Yield the dotted names that a module imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_of(path: str) -> str:
    parts = Path(path).parts
    return parts[1] if parts[0] == "privet" else parts[0]


def against_the_stream(modules: dict[str, str]) -> list[str]:
    """Return each import of a room that is not below the importer's own."""
    wrong = []
    for path, text in modules.items():
        own = room_of(path)
        for name in imported(text):
            parts = name.split(".")
            if parts[0] != "privet" or len(parts) < 2 or parts[1] not in RANK:
                continue
            if parts[1] != own and RANK[parts[1]] >= RANK[own]:
                wrong.append(f"{path} imports {name}")
    return wrong


def bare_rooms(modules: dict[str, str]) -> list[str]:
    """Return each import of a room by its bare name, which makes a second copy of it."""
    return [
        f"{path} imports {name}"
        for path, text in modules.items()
        for name in imported(text)
        if name.split(".")[0] in ROOMS or name.startswith(".")
    ]


def strangers(modules: dict[str, str], package: str, allowed: tuple[str, ...]) -> list[str]:
    """Return each module that imports ``package`` and is not one of ``allowed``."""
    return [
        path
        for path, text in modules.items()
        if any(name.split(".")[0] == package for name in imported(text))
        and not any(fnmatch.fnmatch(path, pattern) for pattern in allowed)
    ]


def test_rooms_import_one_way(root: Path) -> None:
    modules = sources(root)
    assert {room_of(path) for path in modules} == {*ROOMS, "cli"}
    assert against_the_stream(modules) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("common/planted.py", "from privet.privacy import events"),
        ("common/planted.py", "def late():\n    from privet import client"),
        ("privacy/planted.py", "import privet.client.site"),
        ("client/planted.py", "from privet.server.rounds import Reply"),
        ("server/planted.py", "from privet.client import site"),
        ("server/planted.py", "from privet.simulations import run"),
        ("simulations/planted.py", "from privet.cli import app"),
    ],
)
def test_an_import_against_the_stream_is_noticed(path: str, line: str) -> None:
    assert against_the_stream({path: line})


def test_no_module_imports_a_room_by_its_bare_name(root: Path) -> None:
    modules = sources(root)
    for path in (root / "tests").rglob("*.py"):
        modules[str(path.relative_to(root))] = path.read_text(encoding="utf-8")
    assert bare_rooms(modules) == []


def test_no_benchmark_imports_a_room_by_its_bare_name(root: Path) -> None:
    paths = (root / "benchmarks").rglob("*.py")
    modules = {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in paths}
    assert bare_rooms(modules) == []


@pytest.mark.parametrize(
    "line", ["import common.errors", "from privacy import events", "from . import plan"]
)
def test_a_bare_import_is_noticed(line: str) -> None:
    assert bare_rooms({"client/planted.py": line})


def test_flower_is_imported_at_its_seams_only(root: Path) -> None:
    assert strangers(sources(root), "flwr", FLOWER) == []
    assert strangers({"client/site.py": "from flwr.app import Message"}, "flwr", FLOWER)


def test_opacus_is_imported_by_the_engine_only(root: Path) -> None:
    modules = sources(root)
    assert strangers(modules, "opacus", OPACUS) == []
    assert any("opacus" in text for path, text in modules.items() if path.startswith("privacy/"))
    assert strangers({"client/trainer.py": "import opacus"}, "opacus", OPACUS)


def evidence(root: Path) -> dict[str, str]:
    """Return the modules of the evidence, by path from the root."""
    paths = [path for name in EVIDENCE for path in (root / "privacy").glob(f"{name}.py")]
    paths += (root / "privacy" / "audit").rglob("*.py")
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in paths}


def test_evidence_names_neither_torch_nor_flower(root: Path) -> None:
    modules = evidence(root)
    assert len(modules) > len(EVIDENCE)
    assert strangers(modules, "torch", ()) == []
    assert strangers(modules, "flwr", ()) == []


def not_alone(modules: dict[str, str]) -> list[str]:
    """Return each import of Privet by the verifier but of the errors and of itself."""
    return [
        f"{path} imports {name}"
        for path, text in modules.items()
        if path.startswith(VERIFIER)
        for name in imported(text)
        if name.split(".")[0] in ("privet", "") and not allowed(name)
    ]


def allowed(name: str) -> bool:
    return any(name == may or name.startswith(may + ".") for may in VERIFIER_MAY)


def test_the_verifier_shares_no_code_with_those_it_verifies(root: Path) -> None:
    modules = {path: text for path, text in evidence(root).items() if path.startswith(VERIFIER)}
    assert len(modules) > 10
    assert not_alone(modules) == []


@pytest.mark.parametrize(
    "line",
    [
        "from privet.privacy import merkle",
        "from privet.privacy.signed_note import Key",
        "from privet.common import errors, canonical",
        "import privet.common.canonical",
        "import privet",
        "from . import tree",
        "from privet.privacy.audit.bundle import write_bundle",
        "def late():\n    from privet.privacy.accounting import epsilon",
    ],
)
def test_a_verifier_that_borrows_is_noticed(line: str) -> None:
    assert not_alone({VERIFIER + "planted.py": line})
