"""Choose which parameters of a model are trained, by patterns of their names."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from privet.common.compat.peft import plain_name
from privet.common.errors import PlanError
from privet.common.schema import did_you_mean


def choose(model: nn.Module, freeze: Iterable[str], train: Iterable[str]) -> None:
    """Freeze the parameters that match a pattern, then train those that match another.

    Args:
        model: whose parameters are frozen or trained.
        freeze: patterns of names that are not trained; ``*`` stands for any letters.
        train: patterns of names that are trained, even if ``freeze`` names them, too.

    Raises:
        PlanError: if a pattern matches no parameter.
    """
    named = {
        plain_name(name): parameter
        for name, parameter in model.named_parameters()
        if ".original_module." not in name  # what peft puts aside, and nothing computes with
    }
    for key, patterns, is_trained in (("freeze", freeze, False), ("train", train, True)):
        for pattern in patterns:
            found = [name for name in named if fnmatchcase(name, pattern)]
            if not found:
                some = ", ".join(list(named)[:3])
                meant = did_you_mean(pattern.strip("*."), named)
                raise PlanError(
                    f"model.options.{key}: no parameter matches '{pattern}'{meant}; the first are "
                    f"{some}; `privet model check PLAN --json` lists those that are trained"
                )
            for name in found:
                named[name].requires_grad_(is_trained)
