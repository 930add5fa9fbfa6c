"""Families of transformers and adapters of peft, through a plan.

    python benchmarks/hub.py --json                                all, tiny; some minutes
    python benchmarks/hub.py --quick                               a few families
    python benchmarks/hub.py --only bert                           those with this in their name
    python benchmarks/hub.py --page docs/reference/hub-models.md   and write the tables

Each family is saved as a folder with a tokenizer, named by a plan, and loaded as a site does, in
full and with LoRA, without naming a layer; each adapter on one family of each kind. The start-up
test runs, and per-sample gradients and the clipped sum of persons are compared with a loop over
single records. There is no peer: what the Hub's models cost beside Opacus is in ``models.py``.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from architectures_of_hub import hub_families, tiny
from harness import Row, finish, parser, row, tell
from models import EXACT, errors_of, in_a_process

from privet.client.training.model_runtime import ModelRuntime
from privet.common.errors import PrivetError
from privet.common.plan import Plan
from privet.common.sections.model import Adapter

WORDS, IMAGE = 120, 16
TASKS = {
    "SequenceClassification": "text", "CausalLM": "causal-text", "MaskedLM": "masked-text",
    "Seq2SeqLM": "text-to-text", "ImageClassification": "image",
}  # fmt: skip
ADAPTED = {
    "bert": "SequenceClassification", "llama": "CausalLM", "t5": "Seq2SeqLM",
    "vit": "ImageClassification",
}  # fmt: skip
"""Families on which each adapter is tried."""
_QUICK = ("bert", "distilbert", "gpt2", "llama", "t5", "vit")
_TINY: dict[str, dict[str, Any]] = {
    "c3a": {"peft": {"block_size": 4}}, "miss": {"rank": 4}, "shira": {"rank": 2},
    "psoft": {"rank": 4}, "vblora": {"peft": {"vector_length": 8, "num_vectors": 8}},
    "waveft": {"peft": {"n_frequency": 8}}, "fourierft": {"peft": {"n_frequency": 8}},
    "road": {"peft": {"group_size": 4}}, "oft": {"peft": {"oft_block_size": 4}},
    "boft": {"peft": {"boft_block_size": 4}},
    **{name: {"peft": {"num_virtual_tokens": 3}} for name in ("prompt", "prefix", "p-tuning")},
}  # fmt: skip
"""What tiny models need; the adapters' own sizes are for layers of hundreds."""
_NO_TEXT = ("prompt", "prefix", "p-tuning")


@dataclass(frozen=True)
class Trial:
    """One model and how it is tuned.

    Attributes:
        family: ``model_type`` of transformers.
        kind: as in ``AutoModelFor…``.
        tuning: of the plan.
        changes: of the family's configuration.
    """

    family: str
    kind: str
    tuning: str
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What a row is called."""
        return f"{self.family}, {self.kind}, {self.tuning}"


def trials(only: str, *, quick: bool) -> Iterator[Trial]:
    """Yield what is tried: families in full and with LoRA, then adapters."""
    for kind, family, changes in hub_families():
        if kind in TASKS and only in family and (not quick or family in _QUICK):
            for tuning in ("full", "lora"):
                yield Trial(family, kind, tuning, changes)
    for family, kind in ADAPTED.items():
        for tuning in get_args(Adapter):
            is_fit = kind != "ImageClassification" or tuning not in _NO_TEXT
            if is_fit and not quick and only in family and tuning != "lora":
                yield Trial(family, kind, tuning)


def tried(trial: Trial) -> dict[str, Any]:
    """Return what became of a trial: ``way``, errors, layers, padding; or ``why`` not."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            model: Any = tiny(trial.kind, trial.family, **trial.changes)
            if trial.kind == "Seq2SeqLM":
                model.config.decoder_start_token_id = 1
            model.save_pretrained(folder)
            _tokenizer(folder)
        except Exception as error:
            return {"way": "not built", "why": f"{type(error).__name__}: {error}"[:200]}
        return _measured(trial, folder)


def _measured(trial: Trial, folder: Path) -> dict[str, Any]:
    try:
        runtime = ModelRuntime(plan_of(trial, folder))
        passed = runtime.self_tests
        error, total = errors_of(runtime.engine, runtime.task.random_batch)
    except PrivetError as fault:
        return {"way": "refused", "why": str(fault).replace(str(folder), "FOLDER")[:400]}
    except Exception as fault:
        return {"way": "fault", "why": repr(fault)[:400]}
    network: Any = runtime.engine.model
    adapter = getattr(network.inner, "peft_config", {}).get("default")
    return {
        "way": runtime.engine.mode, "passed": passed, "error": error, "error_of_sum": total,
        "parameters": sum(p.numel() for p in runtime.engine.parameters),
        "layers": sorted(getattr(adapter, "target_modules", None) or ()),
        "padding": _padding(network),
    }  # fmt: skip


