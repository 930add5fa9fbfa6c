"""A model whose layers write a book while a pass runs, and that is as it was afterwards.

A parameter that no rule knows is handed out as one copy a record, if its first dimension is 1
(class tokens, position tables). Whether all this is right for a model is tested, not
assumed: the start-up test compares with single records (H16).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from privet.common.compat.torch import parameters_of
from privet.common.compat.transformers import BIAS, is_conv1d, is_rms_norm, position_table
from privet.privacy.mechanism.clipping.per_unit_gradients import (
    ParameterGradients,
    PerUnitGradients,
)
from privet.privacy.mechanism.clipping.rules import (
    ConvolutionRule,
    CopiesRule,
    Forward,
    LayerNormRule,
    LinearRule,
    LookupRule,
    PositionBias,
    ScaleRule,
    Unsupported,
)

_KNOWN: tuple[tuple[type[nn.Module], Any], ...] = (
    (nn.Linear, LinearRule),
    (nn.Embedding, LookupRule),
    (nn.LayerNorm, LayerNormRule),
    (nn.RMSNorm, ScaleRule),
    (nn.GroupNorm, ScaleRule),
    (nn.Conv1d, ConvolutionRule),
    (nn.Conv2d, ConvolutionRule),
)


class Layers:
    """Every layer of a model that has trained parameters, each with its rule.

    Args:
        model: as it will train.
        dense: instantiate every gradient.

    Raises:
        Unsupported: naming what is not known.
    """

    def __init__(self, model: nn.Module, *, dense: bool = False) -> None:
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        owners = _owners(model, named)
        pages = {
            id(parameter): ParameterGradients(
                name, parameter, dense=_is_dense(parameter, owners, dense)
            )
            for name, parameter in named.items()
        }
        self.book = PerUnitGradients(list(pages.values()))
        self._forwards: list[tuple[nn.Module, str, Forward]] = []
        self._copies: list[tuple[nn.Module, CopiesRule]] = []
        tables: dict[int, LookupRule] = {}
        ruled = {id(p) for module, held in owners if _rule_of(module) for p in held.values()}
        for module, owned in owners:
            mine = {name: pages[id(parameter)] for name, parameter in owned.items()}
            make = _rule_of(module)
            if make is None:
                # What a known layer has too (BERT's head for gaps shares a bias) is read there; if
                # it is used here as well, its gradient outside the layer is noticed.
                others = {n: page for n, page in mine.items() if id(page.parameter) not in ruled}
                self._copies += [(module, CopiesRule(n, p, self.book)) for n, p in others.items()]
                continue
            rule = make(module, self.book, mine)
            self._forwards.append((module, "forward", rule))
            if isinstance(rule, LookupRule):
                tables[id(module)] = rule
        for module in model.modules():
            if (table := tables.get(id(position_table(module)))) is not None:
                self._forwards.append((module, BIAS, PositionBias(module, table)))

    @contextmanager
    def watching(self, records: int, counts: Tensor | None) -> Iterator[None]:
        """Let one pass over ``records`` records write the book."""
        self.book.begin(records, counts)
        kept = [(module, rule.name) for module, rule in self._copies]
        before = [parameters_of(module)[name] for module, name in kept]
        for module, name, _ in self._forwards:
            if name in module.__dict__:
                raise Unsupported(f"somebody replaced '{name}' of a {type(module).__name__}")
        try:
            for module, name, forward in self._forwards:
                module.__dict__[name] = forward
            for module, rule in self._copies:
                parameters_of(module)[rule.name] = rule.copies()
            yield
        finally:
            self.book.listens = False
            for module, name, _ in self._forwards:
                module.__dict__.pop(name, None)
            for (module, name), parameter in zip(kept, before, strict=True):
                parameters_of(module)[name] = parameter

    def forget(self) -> None:
        """Let go of what the last pass left, but for the kept memory."""
        for page in self.book.pages:
            page.begin()


Owners = list[tuple[nn.Module, dict[str, Tensor]]]


def _owners(model: nn.Module, named: dict[str, nn.Parameter]) -> Owners:
    """Return the modules that hold trained parameters, each with those by its own names."""
    trained = {id(parameter) for parameter in named.values()}
    found: Owners = []
    for module in model.modules():
        mine = parameters_of(module).items()
        held: dict[str, Tensor] = {n: p for n, p in mine if p is not None and id(p) in trained}
        if held:
            found.append((module, held))
    return found


def _is_dense(parameter: Tensor, owners: Owners, dense: bool) -> bool | None:
    """Return whether to instantiate; None leaves it to the cost.

    A table that is also a linear map's weight is too large to be instantiated by unit.
    """
    users = [module for module, held in owners if any(p is parameter for p in held.values())]
    tied = len(users) > 1 and any(isinstance(module, nn.Embedding) for module in users)
    return True if dense else (False if tied else None)


def _rule_of(module: nn.Module) -> Any:
    """Return the rule that treats a module, None if there is none."""
    kind = type(module)
    if "forward" in module.__dict__:
        return None  # somebody else's
    for known, rule in _KNOWN:
        if isinstance(module, known) and kind.forward is known.forward:
            return rule
    if is_conv1d(kind):
        return LinearRule
    if is_rms_norm(kind):
        return ScaleRule
    return None


__all__ = ["Layers", "Unsupported"]
