"""The plots of a run are drawn; elsewhere the tests make them without (tests/conftest.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from privet.common.plan import Plan
from privet.simulations import plots
from privet.simulations.result import Result
from privet.simulations.run import Setting, run_plan

PNG = b"\x89PNG\r\n\x1a\n"
Save = Callable[[Any, Path], None]


@pytest.fixture(scope="module", params=[{}, {"privacy": None}], ids=["private", "without"])
def result(
    request: pytest.FixtureRequest,
    files: Path,
    plan_value: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Result:
    """A finished run."""
    out = tmp_path_factory.mktemp("plots") / "run"
    return run_plan(Plan.parse(plan_value(**request.param)), Setting(base=files), out)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, save_figure: Save) -> None:
    """Figures are saved as they are for users."""
    monkeypatch.setattr(plots, "_save", save_figure)


def texts(path: Path) -> str:
    """What an SVG says, and that it is one."""
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert root.tag.endswith("}svg")
    return " ".join("".join(root.itertext()).split())


def test_the_plots_of_a_run_are_drawn(result: Result, drawn: None, tmp_path: Path) -> None:
    assert not result.remarks
    plots.write(result, tmp_path / "one")
    made = {path.name for path in (tmp_path / "one").iterdir()}
    assert made == {"rounds.svg", "rounds.png", "sites.svg", "sites.png"}
    for path in (tmp_path / "one").glob("*.png"):
        assert path.read_bytes().startswith(PNG) and path.stat().st_size > 5000
    rounds, sites = (texts(tmp_path / "one" / f"{name}.svg") for name in ("rounds", "sites"))
    assert "Accuracy (thick: all sites, thin: each site)" in rounds
    assert all(site.name in sites for site in result.sites)
    for said in (rounds, sites):
        assert ("no privacy in this run" in said) == (result.loss is None)
        assert ("ε spent" in said) == (result.loss is not None)


def test_the_same_result_gives_the_same_bytes(result: Result, drawn: None, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        plots.write(result, tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_comparison_is_drawn(drawn: None, tmp_path: Path) -> None:
    names, figures = ["with DP", "without", "alone"], [0.7, 0.8, None]
    plots.write_comparison(names, figures, "accuracy", "ε 1", tmp_path / "comparison")
    said = texts(tmp_path / "comparison.svg")
    assert all(one in said for one in (*names, "0.700", "0.000", "Test accuracy (green: ε 1)"))
    assert (tmp_path / "comparison.png").read_bytes().startswith(PNG)


def test_no_other_run_of_this_process_is_drawn(result: Result) -> None:
    assert (result.out / "plots" / "rounds.png").read_bytes() == b""
    assert "accuracy" in (result.out / "plots" / "rounds.svg").read_text(encoding="utf-8")
