"""Which way imports go, between rooms and between sub-rooms, and who may import what.

common ← privacy ← client | server ← simulations ← privet.delivery ← privet.cli
"""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOMS = ("common", "privacy", "client", "server", "simulations")
RANK = {
    "common": 0, "privacy": 1, "client": 2, "server": 2, "simulations": 3, "delivery": 4, "cli": 5,
}  # fmt: skip
FLOWER = (
    "*/app.py", "*/grid.py", "server/aggregate.py", "server/strategy_state.py",
    "simulations/run.py", "simulations/ray.py", "common/flower/wire.py",
    "client/stock_flower/clientapp.py", "server/flower_serverapp.py",
)  # fmt: skip
OPACUS = ("privacy/mechanism/dpsgd.py", "privacy/mechanism/clipping/*.py")
LIGHT = (
    "privacy/accounting/", "privacy/evidence/", "privacy/audit/", "privacy/policy.py",
    "privacy/database.py", "privacy/person_names.py",
)  # fmt: skip
"""What an auditor has: neither torch nor Flower stands in it."""
BELOW = {
    "privacy.accounting": ("privacy.evidence", "privacy.mechanism", "privacy.audit"),
    "privacy.evidence": ("privacy.mechanism", "privacy.audit"),
    "privacy.mechanism": ("privacy.evidence", "privacy.audit"),
    "client.data": ("client.training", "client.link", "client.operator", "client.recovery"),
    "client.link": ("client.operator", "client.training", "client.stock_flower"),
    "server.link": ("server.membership", "server.recovery", "server.research"),
    "server.evidence": ("server.membership", "server.recovery", "server.link"),
}
"""Sub-rooms, each with those that it must not import."""
VERIFIER = "privacy/audit/verify/"
VERIFIER_MAY = ("privet.common.errors", "privet.privacy.audit.verify")


def sources(root: Path) -> dict[str, str]:
    """Return every module of the rooms, by path from the root."""
    paths = [path for room in ROOMS for path in (root / room).rglob("*.py")]
    for room in ("cli", "delivery"):
        paths += (root / "privet" / room).rglob("*.py")
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
    assert {room_of(path) for path in modules} == set(RANK)
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
        ("simulations/planted.py", "from privet.delivery.trained import load"),
        ("privet/delivery/planted.py", "from privet.cli import app"),
    ],
)
def test_an_import_against_the_stream_is_noticed(path: str, line: str) -> None:
    assert against_the_stream({path: line})


def test_no_module_imports_a_room_by_its_bare_name(root: Path) -> None:
    modules = sources(root)
    for path in (root / "tests").rglob("*.py"):
        modules[str(path.relative_to(root))] = path.read_text(encoding="utf-8")
    assert bare_rooms(modules) == []


@pytest.mark.parametrize("folder", ["benchmarks", "campaigns"])
def test_no_script_imports_a_room_by_its_bare_name(root: Path, folder: str) -> None:
    paths = list((root / folder).rglob("*.py"))
    assert len(paths) > 5
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
    assert strangers({"client/training/trainer.py": "import opacus"}, "opacus", OPACUS)


def light(root: Path) -> dict[str, str]:
    """Return the modules of an auditor's install, by path from the root."""
    return {path: text for path, text in sources(root).items() if path.startswith(LIGHT)}


def test_evidence_names_neither_torch_nor_flower(root: Path) -> None:
    modules = light(root)
    assert all(any(path.startswith(one) for path in modules) for one in LIGHT)
    for package in ("torch", "flwr"):
        assert strangers(modules, package, ()) == []
        assert strangers({"privacy/accounting/planted.py": f"import {package}"}, package, ())


def place_of(dotted: str, modules: dict[str, str]) -> str:
    """Return what a module belongs to: its sub-room, or itself where it stands in its room."""
    parts = dotted.removeprefix("privet.").split(".")
    folder = "/".join(parts[:2]) + "/"
    return ".".join(parts[:2]) if any(path.startswith(folder) for path in modules) else dotted


def arrows(modules: dict[str, str]) -> dict[str, dict[str, str]]:
    """Return which sub-rooms and single modules import which, each with one place where."""
    by_name = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in modules
        if not path.startswith("privet/")
    }
    found: dict[str, dict[str, str]] = {}
    for name, path in by_name.items():
        if "." not in name:
            continue  # a room itself
        own = place_of(name, modules)
        for other in imported(modules[path]):
            target = other.removeprefix("privet.")
            while target not in by_name and "." in target:
                target = target.rpartition(".")[0]
            if target in by_name and "." in target and (to := place_of(target, modules)) != own:
                found.setdefault(own, {})[to] = f"{path} imports {other}"
    return found


def circles(found: dict[str, dict[str, str]]) -> list[str]:
    """Return the arrows that lead back to where they come from."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for one in found.get(todo.pop(), ()):
                if one not in seen:
                    seen.add(one)
                    todo.append(one)
        return seen

    ends = {start: reached(start) for start in found}
    return [
        where
        for start, others in found.items()
        for other, where in others.items()
        if start in ends.get(other, ())
    ]


def test_sub_rooms_import_in_no_circle(root: Path) -> None:
    """A module that stands in a room beside its sub-rooms counts as one of its own."""
    modules = sources(root)
    assert circles(arrows(modules)) == []
    planted = {**modules, "privacy/accounting/planted.py": "import privet.privacy.evidence.ledger"}
    assert circles(arrows(planted))
    planted = {**modules, "common/planted.py": "from privet.common.models import start",
               "common/models/other.py": "from privet.common import planted"}  # fmt: skip
    assert circles(arrows(planted))


def against_sub_rooms(modules: dict[str, str]) -> list[str]:
    found = arrows(modules)
    return [
        found[room][other]
        for room, others in BELOW.items()
        for other in others
        if other in found.get(room, {})
    ]


def test_sub_rooms_import_one_way(root: Path) -> None:
    modules = sources(root)
    assert {*BELOW} <= {*arrows(modules)}
    assert against_sub_rooms(modules) == []
    planted = "def late():\n    from privet.privacy.mechanism import noise"
    assert against_sub_rooms({**modules, "privacy/evidence/planted.py": planted})


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
    modules = {path: text for path, text in light(root).items() if path.startswith(VERIFIER)}
    assert len(modules) > 10
    assert not_alone(modules) == []


@pytest.mark.parametrize(
    "line",
    [
        "from privet.privacy import merkle",
        "from privet.privacy.evidence.signed_note import Key",
        "from privet.common import errors, canonical",
        "import privet.common.canonical",
        "import privet",
        "from . import tree",
        "from privet.privacy.audit.bundle import write_bundle",
        "def late():\n    from privet.privacy.accounting.pld import epsilon",
    ],
)
def test_a_verifier_that_borrows_is_noticed(line: str) -> None:
    assert not_alone({VERIFIER + "planted.py": line})
