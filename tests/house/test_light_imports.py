"""What an auditor's install needs: neither torch nor Flower nor pandas nor scikit-learn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "flwr", "pandas", "sklearn", "opacus", "transformers", "ray", "safetensors")

_BLOCKED = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)
        return None

sys.meta_path.insert(0, Blocker())
for name in {modules!r}:
    importlib.import_module(name)
loaded = sorted(set({heavy!r}) & {{name.split(".")[0] for name in sys.modules}})
assert not loaded, loaded
print("light")
"""


def import_without(heavy: tuple[str, ...], *modules: str, cwd: Path) -> tuple[int, str]:
    """Import ``modules`` in a new process in which ``heavy`` cannot be imported."""
    code = _BLOCKED.format(heavy=heavy, modules=modules)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_the_core_imports_without_the_training_packages(root: Path) -> None:
    code, said = import_without(
        HEAVY,
        "privet",
        "privet.common.plan",
        "privet.common.tasks.measure",
        "privet.privacy.accounting.pld",
        "privet.cli",
        cwd=root,
    )
    assert code == 0, said
    assert "light" in said


def test_evidence_imports_without_torch_and_flower(root: Path) -> None:
    folders = ("accounting", "evidence", "audit")
    paths = [path for one in folders for path in (root / "privacy" / one).rglob("*.py")]
    paths += [root / "privacy" / f"{one}.py" for one in ("policy", "database", "person_names")]
    parts = [path.relative_to(root).with_suffix("").parts for path in paths]
    names = [".".join(("privet", *one)).removesuffix(".__init__") for one in parts]
    # Both are programs of their own, which do their work when they are loaded.
    names = [name for name in names if not name.endswith(("interval_worker", "__main__"))]
    assert len(names) > 60
    code, said = import_without(HEAVY, *names, cwd=root)
    assert code == 0, said


@pytest.mark.parametrize(
    "module", ["privet.privacy.mechanism.dpsgd", "privet.client.training.trainer"]
)
def test_a_module_that_needs_torch_is_noticed(root: Path, module: str) -> None:
    code, said = import_without(HEAVY, module, cwd=root)
    assert code != 0
    assert "blocked: " in said


def test_the_public_names_are_all_there(root: Path) -> None:
    code, said = import_without((), "privet", cwd=root)
    assert code == 0, said
    import privet

    assert dir(privet) == sorted(privet.__all__)
    for name in privet.__all__:
        assert getattr(privet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        _ = privet.simulat
