"""What the tests share: a tiny federation on made-up files, and the checkout's root."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, settings

# One thread keeps sums in one order, and small machines quick.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# As Privet does, for tests that import torch first; and for plans, which ask for two threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
# What a frozen encoder read stays out of the home of whoever runs the tests.
os.environ["XDG_CACHE_HOME"] = f"{tempfile.gettempdir()}/privet-tests-{os.getuid()}"
# Flower loads gRPC before the link can limit it to TLS 1.3.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

with warnings.catch_warnings():
    # typer touches a deprecated name of click when it is imported.
    warnings.simplefilter("ignore", DeprecationWarning)
    import typer  # noqa: F401

# Timing decides no test, and a loaded machine draws slowly.
settings.register_profile("privet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("privet")


@pytest.fixture(autouse=True)
def _logs_end_with_the_test() -> Iterator[None]:
    """A command that ran in this process leaves no handler: a later test reads its own output."""
    root, own = logging.getLogger(), logging.getLogger("privet")
    before, levels = list(root.handlers), (root.level, own.level)
    yield
    for handler in list(root.handlers):
        if handler not in before and type(handler).__module__.startswith("privet."):
            root.removeHandler(handler)
            handler.close()
    root.setLevel(levels[0])
    own.setLevel(levels[1])


def only_texts(figure: Any, path: Path) -> None:
    """Stand for :func:`privet.simulations.plots._save`: the texts of a figure, and no drawing."""
    from matplotlib import pyplot
    from matplotlib.text import Text

    said = [text.get_text() for text in figure.findobj(Text)]
    path.with_suffix(".svg").write_text("\n".join(said), encoding="utf-8")
    path.with_suffix(".png").write_bytes(b"")
    pyplot.close(figure)


@pytest.fixture(scope="session", autouse=True)
def save_figure() -> Iterator[Callable[[Any, Path], None]]:
    """What saves a figure, by which no run of this process does: that takes most of a small run.

    The figures are made. tests/federation/test_plots.py draws them; so does every run of another
    process.
    """
    plots = sys.modules.get("privet.simulations.plots")
    if plots is None:  # a few tests that load little load no more for this
        yield only_texts
        return
    with pytest.MonkeyPatch.context() as patch:
        save = plots._save
        patch.setattr(plots, "_save", only_texts)
        yield save


FIRST = ("office", "hostile")
"""The groups that take longest."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads which group each test is of
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of a module to one worker, which makes what they share once.

    Groups with slow tests come first: at the end of all tests no worker should be left alone.
    """
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        name = mark.args[0] if mark else item.path.relative_to(_HERE).with_suffix("").as_posix()
        if mark is None:
            item.add_marker(pytest.mark.xdist_group(name))
        groups.setdefault(name, []).append(item)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    order = {name: place for place, name in enumerate(FIRST)}

    def place(name: str) -> tuple[int, bool, int]:
        slow = any(item.get_closest_marker("slow") for item in groups[name])
        return order.get(name, len(order)), not slow, -len(groups[name])

    items[:] = [item for name in sorted(groups, key=place) for item in groups[name]]


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long values by their argument: two processes must give a test the same name."""
    return argname if isinstance(val, str | bytes) and len(val) > 40 else None


_HERE = Path(__file__).parent
SITES = ("North", "East", "South")
SIZES = {"North": 60, "East": 30, "South": 10}


def tiny_frame(rows: int, seed: int, *, persons: int | None = None) -> pd.DataFrame:
    """Return ``rows`` records with two numbers, a category and a label that follows them."""
    generator = np.random.default_rng(seed)
    x1, x2 = generator.normal(size=rows), generator.normal(size=rows)
    frame = pd.DataFrame(
        {
            "x1": x1.round(3),
            "x2": x2.round(3),
            "colour": generator.choice(["red", "blue"], rows),
            "y": (x1 - x2 + 0.3 * generator.normal(size=rows) > 0).astype(int),
        }
    )
    if persons is not None:
        frame["patient"] = [f"p{seed}-{k}" for k in generator.integers(0, persons, rows)]
    return frame


def tiny_plan(**changes: Any) -> dict[str, Any]:
    """Return a whole plan as a mapping; ``changes`` are merged into the sections they name.

    Its noise is given, so that nothing has to be calibrated, and its cap is wide.
    """
    plan: dict[str, Any] = {
        "name": "tiny",
        "threads": 1,
        "task": {
            "label": "y",
            "classes": ["0", "1"],
            "numeric": {"x1": {"low": -2, "high": 2}, "x2": {"low": -2, "high": 2}},
            "categorical": {"colour": ["red", "blue"]},
        },
        "model": {"kind": "linear"},
        "training": {"rounds": 2, "steps": 2, "sample_rate": 0.5, "learning_rate": 0.5},
        # All that the rules would choose is said: a file and a mapping are the same plan.
        "strategy": {"kind": "fedavg"},
        "privacy": {"epsilon": 20.0, "delta": 1e-4, "noise_multiplier": 2.0, "clip": 1.0},
        "metrics": {"source": "public"},
        "sites": [
            {"name": name, "nominal_size": size, "path": f"{name.lower()}.csv"}
            for name, size in SIZES.items()
        ],
    }
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(plan.get(key), dict):
            plan[key] = {**plan[key], **change}
        else:
            plan[key] = change
    return plan


def tiny_files(folder: Path, **columns: Any) -> Path:
    """Write one CSV for each site into ``folder``; ``columns`` replace or add columns."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, size) in enumerate(SIZES.items()):
        frame = tiny_frame(size + 20, number, persons=size // 2).assign(**columns)
        frame.to_csv(folder / f"{name.lower()}.csv", index=False)
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def plan_value() -> Callable[..., dict[str, Any]]:
    """:func:`tiny_plan`."""
    return tiny_plan


@pytest.fixture(scope="session")
def frame_of() -> Callable[..., pd.DataFrame]:
    """:func:`tiny_frame`."""
    return tiny_frame


@pytest.fixture(scope="session")
def write_files() -> Callable[..., Path]:
    """:func:`tiny_files`."""
    return tiny_files


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three sites' records; read only."""
    return tiny_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="session")
def write_toml() -> Callable[[Path, dict[str, Any]], Path]:
    """Write a plan's mapping as TOML, and return the path."""
    import tomli_w

    def write(path: Path, value: dict[str, Any]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tomli_w.dumps(value), encoding="utf-8")
        return path

    return write
