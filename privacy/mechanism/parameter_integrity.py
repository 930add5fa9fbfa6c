"""Notices parameters or buffers that moved outside the mechanism (H5, H8)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from privet.common.compat.torch import version_of
from privet.common.errors import BypassError


class TamperGuard:
    """Remembers every tensor of a model and says when one moved unaccountably.

    Trained parameters are compared by version counter and checksum around each step.
    Everything else (frozen parameters, buffers) must stay as it was: its version counters
    are compared around each step, its checksums too at the end, because a large frozen
    encoder is expensive to read.
    """

    def __init__(self, model: nn.Module, trained: Sequence[Tensor]) -> None:
        self._model = model
        owned = {id(parameter) for parameter in trained}
        self._trained = {n: p for n, p in model.named_parameters() if id(p) in owned}
        self._frozen = self._others()
        self._frozen_marks = {name: (version_of(t), _mark(t)) for name, t in self._frozen.items()}
        self.accept()

    def _others(self) -> dict[str, Tensor]:
        everything = {
            **dict(self._model.named_parameters()),
            **dict(self._model.named_buffers()),
        }
        return {name: t for name, t in everything.items() if name not in self._trained}

    def accept(self) -> None:
        """Take the trained parameters as they are now: the mechanism moved them."""
        self._marks = {name: (version_of(t), _mark(t)) for name, t in self._trained.items()}

    def check(self, when: str, *, thorough: bool = False) -> None:
        """Compare with what was remembered; ``thorough`` reads the frozen tensors too.

        Raises:
            BypassError: naming the tensor that moved.
        """
        for name, (version, mark) in self._marks.items():
            trained = self._trained[name]
            if version_of(trained) != version or _mark(trained) != mark:
                raise BypassError(
                    f"parameter '{name}' changed outside the mechanism {when} (H8); "
                    "was another optimizer stepped?"
                )
        others = self._others()
        if others.keys() != self._frozen_marks.keys():
            raise BypassError(f"the model gained or lost tensors {when} (H17)")
        for name, tensor in others.items():
            version, mark = self._frozen_marks[name]
            if version_of(tensor) != version or (thorough and _mark(tensor) != mark):
                raise BypassError(
                    f"'{name}' is not trained but changed {when} (H5): running statistics "
                    "and other buffers would leave the site un-noised"
                )


def _ramp(count: int, device: torch.device) -> Tensor:
    return torch.arange(1, count + 1, device=device, dtype=torch.float64)


_KEPT = 1 << 18
"""Most numbers of a ramp that is kept: those of small tensors are made again and again."""
_kept_ramp = functools.lru_cache(64)(_ramp)


def _mark(tensor: Tensor) -> tuple[object, ...]:
    """A cheap checksum: shape, sum, and sum weighted by position, in double precision."""
    flat = tensor.detach().reshape(-1)
    if not flat.numel():
        return (tuple(tensor.shape),)
    wide = flat.to(torch.float64)
    ramp = _ramp if wide.numel() > _KEPT else _kept_ramp
    # As text, so that NaN equals itself.
    return (
        tuple(tensor.shape),
        float(wide.sum()).hex(),
        float(torch.dot(wide, ramp(wide.numel(), wide.device))).hex(),
    )
