"""Tabular models: logistic regression, a dense network, and an FT-Transformer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from privet.common.errors import PlanError
from privet.common.models.blocks import Block


class Linear(nn.Module):
    """Logistic regression on scaled numbers, missing flags and one-hot categories.

    Args:
        numeric: number F of numeric features.
        categories: number of values of each categorical feature, "other" included.
        classes: number K of classes.
        scale: fixed factor on the input; it trades clipping bias against noise.
    """

    def __init__(
        self, numeric: int, categories: Sequence[int], classes: int, *, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.categories = tuple(categories)
        self.scale = scale
        self.head = nn.Linear(2 * numeric + sum(categories), classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, numeric: Tensor, missing: Tensor, categorical: Tensor) -> Tensor:
        """Return logits [B, K].

        Args:
            numeric: scaled numbers [B, F].
            missing: [B, F], 1 where the number is missing, else 0.
            categorical: category numbers [B, G], int64, 0 for "other".
        """
        inputs = _side_by_side(numeric, missing, categorical, self.categories)
        return self.head(inputs * self.scale)  # type: ignore[no-any-return]


class Dense(nn.Module):
    """Dense network with tanh, which trains better under noise (Papernot et al. 2021).

    Args:
        numeric, categories, classes, scale: as :class:`Linear`.
        width, layers: size of a hidden layer, and number of hidden layers.
    """

    def __init__(
        self, numeric: int, categories: Sequence[int], classes: int, *,
        width: int = 64, layers: int = 2, scale: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if width < 1 or layers < 1:
            raise PlanError("model.options: width and layers must be at least 1")
        self.categories = tuple(categories)
        self.scale = scale
        sizes = [2 * numeric + sum(categories), *[width] * layers]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, numeric: Tensor, missing: Tensor, categorical: Tensor) -> Tensor:
        """Return logits [B, K].

        Args:
            numeric: scaled numbers [B, F].
            missing: [B, F], 1 where the number is missing, else 0.
            categorical: category numbers [B, G], int64, 0 for "other".
        """
        x = _side_by_side(numeric, missing, categorical, self.categories) * self.scale
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.head(x)  # type: ignore[no-any-return]


def _side_by_side(
    numeric: Tensor, missing: Tensor, categorical: Tensor, categories: Sequence[int]
) -> Tensor:
    """Return numbers, marks of missing cells and one-hot categories in one row a record."""
    parts = [numeric, missing]
    for j, size in enumerate(categories):
        # As functional.one_hot, which reads its input on the host: that has no form in vmap.
        values = torch.arange(size, device=categorical.device)
        parts.append((categorical[:, j, None] == values).to(numeric.dtype))
    return torch.cat(parts, 1)


class FTTransformer(nn.Module):
    """Feature-tokenizer Transformer (Gorishniy et al. 2021) without dropout.

    Each numeric feature gives the token ``z · w + b`` (or a token of its own if it is missing),
    each categorical one an embedding; the prediction is read from a [CLS] token.

    Args:
        numeric, categories, classes: as :class:`Linear`.
        width, heads, layers: size of the Transformer.
        hidden: width of the feed-forward layers; None is 2 × width.
    """

    def __init__(
        self,
        numeric: int,
        categories: Sequence[int],
        classes: int,
        *,
        width: int = 32,
        heads: int = 4,
        layers: int = 2,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if width < 1 or heads < 1 or layers < 1 or (hidden is not None and hidden < 1):
            raise PlanError("model.options: width, heads, layers and hidden must be at least 1")
        self.numeric = numeric
        # Rows 0..F-1 are the slopes, F..2F-1 the offsets, 2F..3F-1 stand for missing cells.
        self.scales = nn.Embedding(3 * numeric, width) if numeric else None
        self.values = nn.Embedding(sum(categories), width) if categories else None
        self.start = nn.Embedding(1, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden or 2 * width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        for table in (self.scales, self.values, self.start):
            if table is not None:
                nn.init.uniform_(table.weight, -(width**-0.5), width**-0.5)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        offsets = [sum(categories[:j]) for j in range(len(categories))]
        self._offsets = tuple(offsets)

    def forward(self, numeric: Tensor, missing: Tensor, categorical: Tensor) -> Tensor:
        """Return logits [B, K].

        Args:
            numeric: scaled numbers [B, F].
            missing: [B, F], 1 where the number is missing, else 0.
            categorical: category numbers [B, G], int64, 0 for "other".
        """
        batch, device = numeric.shape[0], numeric.device
        tokens = [self.start(torch.zeros((batch, 1), dtype=torch.int64, device=device))]
        if self.scales is not None:
            rows = torch.arange(3 * self.numeric, device=device).repeat(batch, 1)
            slope, offset, absent = self.scales(rows).split(self.numeric, 1)
            gone = missing.unsqueeze(-1)
            tokens.append((1 - gone) * (slope * numeric.unsqueeze(-1) + offset) + gone * absent)
        if self.values is not None:
            offsets = torch.tensor(self._offsets, device=device)
            tokens.append(self.values(categorical + offsets))
        x = torch.cat(tokens, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))  # type: ignore[no-any-return]
