"""A model whose layers record per-unit gradients while a pass runs, and are as before afterwards.

A parameter that no rule knows is handed out as one copy a record: in its module, if its first
dimension is 1 (class tokens, position tables), else by ``vmap`` of the whole module
(:mod:`.module_rules`). Whether all this is right for a model is tested, not assumed: the start-up
test compares with single records (H16).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from privet.common.compat.torch import parameters_of
from privet.common.compat.transformers import (
    is_conv1d,
    is_rms_norm,
    position_bias_method,
    position_table,
)
from privet.privacy.mechanism.clipping.attention_rules import AttentionRule
from privet.privacy.mechanism.clipping.embedding_rules import (
    EmbeddingRule,
    ExpandedParameterRule,
    RelativePositionBias,
)
from privet.privacy.mechanism.clipping.linear_rules import ConvolutionRule, LinearRule
from privet.privacy.mechanism.clipping.module_rules import VmappedModuleRule, opaque
from privet.privacy.mechanism.clipping.norm_rules import LayerNormRule, ScaleRule
from privet.privacy.mechanism.clipping.parameter_gradients import ParameterGradients
from privet.privacy.mechanism.clipping.per_unit_gradients import PerUnitGradients
from privet.privacy.mechanism.clipping.record_axes import RecordAxes, RecordAxis
from privet.privacy.mechanism.clipping.recurrent_rules import RecurrentRule
from privet.privacy.mechanism.clipping.rules import Forward, Unsupported

_RULES: tuple[tuple[type[nn.Module], Any], ...] = (
    (nn.Linear, LinearRule),
    (nn.Embedding, EmbeddingRule),
    (nn.LayerNorm, LayerNormRule),
    (nn.RMSNorm, ScaleRule),
    (nn.GroupNorm, ScaleRule),
    (nn.Conv1d, ConvolutionRule),
    (nn.Conv2d, ConvolutionRule),
    (nn.LSTM, RecurrentRule),
    (nn.GRU, RecurrentRule),
    (nn.RNN, RecurrentRule),
    (nn.MultiheadAttention, AttentionRule),
)
Owners = list[tuple[nn.Module, dict[str, Tensor]]]


class RecordingLayers:
    """Every layer of a model that has trained parameters, each with its rule.

    Args:
        model: as it will train.
        instantiate: instantiate every per-unit gradient.
        whole: modules that are treated as a whole, by ``vmap``.

    Attributes:
        per_unit: the per-unit gradients of the last pass.

    Raises:
        Unsupported: naming what is not known.
    """

    def __init__(
        self, model: nn.Module, *, instantiate: bool = False, whole: Collection[nn.Module] = ()
    ) -> None:
        self._model = model
        self._whole = {id(module) for module in whole}
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._owners = _owners(model, named, self._whole)
        self._gradients = {
            id(parameter): ParameterGradients(
                name, parameter, instantiate=instantiate or _by_cost(parameter, self._owners)
            )
            for name, parameter in named.items()
        }
        self.per_unit = PerUnitGradients(list(self._gradients.values()))
        self._forwards: list[tuple[nn.Module, str, Forward]] = []
        self._expanded: list[tuple[nn.Module, ExpandedParameterRule]] = []
        self._ruled = {
            id(p) for module, held in self._owners if _rule_of(module) for p in held.values()
        }
        covered: set[int] = set()
        for module, held in self._owners:
            if id(module) not in covered:
                self._add(module, held, covered)
        tables = {id(m): rule for m, _, rule in self._forwards if isinstance(rule, EmbeddingRule)}
        for module in model.modules():
            method = position_bias_method(module)
            if method is None or id(module) in covered:
                continue
            if (table := tables.get(id(position_table(module)))) is not None:
                bias = RelativePositionBias(module, method, table)
                self._forwards.append((module, method, bias))

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that have a rule."""
        return [module for module, name, _ in self._forwards if name == "forward"]

    def rules(self) -> list[tuple[nn.Module, Any]]:
        """Return each module with its rule; a parameter of no layer has one of its own kind."""
        return [(module, rule) for module, _, rule in self._forwards] + [*self._expanded]

    def use_axes(self, axes: dict[int, RecordAxes]) -> None:
        """Tell the rules which dimensions of their inputs are of records.

        Args:
            axes: by the ``id`` of a module; of :func:`.record_axes.find`.
        """
        axes = {**axes, **self._axes_by_rules(axes)}
        for place, (module, name, rule) in enumerate(self._forwards):
            if name != "forward":
                continue
            if id(module) in axes:
                rule.axes = axes[id(module)]  # type: ignore[attr-defined]
            else:
                self._forwards[place] = module, name, _NotSeen(module)

    @property
    def called_by_rules(self) -> set[int]:
        """Ids of the layers that a rule calls, and the model itself does not."""
        attentions = [m for m, _, rule in self._forwards if isinstance(rule, AttentionRule)]
        return {id(module.out_proj) for module in attentions}

    def _axes_by_rules(self, axes: dict[int, RecordAxes]) -> dict[int, RecordAxes]:
        """Return the axes of :attr:`called_by_rules`: attention calls ``out_proj`` by record."""
        found = {}
        for module, _, rule in self._forwards:
            if isinstance(rule, AttentionRule) and id(module) in axes:
                first = RecordAxis(0, axes[id(module)].inputs[0].rows, dimensions=3)
                found[id(module.out_proj)] = RecordAxes((first,), (first,))
        return found

    def _add(self, module: nn.Module, held: dict[str, Tensor], covered: set[int]) -> None:
        """Add the rules of one module that holds trained parameters.

        Args:
            module: of the model.
            held: the parameters, by their names in the module.
            covered: ids of modules that another one's rule treats; grows.
        """
        if id(module) in self._whole or opaque(module):
            if module is self._model:
                raise Unsupported("the model itself reads the weights of its layers")
            self._add_whole(module, covered)
            return
        make = _rule_of(module)
        if make is not None:
            own = {name: self._gradients[id(parameter)] for name, parameter in held.items()}
            try:
                self._forwards.append((module, "forward", make(module, self.per_unit, own)))
                return
            except Unsupported:
                if module is self._model or isinstance(module, nn.Embedding):
                    raise
                self._add_whole(module, covered)
                return
        # What a known layer has too (BERT's head for gaps shares a bias) is read there; if it is
        # used here as well, its gradient outside the layer is noticed.
        others = {n: self._gradients[id(p)] for n, p in held.items() if id(p) not in self._ruled}
        if all(one.parameter.dim() > 1 and len(one.parameter) == 1 for one in others.values()):
            for name, one in others.items():
                rule = ExpandedParameterRule(name, one, self.per_unit, in_place_of_one=True)
                self._expanded.append((module, rule))
            return
        if module is self._model:
            name = next(iter(others.values())).name
            raise Unsupported(f"'{name}' is used in a way that is not known")
        self._add_whole(module, covered)

    def _add_whole(self, module: nn.Module, covered: set[int]) -> None:
        """Treat a module and all in it by ``vmap``."""
        mine = {n: p for n, p in module.named_parameters() if p.requires_grad}
        own = {name: self._gradients[id(parameter)] for name, parameter in mine.items()}
        for one in own.values():
            one.instantiate_always()
        inside = {id(m) for m in module.modules()}
        covered |= inside
        self._forwards = [f for f in self._forwards if id(f[0]) not in inside]
        self._expanded = [e for e in self._expanded if id(e[0]) not in inside]
        self._forwards.append((module, "forward", VmappedModuleRule(module, self.per_unit, own)))

    @contextmanager
    def recording(self, records: int, counts: Tensor | None) -> Iterator[None]:
        """Let one pass record into :attr:`per_unit`.

        Args:
            records: B.
            counts: [U] records of each unit; None for one each.
        """
        self.per_unit.begin_pass(records, counts)
        kept = [(module, rule.name) for module, rule in self._expanded]
        before = [parameters_of(module)[name] for module, name in kept]
        for module, name, _ in self._forwards:
            if name in module.__dict__:
                raise Unsupported(f"somebody replaced '{name}' of a {type(module).__name__}")
        try:
            for module, name, forward in self._forwards:
                module.__dict__[name] = forward
            for module, rule in self._expanded:
                parameters_of(module)[rule.name] = rule.copies()
            yield
        finally:
            self.per_unit.recording = False
            for module, name, _ in self._forwards:
                module.__dict__.pop(name, None)
            for (module, name), parameter in zip(kept, before, strict=True):
                parameters_of(module)[name] = parameter

    def forget(self) -> None:
        """Let go of what the last pass recorded, but for the kept memory."""
        for one in self.per_unit.parameters:
            one.begin_pass()


