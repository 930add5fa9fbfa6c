"""Questions, their texts and the answers in them: places, what is cut, and the loss."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sequence_kit import MAX_TOKENS, sequence_plan

from privet.common.errors import DataError
from privet.common.plan import Plan
from privet.common.tasks import build_task, shares, span_scores, spans
from privet.common.tasks.answering import AnsweringTask
from privet.common.tasks.encoding import encode_records

KIND = "question-answering"
TEXT = "Ada left for Rom and Ada saw Ulm"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return sequence_plan(KIND, tmp_path_factory.mktemp("answering"))


@pytest.fixture
def task(plan: Plan) -> AnsweringTask:
    found = build_task(plan)
    assert isinstance(found, AnsweringTask)
    return found


def table(answer: Any, at: Any = None, text: Any = TEXT, question: Any = "who is") -> pd.DataFrame:
    cells = {"question": question, "text": text, "answer": answer, "at": at}
    return pd.DataFrame({name: pd.Series([cell], dtype=object) for name, cell in cells.items()})


# [CLS] who is [SEP] Ada left for Rom and Ada saw Ulm [SEP]
#   0    1   2   3    4   5    6   7   8   9  10  11   12


@pytest.mark.parametrize(
    ("answer", "at", "wanted"),
    [
        ("Rom", 13, (7, 7)),
        ("Ada", None, (4, 4)),
        ("Ada", 21, (9, 9)),
        ("Ada", "21", (9, 9)),
        ("Ada", 21.0, (9, 9)),
        ("Ada", "", (4, 4)),
        ("left for Rom", 4, (5, 7)),
        (" left for ", 3, (5, 6)),  # with its blanks, as some writers have it
        ("eft fo", 5, (5, 6)),  # a part of a word is the word's token
        (TEXT, 0, (4, 11)),
    ],
)
def test_an_answer_is_where_it_is_written(
    task: AnsweringTask, answer: str, at: Any, wanted: tuple[int, int]
) -> None:
    batch = task.encode(table(answer, at))
    assert (batch["start"].item(), batch["end"].item()) == wanted
    assert batch["types"][0].tolist() == [0] * 4 + [1] * 9 + [0] * 3
    assert batch["context"][0].tolist() == [0] * 4 + [1] * 8 + [0] * 4


def test_without_a_column_of_places_the_first_occurrence_counts(plan: Plan) -> None:
    value = plan.to_dict()
    value["task"]["answer_start"] = None
    task = build_task(Plan.parse(value))
    assert task.encode(table("Ada", 21).drop(columns="at"))["start"].tolist() == [4]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"answer": "Oslo"}, "'answer' does not occur in 'text'"),
    ({"answer": "Ada", "at": 1}, "does not occur in 'text' at the character that 'at' names"),
    ({"answer": "Ada", "at": -1}, "at the character"),
    ({"answer": "Ada", "at": 0.5}, "at the character"),
    ({"answer": "Ada", "at": 1e300}, "at the character"),
    ({"answer": "Ada", "at": "first"}, "'at' is no number"),
    ({"answer": "Ada", "at": [0]}, "'at' is no number"),
    ({"answer": None}, "there is no text in 'answer'"),
    ({"answer": "  "}, "there is no text in 'answer'"),
    ({"answer": "Ada", "text": None}, "there is no text in 'text'"),
    ({"answer": "Ada", "question": ""}, "there is no text in 'question'"),
    ({"answer": ["Ada"]}, "there is no text in 'answer'"),
    ({"answer": b"Ada"}, "there is no text in 'answer'"),
    ({"answer": {"text": "Ada"}}, "there is no text in 'answer'"),
    ({"answer": "Ada", "text": ["Ada"]}, "there is no text in 'text'"),
    ({"answer": 5.0}, "'answer' does not occur in 'text'"),
    ({"answer": "Ada", "question": "who " * 40}, "leaves no room for 'text' among 16 tokens"),
    ({"answer": "Ada", "text": "Ada \ud800"}, "there is no text in 'text'"),
]


@pytest.mark.parametrize(("cells", "said"), BAD)
def test_a_bad_cell_costs_its_own_record(
    task: AnsweringTask, cells: dict[str, Any], said: str
) -> None:
    good = [table("Rom", 13), table("Ulm")]
    frame = pd.concat([good[0], table(**cells), good[1]], ignore_index=True)
    found = encode_records(task, frame)
    assert list(found.faults) == [1] and said in found.faults[1]
    alone = task.encode(pd.concat(good, ignore_index=True))
    assert all(torch.equal(found.batch[name], alone[name]) for name in alone)


def test_a_missing_column_is_named(task: AnsweringTask) -> None:
    with pytest.raises(DataError, match="the column 'at' is missing"):
        task.encode(table("Ada").drop(columns="at"))


def test_the_text_alone_is_cut(task: AnsweringTask) -> None:
    long = table("Ada", None, f"Ada {'left ' * 400}Rom", "who is Bo ?")
    batch = task.encode(long)
    assert batch["tokens"].shape == (1, MAX_TOKENS)
    assert batch["tokens"][0, [0, 5, -1]].tolist() == [2, 3, 3]  # the frame is whole
    assert batch["context"].sum() == MAX_TOKENS - 7
    assert batch["start"].item() == 6


@pytest.mark.parametrize("answer", ["Rom", "then Rom", "left left then"])
def test_an_answer_that_is_cut_away_predicts_nothing(task: AnsweringTask, answer: str) -> None:
    """All of it, or its end alone."""
    text = f"Ada {'left ' * 10}then Rom"
    batch = task.encode(table(answer, None, text))
    assert (batch["start"].item(), batch["end"].item()) == (-1, -1)
    logits = torch.randn(1, MAX_TOKENS, 2, requires_grad=True)
    loss = task.loss(_Fixed(logits), batch)
    assert loss.tolist() == [0.0]
    loss.sum().backward()
    assert logits.grad is not None and not logits.grad.any()
    assert task.scores(_Fixed(logits), batch).tolist() == [[0.0, 0.0]]


class _Fixed(torch.nn.Module):
    """Answers the same logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, tokens: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        assert tokens.shape == types.shape
        return self.logits[:, : tokens.shape[1]]


