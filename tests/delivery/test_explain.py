"""Explanations add up, and find what was planted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from families_kit import counting

from privet.common.errors import InputError
from privet.delivery.explain import explain, whole, write_page
from privet.delivery.trained import load

Runs = Callable[[str], Path]


def test_cells_of_a_linear_model_get_their_exact_share(run_of: Runs) -> None:
    trained = load(run_of("linear"))
    frame = counting(1, 5, 3)
    batch = trained.encode(frame)
    weight = next(iter(trained.network.parameters())).detach()
    for row, one in enumerate(explain(trained, frame, "1")):
        wanted = (weight[1, :2] * batch["numeric"][row]).tolist()
        assert [part.name for part in one.parts] == ["x1", "x2"]
        assert [part.weight for part in one.parts] == pytest.approx(wanted, abs=1e-5)
        assert one.off < 1e-4


def test_pixels_add_up_to_the_score(run_of: Runs) -> None:
    trained = load(run_of("vit"))
    frame = counting(1, 3, 3)
    batch = trained.encode(frame)
    dark = torch.full_like(batch["pixels"][:1], -1.0)
    for row, one in enumerate(explain(trained, frame, "0")):
        with torch.no_grad():
            moved = trained.network(batch["pixels"][row : row + 1]) - trained.network(dark)
        total = sum(part.weight for part in one.parts)
        assert total == pytest.approx(float(moved[0, 0]), abs=0.05 * abs(float(moved[0, 0])) + 1e-3)
        assert len(one.parts) == 16


def test_the_word_that_decides_is_found(run_of: Runs) -> None:
    trained = load(run_of("text-encoder"))
    encoder = trained.network.encoder
    table = encoder.words.weight  # type: ignore[union-attr]
    frame = counting(1, 4, 3).assign(text="one seven two seven three")
    tokens = trained.encode(frame)["tokens"][0]
    spec = trained.task._inputs._tokens  # type: ignore[attr-defined]
    words = [name for name, _ in spec.words("one seven two seven three")]
    assert words == ["one", "seven", "two", "seven", "three"]
    # A planted word: its table row alone moves the score, by a large step along the head's weight.
    with torch.no_grad():
        head = trained.network.head.weight  # type: ignore[union-attr]
        table[tokens[2]] += 30 * (head[1] - head[0]) / (head[1] - head[0]).norm()
    one = explain(trained, frame.head(1), "1")[0]
    weights = {part.name: abs(part.weight) for part in one.parts}
    assert max(weights, key=lambda name: weights[name]) == "two"
    assert one.off < 0.2


def test_the_page_stands_alone_and_holds_no_markup_of_the_record(
    run_of: Runs, tmp_path: Path
) -> None:
    trained = load(run_of("text-encoder"))
    frame = counting(1, 2, 3).assign(text="one <script>alert(1)</script> two")
    found = explain(trained, frame)
    write_page(tmp_path / "why.html", "Why <b>?", found, whole(found), "public")
    page = (tmp_path / "why.html").read_text()
    assert "<script>" not in page and "Why &lt;b&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<h2>Record") == 2


def test_overall_ranks_what_counts(run_of: Runs) -> None:
    trained = load(run_of("dense"))
    parts = whole(explain(trained, counting(1, 12, 3)))
    # x2 is always 0, which is what an absent cell is taken for.
    assert [part.name for part in parts] == ["x1", "x2"]
    assert parts[1].weight == pytest.approx(0.0, abs=1e-6)


def test_what_cannot_be_explained_is_said(run_of: Runs) -> None:
    with pytest.raises(InputError, match="has no class to explain"):
        explain(load(run_of("decoder")), counting(1, 2, 3))
    with pytest.raises(InputError, match="there is no class 'x'; there are 0, 1"):
        explain(load(run_of("dense")), counting(1, 2, 3), "x")


def test_explaining_changes_nothing(run_of: Runs) -> None:
    trained = load(run_of("dense"))
    frame = counting(1, 3, 3)
    before = trained.scores(trained.encode(frame))
    state = torch.get_rng_state()
    first, second = explain(trained, frame), explain(trained, frame)
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(trained.scores(trained.encode(frame)), before)


def test_what_was_cleaned_out_stands_on_no_page(run_of: Runs, tmp_path: Path) -> None:
    trained = load(run_of("text-encoder"))
    plan = trained.plan.changed(task={"clean": ["names", "phones"]})
    cleaned = dataclasses.replace(trained, plan=plan)
    frame = counting(1, 2, 3).assign(text="one Dr. John Smith called 212-555-0123 two")
    found = explain(cleaned, frame)
    names = " ".join(part.name for one in found for part in one.parts)
    assert "John" not in names and "0123" not in names and "phone" in names
    raw = explain(trained, frame)
    assert any("John" in part.name for one in raw for part in one.parts)  # the control


def test_an_empty_text_has_a_page(run_of: Runs, tmp_path: Path) -> None:
    trained = load(run_of("text-encoder"))
    found = explain(trained, counting(1, 2, 3).assign(text=["", None]))
    write_page(tmp_path / "why.html", "Why?", found, [], "none")
    assert (tmp_path / "why.html").stat().st_size > 0
