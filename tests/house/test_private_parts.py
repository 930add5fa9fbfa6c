"""Nothing but ``common/compat`` uses a private part of a library.

A name that begins with ``_`` is Privet's own where the same file (for ``self``: any file) defines it;
all others are somebody else's. Of the libraries in :data:`PUBLIC` only the modules that their
documentation names may be imported.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

COMPAT = "common/compat/"
BENCHES = ("benchmarks/", "campaigns/")
"""These reach into Privet itself."""
GENERATED = ("common/link/link_pb2.py", "common/link/link_pb2_grpc.py")
"""Written by gRPC's own generator; tests/compat/test_generated.py has what it wants."""
PUBLIC = {
    "flwr": {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.simulation"},
    "grpc": {"grpc", "grpc.aio"},
    "grpc_health": {"grpc_health.v1.health_pb2", "grpc_health.v1.health_pb2_grpc", "grpc_health.v1"},
    "opacus": {"opacus", "opacus.validators"},
    "torch": {
        "torch", "torch.func", "torch.nn", "torch.nn.attention", "torch.nn.functional",
        "torch.nn.utils.parametrize", "torch.nn.utils.prune", "torch.nn.utils.rnn",
        "torch.utils.flop_counter", "torch.utils.hooks",
    },
    "dp_accounting": {
        "dp_accounting", "dp_accounting.dp_event", "dp_accounting.pld",
        "dp_accounting.pld.privacy_loss_distribution", "dp_accounting.rdp",
        "dp_accounting.gaussian_mechanism",
    },
    "transformers": {"transformers", "transformers.utils.logging", "transformers.utils"},
    "peft": {"peft"},
    "pyarrow": {"pyarrow", "pyarrow.parquet", "pyarrow.compute"},
}  # fmt: skip
PRIVATE = (
    "dp_accounting.pld.common", "dp_accounting.pld.pld_pmf", "torch.native_layer_norm", "torch.ops",
)  # fmt: skip
"""Modules and operators that no page names, though their package's does."""
TEXTS = {
    "_type": "of in-toto's statements",
    "_attn_implementation": "a key of a model's config.json, which is refused",
    "_key": "a column of Privet's own",
    "_reverse": "of a recurrent layer's weights, as the page of nn.LSTM has them",
}
"""Texts that look like a private attribute's name."""
NAMED_TUPLE = ("_asdict", "_fields", "_make", "_replace")
"""Documented parts of ``typing.NamedTuple``, which begin so to be no fields."""
PEERS = {
    "benchmarks/clipping.py": "opacus.grad_sample.grad_sample_module_fast_gradient_clipping",
    "benchmarks/simulation_peers.py": "opacus.optimizers",
}
"""What a benchmark measures beside Privet; nothing else depends on it."""
_OWN = re.compile(r"_[a-z]\w*")
_DOTTED = re.compile(r"[a-z]\w*(\.\w+)+")


def modules(root: Path) -> dict[str, str]:
    """Return every module of the rooms, the commands and the benchmarks, by path."""
    found = {}
    for folder in ("common", "privacy", "client", "server", "simulations", "privet/cli",
                   "privet/delivery", "benchmarks", "campaigns", "deploy"):  # fmt: skip
        for path in (root / folder).rglob("*.py"):
            found[str(path.relative_to(root))] = path.read_text(encoding="utf-8")
    return {path: text for path, text in found.items() if path not in GENERATED}


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield what is imported anywhere: the module, and the name of it, or ""."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def is_library(module: str) -> bool:
    top = module.split(".")[0]
    return top not in sys.stdlib_module_names and top not in ("privet", "__future__")


def defined(tree: ast.AST) -> set[str]:
    """Return the names with an underscore that a file defines, as functions, fields or attributes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and whole_name(node) in (
            f"self.{node.attr}", f"cls.{node.attr}"
        ):  # fmt: skip
            found |= {node.attr} if isinstance(node.ctx, ast.Store) else set()
    return {name for name in found if _OWN.fullmatch(name)}


def imported_wrongly(module: str, name: str) -> bool:
    if not is_library(module):
        return False
    whole = f"{module}.{name}" if name else module
    known = PUBLIC.get(module.split(".")[0])
    if any(_OWN.match(part) for part in whole.split(".")) or whole.startswith(PRIVATE):
        return True
    return known is not None and module not in known and whole not in known


def whole_name(node: ast.AST) -> str:
    """Return ``a.b.c`` of an expression, "" if it is something else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def private_parts(path: str, text: str, names: frozenset[str]) -> list[str]:
    """Return each use of a private part of a library, with its line.

    Args:
        path: of the module.
        text: its source.
        names: with an underscore, of any file.
    """
    tree = ast.parse(text)
    own = defined(tree)
    wrong = [
        f"{path}: imports {m} {n}".strip()
        for m, n in imports(tree)
        if imported_wrongly(m, n) and m != PEERS.get(path)
    ]
    libraries = {
        (alias.asname or alias.name.split(".")[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if is_library(alias.name)
    }
    for node in ast.walk(tree):
        place = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute):
            name, whole = node.attr, whole_name(node)
            base = whole.partition(".")[0]
            inherited = base in ("self", "cls") and whole.count(".") == 1
            mine = names if inherited or path.startswith(BENCHES) else own
            if base == "os" or name in NAMED_TUPLE or not _OWN.fullmatch(name):
                pass
            elif name not in mine or base in libraries:
                wrong.append(f"{place}: .{name}")
            if any(whole == one or whole.startswith(one + ".") for one in PRIVATE):
                wrong.append(f"{place}: {whole}")
            if isinstance(node.ctx, ast.Store | ast.Del) and base in libraries:
                wrong.append(f"{place}: changes {whole}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            wrong += [f"{place}: '{node.value}'"] if names_a_private_part(node.value, own) else []
    return sorted(set(wrong))


def names_a_private_part(value: str, own: set[str]) -> bool:
    """Whether a text is a private attribute's name, or a private module's of a library."""
    if _OWN.fullmatch(value):
        return value not in own and value not in TEXTS
    first = value.split(".")[0]
    if not _DOTTED.fullmatch(value) or first not in PUBLIC:
        return False
    # Other texts of this form are options and names of services.
    return "._" in value or (first == "flwr" and imported_wrongly(value, ""))


@cache
def everywhere(root: Path) -> frozenset[str]:
    """Return the names with an underscore that any file defines."""
    return frozenset().union(*(defined(ast.parse(text)) for text in modules(root).values()))


def all_private_parts(found: dict[str, str]) -> list[str]:
    names = frozenset().union(*(defined(ast.parse(text)) for text in found.values()))
    return [
        one
        for path, text in found.items()
        if not path.startswith(COMPAT)
        for one in private_parts(path, text, names)
    ]


def test_private_parts_of_libraries_are_used_in_compat_alone(root: Path) -> None:
    assert all_private_parts(modules(root)) == []


@pytest.mark.parametrize(
    "line",
    [
        "from flwr.supercore.run import Run",
        "def late():\n    import flwr.supernode.cli",
        "from flwr import supercore",
        "from grpc._cython import cygrpc",
        "from grpc.aio._server import Server",
        "import opacus.grad_sample.functorch",
        "from opacus.grad_sample import GradSampleModule",
        "from torch.utils._python_dispatch import TorchDispatchMode",
        "from dp_accounting.pld import pld_pmf",
        "from transformers.pytorch_utils import Conv1D",
        "from anything._private import part",
        "from anything import _private",
        "import anything\nanything._private()",
        "import anything\nanything.public = 3",
        "import torch\ny = torch.ops.aten.add(x, x)",
        "import torch\ny = torch.native_layer_norm(x)",
        "def of(tensor):\n    return tensor._version",
        "class Net(nn.Module):\n    def all(self):\n        return self._parameters",
        "getattr(parameter, '_norm_sample', None)",
        "message.metadata.__dict__['_message_id'] = number",
        "for kept in ('grad_sample', '_norm_sample'):\n    delattr(parameter, kept)",
        "logging.getLogger('grpc._cython.cygrpc')",
        "importlib.import_module('flwr.supernode.runtime')",
    ],
)
def test_a_private_part_elsewhere_is_noticed(root: Path, line: str) -> None:
    names = everywhere(root)
    assert private_parts("client/planted.py", line, names)
    assert not all_private_parts({COMPAT + "planted.py": line})


@pytest.mark.parametrize(
    "line",
    [
        "from flwr.app import Message",
        "from flwr.serverapp.strategy import FedAvg",
        "import os\nos._exit(1)",
        "class A:\n    def _own(self): ...\ndef of(a):\n    return a._own()",
        "class A:\n    def __init__(self):\n        self._own = 1",
        "options = [('grpc.so_reuseport', 0)]",
        "from torch.nn import functional",
    ],
)
def test_what_is_public_or_our_own_is_not(line: str) -> None:
    assert all_private_parts({"client/planted.py": line}) == []


def test_every_private_part_has_a_contract_test(root: Path) -> None:
    """A module of ``common/compat`` is imported by a test of ``tests/compat``."""
    tests = [path.read_text(encoding="utf-8") for path in (root / "tests/compat").glob("test_*.py")]
    named = {
        f"{module}.{name}".removeprefix("privet.common.compat.").split(".")[0]
        for text in tests
        for module, name in imports(ast.parse(text))
        if module.startswith("privet.common.compat")
    }
    there = {path.stem for path in (root / COMPAT).glob("*.py")} - {"__init__"}
    assert there and there <= named


def test_an_auditors_install_needs_only_what_dp_accounting_needs(root: Path) -> None:
    light = ("privacy/accounting/", "privacy/evidence/", "privacy/audit/")
    used = {
        f"{module}.{name}"
        for path, text in modules(root).items()
        if path.startswith(light)
        for module, name in imports(ast.parse(text))
        if module.startswith("privet.common.compat")
    }
    assert used == {"privet.common.compat.dp_accounting.SelfComposition"}