def test_the_loss_compares_places_of_the_text_alone(task: AnsweringTask) -> None:
    batch = task.encode(table("left for Rom", 4))
    logits = torch.randn(1, MAX_TOKENS, 2, generator=torch.Generator().manual_seed(0))
    wanted = sum(
        torch.nn.functional.cross_entropy(logits[0, 4:12, k], torch.tensor(place - 4))
        for k, place in enumerate((5, 7))
    )
    assert torch.allclose(task.loss(_Fixed(logits), batch), torch.as_tensor(wanted), atol=1e-5)
    elsewhere = logits.clone()
    elsewhere[:, :4] = 50.0
    elsewhere[:, 12:] = 50.0
    for call in (task.loss, task.scores):
        assert torch.equal(call(_Fixed(elsewhere), batch), call(_Fixed(logits), batch))


def test_the_likeliest_span_never_ends_before_it_begins() -> None:
    chance = torch.Generator().manual_seed(0)
    start, end = (torch.randn(200, 9, generator=chance) for _ in range(2))
    first, last = span_scores.best(start, end)
    pairs = [(i, j) for j in range(9) for i in range(j + 1)]
    worth = torch.stack([start[:, i] + end[:, j] for i, j in pairs], 1)
    wanted = [pairs[k] for k in worth.argmax(1).tolist()]
    assert list(zip(first.tolist(), last.tolist(), strict=True)) == wanted


def test_f1_counts_common_tokens() -> None:
    said, true = (
        [(2, 5), (2, 5), (0, 0), (3, 3), (1, 1)],
        [(4, 7), (2, 5), (1, 2), (2, 5), (-1, -1)],
    )
    ends = [torch.tensor(column) for pairs in (said, true) for column in zip(*pairs, strict=True)]
    found = span_scores.overlap(*ends)
    wanted = []
    for one, other in zip(said, true, strict=True):
        mine = set(range(one[0], one[1] + 1))
        right = set(range(other[0], other[1] + 1)) if other[0] >= 0 else set()
        wanted.append([float(mine == right), 2 * len(mine & right) / (len(mine) + len(right))])
    assert found.tolist() == [pytest.approx(row) for row in wanted]
    metrics = spans.from_scores(found.numpy(), np.zeros(5))
    assert metrics == {"f1": pytest.approx(np.mean(wanted, 0)[1]), "exact_match": 0.2}
    assert spans.from_scores(np.zeros((0, 1)), np.zeros(0)) == dict.fromkeys(spans.NAMES)


def test_generated_records_have_answers_in_their_texts(task: AnsweringTask) -> None:
    batch = task.random_batch(20, 0)
    there = batch["start"] >= 0
    assert 0 < (~there).sum() < 10  # of the empty one, at least
    for name in ("start", "end"):
        place = batch[name][there][:, None]
        assert batch["context"][there].gather(1, place).all()
    assert (batch["start"] <= batch["end"]).all()
    assert torch.isfinite(task.loss(_Fixed(torch.randn(20, MAX_TOKENS, 2)), batch)).all()


@pytest.mark.parametrize("types", [0, 1])
def test_generated_types_are_those_of_the_tokenizer(plan: Plan, types: int, tmp_path: Path) -> None:
    """RoBERTa has a single type, and no place for another one."""
    from tokenizers import Tokenizer, processors

    folder = tmp_path / "model"
    shutil.copytree(str(plan.model.options.folder), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{types} [SEP]:{types}",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    task = build_task(plan.changed(model={"options": {"folder": str(folder)}}))
    assert task.random_batch(8, 0)["types"].max() == types
    batch = task.encode(table("Rom"))
    assert batch["types"].max() == types and batch["context"].sum() == 8


# shares


@pytest.mark.parametrize("bins", [2, 3, 10, 11, 100])
def test_a_table_of_shares_knows_the_mean_to_a_bin(bins: int) -> None:
    chance = np.random.default_rng(0)
    values = np.concatenate([chance.uniform(0, 1, 400), np.ones(70), np.zeros(30), [0.999999]])
    cells = shares.cells(values, bins)
    assert cells.min() == 0 and cells.max() == bins - 1
    assert (cells == bins - 1).sum() == 70
    mean, full = shares.means(np.bincount(cells, minlength=bins)[None])
    assert mean is not None and abs(mean - values.mean()) <= 1 / (bins - 1)
    assert full == pytest.approx(70 / len(values))
    assert shares.cells(np.array([-0.1, 1.1, np.nan]), bins).tolist() == [-1, -1, -1]
