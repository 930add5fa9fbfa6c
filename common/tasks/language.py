"""Language tasks: predict the next token, masked tokens, or one text from another.

One record is one sequence; units are never packed together. Each token has the same weight: the
loss of a record is the sum over its predicted tokens, divided by the constant ``max_tokens``. The
scores are likelihoods (:mod:`privet.common.tasks.likelihood`).
"""

from __future__ import annotations

import math

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.common.errors import PlanError
from privet.common.models.prompts import PromptTokens, chat_turn
from privet.common.models.text import tokens_for
from privet.common.sections.model import ModelSpec
from privet.common.sections.task import CausalTaskSpec, LanguageTaskSpec, TextToTextTaskSpec
from privet.common.tasks import Batch
from privet.common.tasks.cleaning import cleaner, texts_of
from privet.common.tasks.encoding import Faults, RowEncoding
from privet.common.tasks.hashing import mixed, share
from privet.common.tasks.measure import LIKELIHOOD

_SHARE = 0.15
"""Share of tokens that are left out (Devlin et al. 2019)."""


class _Language(RowEncoding):
    """The common part of the three tasks.

    Attributes:
        inputs: names of the rows of tokens that a batch holds.
    """

    measure = LIKELIHOOD
    inputs: tuple[str, ...] = ("tokens",)

    def __init__(self, spec: LanguageTaskSpec | TextToTextTaskSpec, model: ModelSpec) -> None:
        self.spec = spec
        self.tokens = tokens_for(model, spec.max_tokens)
        self._clean = cleaner(spec.clean, spec.clean_region)

    def texts(self, frame: pd.DataFrame, column: str) -> list[str]:
        """Return a column's texts, cleaned as the plan says."""
        return [self._clean(text) for text in texts_of(frame, column)]

    def nats(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of each predicted token, and which of them count; both [B, T]."""
        raise NotImplementedError

    def sizes(self, batch: Batch) -> Tensor | None:
        """Return how many tokens each record has, [B]."""
        return self.tokens.sizes(torch.cat([batch[name] for name in self.inputs], 1))

    def random_batch(self, records: int, seed: int) -> Batch:
        """See :class:`privet.common.tasks.Task`."""
        generator = torch.Generator().manual_seed(seed)
        found = {name: self.tokens.random(records, generator) for name in self.inputs}
        return {**found, "characters": torch.ones(records, dtype=torch.int64)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """See :class:`privet.common.tasks.Task`."""
        nats, counts = self.nats(model, batch)
        return (nats * counts).sum(1) / self.spec.max_tokens

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return [B, 3]: nats, tokens, characters."""
        nats, counts = self.nats(model, batch)
        return torch.stack([(nats * counts).sum(1), counts.sum(1), batch["characters"]], 1)


class CausalText(_Language):
    """Predict each token from those before it, with a start before the first and an end after the
    last. Where the plan names a prompt, the tokens of the text alone are predicted, as its answer.
    """

    spec: CausalTaskSpec

    def __init__(self, spec: CausalTaskSpec, model: ModelSpec) -> None:
        super().__init__(spec, model)
        self._start = self.tokens.start
        self._prompts: PromptTokens | None = None
        if spec.chat and model.kind != "huggingface":
            raise PlanError(f"task.chat: model '{model.kind}' has no chat template: leave it out")
        if spec.prompt is not None:
            turn = chat_turn(self.tokens.path.parent) if spec.chat else None
            self._prompts = PromptTokens(self.tokens, turn)
            self._start = self._prompts.start

    def encode_rows(self, frame: pd.DataFrame) -> tuple[Batch, Faults]:
        """See :class:`RowEncoding`; an empty text predicts only its end."""
        texts = self.texts(frame, self.spec.text)
        if self._prompts is not None and self.spec.prompt is not None:
            prompts = self.texts(frame, self.spec.prompt)
            tokens, prompted, characters = self._prompts.encode(prompts, texts)
            return {"tokens": tokens, "prompted": prompted, "characters": characters}, Faults()
        tokens, characters = self.tokens.encode(texts, ends=True, begins=False)
        return {"tokens": tokens, "characters": characters}, Faults()

    def random_batch(self, records: int, seed: int) -> Batch:
        """See :class:`privet.common.tasks.Task`.

        Args:
            records: number B of records.
            seed: the same seed gives the same records.
        """
        batch = super().random_batch(records, seed)
        if self._prompts is not None:
            generator = torch.Generator().manual_seed(seed + 1)
            most = batch["tokens"].shape[1] // 2 + 1
            batch["prompted"] = torch.randint(0, most, (records,), generator=generator)
        return batch

    def nats(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of each predicted token, and which tokens count, both [B, T].

        Args:
            model: maps tokens [B, T] to logits [B, T, V] of the tokens that follow.
            batch: with ``tokens`` [B, T], and ``prompted`` [B], the length of each prompt, if any.
        """
        tokens, padding = self.tokens.trimmed(batch["tokens"]), self.tokens.padding
        if self._start is None:
            logits = model(tokens[:, :-1])
            wanted = tokens[:, 1:]
        else:
            before = functional.pad(tokens[:, :-1], (1, 0), value=self._start)
            logits, wanted = model(before), tokens
        if "prompted" in batch:
            first = tokens.shape[1] - wanted.shape[1]
            places = torch.arange(first, tokens.shape[1], device=tokens.device)
            wanted = wanted.where(places >= batch["prompted"][:, None], padding)
        return _cross_entropy(logits, wanted, padding)


class TextToText(_Language):
    """Predict one text from another: translation, summaries, questions and answers."""

    inputs = ("source", "target")
    spec: TextToTextTaskSpec

    def wanted(self, frame: pd.DataFrame) -> list[str]:
        """Return the texts that are to be written, cleaned."""
        return self.texts(frame, self.spec.target)

    def encode_rows(self, frame: pd.DataFrame) -> tuple[Batch, Faults]:
        """See :class:`RowEncoding`."""
        source, _ = self.tokens.encode(self.texts(frame, self.spec.text), ends=True)
        target, characters = self.tokens.encode(self.wanted(frame), ends=True)
        return {"source": source, "target": target, "characters": characters}, Faults()

    def nats(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of each target token, and which tokens count, both [B, S].

        Args:
            model: maps source [B, T] and target [B, S] to logits [B, S, V].
            batch: with ``source`` and ``target``.
        """
        source, target = (self.tokens.trimmed(batch[name]) for name in self.inputs)
        return _cross_entropy(model(source, target), target, self.tokens.padding)

    def write(
        self, model: nn.Module, batch: Batch, *, beams: int = 4, chunk: int = 64
    ) -> list[str]:
        """Return the texts that a model generates from a batch's sources, by beam search.

        Args:
            model: with a method ``write``.
            batch: with ``source`` [B, T].
            beams: width of the search.
            chunk: records that are generated at once.
        """
        texts: list[str] = []
        source = batch["source"]
        with torch.no_grad():
            for start in range(0, len(source), chunk):
                written = model.write(source[start : start + chunk], beams)  # type: ignore[operator]
                texts += self.tokens.decode(written)
        return texts


class MaskedText(_Language):
    """Predict masked tokens from those around them (Devlin et al. 2019).

    Each record has the same number of predicted positions. They follow from a hash of the record's
    own tokens and of a trained weight: new in each step, the same for a record whatever batch it is
    in (H6), and without a generator's state.
    """

    @property
    def places(self) -> int:
        """Largest number of predicted tokens of a record."""
        return max(1, math.ceil(_SHARE * self.spec.max_tokens))

    def encode_rows(self, frame: pd.DataFrame) -> tuple[Batch, Faults]:
        """See :class:`RowEncoding`; a text without tokens predicts nothing."""
        tokens, characters = self.tokens.encode(self.texts(frame, self.spec.text))
        return {"tokens": tokens, "characters": characters}, Faults()

    def nats(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of each chosen token, and which tokens count, both [B, P].

        Args:
            model: maps tokens [B, T] and positions [B, P] to logits [B, P, V].
            batch: with ``tokens`` [B, T].
        """
        tokens = self.tokens.trimmed(batch["tokens"])
        there = tokens != self.tokens.padding
        for special in self.tokens.special:
            there = there & (tokens != special)
        weight = next(p for p in model.parameters() if p.requires_grad)
        hashes = _hashes(tokens, there, weight)
        order = torch.where(there, share(hashes), 2.0)
        places = min(self.places, tokens.shape[1])
        chosen = order.topk(places, dim=1, largest=False).indices
        wanted, hashes = tokens.gather(1, chosen), hashes.gather(1, chosen)
        # 15 % of a record's own tokens, and at least one if it has any.
        allowed = (_SHARE * there.sum(1, keepdim=True)).ceil()
        counts = (torch.arange(places, device=tokens.device) < allowed).to(torch.float32)
        # Of ten that are left out, eight are masked, one is another token, one stays.
        what = share(mixed(hashes + 1))
        other = mixed(hashes + 2).remainder(self.tokens.size)
        read = torch.where(what < 0.8, self.tokens.mask, torch.where(what < 0.9, other, wanted))
        read = torch.where(counts > 0, read, wanted)
        logits = model(tokens.scatter(1, chosen, read), chosen)
        nats = functional.cross_entropy(logits.mT, wanted.clamp(min=0), reduction="none")
        return nats, counts

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return [B, 3]: nats, tokens, and zero characters, because masked tokens are no text.

        Args:
            model: as for :meth:`nats`.
            batch: with ``tokens`` [B, T].
        """
        found = super().scores(model, batch)
        return torch.cat([found[:, :2], torch.zeros_like(found[:, 2:])], 1)


def _cross_entropy(logits: Tensor, wanted: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    counts = wanted != padding
    nats = functional.cross_entropy(logits.mT, wanted.clamp(min=0), reduction="none")
    return nats, counts.to(nats.dtype)


def _hashes(tokens: Tensor, there: Tensor, weight: Tensor) -> Tensor:
    """Return a hash for each place [B, T], of the record's tokens, the place and a weight.

    Padding is left out, so that it is the same however far a record is filled up.
    """
    place = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    turn = weight.detach().flatten()[:1].float().view(torch.int32).to(torch.int64)
    own = torch.where(there, mixed(tokens + place * 0x9E3779B1), 0)
    record = mixed(own.sum(1, keepdim=True) + turn)
    return mixed(record + place * 0x632BE59B)
