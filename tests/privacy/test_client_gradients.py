"""Sums of many clients at once, against the engine's of each client, for what is hard in a sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from dp_kit import BOOK, cross_entropy, lively, rows
from torch import Tensor, nn
from torch.nn import functional

from privet.privacy.mechanism.clipping import GradientEngine
from privet.privacy.mechanism.clipping.client_gradients import ClientGradients, Unsupported
from privet.privacy.mechanism.clipping.parameter_gradients import ParameterGradients

Batch = dict[str, Tensor]
EXACT = 1e-5


class Reader(nn.Module):
    """Tokens at learnt places, a layer norm, and the tokens' own table as the last layer."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(40, 24), nn.Embedding(9, 24)
        self.wide, self.norm = nn.Linear(24, 24), nn.LayerNorm(24)
        self.last = nn.Linear(24, 40, bias=False)
        if tied:
            self.last.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        h = self.words(tokens) + self.places(places)
        return self.last(self.norm(torch.tanh(self.wide(h))))  # type: ignore[no-any-return]


def next_token(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(batch["tokens"])[:, :-1]
    losses = functional.cross_entropy(logits.mT, batch["tokens"][:, 1:], reduction="none")
    return losses.mean(1)


def texts(records: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {"tokens": torch.randint(0, 40, (records, 9), generator=generator)}


class Sequence(nn.Module):
    """One linear layer over T rows whose features may be large, so that ghost norms cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)  # type: ignore[no-any-return]


def signed(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch["x"]) * batch["sign"][:, None]).sum(1)


def pairs(records: int, seed: int = 0) -> Batch:
    """Each two records are the same but for a little, with opposite signs."""
    generator = torch.Generator().manual_seed(seed)
    x = 1e3 * torch.randn(((records + 1) // 2, 3, 64), generator=generator)
    little = 1e-2 * torch.randn(x.shape, generator=generator)
    x = torch.stack([x, x + little], 1).flatten(0, 1)[:records]
    return {"x": x, "sign": torch.tensor([1.0, -1.0]).repeat(records)[:records]}


def worst(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    made: Callable[[int, int], Batch],
    batch: Batch,
    *,
    clients: int = 3,
    a_unit: int = 1,
    clip: float = 0.5,
    present: Tensor | None = None,
) -> float:
    """The largest distance of a client's sum from the engine's, relative to its norm.

    Args:
        model, loss: what is trained.
        made: makes generated records.
        batch: records of all clients, those of a client beside each other.
        clients: K.
        a_unit: records of each unit.
        clip: the bound.
        present: [K, B] which records are there; None for all.
    """
    engine = GradientEngine(lively(model), loss, mode=BOOK)
    engine.prepare(made)
    found = ClientGradients(engine.model, loss, engine.named, made, clipped=True)
    generator = torch.Generator().manual_seed(1)
    begun = {n: p.detach().clone() for n, p in engine.named.items()}
    weights = {
        n: torch.stack(
            [p + 0.1 * torch.randn(p.shape, generator=generator) for _ in range(clients)]
        )
        for n, p in begun.items()
    }
    stacked = {n: t.view(clients, -1, *t.shape[1:]) for n, t in batch.items()}
    records = next(iter(stacked.values())).shape[1]
    here = torch.ones(clients, records) if present is None else present
    sums = found.clipped_sums(weights, stacked, here, records // a_unit, clip)
    off = []
    for k in range(clients):
        with torch.no_grad():
            for name, parameter in engine.named.items():
                parameter.copy_(weights[name][k])
        mine = {n: t[k][here[k] > 0] for n, t in stacked.items()}
        left = int(here[k].sum())
        owner = np.arange(left) // a_unit
        right = engine.clipped_sum(mine, owner, max(1, left // a_unit), clip).tensors
        size = max(float(sum(r.square().sum() for r in right)) ** 0.5, 1e-30)
        square = sum(
            float((sums[n][k] - r).square().sum()) for n, r in zip(engine.named, right, strict=True)
        )
        off.append(square**0.5 / size if left else square**0.5)
    return max(off)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("a_unit", [1, 3])
def test_shared_places_and_tied_tables(tied: bool, a_unit: int) -> None:
    assert worst(Reader(tied), next_token, texts, texts(18), a_unit=a_unit) < EXACT


def test_rows_that_cancel() -> None:
    assert worst(Sequence(), signed, pairs, pairs(24), a_unit=2, clip=1.0) < EXACT


def test_rows_that_cancel_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the products in double the sums are others."""
    monkeypatch.setattr(ParameterGradients, "_add_cancelling_by_client", lambda self, *given: None)
    assert worst(Sequence(), signed, pairs, pairs(24), a_unit=2, clip=1.0) > 1e-2


def test_a_record_that_is_not_finite_costs_its_unit_alone() -> None:
    batch = rows(12)
    batch["x"][5] = float("inf")
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch)

    assert worst(model, loss, lambda n, s: rows(n, seed=s), batch) < EXACT


def test_a_client_without_records_has_a_sum_of_zero() -> None:
    present = torch.ones(3, 6)
    present[1] = 0
    present[2, 4:] = 0
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    off = worst(model, cross_entropy, lambda n, s: rows(n, seed=s), rows(18), present=present)
    assert off < EXACT


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(torch.tanh(self.layer(x))))  # type: ignore[no-any-return]


class Late(nn.Module):
    """Calls a layer once a switch is on, which no generated batch has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other, self.on = nn.Linear(6, 3), nn.Linear(6, 3), False

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h + self.other(x) if self.on else h  # type: ignore[no-any-return]


def gradients(model: nn.Module, **more: Any) -> ClientGradients:
    named = dict(model.named_parameters())
    return ClientGradients(
        model, cross_entropy, named, lambda n, s: rows(n, seed=s), clipped=True, **more
    )


def test_what_has_no_form_is_named() -> None:
    with pytest.raises(Unsupported, match="called twice"):
        gradients(Twice())
    with pytest.raises(Unsupported, match="RMSNorm has no form"):
        gradients(nn.Sequential(nn.RMSNorm(6), nn.Linear(6, 3)))
    with pytest.raises(Unsupported, match="single precision"):
        gradients(nn.Linear(6, 3).double())


def test_a_layer_that_is_called_late_is_refused() -> None:
    model = Late()
    found = gradients(model)
    weights = {n: p.detach().expand(2, *p.shape) for n, p in model.named_parameters()}
    batch = {n: t.view(2, 4, *t.shape[1:]) for n, t in rows(8).items()}
    sums = found.clipped_sums(weights, batch, torch.ones(2, 4), 4, 1.0)
    assert not sums["other.weight"].any() and sums["layer.weight"].any()
    model.on = True
    with pytest.raises(Unsupported, match="no generated batch called"):
        found.clipped_sums(weights, batch, torch.ones(2, 4), 4, 1.0)
