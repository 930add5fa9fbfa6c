"""Opacus's ways: the reference, and what is left where book-keeping does not know a layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from privet.common.compat import opacus as compat
from privet.common.errors import SelfTestFailed
from privet.privacy.mechanism.clipping import methods
from privet.privacy.mechanism.clipping.bookkeeping import is_coarse
from privet.privacy.mechanism.clipping.methods import Batch, Loss, People

# The first layers see inputs without gradients, which is what they should see.
warnings.filterwarnings("ignore", message="Full backward hook is firing")


class OpacusHooks:
    """Per-sample gradients of every parameter, held until they are summed.

    Args:
        model: is wrapped.
        loss: per-record losses.
        named: the trained parameters.
        functorch: through ``torch.func`` for every layer, not by samplers of their own.

    Raises:
        SelfTestFailed: if Opacus finds a layer that mixes records (a batch norm).
    """

    most_units: int | None = None

    def __init__(
        self, model: nn.Module, loss: Loss, named: Mapping[str, Tensor], *, functorch: bool = False
    ) -> None:
        self.model, self._loss, self.named = model, loss, named
        _require_valid(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._wrapped: Any = self._wrap(functorch)

    def _wrap(self, functorch: bool) -> Any:
        return compat.hooked(self.model, functorch=functorch)

    def per_sample(self, batch: Batch) -> list[Tensor]:
        """As :meth:`Method.per_sample`.

        Raises:
            SelfTestFailed: if a parameter has none, so that it would escape clipping (H17).
        """
        self._clear()
        self._loss(self._wrapped, batch).sum().backward()
        gradients = []
        for name, parameter in self.named.items():
            sample = compat.sample_of(parameter)
            if isinstance(sample, list):
                sample = torch.stack(sample).sum(0) if len(sample) > 1 else sample[0]
            if sample is None:
                raise _escaped(name, "gradient")
            gradients.append(sample.detach())
        self._clear()
        return gradients

    def clipped_sum(self, parts: Iterable[tuple[Batch, People]], clip: float) -> list[Tensor]:
        """As :meth:`Method.clipped_sum`."""
        total = [torch.zeros_like(p, dtype=methods.wide_type(p)) for p in self.named.values()]
        for batch, people in parts:
            for running, value in zip(total, self._part(batch, people, clip), strict=True):
                running.add_(value)
        return total

    def plain(self, batch: Batch) -> Tensor:
        """As :meth:`Method.plain`."""
        return self._loss(self._wrapped, batch)

    def pause(self) -> None:
        """As :meth:`Method.pause`."""
        self._wrapped.disable_hooks()

    def resume(self) -> None:
        """As :meth:`Method.resume`."""
        self._wrapped.enable_hooks()

    def forget(self) -> None:
        """As :meth:`Method.forget`."""
        self._clear()
        compat.forget(self.model, self.named.values())

    def close(self) -> None:
        """As :meth:`Method.close`."""
        self.forget()
        compat.unhook(self._wrapped, self.model)

    @property
    def coarse(self) -> bool:
        """As :attr:`Method.coarse`."""
        return is_coarse(self.named.values())

    def _part(self, batch: Batch, people: People, clip: float) -> list[Tensor]:
        # Never narrower than float32: rounding a factor to bfloat16 would pass the bound.
        gradients = [g.to(methods.wide_type(g)) for g in self.per_sample(batch)]
        count = int(people[-1]) + 1
        if count != len(people):
            index = torch.as_tensor(people, device=gradients[0].device)
            gradients = [
                g.new_zeros(count, *g.shape[1:]).index_add_(0, index, g) for g in gradients
            ]
        squares = torch.stack([methods.squares_of(g.flatten(1)) for g in gradients]).sum(0)
        factors = methods.clip_factors(squares, clip)
        if not bool(torch.isfinite(squares).all()):
            gradients = [torch.nan_to_num(g, 0.0, 0.0, 0.0) for g in gradients]
        return [torch.tensordot(factors.to(g.dtype), g, dims=1) for g in gradients]

    def _clear(self) -> None:
        compat.clear(self.named.values())


class OpacusGhost(OpacusHooks):
    """Norms without per-sample gradients, then a second backward pass. Each unit is one record."""

    def _wrap(self, functorch: bool) -> Any:
        del functorch
        return compat.ghost(self.model)

    def _part(self, batch: Batch, people: People, clip: float) -> list[Tensor]:
        self._clear()
        parameters = list(self.named.values())
        losses = self._loss(self._wrapped, batch)
        losses.sum().backward(retain_graph=True)
        squares = torch.stack([_norms(n, p).double().square() for n, p in self.named.items()])
        squares = squares.sum(0)
        self._clear()
        keep = torch.isfinite(squares)
        if not bool(keep.all()):
            # A record without a finite gradient would poison the joint backward pass. Norms
            # and gradients must come of one pass: dropout draws another mask in the next.
            if not bool(keep.any()):
                return [torch.zeros_like(p) for p in parameters]
            kept = {name: tensor[keep] for name, tensor in batch.items()}
            return self._part(kept, people, clip)
        factors = methods.clip_factors(squares, clip)
        self.pause()
        try:
            (losses * factors.to(losses.dtype)).sum().backward()
        finally:
            self.resume()
        part = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in parameters]
        self._clear()
        return part


def _require_valid(model: nn.Module) -> None:
    faults = ModuleValidator.validate(model, strict=False)
    if faults:
        raise SelfTestFailed(
            "Opacus refuses the model: " + "; ".join(str(fault) for fault in faults)
        )


def _norms(name: str, parameter: Tensor) -> Tensor:
    """Return the per-record norms [B] that Opacus left on the parameter."""
    norms = compat.norms_of(parameter)
    if norms is None:
        raise _escaped(name, "norm")
    return norms


def _escaped(name: str, what: str) -> SelfTestFailed:
    return SelfTestFailed(
        f"parameter '{name}' has no per-sample {what}: freeze it, or use "
        "clipping = 'functorch' (H17)"
    )
