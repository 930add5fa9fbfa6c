"""What ``import privet`` offers to a program and a notebook."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import privet

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def result(files: Path, plan_value: Make, tmp_path_factory: pytest.TempPathFactory) -> Any:
    plan = privet.Plan.parse(plan_value(training={"rounds": 3}))
    out = tmp_path_factory.mktemp("run") / "r"
    return privet.simulate(plan, base=files, out=out, noise_seed=1, evidence="off")


def test_it_is_short_where_it_is_printed(result: Any) -> None:
    said = repr(result)
    assert len(said) < 300
    assert "'tiny'" in said
    assert "δ 0.0001" in said
    assert "accuracy" in said
    html = result._repr_html_()
    assert "North" in html
    assert html.count("<table>") == html.count("</table>") == 2


def test_a_name_cannot_be_markup(result: Any) -> None:
    from dataclasses import replace

    plan = result.plan.changed(title="<script>alert(1)</script>")
    assert "<script>" not in replace(result, plan=plan)._repr_html_()


def test_rounds_are_a_frame_and_a_picture(result: Any, tmp_path: Path) -> None:
    frame = result.to_frame()
    assert list(frame.index) == [1, 2, 3]
    assert frame["epsilon"].is_monotonic_increasing
    assert frame["accuracy"].iloc[-1] == pytest.approx(result.metrics["accuracy"])
    assert result.plot()._repr_svg_().lstrip().startswith("<?xml")
    result.plot().save(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_it_predicts_without_a_label_as_it_was_measured(result: Any, frame_of: Make) -> None:
    frame = frame_of(80, 9)
    found = result.predict(frame.drop(columns="y"))
    assert list(found.columns) == ["0", "1", "prediction"]
    assert found[["0", "1"]].sum(axis=1).to_numpy() == pytest.approx(1)
    likely = np.where(found["1"] > found["0"], "1", "0")
    assert (found["prediction"] == likely).all()
    right = (found["prediction"].astype(int) == frame["y"].astype(int)).mean()
    assert result.evaluate(frame)["accuracy"] == pytest.approx(right)


def test_a_record_that_cannot_be_read_has_no_prediction(result: Any, frame_of: Make) -> None:
    frame = frame_of(5, 9).astype(object)
    frame.index = pd.Index(list("abcde"))
    whole = result.predict(frame)
    frame.loc["c", "x1"] = "old"
    found = result.predict(frame)
    assert found.loc["c", "prediction"] is None
    assert np.isnan(found.loc["c", "0"])
    assert found.drop(index="c").equals(whole.drop(index="c"))


def test_wrong_records_are_our_errors(result: Any, frame_of: Make) -> None:
    frame = frame_of(5, 9)
    with pytest.raises(privet.PrivetError, match="x1"):
        result.predict(frame.drop(columns="x1"))
    with pytest.raises(privet.PrivetError, match="no record"):
        result.predict(frame.iloc[:0])
    with pytest.raises(privet.PrivetError, match="label column 'y' is missing"):
        result.evaluate(frame.drop(columns="y"))


def test_a_folder_is_loaded_later(result: Any, frame_of: Make) -> None:
    trained = privet.load(str(result.out))
    frame = frame_of(40, 9)
    pd.testing.assert_frame_equal(trained.predict(frame), result.predict(frame))
    assert trained.evaluate(frame) == result.evaluate(frame)


def test_a_run_is_repeated_with_other_seeds(files: Path, plan_value: Make, tmp_path: Path) -> None:
    plan = privet.Plan.parse(plan_value())
    runs = privet.repeat(plan, [3, 4], base=files, out=tmp_path, evidence="off")
    assert [result.plan.seed for result in runs.results] == [3, 4]
    accuracies = [result.metrics["accuracy"] for result in runs.results]
    assert runs.mean["accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert runs.deviation["accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
    assert list(runs.to_frame().index) == [3, 4]
    assert "±" in repr(runs)
    for wrong in ([], [1, 1], 0):
        with pytest.raises(privet.PrivetError, match="seeds"):
            privet.repeat(plan, wrong, base=files)
    with pytest.raises(privet.PrivetError, match="seed"):
        privet.repeat(plan, 2, seed=1)


def test_simulate_takes_what_the_command_takes(
    files: Path, plan_value: Make, write_toml: Make, tmp_path: Path
) -> None:
    path = write_toml(tmp_path / "plan" / "tiny.toml", plan_value())
    for name in ("north", "east", "south"):
        (path.parent / f"{name}.csv").write_bytes((files / f"{name}.csv").read_bytes())
    found = privet.simulate(
        path, model="dense", sites=2, clipping="functorch", values={"training.steps": 1},
        ledgers=tmp_path / "ledgers", cap=30.0, out=tmp_path / "run",
    )  # fmt: skip
    assert found.plan.model.kind == "dense"
    assert len(found.sites) == 2
    assert found.clipping == "functorch"
    assert found.sites[0].cap == 30.0
    assert (tmp_path / "ledgers").is_dir()
    with pytest.raises(privet.PrivetError, match="'model' goes with"):
        privet.simulate(found.plan, model="linear")
