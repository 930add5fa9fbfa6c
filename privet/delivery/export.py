"""A trained model as a folder that others can load: transformers, ONNX, and a card.

::

    OUT/  README.md            the card: what it is, what protects whose data
          model.safetensors    all weights, adapters merged into their layers
          adapter/             an adapter of peft that cannot be merged
          config.json          of transformers; Privet's own architectures carry their plan
          tokenizer.json       where it reads texts
          model.onnx           if asked for, compared with the network
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from privet.common.canonical import write_atomic, write_json
from privet.common.errors import InputError
from privet.common.models.huggingface.folder import folder_of
from privet.common.sections.model import HuggingFaceSpec
from privet.common.tasks.measure import measure_of
from privet.delivery import optimise
from privet.delivery.folder_check import FolderCheck, check_folder
from privet.delivery.folder_model import merged, tensors_of, write_own, write_transformers
from privet.delivery.folder_model import reload as reload
from privet.delivery.folder_tokenizer import write_tokenizer
from privet.delivery.onnx_file import full_length, inputs_of, write_onnx
from privet.delivery.probe import Probe, probe

if TYPE_CHECKING:
    import pandas as pd

    from privet.delivery.trained import Trained

Figures = dict[str, dict[str, Any]]
"""By variant (``whole``, ``pruned``, ``int8``): metrics, bytes, and bytes when packed."""
Card = str | Callable[[Figures, FolderCheck], str]
"""Markdown, or what makes it of the smaller variants' metrics and of the opened folder."""


@dataclass(frozen=True)
class Form:
    """What is written.

    Attributes:
        onnx: ``model.onnx`` too, compared with the network.
        prune: share of the weights that are set to zero first.
        int8: ``model.int8.onnx`` too; needs ``onnx``.
        records: what the smaller variants are measured on, like the whole model.
    """

    onnx: bool = False
    prune: float = 0.0
    int8: bool = False
    records: pd.DataFrame | None = None


def export(trained: Trained, out: Path, card: Card, form: Form | None = None) -> dict[str, Any]:
    """Write the folder.

    Args:
        trained: the model; it is changed if it is pruned.
        out: new or empty.
        card: Markdown, written as ``README.md``; or makes it from the metrics of smaller variants
            and from what was found when the folder was opened again.
        form: what is written; default the network alone.

    Returns:
        ``out``, ``files``, ``lighter``, ``folder_off``, the largest difference of the folder's
        outputs from the network's, and with ONNX ``onnx_off``, the same of the file.

    Raises:
        InputError: if ``out`` is not empty, or the model cannot be exported.
        DataError: if the records do not say what is right.
        RunError: if the folder or ONNX answers otherwise than the network; then nothing is left.
    """
    form = form or Form()
    if form.int8 and not form.onnx:
        raise InputError("8-bit integers are for ONNX: add --onnx")
    optimise.require_share(form.prune)
    if form.records is not None:
        trained.require_answers(form.records)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; name another --out")
    # Beside it, and moved when it is whole.
    out = out.resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=out.parent, prefix=".export-"))
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error
    try:
        off, checked, variants = _write(trained, part, card, form)
        part.chmod(0o755)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    files = sorted(path.name for path in out.iterdir())
    value: dict[str, Any] = {"out": str(out), "files": files, "lighter": variants}
    value["folder_off"] = checked.off
    if form.onnx:
        value["onnx_off"] = off
    return value


def _write(
    trained: Trained, out: Path, card: Card, form: Form
) -> tuple[float | None, FolderCheck, Figures]:
    network = trained.network
    asked = None if form.prune else probe(trained, network)
    network = merged(network)
    measured = _Measured(trained, form.records)
    if form.prune or form.int8:
        measured.network("whole", network)
    facts = dict(trained.facts)
    if form.prune:
        optimise.pruned(network, form.prune)
        measured.network("pruned", network)
        facts["pruned"] = f"{form.prune:g} of the weights of linear and convolution layers are zero"
    # What is compared is what is delivered: a pruned model answers as it does since.
    asked = asked or probe(trained, network)
    checked = _write_folder(trained, network, out, facts, asked)
    off = write_onnx(trained, network, out / "model.onnx") if form.onnx else None
    if form.int8:
        prefix = "pruned, " if form.prune else ""
        measured.onnx(f"{prefix}ONNX", out / "model.onnx")
        optimise.quantised(out / "model.onnx", out / "model.int8.onnx")
        measured.onnx(f"{prefix}int8", out / "model.int8.onnx")
    text = card if isinstance(card, str) else card(measured.found, checked)
    write_atomic(out / "README.md", text.encode())
    return off, checked, measured.found


def _write_folder(
    trained: Trained, network: nn.Module, out: Path, facts: dict[str, str], asked: Probe
) -> FolderCheck:
    """Write the network with its tokenizer and plan, and open it again."""
    inner: Any = getattr(network, "inner", None)
    task, model = trained.plan.task, trained.plan.model
    source = None
    if isinstance(model, HuggingFaceSpec):
        source = folder_of(model.options)
    if inner is not None:
        write_transformers(inner, out, task.labels, source)
    else:
        write_own(trained, network, out, facts)
    write_tokenizer(trained, out, asked)
    write_json(out / "plan.json", trained.plan.to_dict())
    return check_folder(trained, network, out, asked)


class _Measured:
    """Metrics of each variant on the same records."""

    def __init__(self, trained: Trained, records: pd.DataFrame | None) -> None:
        self._trained = trained
        self._batch = None if records is None else trained.encode(records)
        self.found: Figures = {}

    def network(self, variant: str, network: nn.Module) -> None:
        """Measure the network as it is now."""
        scores = None if self._batch is None else self._trained.scores(self._batch)
        self._note(variant, scores, save(tensors_of(network)))

    def onnx(self, variant: str, path: Path) -> None:
        """Measure an ONNX file."""
        scores = None
        if self._batch is not None:
            whole = functools.partial(full_length, self._trained)
            network = optimise.OnnxNetwork(path, inputs_of(self._trained), whole)
            scores = self._trained.scores(self._batch, network)
        self._note(variant, scores, path.read_bytes())

    def _note(self, variant: str, scores: np.ndarray | None, file: bytes) -> None:
        figures: dict[str, Any] = {}
        if scores is not None and self._batch is not None:
            labels = self._batch.get("label", torch.zeros(len(scores), dtype=torch.int64)).numpy()
            figures = dict(measure_of(self._trained.task).figures(scores, labels))
        self.found[variant] = {**figures, **optimise.bytes_of(file)}
