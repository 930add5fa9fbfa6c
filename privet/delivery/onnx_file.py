"""A network as an ONNX file, compared with the network on generated records."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from privet.common.errors import InputError, RunError
from privet.common.models.text import tokens_for
from privet.common.sections.task_base import TokenTask

if TYPE_CHECKING:
    from privet.delivery.trained import Trained

MAX_RELATIVE_DIFFERENCE = 1e-4
"""Most that ONNX's outputs may differ from the network's, relative to the largest."""


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Let a library's logger tell errors only: what it lacks for other models is no concern."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Bare(nn.Module):
    """A network with positional inputs, as ONNX wants them."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network, self._names = network, names

    def forward(self, *given: Tensor) -> Tensor:
        """Return the network's output."""
        if len(self._names) == 1 or "source" in self._names:
            return self.network(*given)  # type: ignore[no-any-return]
        return self.network(**dict(zip(self._names, given, strict=True)))  # type: ignore[no-any-return]


def write_onnx(trained: Trained, network: nn.Module, path: Path) -> float:
    """Write the file; return the largest difference of its outputs, relative to the largest.

    Args:
        trained: the model, whose task makes generated records.
        network: as it is delivered.
        path: of the file.

    Raises:
        InputError: if the model cannot be written or run as ONNX.
        RunError: if its outputs differ.
    """
    import onnxruntime

    names = inputs_of(trained)

    def made_up(count: int) -> tuple[Tensor, ...]:
        """Return records that say something: of an empty text each runtime makes what it likes."""
        batch = trained.task.random_batch(8 * count, count)
        parts = [full_length(trained, batch[name]) for name in names]
        there = torch.ones(8 * count, dtype=torch.bool)
        for name, part in zip(names, parts, strict=True):
            if name in ("tokens", "source", "target"):  # in an empty text all are padding
                there &= (part != part[:, -1:]).any(1)
        chosen = there.nonzero().flatten()[:count]
        return tuple(part[chosen] for part in parts)

    given = made_up(4)
    bare = _Bare(network, names).eval()
    records = torch.export.Dim("records", min=1, max=1 << 20)
    with warnings.catch_warnings(), _quiet("torch.onnx"), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                bare, given, input_names=names, output_names=["logits"], dynamo=True,
                dynamic_shapes=(tuple({0: records} for _ in names),),
                verbose=False,
            )  # fmt: skip
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"this model cannot be written as ONNX: {reason}") from error
        assert program is not None
        program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    off = 0.0
    for count in (1, 7):  # other numbers of records than it was written with
        given = made_up(count)
        with torch.no_grad():
            wanted = bare(*given).numpy()
        try:
            got = session.run(None, {n: t.numpy() for n, t in zip(names, given, strict=True)})[0]
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"this model cannot be run as ONNX: {reason}") from error
        most = max(float(np.abs(wanted).max()), 1e-12)
        off = max(off, float(np.abs(got - wanted).max()) / most)
    if not off <= MAX_RELATIVE_DIFFERENCE:
        raise RunError(
            f"ONNX's outputs differ from the network's by {off:.2g}, more than "
            f"{MAX_RELATIVE_DIFFERENCE}"
        )
    return off


def inputs_of(trained: Trained) -> list[str]:
    """Return the names of what the network reads, in order."""
    known = {
        "tabular": ["numeric", "missing", "categorical"],
        "image": ["pixels"],
        "text": ["tokens"],
        "causal-text": ["tokens"],
        "text-to-text": ["source", "target"],
    }
    if trained.plan.task.kind not in known:
        raise InputError(f"no ONNX for a model of task '{trained.plan.task.kind}'")
    return known[trained.plan.task.kind]


def full_length(trained: Trained, tensor: Tensor) -> Tensor:
    """Return token numbers at the plan's full length."""
    task = trained.plan.task
    if tensor.dtype != torch.int64 or not isinstance(task, TokenTask):
        return tensor
    tokens = tokens_for(trained.plan.model, task.max_tokens)
    room = tokens.max_tokens - tensor.shape[1]
    return nn.functional.pad(tensor, (0, room), value=tokens.padding)
