"""A model whose layers record per-unit gradients while a pass runs, and are as before afterwards.

A parameter that no rule knows is handed out as one copy a record, if its first dimension is 1
(class tokens, position tables). Whether all this is right for a model is tested, not
assumed: the start-up test compares with single records (H16).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from privet.privacy.mechanism.clipping.embedding_rules import (
    EmbeddingRule,
    ExpandedParameterRule,
    RelativePositionBias,
)
from privet.privacy.mechanism.clipping.linear_rules import ConvolutionRule, LinearRule
from privet.privacy.mechanism.clipping.norm_rules import LayerNormRule, ScaleRule
from privet.privacy.mechanism.clipping.parameter_gradients import ParameterGradients
from privet.privacy.mechanism.clipping.per_unit_gradients import PerUnitGradients
from privet.privacy.mechanism.clipping.rules import Forward, Unsupported

_RMS_NORMS = (
    "LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "T5LayerNorm", "MT5LayerNorm",
)  # fmt: skip
"""Root-mean-square norms of transformers that scale by their weight as it is."""
_RULES: tuple[tuple[type[nn.Module], Any], ...] = (
    (nn.Linear, LinearRule),
    (nn.Embedding, EmbeddingRule),
    (nn.LayerNorm, LayerNormRule),
    (nn.RMSNorm, ScaleRule),
    (nn.GroupNorm, ScaleRule),
    (nn.Conv1d, ConvolutionRule),
    (nn.Conv2d, ConvolutionRule),
)
Owners = list[tuple[nn.Module, dict[str, Tensor]]]


class RecordingLayers:
    """Every layer of a model that has trained parameters, each with its rule.

    Args:
        model: as it will train.
        instantiate: instantiate every per-unit gradient.

    Attributes:
        per_unit: the per-unit gradients of the last pass.

    Raises:
        Unsupported: naming what is not known.
    """

    def __init__(self, model: nn.Module, *, instantiate: bool = False) -> None:
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        owners = _owners(model, named)
        gradients = {
            id(parameter): ParameterGradients(
                name, parameter, instantiate=instantiate or _by_cost(parameter, owners)
            )
            for name, parameter in named.items()
        }
        self.per_unit = PerUnitGradients(list(gradients.values()))
        self._forwards: list[tuple[nn.Module, str, Forward]] = []
        self._expanded: list[tuple[nn.Module, ExpandedParameterRule]] = []
        ruled = {id(p) for module, held in owners if _rule_of(module) for p in held.values()}
        tables: dict[int, EmbeddingRule] = {}
        for module, held in owners:
            make = _rule_of(module)
            if make is None:
                # What a known layer has too (BERT's head for gaps shares a bias) is read there; if
                # it is used here as well, its gradient outside the layer is noticed.
                others = {n: gradients[id(p)] for n, p in held.items() if id(p) not in ruled}
                rules = [ExpandedParameterRule(n, o, self.per_unit) for n, o in others.items()]
                self._expanded += [(module, rule) for rule in rules]
                continue
            own = {name: gradients[id(parameter)] for name, parameter in held.items()}
            rule = make(module, self.per_unit, own)
            self._forwards.append((module, "forward", rule))
            if isinstance(rule, EmbeddingRule):
                tables[id(module)] = rule
        for module in model.modules():
            table = tables.get(id(getattr(module, "relative_attention_bias", None)))
            if table is not None and hasattr(type(module), "compute_bias"):
                bias = RelativePositionBias(module, table)
                self._forwards.append((module, "compute_bias", bias))

    @contextmanager
    def recording(self, records: int, counts: Tensor | None) -> Iterator[None]:
        """Let one pass record into :attr:`per_unit`.

        Args:
            records: B.
            counts: [U] records of each unit; None for one each.
        """
        self.per_unit.begin_pass(records, counts)
        kept = [(module, rule.name) for module, rule in self._expanded]
        before = [module._parameters[name] for module, name in kept]
        for module, name, _ in self._forwards:
            if name in module.__dict__:
                raise Unsupported(f"somebody replaced '{name}' of a {type(module).__name__}")
        try:
            for module, name, forward in self._forwards:
                module.__dict__[name] = forward
            for module, rule in self._expanded:
                module._parameters[rule.name] = rule.copies()  # type: ignore[assignment]
            yield
        finally:
            self.per_unit.recording = False
            for module, name, _ in self._forwards:
                module.__dict__.pop(name, None)
            for (module, name), parameter in zip(kept, before, strict=True):
                module._parameters[name] = parameter

    def forget(self) -> None:
        """Let go of what the last pass recorded, but for the kept memory."""
        for one in self.per_unit.parameters:
            one.begin_pass()


def _owners(model: nn.Module, named: dict[str, nn.Parameter]) -> Owners:
    """Return the modules that hold trained parameters, each with those by its own names."""
    trained = {id(parameter) for parameter in named.values()}
    found: Owners = []
    for module in model.modules():
        mine = module._parameters.items()
        held: dict[str, Tensor] = {n: p for n, p in mine if p is not None and id(p) in trained}
        if held:
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
    if kind.__module__ == "transformers.pytorch_utils" and kind.__name__ == "Conv1D":
        return LinearRule
    if kind.__module__.startswith("transformers.") and kind.__name__ in _RMS_NORMS:
        return ScaleRule
    return None


__all__ = ["RecordingLayers", "Unsupported"]
