"""Layers of torch, layers of one's own, and what couples records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from architecture import (
    PLACES,
    WIDTH,
    WORDS,
    Architecture,
    Batch,
    scores_of,
    texts,
    token_loss,
)
from torch import Tensor, nn
from torch.nn import functional


class Around(nn.Module):
    """An embedding, a layer [B, T, d] → [B, T, d], and a head over the vocabulary."""

    def __init__(self, layer: nn.Module, call: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(WORDS, WIDTH), layer
        self.head = nn.Linear(WIDTH, WORDS)
        self._call = call or (lambda layer, h, padding: layer(h))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return scores [B, T, V]."""
        h = self._call(self.layer, self.table(input_ids), attention_mask == 0)
        return self.head(h)  # type: ignore[no-any-return]


class SourceAndTarget(nn.Module):
    """``nn.Transformer``; the target is the source, backwards."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(WORDS, WIDTH), nn.Embedding(WORDS, WIDTH)
        self.core = nn.Transformer(WIDTH, 2, 2, 2, 24, batch_first=batch_first)
        self.head, self.turn = nn.Linear(WIDTH, WORDS), not batch_first

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return scores [B, T, V]."""
        source, target = self.source(input_ids), self.target(input_ids.flip(1))
        if self.turn:
            source, target = source.transpose(0, 1), target.transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(input_ids.shape[1])
        made = self.head(self.core(source, target, tgt_mask=mask, tgt_is_causal=True))
        return made.transpose(0, 1) if self.turn else made  # type: ignore[no-any-return]


class Own(nn.Module):
    """A layer of one's own with raw parameters: a scale, and positions [T, d]."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.places = (
            nn.Parameter(torch.ones(WIDTH)),
            nn.Parameter(torch.randn(PLACES, WIDTH)),
        )
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        """Return [B, T, d]."""
        return self.inner(h + self.places) * self.scale


class Positions(nn.Module):
    """Positions of a table, read once for all records."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(PLACES, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        """Return [B, T, d]."""
        return h + self.table(torch.arange(h.shape[1]))


class Experts(nn.Module):
    """A mixture of experts without a limit: each place goes to one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, h: Tensor) -> Tensor:
        """Return [B, T, d]."""
        weights = self.router(h).softmax(-1)
        chosen, made = weights.argmax(-1), torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            made[mine] = expert(h[mine]) * weights[mine][:, number : number + 1]
        return made


class ByStep(nn.Module):
    """A recurrent cell, step by step."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, h: Tensor) -> Tensor:
        """Return [B, T, d]."""
        state, made = None, []
        for place in range(h.shape[1]):
            state = self.cell(h[:, place], state)
            made.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(made, 1)


class Mixing(nn.Module):
    """What couples records, in some way."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self._how = nn.Linear(WIDTH, WIDTH), how

    def forward(self, h: Tensor) -> Tensor:
        """Return [B, T, d]."""
        return self._how(self.inner(h))


