"""Image classifiers from scratch: a small Vision Transformer and a small residual network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.common.errors import PlanError
from privet.common.models.blocks import Block
from privet.common.plan import Image


class VisionTransformer(nn.Module):
    """Patches as tokens (Dosovitskiy et al. 2021), classified by their mean.

    Args:
        image: size and channels.
        classes: number K of classes.
        patch: height and width of a patch in pixels, which must divide the image's.
        width, heads, layers: size of the Transformer.
    """

    def __init__(
        self, image: Image, classes: int, *,
        patch: int = 2, width: int = 48, heads: int = 4, layers: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        if patch < 1 or image.height % patch or image.width % patch:
            raise PlanError(
                f"model.options: patch {patch} does not divide an image of {image.height} by "
                f"{image.width}"
            )
        self.patch = patch
        count = image.height * image.width // patch**2
        self.patches = nn.Linear(image.channels * patch**2, width)
        self.places = nn.Embedding(count, width)
        self.blocks = nn.ModuleList(Block(width, heads, 2 * width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.places.weight, std=0.1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map [B, C, H, W] to logits [B, K]."""
        cut = functional.unfold(pixels, self.patch, stride=self.patch).mT
        places = torch.arange(cut.shape[1], device=pixels.device).repeat(pixels.shape[0], 1)
        x = self.patches(cut) + self.places(places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))  # type: ignore[no-any-return]


class _Residual(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016), with group norms: no record is mixed."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(before), _norm(after)
        self.first = nn.Conv2d(before, after, 3, stride, 1)
        self.second = nn.Conv2d(after, after, 3, 1, 1)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, D, H / stride, W / stride]."""
        y = self.first(functional.relu(self.norm1(x)))
        return self.shortcut(x) + self.second(functional.relu(self.norm2(y)))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A small residual network with group norms.

    Args:
        image: size and channels.
        classes: number K of classes.
        width: channels of the first stage; each stage has twice as many and half the size.
        stages: number of stages.
    """

    def __init__(self, image: Image, classes: int, *, width: int = 16, stages: int = 2) -> None:
        super().__init__()
        if width < 1 or stages < 1:
            raise PlanError("model.options: width and stages must be at least 1")
        self.stem = nn.Conv2d(image.channels, width, 3, 1, 1)
        sizes = [width * 2**stage for stage in range(stages)]
        self.blocks = nn.ModuleList(
            _Residual(before, after, 1 if number == 0 else 2)
            for number, (before, after) in enumerate(zip([width, *sizes], sizes, strict=False))
        )
        self.norm = _norm(sizes[-1])
        self.head = nn.Linear(sizes[-1], classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map [B, C, H, W] to logits [B, K]."""
        x = self.stem(pixels)
        for block in self.blocks:
            x = block(x)
        x = functional.relu(self.norm(x))
        return self.head(x.flatten(2).mean(2))  # type: ignore[no-any-return]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(next(n for n in (8, 4, 2, 1) if channels % n == 0), channels)
