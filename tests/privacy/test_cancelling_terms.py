"""Terms of a unit that cancel: what is left may be rounding, and does not pass the bound either.

A ghost norm and the weighted sum are two computations of one gradient. Rows of an embedding that
are read several times, rows of a linear layer, and both together where weights are tied.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from dp_kit import BOOK, QUIET, norm
from torch import Tensor, nn

from privet.privacy.mechanism.clipping import GradientEngine, ghost_norms
from privet.privacy.mechanism.clipping.client_gradients import ClientGradients
from privet.privacy.mechanism.clipping.methods import AutomaticBound, Bound

pytestmark = [pytest.mark.filterwarnings(quiet) for quiet in QUIET]
C = 0.5
BOUNDS = pytest.mark.parametrize("bound", [C, AutomaticBound(C)], ids=["plain", "automatic"])
SIZES = pytest.mark.parametrize("size", [1e2, 1e4, 1e6, 1e8])
Batch = dict[str, Tensor]
Case = Callable[[float, int], tuple[nn.Module, Callable[[nn.Module, Batch], Tensor], Batch]]


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(500, 64)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)  # type: ignore[no-any-return]


class Tied(nn.Module):
    """A table that is an output layer's weight, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16)
        self.out = nn.Linear(16, 40, bias=False)
        self.out.weight = self.table.weight


def weighted(model: nn.Module, batch: Batch) -> Tensor:
    """A loss whose backprops are the batch's."""
    return (model(batch["x"]) * batch["g"]).flatten(1).sum(1)  # type: ignore[no-any-return]


def lookups(size: float, seed: int) -> tuple[nn.Module, Callable[..., Tensor], Batch]:
    """One id, read six times; its backprops are whole numbers whose sum is nothing, or little."""
    random = torch.Generator().manual_seed(seed)
    g = torch.round(torch.randn(1, 6, 64, generator=random) * size)
    g[:, -1] = -g[:, :-1].double().sum(1).float()
    if seed % 2:
        g[0, 0, 0] += 1.0
    return Table(), weighted, {"x": torch.full((1, 6), 7), "g": g}


def rows(size: float, seed: int) -> tuple[nn.Module, Callable[..., Tensor], Batch]:
    """Two rows that differ in the last digit of one number, with opposite backprops."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 1, 600, generator=random).expand(1, 2, 600).clone() * size
    x[0, 1, 0] = torch.nextafter(x[0, 1, 0], torch.tensor(float("inf")))
    g = torch.randn(1, 1, 600, generator=random).expand(1, 2, 600).clone()
    g[0, 1] = -g[0, 0]
    return nn.Linear(600, 600, bias=False), weighted, {"x": x, "g": g}


def tied(size: float, seed: int) -> tuple[nn.Module, Callable[..., Tensor], Batch]:
    """What the output layer adds to a row of the table, its lookup takes away."""
    random = torch.Generator().manual_seed(seed)
    a = torch.randn(1, 6, 16, generator=random) * size

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        taken = (model.table(batch["x"]) * -batch["a"].flip(1)).flatten(1).sum(1)  # type: ignore
        added = model.out(batch["a"])[..., 7].flatten(1).sum(1)  # type: ignore
        return taken + added  # type: ignore[no-any-return]

    return Tied(), loss, {"x": torch.full((1, 6), 7), "a": a}


EACH = pytest.mark.parametrize("case", [lookups, rows, tied])


def share(case: Case, size: float, seed: int, bound: Bound) -> float:
    """Return the length of what the unit adds, in units of the bound."""
    model, loss, batch = case(size, seed)
    engine = GradientEngine(model, loss, mode=BOOK)
    found = engine.clipped_sum(batch, np.arange(1), 1, bound)
    engine.close()
    return norm(found.tensors) / C


@EACH
@BOUNDS
@SIZES
def test_what_cancels_does_not_pass_the_bound(case: Case, size: float, bound: Bound) -> None:
    assert max(share(case, size, seed, bound) for seed in range(8)) <= 1.0


@EACH
def test_it_would_without_care(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: sums in single precision, and norms that are trusted."""
    monkeypatch.setattr(ghost_norms, "CANCELLATION", -1.0)
    assert max(share(case, 1e8, seed, AutomaticBound(C)) for seed in range(8)) > 1.0


def test_a_norm_that_rounding_hides_is_taken_for_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control for its share alone: of doubles, too, the norm may say nothing."""
    monkeypatch.setattr(ghost_norms, "rounding_share", lambda rows, width: 0.0)
    assert max(share(rows, 1e8, seed, AutomaticBound(C)) for seed in range(8)) > 1.0


@BOUNDS
@SIZES
def test_sites_that_train_together_keep_it_too(size: float, bound: Bound) -> None:
    model = Table()

    def made(records: int, seed: int) -> Batch:
        random = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 500, (records, 6), generator=random)
        return {"x": ids, "g": torch.randn(records, 6, 64, generator=random)}

    together = ClientGradients(model, weighted, {"table.weight": model.table.weight}, made,
                               clipped=True)  # fmt: skip
    weights = {"table.weight": model.table.weight.detach().expand(2, -1, -1)}
    for seed in range(6):
        _, _, one = lookups(size, seed)
        batch = {"x": torch.full((2, 1, 6), 7), "g": one["g"].expand(2, 1, 6, 64)}
        found = together.clipped_sums(weights, batch, torch.ones(2, 1), 1, bound)
        for k in range(2):
            assert norm([found["table.weight"][k]]) <= C


def test_one_unit_more_moves_the_sum_by_c_at_most() -> None:
    for seed in range(6):
        model, loss, one = lookups(1e5, seed)
        random = torch.Generator().manual_seed(seed)
        others = {"x": torch.full((50, 6), 7), "g": torch.randn(50, 6, 64, generator=random)}
        with_it = {name: torch.cat([others[name], one[name]]) for name in one}
        sums = []
        for batch in (with_it, others):
            count = len(batch["x"])
            engine = GradientEngine(model, loss, mode=BOOK)
            found = engine.clipped_sum(batch, np.arange(count), count, AutomaticBound(C))
            sums.append([t.clone() for t in found.tensors])
            engine.close()
        assert norm([a - b for a, b in zip(*sums, strict=True)]) <= C


def test_little_that_is_left_is_not_lost() -> None:
    """Where rounding hides nothing, as much is added as by plain autograd."""
    model, loss, batch = lookups(1e2, 1)
    engine = GradientEngine(model, loss, mode=BOOK)
    book = engine.clipped_sum(batch, np.arange(1), 1, C).tensors
    engine.close()
    engine = GradientEngine(model, loss, mode="one-by-one")
    plain = engine.clipped_sum(batch, np.arange(1), 1, C).tensors
    for one, other in zip(book, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
