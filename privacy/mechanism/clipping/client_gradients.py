"""Clipped sums of many clients at once: one model, with other weights for each client.

A client dimension K is added to the equations of :mod:`.bookkeeping`. One function makes the losses
of one client's batch from its weights; ``vmap`` over clients makes it one for all, whose products
are batched over clients. For sums that are not clipped it is differentiated with respect to the
weights. For clipped sums it is not: each layer with trained parameters adds a variable of zeros to
its output, whose gradient is the layer's backprop g [K, B, T, n]. With the activations a, which the
function returns beside the loss, the rules of book-keeping give the norms of all K · U units, and

    Σ_{u of k} c_u G_u    for each client k, a product batched over clients.

The zeros take the place of the custom functions of :mod:`.rules`, which ``vmap`` cannot batch.
Known are linear layers, tables and layer norms whose first dimension is of records; what else a
model has with trained parameters is refused, and so is a layer that is called twice. Exactness is
tested by its caller, against :class:`~.engine.GradientEngine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from privet.common.compat.torch import without_conversion
from privet.privacy.mechanism.clipping.embedding_rules import EmbeddingRule
from privet.privacy.mechanism.clipping.layers import RecordingLayers, Unsupported
from privet.privacy.mechanism.clipping.linear_rules import LinearRule
from privet.privacy.mechanism.clipping.methods import Batch, Bound, Loss, clip_factors
from privet.privacy.mechanism.clipping.norm_rules import LayerNormRule
from privet.privacy.mechanism.clipping.parameter_gradients import only_finite
from privet.privacy.mechanism.clipping.vmap import LossOfModel, places_of

_SIZES = 3, 5
"""Records of two batches by which the dimension of records is found in a layer's output."""
Weights = Mapping[str, Tensor]
"""Trained parameters by name, each [K, *shape]."""


@dataclass(frozen=True)
class _Output:
    """The output of a layer for one client: ``rows`` · B along the first dimension.

    Attributes:
        rows: rows of a record; 0 if all records share the output, as of positions.
        rest: the other dimensions; all of them if it is shared.
    """

    rows: int
    rest: tuple[int, ...]

    def shape(self, records: int) -> tuple[int, ...]:
        """Return the shape of a variable that is added to it."""
        return (records * max(1, self.rows), *self.rest)


