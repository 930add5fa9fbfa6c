"""Opacus's ways: the reference, and what is left where book-keeping does not know a layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from privet.common.compat import opacus as compat
from privet.common.errors import SelfTestError
from privet.privacy.mechanism.clipping import methods
from privet.privacy.mechanism.clipping.methods import Batch, Loss, UnitOfRecord

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
        SelfTestError: if Opacus finds a layer that mixes records (a batch norm).
    """

    max_units: int | None = None
    is_tested = False

    def __init__(
        self, model: nn.Module, loss: Loss, named: Mapping[str, Tensor], *, functorch: bool = False
    ) -> None:
        self.model, self._loss, self.named = model, loss, named
        _require_valid(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._wrapped: Any = compat.hooked(model, functorch=functorch)

    def prepare(self, random_batch: Callable[[int, int], Batch]) -> None:
        """As :meth:`ClippingMethod.prepare`: there is nothing to learn."""

    def per_sample(self, batch: Batch) -> list[Tensor]:
        """As :meth:`ClippingMethod.per_sample`.

        Raises:
            SelfTestError: if a parameter has none, so that it would escape clipping (H17).
        """
        self._clear()
        self._loss(self._wrapped, batch).sum().backward()
        gradients = []
        for name, parameter in self.named.items():
            sample = compat.sample_of(parameter)
            if isinstance(sample, list):
                sample = torch.stack(sample).sum(0) if len(sample) > 1 else sample[0]
            if sample is None and parameter.grad is not None:
                raise SelfTestError(
                    f"H17: parameter '{name}' has a gradient, and none for each record: Opacus "
                    "does not see where it is used; use clipping = 'auto'"
                )
            if sample is None:  # no record uses it
                records = len(next(iter(batch.values())))
                sample = parameter.new_zeros(records, *parameter.shape)
            gradients.append(sample.detach())
        self._clear()
        return gradients

    def clipped_sum(
        self, micro_batches: Iterable[tuple[Batch, UnitOfRecord]], clip: methods.Bound
    ) -> list[Tensor]:
        """As :meth:`ClippingMethod.clipped_sum`."""
        return methods.sum_of_per_sample(self.per_sample, micro_batches, clip, self.named.values())

    def losses(self, batch: Batch) -> Tensor:
        """As :meth:`ClippingMethod.losses`."""
        return self._loss(self._wrapped, batch)

    def pause(self) -> None:
        """As :meth:`ClippingMethod.pause`."""
        self._wrapped.disable_hooks()

    def resume(self) -> None:
        """As :meth:`ClippingMethod.resume`."""
        self._wrapped.enable_hooks()

    def reset(self) -> None:
        """As :meth:`ClippingMethod.reset`."""
        self._clear()
        compat.forget(self.model, self.named.values())

    def close(self) -> None:
        """As :meth:`ClippingMethod.close`."""
        self.reset()
        compat.unhook(self._wrapped, self.model)

    @property
    def reduced_precision(self) -> bool:
        """As :attr:`ClippingMethod.reduced_precision`."""
        return methods.is_reduced_precision(self.named.values())

    def _clear(self) -> None:
        compat.clear(self.named.values())


def _require_valid(model: nn.Module) -> None:
    faults = ModuleValidator.validate(model, strict=False)
    if faults:
        raise SelfTestError(
            "Opacus refuses the model: " + "; ".join(str(fault) for fault in faults)
        )