def _turned(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda layer, h, padding: call(layer, h.transpose(0, 1), padding).transpose(0, 1)


def _plain(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    return layer(h)  # type: ignore[no-any-return]


def _padded(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    return layer(h, src_key_padding_mask=padding)  # type: ignore[no-any-return]


def _attends(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    return layer(h, h, h, key_padding_mask=padding)[0]  # type: ignore[no-any-return]


def _first(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    return layer(h)[0]  # type: ignore[no-any-return]


def _channels(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    return layer(h.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


def _grid(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    made = layer(h.transpose(1, 2).unflatten(2, (3, 4)))
    return made.flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def _cube(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    made = layer(h.transpose(1, 2).unflatten(2, (2, 2, 3)))
    return made.flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def _twice(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    return layer(h, h.flip(1))  # type: ignore[no-any-return]


def _encoder(**more: Any) -> nn.Module:
    given = {"batch_first": True, **more}
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 24, **given), 2)


def _decoder(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    return layer(h, h.flip(1))  # type: ignore[no-any-return]


def _bags(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    ids = (h.detach()[..., :4] > 0).long().flatten(0, 1)
    return h + layer(ids).view_as(h)  # type: ignore[no-any-return]


def _frozen(norm: nn.Module) -> nn.Module:
    return norm.eval()


_TORCH: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "TransformerEncoder": (lambda: _encoder(), _padded),
    "TransformerEncoder, norm first": (lambda: _encoder(norm_first=True), _padded),
    "TransformerEncoder [T, B, d]": (
        lambda: _encoder(batch_first=False), _turned(_padded),
    ),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(
            nn.TransformerDecoderLayer(WIDTH, 2, 24, batch_first=True), 2
        ), _decoder,
    ),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True), _attends),
    "MultiheadAttention [T, B, d]": (
        lambda: nn.MultiheadAttention(WIDTH, 2), _turned(_attends),
    ),
    "MultiheadAttention, bias of keys": (
        lambda: nn.MultiheadAttention(WIDTH, 2, add_bias_kv=True, batch_first=True), _attends,
    ),
    "LSTM": (lambda: nn.LSTM(WIDTH, WIDTH, 2, batch_first=True), _first),
    "LSTM [T, B, d], both ways": (
        lambda: nn.LSTM(WIDTH, WIDTH // 2, bidirectional=True), _turned(_first),
    ),
    "LSTM, projected": (lambda: nn.LSTM(WIDTH, 24, proj_size=WIDTH, batch_first=True), _first),
    "GRU": (lambda: nn.GRU(WIDTH, WIDTH, 2, batch_first=True), _first),
    "RNN": (lambda: nn.RNN(WIDTH, WIDTH, batch_first=True), _first),
    "LSTMCell": (lambda: ByStep(nn.LSTMCell(WIDTH, WIDTH)), _plain),
    "GRUCell": (lambda: ByStep(nn.GRUCell(WIDTH, WIDTH)), _plain),
    "RNNCell": (lambda: ByStep(nn.RNNCell(WIDTH, WIDTH)), _plain),
    "Linear": (lambda: nn.Linear(WIDTH, WIDTH), _plain),
    "Bilinear": (lambda: nn.Bilinear(WIDTH, WIDTH, WIDTH), _twice),
    "Conv1d": (lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=2), _channels),
    "Conv1d, same": (lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding="same"), _channels),
    "Conv1d, circular": (
        lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1, padding_mode="circular"), _channels,
    ),
    "Conv2d": (lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1), _grid),
    "Conv3d": (lambda: nn.Conv3d(WIDTH, WIDTH, 3, padding=1), _cube),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1), _channels),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1), _grid),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(WIDTH, WIDTH, 3, padding=1), _cube),
    "LayerNorm": (lambda: nn.LayerNorm(WIDTH), _plain),
    "LayerNorm, two dimensions": (lambda: nn.LayerNorm([PLACES, WIDTH]), _plain),
    "RMSNorm": (lambda: nn.RMSNorm(WIDTH), _plain),
    "GroupNorm": (lambda: nn.GroupNorm(2, WIDTH), _channels),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(WIDTH, affine=True), _channels),
    "BatchNorm1d, frozen": (lambda: _frozen(nn.BatchNorm1d(WIDTH)), _channels),
    "PReLU": (lambda: nn.PReLU(WIDTH), _channels),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(2, WIDTH, mode="sum"), _bags),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), _plain,
    ),
    "orthogonal": (
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH)), _plain,
    ),
    "raw parameters": (Own, _plain),
    "positions [T]": (Positions, _plain),
    "mixture of experts": (Experts, _plain),
    "depthwise and dropout": (
        lambda: nn.Sequential(
            nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), nn.Dropout(0.1), nn.GELU()
        ), _channels,
    ),
}  # fmt: skip

_COUPLED: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(WIDTH), _channels),
    "BatchNorm1d without statistics": (
        lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False), _channels,
    ),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(WIDTH), _channels),
    "InstanceNorm1d with statistics": (
        lambda: nn.InstanceNorm1d(WIDTH, affine=True, track_running_stats=True), _channels,
    ),
    "mean of the batch": (lambda: Mixing(lambda h: h - h.mean(0)), _plain),
    "softmax over records": (lambda: Mixing(lambda h: h * h.softmax(0)), _plain),
    "shuffled neighbours": (lambda: Mixing(lambda h: h + h.roll(1, 0)), _plain),
    "largest of the batch": (lambda: Mixing(lambda h: h / h.detach().abs().max()), _plain),
    "TransformerEncoder, wrong order": (lambda: _encoder(batch_first=False), _plain),
    "LSTM, wrong order": (lambda: nn.LSTM(WIDTH, WIDTH), _first),
}  # fmt: skip


def _contrastive(model: nn.Module, batch: Batch) -> Tensor:
    """A contrastive loss: each record against all others."""
    h = functional.normalize(scores_of(model, batch).mean(1), dim=1)
    return functional.cross_entropy(h @ h.T * 5, torch.arange(len(h)), reduction="none")


def of_torch() -> Iterator[Architecture]:
    for name, (layer, call) in _TORCH.items():
        yield Architecture(name, "torch", _around(layer, call), token_loss, texts)
    for batch_first in (True, False):
        name = "Transformer" if batch_first else "Transformer [T, B, d]"
        yield Architecture(
            name, "torch", lambda first=batch_first: SourceAndTarget(batch_first=first),  # type: ignore[misc]
            token_loss, texts,
        )  # fmt: skip
    for name, (layer, call) in _COUPLED.items():
        yield Architecture(name, "torch", _around(layer, call), token_loss, texts, True)
    layer = _TORCH["Linear"][0]
    make = _around(layer, _plain)
    yield Architecture("contrastive loss", "torch", make, _contrastive, texts, True)


def _around(layer: Callable[[], nn.Module], call: Callable[..., Tensor]) -> Callable[[], nn.Module]:
    return lambda: Around(layer(), call)