class ClientGradients:
    """Sums of gradients for K clients with weights of their own.

    Args:
        model: stays as it is.
        loss: per-record losses, of a model and a batch.
        named: the trained parameters.
        random_batch: makes a batch of (records, seed).
        clipped: whether units are clipped, so that layers must be known.

    Raises:
        Unsupported: naming what has no form with a client dimension.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        named: Mapping[str, Tensor],
        random_batch: Callable[[int, int], Batch],
        *,
        clipped: bool,
    ) -> None:
        if any(p.dtype != torch.float32 for p in named.values()):
            raise Unsupported("weights are not of single precision")
        self._function = LossOfModel(model, loss)
        self._linear = [m for m in model.modules() if type(m) is nn.Linear]
        self._places = places_of(self._function, named)
        self._named = dict(named)
        self._rules: dict[nn.Module, LinearRule | EmbeddingRule | LayerNormRule] = {}
        self._outputs: dict[nn.Module, _Output] = {}
        self._unseen: list[nn.Module] = []
        if clipped:
            layers = RecordingLayers(model)
            self._per_unit = layers.per_unit
            self._rules = _known(layers)
            self._outputs = self._find_outputs(random_batch)

    @property
    def instantiated_bytes(self) -> int:
        """Bytes of a unit's gradients that were instantiated so far."""
        if not self._rules:
            return 0
        return sum(
            buffer.width * buffer.rows.element_size()
            for buffer in self._per_unit.buffers
            if len(buffer.rows)
        )

    def sums(self, weights: Weights, batch: Batch, present: Tensor) -> dict[str, Tensor]:
        """Return the sum of gradients for each client, [K, *shape] by name.

        Args:
            weights: of the clients.
            batch: records, tensors [K, B, ...].
            present: [K, B] 1 for a record, 0 for one that fills up.
        """

        def total(parameters: dict[str, Tensor], records: Batch, here: Tensor) -> Tensor:
            return self._sum(parameters, records, here)

        with _batched(self._linear):
            made: dict[str, Tensor] = vmap(grad(total), randomness="different")(
                dict(weights), batch, present
            )
        return {name: tensor.detach() for name, tensor in made.items()}

    def clipped_sums(
        self, weights: Weights, batch: Batch, present: Tensor, units: int, clip: Bound
    ) -> dict[str, Tensor]:
        """Return Σ_u c_u G_u for each client, [K, *shape] by name.

        Args:
            weights: of the clients.
            batch: records, tensors [K, B, ...]; those of a unit follow each other, as many for
                each unit.
            present: [K, B] 1 for a record, 0 for one that fills up.
            units: of each client, U; B is a multiple of it.
            clip: the L2 bound C.

        Raises:
            Unsupported: if a layer is called twice, or not as in the tests.
        """
        clients, records = present.shape
        per_unit = self._per_unit
        counts = None
        if records != units:
            counts = torch.full((clients * units,), records // units)
        per_unit.begin_pass(clients * records, counts)
        try:
            self._record(weights, batch, present)
            squared_norms = per_unit.squared_norms()
            factors = clip_factors(squared_norms, clip)
            finite = torch.isfinite(squared_norms)
            found = self._weighted(clients, factors, None if bool(finite.all()) else finite)
        finally:
            for one in per_unit.parameters:
                one.begin_pass()
        return found

    def _sum(self, parameters: Mapping[str, Tensor], records: Batch, present: Tensor) -> Tensor:
        placed = {place: parameters[name] for place, name in self._places.items()}
        losses: Tensor = functional_call(self._function, placed, (records,), tie_weights=False)
        # A generated record that fills up may have an infinite loss at weights that diverge.
        return torch.where(present > 0, losses, 0.0).sum()

    def _record(self, weights: Weights, batch: Batch, present: Tensor) -> None:
        """Run forward and backward, and give each rule its activations and backprops."""
        clients, records = present.shape
        modules = list(self._rules)
        zero = torch.zeros((), device=present.device)
        zeros = [zero.expand(self._outputs[m].shape(records)) for m in modules]
        called: list[bool] = []

        def total(
            added: list[Tensor], parameters: dict[str, Tensor], one: Batch, here: Tensor
        ) -> tuple[Tensor, list[Tensor]]:
            read: dict[nn.Module, Tensor] = {}
            with _adding(dict(zip(modules, added, strict=True)), read, self._unseen):
                value = self._sum(parameters, one, here)
            called[:] = [m in read for m in modules]
            return value, [read.get(m, here) for m in modules]

        over = (None, 0, 0, 0)
        with _batched(self._linear):
            backprops, read = vmap(grad(total, has_aux=True), in_dims=over, randomness="different")(
                zeros, dict(weights), batch, present
            )
        with torch.no_grad():
            for module, is_called, g, a in zip(modules, called, backprops, read, strict=True):
                if is_called:
                    self._give(module, g.detach().flatten(0, 1), a.detach(), clients, records)

    def _give(self, module: nn.Module, g: Tensor, a: Tensor, clients: int, records: int) -> None:
        """Record one layer's contribution.

        Args:
            module: the layer.
            g: backprops [K · rows · B, ...].
            a: what it read, [K, ...].
            clients: K.
            records: B.
        """
        rule, output = self._rules[module], self._outputs[module]
        if isinstance(rule, EmbeddingRule):
            shared = None
            if output.rows == 0:
                shared = a[0].flatten()
                a = a.reshape(clients, 1, -1).expand(clients, records, -1)
            rule.record(a.flatten(0, 1), shared, g)
        elif isinstance(rule, LayerNormRule):
            x = a.flatten(0, 1)
            variance, mean = torch.var_mean(x, -1, keepdim=True, unbiased=False)
            rule.record(x, mean, torch.rsqrt(variance + rule.eps), g)
        else:
            rule.record(a.flatten(0, 1), g)

    def _weighted(self, clients: int, factors: Tensor, finite: Tensor | None) -> dict[str, Tensor]:
        """Return Σ_u c_u G_u by client from what the pass left."""
        per_unit, found = self._per_unit, {}
        for buffer, rows in per_unit.instantiated():
            rows = only_finite(rows, finite).view(clients, -1, rows.shape[1])
            weight = factors.to(rows.dtype).view(clients, 1, -1)
            total = torch.bmm(weight, rows).squeeze(1)
            sizes = [one.parameter.numel() for one in buffer.parameters]
            for one, part in zip(buffer.parameters, torch.split(total, sizes, 1), strict=True):
                # Of its own memory: what is added by row below needs it in one piece.
                found[one.name] = part.contiguous().view(clients, *one.parameter.shape)
        for one in per_unit.parameters:
            if one.is_ghost:
                if one.name not in found:
                    found[one.name] = _zeros(clients, one.parameter)
                one.add_weighted_sums(found[one.name], factors, finite)
            elif one.name not in found:  # no record uses it
                found[one.name] = _zeros(clients, one.parameter)
        return found

    def _find_outputs(self, random_batch: Callable[[int, int], Batch]) -> dict[nn.Module, _Output]:
        """Return which dimension of each layer's output is of records, by batches of two sizes.

        Raises:
            Unsupported: if it is another than the first.
        """
        seen: list[dict[nn.Module, tuple[int, ...]]] = []
        for size in _SIZES:
            shapes: dict[nn.Module, tuple[int, ...]] = {}
            with _watching(self._rules, shapes), torch.no_grad():
                self._function(random_batch(size, 1))
            seen.append(shapes)
        few, many = seen
        found = {}
        for module, rule in self._rules.items():
            kind = type(module).__name__
            if module not in few:
                continue
            one, two = few[module], many.get(module, ())
            if one == two or (one[:1] == two[:1] == (1,) and one[1:] == two[1:]):
                if not isinstance(rule, EmbeddingRule):
                    raise Unsupported(f"all records share what a {kind} reads")
                rest = one[1:] if one[0] == 1 and len(one) > 2 else one
                found[module] = _Output(0, rest)
                continue
            rows, left = divmod(one[0], _SIZES[0])
            if left or two[:1] != (rows * _SIZES[1],) or one[1:] != two[1:]:
                raise Unsupported(f"the first dimension of a {kind} is not of records")
            found[module] = _Output(rows, one[1:])
        self._unseen = [m for m in self._rules if m not in found]
        self._rules = {m: rule for m, rule in self._rules.items() if m in found}
        return found


def _known(layers: RecordingLayers) -> dict[nn.Module, Any]:
    """Return the rule of each layer.

    Raises:
        Unsupported: naming a layer without a form for clients.
    """
    found = {}
    for module, rule in layers.rules():
        if not isinstance(rule, LinearRule | EmbeddingRule | LayerNormRule):
            raise Unsupported(f"a {type(module).__name__} has no form for many clients")
        found[module] = rule
    return found


def _zeros(clients: int, parameter: Tensor) -> Tensor:
    return torch.zeros(clients, *parameter.shape, device=parameter.device)


class _RowsOfClient:
    """A linear layer's forward as one product of all rows of a client.

    Batched over clients, ``functional.linear`` would copy the weight for each record.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer

    def __call__(self, input: Tensor) -> Tensor:  # as nn.Linear names it
        """Return the layer's output."""
        layer = self._layer
        made = functional.linear(input.reshape(-1, input.shape[-1]), layer.weight, layer.bias)
        return made.reshape(*input.shape[:-1], layer.out_features)


@contextmanager
def _batched(layers: Sequence[nn.Linear]) -> Iterator[None]:
    """The fused kernels of attention have no batched form, and would run client by client.

    Args:
        layers: the linear layers of the model, which take all rows of a client at once.
    """
    ours = [layer for layer in layers if "forward" not in layer.__dict__]
    try:
        for layer in ours:
            layer.__dict__["forward"] = _RowsOfClient(layer)
        with sdpa_kernel(SDPBackend.MATH), without_conversion():
            yield
    finally:
        for layer in ours:
            del layer.__dict__["forward"]


@contextmanager
def _adding(
    added: Mapping[nn.Module, Tensor], read: dict[nn.Module, Tensor], unseen: list[nn.Module]
) -> Iterator[None]:
    """Add a variable to each layer's output, and keep what the layer reads.

    Args:
        added: by layer.
        read: grows by what each layer reads.
        unseen: layers that no generated batch called.

    Raises:
        Unsupported: if a layer is called twice, not with one tensor, or for the first time.
    """

    def hook(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        if module in read or len(given) != 1:
            raise Unsupported(f"a {type(module).__name__} is called twice, or with several inputs")
        read[module] = given[0]
        return output + added[module]

    def refuse(module: nn.Module, given: tuple[Any, ...]) -> None:
        raise Unsupported(f"a {type(module).__name__} is called that no generated batch called")

    # Before anybody else's hook: the backprop is that of the layer's own output.
    handles = [module.register_forward_hook(hook, prepend=True) for module in added]
    handles += [module.register_forward_pre_hook(refuse) for module in unseen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _watching(
    modules: Sequence[nn.Module] | Mapping[nn.Module, Any],
    shapes: dict[nn.Module, tuple[int, ...]],
) -> Iterator[None]:
    """Keep the shape of each layer's output."""

    def hook(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        if module in shapes:
            raise Unsupported(f"a {type(module).__name__} is called twice")
        shapes[module] = tuple(output.shape)

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


__all__ = ["ClientGradients", "Unsupported"]
