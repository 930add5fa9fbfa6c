"""Open an exported folder again, and compare its answers with those of the run's network.

The folder is opened by plain transformers, or by Privet for its own architectures. It reads
generated texts of many lengths, each alone and all as one padded batch.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from privet.common.errors import RunError
from privet.delivery.folder_model import ADAPTER, in_float32, is_adapter, reload
from privet.delivery.folder_tokenizer import agreeing_tokenizer, read
from privet.delivery.probe import Probe, outputs_of

if TYPE_CHECKING:
    from privet.delivery.trained import Trained

MAX_RELATIVE_DIFFERENCE = 1e-4
"""Most that a folder's outputs may differ from the network's, relative to the largest."""
AUTO = {
    "text": "AutoModelForSequenceClassification",
    "causal-text": "AutoModelForCausalLM",
    "masked-text": "AutoModelForMaskedLM",
    "text-to-text": "AutoModelForSeq2SeqLM",
}
"""The classes of transformers that open a folder, by task."""


@dataclass(frozen=True)
class FolderCheck:
    """What was found when a folder was opened again.

    Attributes:
        off: largest difference of an output, relative to the largest output.
        notes: for the card, in sentences.
        opening: lines of Python that open the folder; empty for Privet's own architectures.
    """

    off: float
    notes: tuple[str, ...]
    opening: tuple[str, ...] = ()


def check_folder(trained: Trained, network: nn.Module, folder: Path, probe: Probe) -> FolderCheck:
    """Compare a folder with the run's network.

    Args:
        trained: the model.
        network: as it was written; its ``inner`` says which class opens the folder.
        folder: that was written.
        probe: what the network answered.

    Raises:
        RunError: if the folder cannot be opened, reads other numbers, or answers otherwise.
    """
    inner = getattr(network, "inner", None)
    opened, opening = _open(trained, inner, folder)
    notes: list[str] = []
    with torch.no_grad(), in_float32(opened):
        if probe.is_batch:
            _, name, note = agreeing_tokenizer(folder, probe)
            notes += [note] if note else []
            opening = (*opening, f'tokenizer = transformers.{name}.from_pretrained("OUT")')
        if probe.tokens is None or probe.is_batch:
            off = _relative(_through(trained, network, opened), probe.outputs)
            how = "on generated batches of the task, not from files or texts"
        else:
            tokenizer, name, note = agreeing_tokenizer(folder, probe)
            notes += [note] if note else []
            if inner is not None:
                opening = (*opening, f'tokenizer = transformers.{name}.from_pretrained("OUT")')
            if is_adapter(inner):  # peft counts positions behind its prompt by itself
                tokenizer.padding_side = "right"
            reader = _Reader(trained.plan.task.kind, opened, tokenizer, inner is not None)
            off, how = reader.compare(probe)
    if not off <= MAX_RELATIVE_DIFFERENCE:
        raise RunError(
            f"the exported folder answers otherwise than the run's network: its outputs differ by "
            f"{off:.2g} of the largest, more than {MAX_RELATIVE_DIFFERENCE:g}. Nothing was written"
        )
    by = "transformers" if inner is not None else "Privet"
    said = f"The folder was opened again with {by}, and compared with the run's network {how}"
    notes.insert(0, f"{said}: the outputs differ by {off:.1e} of the largest.")
    if kinds := getattr(trained.plan.task, "clean", ()):
        notes.append(f"The run removed {', '.join(kinds)} from texts; who uses it must, too.")
    if probe.chat:
        notes.append(
            "Ask it with tokenizer.apply_chat_template(messages, add_generation_prompt=True), and "
            "with sanitize_control_tokens=True where messages are not your own: the run read "
            "special tokens that a record spells as text."
        )
    return FolderCheck(off, tuple(notes), opening)


def _through(trained: Trained, network: nn.Module, opened: nn.Module) -> list[Tensor]:
    """Return the outputs of an opened model, in the place of the one that was written."""
    if not hasattr(network, "inner"):
        return outputs_of(trained, opened)
    kept = network.inner
    network.inner = opened
    try:
        return outputs_of(trained, network)
    finally:
        network.inner = kept


def _open(trained: Trained, inner: Any, folder: Path) -> tuple[nn.Module, tuple[str, ...]]:
    if inner is None:
        return reload(folder), ()
    import transformers

    base = inner.get_base_model() if is_adapter(inner) else inner
    name = AUTO.get(trained.plan.task.kind, type(base).__name__)
    lines = ["import transformers", f'model = transformers.{name}.from_pretrained("OUT")']
    if is_adapter(inner):
        lines = [
            "import peft, transformers",
            f'base = transformers.{name}.from_pretrained("OUT")',
            f'model = peft.PeftModel.from_pretrained(base, "OUT/{ADAPTER}")',
        ]
    try:
        opened: Any = getattr(transformers, name).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        if is_adapter(inner):
            import peft

            opened = peft.PeftModel.from_pretrained(opened, str(folder / ADAPTER))
    except Exception as error:  # they raise whatever their parts raise
        reason = str(error).strip().partition("\n")[0]
        raise RunError(f"{name} cannot open the exported folder: {reason}") from error
    return opened.eval(), tuple(lines)


@dataclass(frozen=True)
class _Reader:
    """An opened folder that reads texts.

    Attributes:
        kind: of the task.
        model: as it was opened.
        tokenizer: as it was opened.
        is_theirs: whether the model is one of transformers.
    """

    kind: str
    model: Any
    tokenizer: Any
    is_theirs: bool

    def compare(self, probe: Probe) -> tuple[float, str]:
        """Return the largest relative difference, and how it was compared, in words."""
        every = range(len(probe.rows))
        alone = "max_length" if probe.is_fixed else False
        singly = [output for k in every for output in self._outputs(probe, [k], padding=alone)]
        off = _relative(singly, probe.outputs)
        longest = max(map(len, probe.rows))
        note = f"on {len(probe.rows)} generated texts of 1 to {longest} tokens, each alone"
        if self.tokenizer.pad_token_id is None:
            return off, note + (
                "; not as a padded batch, because neither the tokenizer nor the model's "
                "configuration names a padding token, so texts must be read one by one"
            )
        # A cut text that ends otherwise than in the run cannot be read from the text.
        chosen = [k for k in every if self._is_read_alike(probe, k)]
        if len(chosen) < 2:
            raise RunError("no batch of texts is read by the exported folder as it was by the run")
        together = self._outputs(probe, chosen, padding=alone or True)
        off = max(off, _relative(together, [probe.outputs[k] for k in chosen]))
        note += f" and as one batch padded at the {self.tokenizer.padding_side}"
        if probe.is_fixed:
            note += (
                ", always to the full length (padding='max_length'), because the answers of this "
                "architecture depend on the length of a row"
            )
        return off, note

    def _is_read_alike(self, probe: Probe, k: int) -> bool:
        found = read(probe, self.tokenizer, [probe.texts[k]])["input_ids"][0]
        wanted = probe.wanted[k]
        return bool(found[: len(wanted)] == wanted)

    def _outputs(self, probe: Probe, chosen: list[int], *, padding: bool | str) -> list[Tensor]:
        """Return the outputs of some records, at the probe's places."""
        if not self.is_theirs:
            logits = self._of_own(probe, chosen)
            starts = [0] * len(chosen)
        else:
            given = self._given(probe, chosen, padding)
            logits = self.model(**given).logits
            counted = given["labels"] if "labels" in given else given["input_ids"]
            if probe.places:  # prompt tuning also returns those of its prompt
                logits = logits[:, -counted.shape[1] :]
            there = given["attention_mask"] if "labels" not in given else torch.ones_like(counted)
            starts = there.argmax(1).tolist()
        if not probe.places:
            return list(logits)
        return [
            logits[row][[start + place for place in probe.places[k]]]
            for row, (k, start) in enumerate(zip(chosen, starts, strict=True))
        ]

    def _given(self, probe: Probe, chosen: list[int], padding: bool | str) -> dict[str, Tensor]:
        """Return what transformers reads: of texts, or of numbers where a text is cut otherwise."""
        texts = [probe.texts[k] for k in chosen]
        if len(chosen) > 1 or self._is_read_alike(probe, chosen[0]):
            given = dict(read(probe, self.tokenizer, texts, padding=padding, return_tensors="pt"))
        else:
            rows = torch.tensor([probe.rows[k] for k in chosen])
            given = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
        if probe.target_rows:
            given["labels"] = _padded([probe.target_rows[k] for k in chosen], -100)
        elif self.tokenizer.padding_side == "left" and self._takes_positions:
            # As generate() does: a position counts what is there, and no padding.
            given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return given

    @property
    def _takes_positions(self) -> bool:
        return "position_ids" in inspect.signature(self.model.forward).parameters

    def _of_own(self, probe: Probe, chosen: list[int]) -> Tensor:
        """Return the outputs of a network of Privet's."""
        padding = self.tokenizer.pad_token_id
        rows = _padded([probe.rows[k] for k in chosen], padding)
        if probe.target_rows:
            targets = _padded([probe.target_rows[k] for k in chosen], padding)
            return self.model(rows, targets)  # type: ignore[no-any-return]
        if self.kind == "masked-text":
            return self.model(rows, torch.arange(rows.shape[1]).expand_as(rows))  # type: ignore[no-any-return]
        return self.model(rows)  # type: ignore[no-any-return]


def _padded(rows: list[list[int]], padding: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [padding] * (longest - len(row)) for row in rows])


def _relative(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest difference, relative to the largest output; infinite if shapes differ."""
    if [one.shape for one in found] != [one.shape for one in wanted]:
        return math.inf
    largest = max((float(one.abs().max()) for one in wanted if one.numel()), default=0.0)
    pairs = zip(found, wanted, strict=True)
    off = max((float((a.float() - b).abs().max()) for a, b in pairs if b.numel()), default=0.0)
    return off / max(largest, 1e-12) if math.isfinite(off) else math.inf
