"""A trained model as a folder that others can load: transformers, ONNX, and a card.

::

    OUT/  README.md            the card: what it is, what protects whose data
          model.safetensors    all weights, LoRA merged into its layers
          config.json          of transformers; Privet's own architectures carry their plan
          tokenizer.json       where it reads texts
          model.onnx           if asked for, compared with the network
"""

from __future__ import annotations

import functools
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from privet.common.canonical import write_atomic, write_json
from privet.common.errors import InputError, RunError
from privet.common.models.text import joined, tokens_for
from privet.common.plan import Plan
from privet.common.sections.task_base import TokenTask
from privet.common.tasks.measure import measure_of
from privet.delivery import optimise

if TYPE_CHECKING:
    import pandas as pd

    from privet.delivery.trained import Trained

MAX_RELATIVE_DIFFERENCE = 1e-4
"""Most that ONNX's outputs may differ from the network's, relative to the largest."""


Figures = dict[str, dict[str, Any]]
"""By variant (``whole``, ``pruned``, ``int8``): metrics, bytes, and bytes when packed."""


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


def export(
    trained: Trained, out: Path, card: str | Callable[[Figures], str], form: Form | None = None
) -> dict[str, Any]:
    """Write the folder.

    Args:
        trained: the model; it is changed if it is pruned.
        out: new or empty.
        card: Markdown, written as ``README.md``; or makes it from the metrics of smaller variants.
        form: what is written; default the network alone.

    Returns:
        ``out``, ``files``, ``lighter`` and, with ONNX, ``onnx_off``, the largest difference.

    Raises:
        InputError: if ``out`` is not empty, or the model cannot be exported.
        DataError: if the records do not say what is right.
        RunError: if ONNX's outputs differ.
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
        off, variants = _write(trained, part, card, form)
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
    if form.onnx:
        value["onnx_off"] = off
    return value


def _write(
    trained: Trained, out: Path, card: str | Callable[[Figures], str], form: Form
) -> tuple[float | None, Figures]:
    network = merged(trained.network)
    measured = _Measured(trained, form.records)
    if form.prune or form.int8:
        measured.network("whole", network)
    facts = dict(trained.facts)
    if form.prune:
        optimise.pruned(network, form.prune)
        measured.network("pruned", network)
        facts["pruned"] = f"{form.prune:g} of the weights of linear and convolution layers are zero"
    inner: Any = getattr(network, "inner", None)
    if inner is not None:
        if names := dict(enumerate(trained.plan.task.labels)):
            inner.config.id2label = names
            inner.config.label2id = {name: number for number, name in names.items()}
        from transformers.utils import logging as hf_logging

        hf_logging.disable_progress_bar()
        inner.save_pretrained(out)
    else:
        _own_architecture(trained, network, out, facts)
    _tokenizer(trained, out)
    write_json(out / "plan.json", trained.plan.to_dict())
    off = _onnx(trained, network, out / "model.onnx") if form.onnx else None
    if form.int8:
        prefix = "pruned, " if form.prune else ""
        measured.onnx(f"{prefix}ONNX", out / "model.onnx")
        optimise.quantised(out / "model.onnx", out / "model.int8.onnx")
        measured.onnx(f"{prefix}int8", out / "model.int8.onnx")
    text = card if isinstance(card, str) else card(measured.found)
    write_atomic(out / "README.md", text.encode())
    return off, measured.found


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
            whole = functools.partial(_full, self._trained)
            network = optimise.OnnxNetwork(path, _inputs(self._trained), whole)
            scores = self._trained.scores(self._batch, network)
        self._note(variant, scores, path.read_bytes())

    def _note(self, variant: str, scores: np.ndarray | None, file: bytes) -> None:
        figures: dict[str, Any] = {}
        if scores is not None and self._batch is not None:
            labels = self._batch.get("label", torch.zeros(len(scores), dtype=torch.int64)).numpy()
            figures = dict(measure_of(self._trained.task).figures(scores, labels))
        self.found[variant] = {**figures, **optimise.bytes_of(file)}


def merged(network: nn.Module) -> nn.Module:
    """Return a network whose LoRA layers are joined with those they change."""
    for name, module in list(network.named_children()):
        merge: Any = getattr(module, "merge_and_unload", None)
        if merge is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
                setattr(network, name, merge())
    return network


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


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors by name; a table that is also a head is there once."""
    seen: dict[int, str] = {}
    return {
        name: tensor.detach().contiguous()
        for name, tensor in network.state_dict(keep_vars=True).items()
        if seen.setdefault(id(tensor), name) == name
    }


