"""The rule of a module that no other rule knows: ``vmap`` of that module alone.

Each record gets a copy of the module's parameters, which is the same memory seen B times, so that
the backward pass gives the gradient of each copy: the per-sample gradients. The rest of the model
stays with book-keeping, so that one odd layer does not slow down all others.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrize import is_parametrized

from privet.common.compat.torch import buffers_of, tree_flatten, tree_unflatten
from privet.privacy.mechanism.clipping.embedding_rules import ExpandedParameterRule
from privet.privacy.mechanism.clipping.parameter_gradients import ParameterGradients
from privet.privacy.mechanism.clipping.per_unit_gradients import PerUnitGradients
from privet.privacy.mechanism.clipping.record_axes import SHARED, RecordAxes, RecordAxis
from privet.privacy.mechanism.clipping.rules import Unsupported, require_rows


class VmappedModuleRule:
    """Any module, with all that it contains.

    Args:
        module: not the whole model.
        per_unit: where its gradients go.
        own: the gradients of all trained parameters in it, by their names in it.
    """

    axes: RecordAxes | None = None
    """Which dimensions are of records; they must be known before a pass."""

    def __init__(
        self, module: nn.Module, per_unit: PerUnitGradients, own: dict[str, ParameterGradients]
    ) -> None:
        self.module, self.per_unit = module, per_unit
        self._copies = {
            name: ExpandedParameterRule(name, one, per_unit) for name, one in own.items()
        }

    def __call__(self, *given: Any, **named: Any) -> Any:
        """As the module's own forward.

        Raises:
            Unsupported: if the dimensions of records are not known, or differ between calls.
        """
        axes, records = self._known_axes(), self.per_unit.records
        leaves, structure = tree_flatten((given, named))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if len(places) != len(axes.inputs):
            raise Unsupported(f"a {type(self.module).__name__} is called in several ways")
        parts = [
            _split(leaves[i], axis, records) for i, axis in zip(places, axes.inputs, strict=True)
        ]
        made: list[Any] = []
        shape: Any = None

        def one_record(parameters: dict[str, Tensor], *mine: Tensor) -> tuple[Tensor, ...]:
            nonlocal made, shape
            own = list(leaves)
            for place, part, axis in zip(places, mine, axes.inputs, strict=True):
                own[place] = part
                if axis.dimension != SHARED:
                    own[place] = part.movedim(0, axis.dimension)
            args, kwargs = tree_unflatten(own, structure)
            made, shape = tree_flatten(
                functional_call(self.module, parameters, args, kwargs, tie_weights=True)
            )
            tensors = [leaf for leaf in made if isinstance(leaf, Tensor)]
            return tuple(_first(t, a) for t, a in zip(tensors, axes.outputs, strict=True))

        copies = {name: rule.copies() for name, rule in self._copies.items()}
        in_axes = (0, *(None if one.dimension == SHARED else 0 for one in axes.inputs))
        replaced = self.module.__dict__.pop("forward")
        # What a module keeps of a pass would be of one record, and of no use outside of vmap.
        kept = [(m, dict(m.__dict__), dict(buffers_of(m))) for m in self.module.modules()]
        try:
            # The fused kernels of attention have no batched form, and would run record by record.
            with sdpa_kernel(SDPBackend.MATH):
                each = vmap(one_record, in_dims=in_axes, randomness="different")(copies, *parts)
        finally:
            for module, attributes, buffers in kept:
                module.__dict__.clear()
                module.__dict__.update(attributes)
                buffers_of(module).update(buffers)
            self.module.__dict__["forward"] = replaced
        outputs = iter([_merged(t, axis) for t, axis in zip(each, axes.outputs, strict=True)])
        leaves = [next(outputs) if isinstance(leaf, Tensor) else leaf for leaf in made]
        return tree_unflatten(leaves, shape)

    def _known_axes(self) -> RecordAxes:
        if self.axes is None or not self.axes.is_known or not self.axes.outputs:
            kind = type(self.module).__name__
            raise Unsupported(f"the records in input and output of a {kind} are not known")
        return self.axes


def _split(x: Tensor, axis: RecordAxis, records: int) -> Tensor:
    """Return [..., m · B, ...] as [B, m, ...]; what all records share stays.

    Raises:
        Unsupported: if the dimension is not of these records.
    """
    require_rows(x, axis, records)
    if axis.dimension == SHARED:
        return x
    x = x.movedim(axis.dimension, 0)
    return x.reshape(records, -1, *x.shape[1:])


def _first(x: Tensor, axis: RecordAxis) -> Tensor:
    """Return one record's output with its dimension of records first, where it has one."""
    return x if axis.dimension == SHARED else x.movedim(axis.dimension, 0)


def _merged(x: Tensor, axis: RecordAxis) -> Tensor:
    """Return the outputs [B, m, ...] of all records as the module would: [..., m · B, ...].

    What it would return once for all records, [...] or [1, ...], is one for each now, [B, ...]: it
    is added or multiplied as before.
    """
    if axis.dimension == SHARED:
        return x.squeeze(1) if axis.room == 0 else x
    return x.flatten(0, 1).movedim(0, axis.dimension)


def opaque(module: nn.Module) -> bool:
    """Whether a module computes its weight from others: a parametrised layer (weight norm)."""
    return is_parametrized(module)


__all__ = ["VmappedModuleRule", "opaque"]