def plan_of(trial: Trial, folder: Path) -> Plan:
    """Return a plan for a folder, as a user writes it."""
    task: dict[str, Any] = {"kind": TASKS[trial.kind]}
    if trial.kind.endswith("Classification"):
        task["classes"] = ["a", "b", "c"]
    if trial.kind == "ImageClassification":
        task["image"] = {"height": IMAGE, "width": IMAGE, "channels": 3}
    else:
        task["max_tokens"] = 24
    options = {"folder": str(folder), "tuning": trial.tuning, **_TINY.get(trial.tuning, {})}
    return Plan.parse(
        {
            "name": "trial", "threads": 1, "task": task,
            "model": {"kind": "huggingface", "options": options},
            "privacy": {"epsilon": 8, "delta": 1e-3},
            "sites": [{"name": "A", "nominal_size": 100}],
        }
    )  # fmt: skip


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]
    words = special + [f"w{number}" for number in range(len(special), WORDS)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        mask_token="<mask>", unk_token="<unk>",
    ).save_pretrained(folder)  # fmt: skip


def _padding(network: Any) -> str:
    if getattr(network, "is_fixed", False):
        return "to max_tokens"
    return "left" if getattr(network, "is_left", False) else ""


def _row(trial: Trial, found: dict[str, Any]) -> Row:
    """Return the row of a trial, and print it."""
    is_exact = max(found.get("error", 1.0), found.get("error_of_sum", 1.0)) <= EXACT
    said = found.get("why") or f"{found['error']:.0e} {' '.join(found['layers'])}"
    tell(f"{trial.name:50} {found['way']:12} {said[:120]}")
    return row(
        trial.name, found.get("error", float("nan")), "", None, None, is_exact=is_exact,
        family=trial.family, kind=trial.kind, tuning=trial.tuning, **found,
    )  # fmt: skip


def main() -> None:
    """Try them, print a row each, and the counts."""
    asked = parser(__doc__)
    asked.add_argument("--only", default="", help="families whose name has this in it")
    asked.add_argument("--jobs", type=int, default=1, help="how many are tried at once")
    asked.add_argument("--page", type=Path, help="write the tables to this file")
    given = asked.parse_args()
    import transformers  # once, before the processes are forked

    del transformers
    chosen = list(trials(given.only, quick=given.quick))
    with ThreadPoolExecutor(given.jobs) as pool:
        outcomes = pool.map(lambda trial: in_a_process(lambda: tried(trial)), chosen)
        rows = [_row(trial, found) for trial, found in zip(chosen, outcomes, strict=True)]
    trained = [item for item in rows if "error" in item]
    summary = {
        "tried": len(rows),
        "trained exactly": sum(item["is_exact"] for item in trained),
        "not exact": sum(not item["is_exact"] for item in trained),
        "refused": sum(item["way"] == "refused" for item in rows),
        "faults": sum(item["way"] in ("fault", "crash") for item in rows),
        "not built by transformers": sum(item["way"] == "not built" for item in rows),
    }
    if given.page:
        given.page.write_text(page_of(rows), encoding="utf-8")
    rows += [row(name, count, "", None, None) for name, count in summary.items()]
    finish(rows, given.json, lambda item: f"{item['name']:50} {item.get('way', item['value'])}")


_WAYS = {"bookkeeping": "book-keeping", "vmap": "vmap", "one-by-one": "one by one"}
_PAGE = """# Models of the Hub

Families of transformers and adapters of peft, tiny, through a plan with `kind = "huggingface"`: the
clipping method that `auto` takes
([what the methods are](../explanation/privacy-engine.md#clipping)), and the layers that LoRA
changes where a plan names none. Each is compared with a loop over single records; the largest error
of a record's gradient is {worst:.0e} of its norm. Written by
`python benchmarks/hub.py --page docs/reference/hub-models.md`; a test compares rows with the code.
[Options](plan.md#model), and [architectures without a plan](architectures.md).

What is refused is refused before anything is spent, with the reason.

## Families

| family | class | in full | LoRA | its layers | padding |
|---|---|---|---|---|---|
"""


def page_of(rows: list[Row]) -> str:
    """Return the page, from the rows of a complete run."""
    worst = max(item["error"] for item in rows if "error" in item)
    parts = [_PAGE.format(worst=worst)]
    found = {(item["family"], item["kind"], item["tuning"]): item for item in rows}
    for (family, kind, tuning), item in found.items():
        lora = found.get((family, kind, "lora"))
        if tuning != "full" or item["way"] == "not built" or lora is None:
            continue
        layers = ", ".join(f"`{name}`" for name in lora.get("layers", ()))
        parts.append(
            f"| {family} | {kind} | {method_of(item)} | {method_of(lora)} | {layers} | "
            f"{item.get('padding', '')} |\n"
        )
    parts.append("\n## Adapters\n\n| `tuning` | " + " | ".join(ADAPTED) + " |\n")
    parts.append("|---" * (len(ADAPTED) + 1) + "|\n")
    for tuning in get_args(Adapter):
        cells = [found.get((family, kind, tuning)) for family, kind in ADAPTED.items()]
        said = " | ".join("" if item is None else method_of(item) for item in cells)
        parts.append(f"| `{tuning}` | {said} |\n")
    return "".join(parts)


def method_of(item: Row) -> str:
    """Return how a trial is clipped, in words of the page."""
    return _WAYS.get(item["way"], item["way"])


if __name__ == "__main__":
    main()