def _own_architecture(
    trained: Trained, network: nn.Module, out: Path, facts: dict[str, str]
) -> None:
    save_file(tensors_of(network), out / "model.safetensors", metadata={"format": "pt", **facts})
    write_json(
        out / "config.json",
        {
            "model_type": "privet",
            "architectures": [type(network).__name__],
            "id2label": {str(k): name for k, name in enumerate(trained.plan.task.labels)},
            "plan": trained.plan.to_dict(),
        },
    )


def _tokenizer(trained: Trained, out: Path) -> None:
    """Write the tokenizer as transformers reads it.

    With that of Privet's own models texts become the numbers that were trained on, but for a text
    that is cut, or spells a special sign: what ends a text is a rule of the file here, where
    Privet's tasks put it there themselves. The files of a model of transformers are as they were.
    """
    task = trained.plan.task
    if not isinstance(task, TokenTask) or not task.texts:
        return
    tokens = tokens_for(trained.plan.model, task.max_tokens)
    if trained.plan.model.kind == "huggingface":
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (path := tokens.path.parent / name).is_file():
                shutil.copyfile(path, out / name)
        return
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(tokens.path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": task.max_tokens,
        "pad_token": tokenizer.id_to_token(tokens.padding),
    }
    if task.kind in ("causal-text", "text-to-text") and tokens.end is not None:
        end = settings["eos_token"] = tokenizer.id_to_token(tokens.end)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, tokens.end)]
        )
    if task.kind == "masked-text":
        settings["mask_token"] = tokenizer.id_to_token(tokens.mask)
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "tokenizer_config.json", settings)


def reload(folder: Path) -> nn.Module:
    """Return the network of a folder of Privet's own architecture, in evaluation mode.

    Raises:
        InputError: if it is not one.
    """
    from privet.common.models import build_model

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        plan = Plan.parse(config["plan"], where=str(folder / "config.json"))
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: not a folder that `privet model export` wrote") from error
    network = merged(joined(build_model(plan.changed(device="cpu", model={"start": None}))))
    missing, unknown = network.load_state_dict(tensors, strict=False)
    tied = {name for name in missing if _is_tied(network, name, set(tensors))}
    if unknown or set(missing) - tied:
        odd = sorted({*unknown, *missing} - tied)[0]
        raise InputError(f"{folder}: '{odd}' does not fit the plan's model")
    return network.eval()


def _is_tied(network: nn.Module, name: str, known: set[str]) -> bool:
    state = network.state_dict(keep_vars=True)
    return any(other in known and state[other] is state[name] for other in state)


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


def _onnx(trained: Trained, network: nn.Module, path: Path) -> float:
    import onnxruntime

    names = _inputs(trained)

    def made_up(count: int) -> tuple[Tensor, ...]:
        """Return records that say something: of an empty text each runtime makes what it likes."""
        batch = trained.task.random_batch(8 * count, count)
        parts = [_full(trained, batch[name]) for name in names]
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


def _inputs(trained: Trained) -> list[str]:
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


def _full(trained: Trained, tensor: Tensor) -> Tensor:
    """Return token numbers at the plan's full length."""
    task = trained.plan.task
    if tensor.dtype != torch.int64 or not isinstance(task, TokenTask):
        return tensor
    tokens = tokens_for(trained.plan.model, task.max_tokens)
    room = tokens.max_tokens - tensor.shape[1]
    return nn.functional.pad(tensor, (0, room), value=tokens.padding)