class _NotSeen:
    """In place of a layer that no generated batch called: nothing is known of its input."""

    def __init__(self, module: nn.Module) -> None:
        self._kind = type(module).__name__

    def __call__(self, *given: Any, **named: Any) -> Tensor:
        """Refuse.

        Raises:
            Unsupported: always.
        """
        raise Unsupported(f"a {self._kind} is called that the start-up test did not see")


def _owners(model: nn.Module, named: dict[str, nn.Parameter], whole: set[int]) -> Owners:
    """Return the modules that hold trained parameters, each with those by its own names.

    Args:
        model: in which they are.
        named: the trained parameters.
        whole: ids of modules that are listed for the parameters of their children, too.
    """
    trained = {id(parameter) for parameter in named.values()}
    found: Owners = []
    for module in model.modules():
        mine = parameters_of(module).items()
        held: dict[str, Tensor] = {n: p for n, p in mine if p is not None and id(p) in trained}
        reads_children = (
            id(module) in whole or isinstance(module, nn.MultiheadAttention) or opaque(module)
        )
        if held or (reads_children and any(id(p) in trained for p in module.parameters())):
            found.append((module, held))
    return found


def _by_cost(parameter: Tensor, owners: Owners) -> bool | None:
    """Return None to let the cost decide whether to instantiate, and False for tied weights.

    A table that is also a linear layer's weight is too large to be instantiated by unit.
    """
    users = [module for module, held in owners if any(p is parameter for p in held.values())]
    tied = len(users) > 1 and any(isinstance(module, nn.Embedding) for module in users)
    return False if tied else None


def _rule_of(module: nn.Module) -> Any:
    """Return the rule that treats a module, None if there is none."""
    kind = type(module)
    if "forward" in module.__dict__:
        return None  # somebody else's
    for known, rule in _RULES:
        if isinstance(module, known) and kind.forward is known.forward:
            return rule
    if is_conv1d(kind):
        return LinearRule
    if is_rms_norm(kind):
        return ScaleRule
    return None


__all__ = ["RecordingLayers", "Unsupported"]
