"""Words and their tags: what a cell lists, the first token of a word, and the loss."""

from __future__ import annotations

import json
import random
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sequence_kit import MAX_TOKENS, TAGS, sequence_plan, tagged

from privet.common.bio import TagScheme, tag_scheme
from privet.common.errors import DataError, PlanError
from privet.common.models.tokens import TOKENIZER, Tokens
from privet.common.plan import Plan
from privet.common.tasks import build_task, span_scores, tags
from privet.common.tasks.encoding import encode_records
from privet.common.tasks.tagging import TaggingTask
from privet.common.tasks.words import first_tokens, items_of, word_spans, words_of

KIND = "token-classification"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return sequence_plan(KIND, tmp_path_factory.mktemp("tagging"))


@pytest.fixture
def task(plan: Plan) -> TaggingTask:
    found = build_task(plan)
    assert isinstance(found, TaggingTask)
    return found


# classes


def test_a_scheme_knows_types_and_beginnings() -> None:
    assert tag_scheme(TAGS) == TagScheme((0, 1, 1, 2, 2), (False, True, False, True, False))
    assert tag_scheme(["O", "B-X"]) == TagScheme((0, 1), (False, True))
    assert tag_scheme(["NOUN", "VERB", "O"]) is None


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["B-X", "I-X"], "it needs 'O', for no span"),
        (["O", "I-X"], "'I-X' without 'B-X'"),
        (["O", "B-X", "E-X"], "mixes 'E-X' with tags of BIO"),
        (["O", "B-X", "X"], "mixes 'X' with tags of BIO"),
        (["O", "B-", "B-X"], "mixes 'B-' with tags of BIO"),
        (["O"], "must have at least 2 entries"),
    ],
)
def test_classes_that_are_no_scheme_are_refused(plan: Plan, classes: list[str], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        plan.changed(task={"classes": classes})


# cells


@pytest.mark.parametrize(
    ("cell", "items"),
    [
        ("Ada saw  Bo\tthen", ["Ada", "saw", "Bo", "then"]),
        ('["Ada", "New York"]', ["Ada", "New York"]),
        (' ["a", 3]', ["a", 3]),
        ("[Ada saw", ["[Ada", "saw"]),
        ("[1, 2", ["[1,", "2"]),
        ("[" * 100_000, ["[" * 100_000]),
        ('{"a": 1}', ['{"a":', "1}"]),
        (["Ada", "saw"], ["Ada", "saw"]),
        (("Ada",), ["Ada"]),
        (np.array(["Ada", "saw"], dtype=object), ["Ada", "saw"]),
        (array("q", [1, 0]), [1, 0]),
        (None, []),
        (float("nan"), []),
        ("", []),
        ("  ", []),
        ([], []),
        ("[]", []),
        (5.0, ["5"]),
        (7, ["7"]),
    ],
)
def test_what_a_cell_lists(cell: Any, items: list[Any]) -> None:
    assert items_of(cell) == items


@pytest.mark.parametrize(
    "cell",
    [
        b"Ada", bytearray(b"x"), {"a": 1}, [["Ada"]], ["Ada", None], '["Ada", ["Bo"]]', "[null]",
        "[true]", '[{"a": 1}]', [b"x"],
    ],
)  # fmt: skip
def test_a_cell_that_lists_something_else(cell: Any) -> None:
    with pytest.raises(ValueError, match=r"neither a text nor a list|no text and no number"):
        items_of(cell)


@pytest.mark.parametrize(
    "cell", ["[1, 2]", array("d", [1.0]), ["a", 3], '["\\ud800"]', '["\\u0000"]']
)
def test_words_are_texts(cell: Any) -> None:
    with pytest.raises(ValueError, match="no text"):
        words_of(cell)


# tokens


def test_the_first_token_of_each_word_is_labelled(task: TaggingTask) -> None:
    frame = pd.DataFrame(
        {"text": ["Ada saw Bos", ["Bernville", "left"]], "label": ["B-PER O B-PER", ["B-LOC", "O"]]}
    )
    batch = task.encode(frame)
    # [CLS] Ada saw Bo ##s [SEP], and [CLS] Bern ##ville left [SEP]
    assert batch["tags"][0, :7].tolist() == [-1, 1, 0, 1, -1, -1, -1]
    assert batch["tags"][1, :6].tolist() == [-1, 3, -1, 0, -1, -1]
    assert batch["tokens"].shape == batch["tags"].shape == (2, MAX_TOKENS)
    assert (batch["tokens"][0, 6:] == task.tokens.padding).all()


def test_what_does_not_fit_is_cut(task: TaggingTask) -> None:
    frame = pd.DataFrame({"text": [["Ada"] * 40], "label": [["B-PER"] * 40]})
    batch = task.encode(frame)
    assert (batch["tags"] == 1).sum() == MAX_TOKENS - 2
    assert batch["tokens"][0, -1] == 3  # the frame's end


def test_a_text_in_bytes_keeps_its_words(task: TaggingTask) -> None:
    """Tokens of byte-level BPE hold the blank before a word."""
    tokens = Tokens(TOKENIZER, 64)
    words = ["The", "naïve", "Zürich", "日本", "", "end"]
    (encoding,) = tokens.encodings([" ".join(words)])
    firsts = first_tokens(list(encoding.offsets), word_spans(words))
    assert firsts[4] is None
    places = [place for place in firsts if place is not None]
    assert places == sorted(set(places)) and len(places) == 5
    for word, place in zip(words, firsts, strict=True):
        if place is not None:
            begin, end = encoding.offsets[place]
            assert word.startswith(" ".join(words)[begin:end].strip())


def test_a_token_over_two_words_labels_the_first() -> None:
    assert first_tokens([None, (0, 5), (5, 8)], [(0, 2), (3, 5), (6, 8)]) == [1, None, 2]
    assert first_tokens([], [(0, 2)]) == [None]
    assert first_tokens([(0, 1)], [(0, 1), (2, 4)]) == [0, None]


# faults

BAD: list[tuple[Any, Any, str]] = [
    ("Ada saw", "B-PER", "has 2 words and 'label' 1 label: each"),
    ("Ada", "B-ORG", "label 1 in 'label' is not declared"),
    ("Ada saw", ["B-PER", float("nan")], "label 2 in 'label' is not declared"),
    (None, None, "there is no word in 'text'"),
    ("", "", "there is no word in 'text'"),
    ([], [], "there is no word in 'text'"),
    ("Ada", None, "has 1 word and 'label' 0 labels"),
    (3.0, "O O", "has 1 word and"),
    (b"Ada", "O", "'text' is neither a text nor a list"),
    ({"bytes": b"x"}, "O", "'text' is neither"),
    ([["Ada"]], ["O"], "'text' lists something"),
    (["Ada", None], ["O", "O"], "'text' lists something"),
    ('["Ada", 3]', "O O", "'text' lists something that is no text"),
    ("Ada", [["O"]], "'label' lists something"),
    ("Ada", True, "label 1 in 'label' is not declared"),
]


@pytest.mark.parametrize(("text", "label", "said"), BAD)
def test_a_bad_cell_costs_its_own_record(
    task: TaggingTask, text: Any, label: Any, said: str
) -> None:
    good = tagged(2, 0)
    frame = pd.DataFrame(
        {"text": [good["text"][0], text, good["text"][1]],
         "label": [good["label"][0], label, good["label"][1]]}
    )  # fmt: skip
    found = encode_records(task, frame)
    assert list(found.faults) == [1] and said in found.faults[1]
    alone = task.encode(good)
    for name, tensor in alone.items():
        assert torch.equal(found.batch[name], tensor)
    with pytest.raises(DataError, match="row 1: "):
        task.encode(frame)


def test_a_missing_column_is_named(task: TaggingTask) -> None:
    with pytest.raises(DataError, match="the column 'label' is missing"):
        task.encode(pd.DataFrame({"text": ["Ada"]}))


def test_numbers_that_are_declared_are_labels(plan: Plan) -> None:
    task = build_task(plan.changed(task={"classes": ["0", "1"]}))
    frame = pd.DataFrame({"text": ["Ada saw"] * 3, "label": [array("q", [1, 0]), "1 0", [1.0, 0]]})
    batch = task.encode(frame)
    assert batch["tags"][:, 1:3].tolist() == [[1, 0]] * 3


def test_too_few_tokens_for_any_word(plan: Plan) -> None:
    task = build_task(plan.changed(task={"max_tokens": 2}))
    found = encode_records(task, tagged(2, 0))
    assert set(found.faults.values()) == {"no word fits among 2 tokens"}


# loss and scores


class _Fixed(torch.nn.Module):
    """Answers the same logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits[:, : tokens.shape[1]]


def test_the_loss_is_a_sum_over_words_by_a_constant(task: TaggingTask) -> None:
    batch = task.encode(tagged(5, 1))
    logits = torch.randn(5, MAX_TOKENS, len(TAGS), generator=torch.Generator().manual_seed(0))
    losses = task.loss(_Fixed(logits), batch)
    for row in range(5):
        there = batch["tags"][row] >= 0
        nats = torch.nn.functional.cross_entropy(
            logits[row][there], batch["tags"][row][there], reduction="sum"
        )
        assert torch.allclose(losses[row], nats / MAX_TOKENS, atol=1e-6)


def test_generated_records_have_any_length(task: TaggingTask) -> None:
    batch = task.random_batch(8, 0)
    lengths = (batch["tokens"] != task.tokens.padding).sum(1)
    assert lengths.min() == 2 and len(set(lengths.tolist())) > 3  # an empty text has its frame
    assert ((batch["tags"] >= 0) <= (batch["tokens"] != task.tokens.padding)).all()
    assert not torch.equal(batch["tags"], task.random_batch(8, 1)["tags"])
    assert torch.equal(batch["tags"], task.random_batch(8, 0)["tags"])


def conll_spans(row: list[str]) -> set[tuple[int, int, str]]:
    """Spans by CoNLL's rule, one word after the other."""
    found, open_at, kind = set(), None, ""
    for place, tag in enumerate([*row, "O"]):
        mark, _, name = tag.partition("-")
        if open_at is not None and (mark != "I" or name != kind):
            found.add((open_at, place - 1, kind))
            open_at = None
        if mark != "O" and open_at is None:
            open_at, kind = place, name
    return found


def test_spans_are_counted_as_conll_counts_them() -> None:
    chance = random.Random(0)
    rows = [[chance.choice(TAGS) for _ in range(12)] for _ in range(300)]
    guesses = [[t if chance.random() < 0.7 else chance.choice(TAGS) for t in row] for row in rows]
    # Tokens without a tag among the words change nothing.
    places = [sorted(chance.sample(range(20), 12)) for _ in rows]
    tensors = torch.full((2, 300, 20), -1)
    for row, place in enumerate(places):
        tensors[0, row, place] = torch.tensor([TAGS.index(tag) for tag in guesses[row]])
        tensors[1, row, place] = torch.tensor([TAGS.index(tag) for tag in rows[row]])
    guess = tensors[0].where(tensors[1] >= 0, torch.randint(0, 5, (300, 20)))
    scores = span_scores.counts(guess, tensors[1], tag_scheme(TAGS), 5).numpy()
    for k in range(300):
        mine, true = conll_spans(guesses[k]), conll_spans(rows[k])
        assert scores[k, 2:].tolist() == [len(mine & true), len(mine), len(true)]
        assert scores[k, 1] == 12
    mine, true = (
        {(k, *s) for k, row in enumerate(x) for s in conll_spans(row)} for x in (guesses, rows)
    )
    found = tags.from_scores(scores, np.zeros(300))
    assert found["f1"] == pytest.approx(2 * len(mine & true) / (len(mine) + len(true)))
    assert found["precision"] == pytest.approx(len(mine & true) / len(mine))
    assert found["recall"] == pytest.approx(len(mine & true) / len(true))


def test_plain_tags_have_the_macro_mean_of_sklearn() -> None:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    generator = torch.Generator().manual_seed(0)
    true = torch.randint(-1, 3, (50, 9), generator=generator)  # class 3 never occurs
    guess = torch.randint(0, 3, (50, 9), generator=generator)
    found = tags.from_scores(span_scores.counts(guess, true, None, 4).numpy(), np.zeros(50))
    there = true >= 0
    wanted = precision_recall_fscore_support(
        true[there], guess[there], average="macro", zero_division=0.0
    )
    assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(wanted[:3])
    assert found["token_accuracy"] == pytest.approx(accuracy_score(true[there], guess[there]))


def test_nothing_to_tag_has_no_metric() -> None:
    nothing = dict.fromkeys(tags.NAMES)
    assert tags.from_scores(np.zeros((0, 5)), np.zeros(0)) == nothing
    assert tags.from_scores(np.zeros((2, 5)), np.zeros(2)) == nothing
    assert tags.from_histogram(np.zeros((1, 4))) == nothing
    assert tags.cells(np.zeros((2, 5)), np.zeros(2), (1, 4)).tolist() == [-1, -1]
    assert tags.cells(np.zeros((2, 3)), np.zeros(2), (1, 4)).tolist() == [-1, -1]


def test_words_and_tags_may_be_texts_of_a_csv_file(task: TaggingTask, tmp_path: Path) -> None:
    from privet.client.data.tables import read_table

    frame = tagged(4, 0)
    texts = frame.map(" ".join)
    listed = frame.map(json.dumps)
    wanted = task.encode(frame)
    for number, table in enumerate((texts, listed)):
        table.to_csv(tmp_path / f"{number}.csv", index=False)
        batch = task.encode(read_table(tmp_path / f"{number}.csv").frame)
        assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
