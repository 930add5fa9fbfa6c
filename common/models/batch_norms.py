"""Put what treats each record by itself in the place of batch norms.

A batch norm that trains computes with the mean of a batch, so that each record's gradient depends
on the others (H6). Group norms compute with the record alone (Wu and He 2018) and must be learnt;
frozen batch norms keep the statistics of public training, and need such.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from privet.common.errors import PlanError

_GROUPS = 32
"""Groups of a norm, at most, as Wu and He have them."""
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class FrozenBatchNorm(nn.BatchNorm1d):
    """A batch norm, of any number of dimensions, that uses the statistics it has, and keeps them.

    Its scale and shift are trained like other parameters.
    """

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        """Stay in evaluation mode."""
        return super().train(False)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions, as the computation does."""


def replaced(model: nn.Module, how: str) -> nn.Module:
    """Return a model without batch norms that train; it is changed.

    Args:
        model: with such, else the key would say what is not so.
        how: ``group`` or ``frozen``, as a plan says it.

    Raises:
        PlanError: if there is none, or one has no statistics to keep.
    """
    found = [
        (parent, name, part)
        for parent in model.modules()
        for name, part in parent.named_children()
        if isinstance(part, _BATCH_NORMS)
    ]
    if isinstance(model, _BATCH_NORMS) or not found:
        raise PlanError("model.batch_norm: the model has no batch norm; leave the key out")
    for parent, name, norm in found:
        setattr(parent, name, _group(norm) if how == "group" else _frozen(norm, name))
    return model


def _group(norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> nn.GroupNorm:
    groups = math.gcd(norm.num_features, _GROUPS)
    made = nn.GroupNorm(groups, norm.num_features, norm.eps, affine=norm.affine)
    _copy(norm, made)
    return made


def _frozen(norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, name: str) -> FrozenBatchNorm:
    if not norm.track_running_stats:
        raise PlanError(
            f"model.batch_norm: '{name}' keeps no statistics that could be frozen; use 'group'"
        )
    made = FrozenBatchNorm(norm.num_features, norm.eps, affine=norm.affine)
    made.load_state_dict(norm.state_dict())
    _copy(norm, made)
    return made.train()


def _copy(norm: nn.Module, made: nn.Module) -> None:
    """Give the new norm scale and shift of the old one, trained or not as there."""
    for key, parameter in norm.named_parameters(recurse=False):
        setattr(made, key, parameter)
