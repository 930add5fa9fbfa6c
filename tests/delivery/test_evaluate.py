"""Figures of a model, by site and by group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from families_kit import counting

from privet.common.errors import DataError, InputError
from privet.common.tasks.written import likeness
from privet.delivery.evaluate import FigureGroup, calibration, evaluate
from privet.delivery.trained import Trained, load

Runs = Callable[[str], Path]


def table() -> pd.DataFrame:
    return pd.concat(
        [counting(n, 40, 7).assign(site=f"Site {n}", age=20 + 10 * n) for n in (1, 2)],
        ignore_index=True,
    )


@pytest.fixture(scope="module")
def dense(run_of: Runs) -> Trained:
    return load(run_of("dense"))


def test_figures_are_those_of_the_scores(dense: Trained) -> None:
    frame = table()
    found = evaluate(dense, frame, [])
    scores = dense.scores(dense.encode(frame))
    right = scores.argmax(1) == frame["low"].to_numpy()
    assert found["metrics"]["accuracy"] == pytest.approx(right.mean())
    assert found["records"] == 80
    for number in (1, 2):
        mine = (frame["site"] == f"Site {number}").to_numpy()
        site = found["sites"][f"Site {number}"]
        assert site["records"] == 40 and site["accuracy"] == pytest.approx(right[mine].mean())


def test_groups_and_their_gaps(dense: Trained) -> None:
    frame = table().assign(sex=["f", "m"] * 40)
    frame.loc[0, "sex"] = None
    found = evaluate(dense, frame, [FigureGroup.parse("sex"), FigureGroup.parse("age:35,60")])
    assert list(found["groups"]["age"]["figures"]) == ["below 35", "35 to 60"]
    by_sex = found["groups"]["sex"]
    assert list(by_sex["figures"]) == ["f", "m", "missing"]
    counts = [row["records"] for row in by_sex["figures"].values()]
    assert counts == [39, 40, 1]
    shares = [row["selected"] for row in by_sex["figures"].values()]
    assert by_sex["gaps"]["selected"] == pytest.approx(max(shares) - min(shares))


def test_a_rigged_model_shows_in_the_gaps(dense: Trained) -> None:
    # Group a has the label that the model says, group b the other one.
    frame = table()
    said = dense.scores(dense.encode(frame)).argmax(1)
    group = np.arange(len(frame)) % 2
    frame["low"], frame["group"] = np.where(group == 0, said, 1 - said), group
    found = evaluate(dense, frame, [FigureGroup.parse("group")])
    assert found["groups"]["group"]["gaps"]["accuracy"] == 1.0


def test_calibration_of_what_is_known() -> None:
    sure = np.array([[0.9, 0.1]] * 100)
    labels = np.array([0] * 90 + [1] * 10)
    assert calibration(sure, labels)["error"] == pytest.approx(0.0, abs=1e-9)
    assert calibration(sure, 1 - labels)["error"] == pytest.approx(0.8)
    assert calibration(sure, labels)["brier"] == pytest.approx(0.9 * 0.02 + 0.1 * 1.62)


@pytest.mark.parametrize("text", ["age:", "age:x", "age:60,40", ":40", "age:40,40", "age:nan"])
def test_wrong_groups_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--group"):
        FigureGroup.parse(text)


def test_a_number_that_is_not_told_exactly_has_its_band() -> None:
    cells = ["> 89", "89", "89+", "<89", "≤ 60", " 45 ", "old", None, 61.5, "1_000", "inf", 90]
    found = FigureGroup.parse("age:60,89").of(pd.DataFrame({"age": cells}))
    above, between = "from 89", "60 to 89"
    assert found.tolist() == [
        above, above, above, between, "below 60", "below 60", "missing", "missing", between,
        "missing", "missing", above,
    ]  # fmt: skip


def test_a_share_of_nothing_is_no_gap(dense: Trained) -> None:
    frame = table().assign(ward=["a", "b"] * 40)
    frame.loc[frame["ward"] == "a", "low"] = 0
    found = evaluate(dense, frame, [FigureGroup.parse("ward")])["groups"]["ward"]
    assert found["figures"]["a"]["recall"] is None is found["figures"]["a"]["true_positive_rate"]
    assert found["figures"]["b"]["recall"] is not None
    assert "recall" not in found["gaps"] and "accuracy" in found["gaps"]


def test_a_column_is_named_once(dense: Trained) -> None:
    with pytest.raises(InputError, match="named twice"):
        evaluate(dense, table(), [FigureGroup.parse("age:40"), FigureGroup.parse("age:60")])


@pytest.mark.parametrize(("name", "column"), [("dense", "low"), ("encoder-decoder", "spanish")])
def test_nothing_is_said_where_the_right_answer_is_not_known(
    run_of: Runs, name: str, column: str
) -> None:
    trained = load(run_of(name))
    assert column in trained.plan.task.columns
    with pytest.raises(DataError, match=f"'{column}' is missing: it says what is right"):
        evaluate(trained, table().drop(columns=column), [])


def test_calibration_is_told_by_group(dense: Trained) -> None:
    frame = table()
    found = evaluate(dense, frame, [FigureGroup.parse("site")])
    scores, labels = dense.scores(dense.encode(frame)), frame["low"].to_numpy()
    assert found["metrics"]["calibration_error"] == found["calibration"]["error"]
    for name, figures in found["groups"]["site"]["figures"].items():
        mine = (frame["site"] == name).to_numpy()
        own = calibration(scores[mine], labels[mine])
        assert figures["calibration_error"] == own["error"] and figures["brier"] == own["brier"]
    gap = abs(np.subtract(*[row["brier"] for row in found["groups"]["site"]["figures"].values()]))
    assert found["groups"]["site"]["gaps"]["brier"] == pytest.approx(gap)


def test_a_translation_is_scored_by_what_is_written(run_of: Runs) -> None:
    trained = load(run_of("encoder-decoder"))
    found = evaluate(trained, table()[::4], [FigureGroup.parse("site")])
    assert {"chrf", "bleu"} <= set(found["metrics"]) & set(found["groups"]["site"]["gaps"])


def test_capitals_do_not_count_in_what_is_written() -> None:
    found = likeness(["En El Principio Era"], ["en el principio era"])
    assert found == {"chrf": 100.0, "bleu": pytest.approx(100.0)}
    assert likeness(["nada"], ["en el principio era"])["chrf"] < 20


def test_unknown_columns_are_named(dense: Trained) -> None:
    with pytest.raises(InputError, match="there is no column 'ward' to group by"):
        evaluate(dense, table(), [FigureGroup.parse("ward")])
    with pytest.raises(InputError, match="holds no numbers to cut"):
        evaluate(dense, table(), [FigureGroup.parse("text:1,2")])
    with pytest.raises(DataError, match="x1"):
        evaluate(dense, table().drop(columns="x1"), [])


@pytest.mark.parametrize("name", ["decoder", "gaps", "encoder-decoder", "vit", "text-encoder"])
def test_every_family_is_evaluated(run_of: Runs, name: str) -> None:
    found = evaluate(load(run_of(name)), table(), [FigureGroup.parse("site")])
    headline = "accuracy" if found["calibration"] else "perplexity"
    assert found["metrics"][headline] is not None
    assert set(found["groups"]["site"]["gaps"]) >= {headline}


# reading


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"plan\.json: there is no such file; name the folder"):
        load(tmp_path)


def test_a_model_of_another_plan_is_refused(run_of: Runs, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run_of("dense") / "model", tmp_path / "model")
    shutil.copy(run_of("vit") / "plan.json", tmp_path)
    with pytest.raises(InputError, match="of another plan"):
        load(tmp_path)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load(tmp_path)
