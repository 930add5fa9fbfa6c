"""``torch.func`` over the whole model: ``vmap(grad(loss of one record))``.

The model is a function of its trained parameters, so that one call gives the gradient of every
record, whatever its layers are (Horace He and Richard Zou, "functorch", 2021; ``torch.func``,
"per-sample gradients"). What a model does by value (a branch on a number, a length that is read
from a mask) has no batched form: torch refuses it, and ``auto`` continues with the next method.

Parameters are exchanged in the modules while the function runs, so that a loss may call any part of
the model. All gradients [U, *shape] are held until they are summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from privet.common.compat.torch import without_conversion
from privet.privacy.mechanism.clipping import methods
from privet.privacy.mechanism.clipping.cost import max_units_in_memory
from privet.privacy.mechanism.clipping.methods import Batch, Loss, UnitOfRecord


class WholeModelVmap(methods.PlainMethod):
    """The clipping method of the module's docstring.

    Args:
        model: stays as it is.
        loss: per-record losses.
        named: the trained parameters.
    """

    def __init__(self, model: nn.Module, loss: Loss, named: Mapping[str, Tensor]) -> None:
        super().__init__(model, loss, named)
        self._function = LossOfModel(model, loss)
        self._slots = places_of(self._function, named)
        numbers = sum(p.numel() for p in named.values())
        device = next(iter(named.values())).device
        self.max_units = max_units_in_memory(numbers, numbers, device)

    def per_sample(self, batch: Batch) -> list[Tensor]:
        """As :meth:`ClippingMethod.per_sample`. A parameter that no record uses has zeros."""
        trained = {name: p.detach() for name, p in self.named.items()}

        def loss_of(parameters: dict[str, Tensor], record: Batch) -> Tensor:
            alone = {name: tensor.unsqueeze(0) for name, tensor in record.items()}
            placed = {slot: parameters[name] for slot, name in self._slots.items()}
            # Its own search for tied weights exchanges a shared module's parameter once for each
            # path to it, and gives back the wrong one.
            call = functional_call(self._function, placed, (alone,), tie_weights=False)
            total: Tensor = call.sum()
            return total

        # Each record draws its own chance (dropout), as in a pass over a batch.
        each = vmap(grad(loss_of), in_dims=(None, 0), randomness="different",
                    chunk_size=self.max_units)  # fmt: skip
        # The fused kernels of attention have no batched form, and would run record by record.
        with sdpa_kernel(SDPBackend.MATH), without_conversion():
            made = each(trained, batch)
        return [made[name].detach() for name in trained]

    def clipped_sum(
        self, micro_batches: Iterable[tuple[Batch, UnitOfRecord]], clip: methods.Bound
    ) -> list[Tensor]:
        """As :meth:`ClippingMethod.clipped_sum`."""
        return methods.sum_of_per_sample(self.per_sample, micro_batches, clip, self.named.values())


def places_of(model: nn.Module, named: Mapping[str, Tensor]) -> dict[str, str]:
    """Return by each place of a model that holds a trained parameter the parameter's name.

    A module that is reached by several paths is one place, and a tied weight has several.
    """
    names = {id(parameter): name for name, parameter in named.items()}
    found = {}
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in names:
                found[f"{path}.{key}"] = names[id(parameter)]
    return found


class LossOfModel(nn.Module):
    """The losses of a batch, as a module whose parameters can be exchanged.

    Args:
        model: with the parameters.
        loss: per-record losses.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Batch) -> Tensor:
        """Return the losses [B]."""
        return self._loss(self.model, batch)
