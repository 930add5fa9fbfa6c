"""A prompt and its answer as one row of tokens, of which the answer alone is predicted.

::

    row      frame or template | prompt | template | answer | end
    counts                                            1 1 1    1

With a chat template, the template is rendered once, on two placeholders and never on a record, by
transformers in jinja2's sandbox. A record cannot forge a turn: a special token that it spells is
encoded as plain text, while the template's own are tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privet.common.errors import PlanError
from privet.common.models.tokens import Tokens

_PROMPT, _ANSWER = "privet0prompt0", "privet0answer0"
"""Placeholders, which no template changes."""
_TIMES = 8
"""How often a template is rendered again, to see whether it writes the same."""


@dataclass(frozen=True)
class ChatTurn:
    """What a chat template writes around a prompt and its answer.

    Attributes:
        before: the prompt.
        between: the prompt and the place where a model begins to write.
        lead: what the answer's turn begins with.
        after: the answer.
        trims_prompt, trims_answer: whether blanks around the text are removed.
    """

    before: str
    between: str
    lead: str
    after: str
    trims_prompt: bool = False
    trims_answer: bool = False


def chat_turn(folder: Path) -> ChatTurn:
    """Return what the chat template of a model's folder writes.

    It is in ``tokenizer_config.json``, or ``chat_template.jinja`` beside it.

    Args:
        folder: of the model. Its template is not trusted: no code of it runs, and it sees no
            record.

    Raises:
        PlanError: if there is none, or it cannot be used.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        template = tokenizer.chat_template
        if not template:
            raise PlanError("there is none; the model was not made for chats: leave out task.chat")
        if "strftime_now" in str(template):
            raise PlanError(
                "it writes today's date, so that each day would have other rows; put a date in the "
                "place of strftime_now"
            )
        asked = [{"role": "user", "content": _wide(_PROMPT)}]
        answered = [*asked, {"role": "assistant", "content": _wide(_ANSWER)}]
        opened = _render(tokenizer, asked, opens=True)
        if any(_render(tokenizer, asked, opens=True) != opened for _ in range(_TIMES)):
            raise PlanError("it writes something else each time (random, lipsum)")
        return _turn(opened, _render(tokenizer, answered, opens=False))
    except Exception as error:  # a template raises what it likes
        reason = str(error).strip().partition("\n")[0]
        raise PlanError(f"{folder}: its chat template cannot be used: {reason}") from error


def _render(tokenizer: Any, messages: list[dict[str, str]], *, opens: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens))


def _wide(name: str) -> str:
    """Return a placeholder between blanks: where a template removes them, they are gone."""
    return f"  {name}  "


def _turn(opened: str, whole: str) -> ChatTurn:
    """Return the parts of two rendered chats.

    Args:
        opened: with the prompt, up to where a model begins to write.
        whole: with the answer.

    Raises:
        PlanError: if a text is not there once, or the answer does not follow the prompt.
    """
    texts = [(opened, _PROMPT), (whole, _PROMPT), (whole, _ANSWER)]
    if any(text.count(name) != 1 for text, name in texts):
        raise PlanError("it does not write the prompt and the answer once each")
    wide = [_wide(name) for name in (_PROMPT, _ANSWER)]
    trims = [name not in whole for name in wide]
    if trims[0] is (wide[0] in opened):
        raise PlanError("it removes blanks around a prompt either with an answer or without one")
    names = [wide[0].strip() if trims[0] else wide[0], wide[1].strip() if trims[1] else wide[1]]
    before, _, between = opened.partition(names[0])
    written, mark, after = whole.partition(names[1])
    if not mark or names[0] not in written:
        raise PlanError("it writes the answer before the prompt")
    lead = written.removeprefix(opened) if written.startswith(opened) else ""
    return ChatTurn(before, between, lead, after, *trims)


class PromptTokens:
    """Convert prompts and answers to rows; every row depends on its own texts alone.

    Args:
        tokens: the model's.
        turn: of its chat template; None puts the prompt before the answer with nothing between.

    Attributes:
        start: number before a row, or None.

    Raises:
        PlanError: if the tokenizer cannot be read.
    """

    def __init__(self, tokens: Tokens, turn: ChatTurn | None) -> None:
        self._tokens, self._turn = tokens, turn
        self._plain, self._whole, self._added = _tokenizers(tokens.path, every=turn is not None)
        turn = turn or ChatTurn("", "", "", "")
        self._texts = turn
        self._left, self._right = ([], []) if self._turn else self._frame()
        before = self._left or self._ids(turn.before)
        self.start = None if self._turn and before[:1] != [tokens.start] else tokens.start
        self._marks = self._special(turn.before + "a" + turn.between)
        self._lead_marks = self._special(turn.before + "a" + turn.between + turn.lead + "a")
        if self._turn:
            after = self._ids(turn.after)
            marks = [place for place, number in enumerate(after) if number in self._added]
            self._right = after[: marks[0] + 1] if marks else []
        is_ended = bool(self._right) if self._turn else self._right[-1:] == [tokens.end]
        if tokens.end is not None and not is_ended:
            self._right = [*self._right, tokens.end]

    def encode(self, prompts: list[str], answers: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows [N, T], how many tokens of each are the prompt's [N], and characters [N].

        The prompt is cut from the left before the answer is cut; a cut answer has no end.

        Args:
            prompts: N texts.
            answers: N texts, whose characters are counted as far as they are covered.
        """
        length = self._tokens.max_tokens
        rows = torch.full((len(prompts), length), self._tokens.padding, dtype=torch.int64)
        prompted = torch.zeros(len(prompts), dtype=torch.int64)
        characters = torch.zeros(len(prompts), dtype=torch.int64)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            before, ends = self._row(prompt, answer)
            ids = [*before, *(number for number, _ in ends)]
            rows[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
            prompted[row] = len(before)
            characters[row] = max((end for _, end in ends), default=0)
        return rows, prompted, characters

    def _row(self, prompt: str, answer: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the prompt's tokens, and the answer's with the characters up to each."""
        prompt = prompt.strip() if self._texts.trims_prompt else prompt
        answer = answer.strip() if self._texts.trims_answer else answer
        head, text, tail = self._prompt(prompt)
        body = self._answer(prompt, [*head, *text, *tail], answer)
        head = [*self._left, *head]
        if self.start is not None and head[:1] == [self.start]:  # the task puts it
            head = head[1:]
        ending = [(number, 0) for number in self._right]
        over = len(head) + len(text) + len(tail) + len(body) + len(ending) - self._tokens.max_tokens
        cut = max(0, min(over, len(text)))
        before = [*head, *text[cut:], *tail]
        before = before[max(0, over - cut) :]
        if len(before) + len(body) + len(ending) > self._tokens.max_tokens:
            return before, body[: self._tokens.max_tokens]
        return before, [*body, *ending]

    def _prompt(self, text: str) -> tuple[list[int], list[int], list[int]]:
        """Return the tokens before a prompt's text, of it, and after it."""
        if not self._turn:
            return [], self._as_text(self._plain.encode(text, add_special_tokens=False).ids), []
        first, last = len(self._texts.before), len(self._texts.before) + len(text)
        found = self._whole.encode(
            self._texts.before + text + self._texts.between, add_special_tokens=False
        )
        if [one for one in found.ids if one in self._added] != self._marks:
            plain = self._as_text(self._plain.encode(text, add_special_tokens=False).ids)
            return self._ids(self._texts.before), plain, self._ids(self._texts.between)
        begin = sum(end <= first for _, end in found.offsets)
        stop = len(found.ids) - sum(start >= last for start, _ in found.offsets)
        return found.ids[:begin], found.ids[begin:stop], found.ids[stop:]

    def _answer(self, prompt: str, before: list[int], answer: str) -> list[tuple[int, int]]:
        """Return an answer's tokens, as they follow the prompt's; each with its last character."""
        turn = self._texts
        whole = turn.before + prompt + turn.between + turn.lead + answer
        tokenizer = self._whole if self._turn else self._plain
        found = tokenizer.encode(whole, add_special_tokens=False)
        is_own = not self._turn or [n for n in found.ids if n in self._added] == self._lead_marks
        shift, ids, ends = len(whole) - len(answer), found.ids, found.offsets
        if not self._turn:
            ids = self._as_text(ids)
        if not is_own or ids[: len(before)] != before:
            found = self._plain.encode(answer, add_special_tokens=False)
            lead = self._ids(turn.lead)
            shift, ids = 0, [*before, *lead, *self._as_text(found.ids)]
            ends = [(0, 0)] * (len(before) + len(lead)) + list(found.offsets)
        pairs = list(zip(ids, ends, strict=True))[len(before) :]
        return [(number, max(0, end - shift)) for number, (_, end) in pairs]

    def _as_text(self, ids: list[int]) -> list[int]:
        """Return the tokens of a record's text, none of which is a mark of the template."""
        plain = self._tokens.plain(ids)
        if not self._turn:
            return plain
        marks = self._added - {self._tokens.unknown}
        return [self._tokens.stand_in if number in marks else number for number in plain]

    def _frame(self) -> tuple[list[int], list[int]]:
        """Return what the tokenizer puts before and after a text."""
        found = self._plain.encode("a", add_special_tokens=True)
        text = [place for place, put in enumerate(found.special_tokens_mask) if not put]
        if not text:
            return found.ids, []
        return found.ids[: text[0]], found.ids[text[-1] + 1 :]

    def _ids(self, text: str) -> list[int]:
        return list(self._whole.encode(text, add_special_tokens=False).ids)

    def _special(self, text: str) -> list[int]:
        return [number for number in self._ids(text) if number in self._added]


def _tokenizers(path: Path, *, every: bool) -> tuple[Any, Any, set[int]]:
    """Return a tokenizer that takes every text as plain, one that knows its tokens, and those.

    Args:
        path: of ``tokenizer.json``.
        every: whether plain text spells no added token at all, not only no special one.

    Raises:
        PlanError: if it cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        whole = Tokenizer.from_str(json.dumps(value))
        if every:
            value["added_tokens"] = [{**one, "special": True} for one in value["added_tokens"]]
        plain = Tokenizer.from_str(json.dumps(value))
        added = {one["id"] for one in value.get("added_tokens", [])}
    except Exception as error:  # it raises nothing more special
        raise PlanError(f"{path}: cannot be read as a tokenizer: {error}") from error
    for tokenizer in (whole, plain):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    plain.encode_special_tokens = True
    return plain, whole, added
