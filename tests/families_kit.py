"""Every kind of task with every model that can do it, small, on made-up records that can be learnt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from privet.common.models.tokens import TOKENIZER
from privet.common.plan import Plan

WORDS = "one two three four five six seven eight nine ten".split()
SPANISH = "uno dos tres cuatro cinco seis siete ocho nueve diez".split()
SMALL = {"width": 16, "heads": 2, "layers": 1}
TEXTS = ("causal-text", "masked-text", "text-to-text", "text")

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    # name: task, model
    "dense": ("tabular", {"kind": "dense", "options": {"width": 8}}),
    "linear": ("tabular", {"kind": "linear"}),
    "ft-transformer": ("tabular", {"kind": "ft-transformer", "options": SMALL}),
    "vit": ("image", {"kind": "vit", "options": {**SMALL, "patch": 2}}),
    "resnet": ("image", {"kind": "resnet", "options": {"width": 4, "stages": 2}}),
    "text-encoder": ("text", {"kind": "text-encoder", "options": SMALL}),
    "decoder": ("causal-text", {"kind": "decoder", "options": SMALL}),
    "gaps": ("masked-text", {"kind": "text-encoder", "options": SMALL}),
    "encoder-decoder": ("text-to-text", {"kind": "encoder-decoder", "options": SMALL}),
    "t5": ("text-to-text", {"kind": "t5", "options": SMALL}),
}


def counting(number: int, count: int, seed: int) -> pd.DataFrame:
    """Return made-up records of a site: numbers that count upwards, in words, pixels and cells."""
    chance = np.random.default_rng([seed, number])
    first = chance.integers(0, len(WORDS), count)
    texts, spanish = [], []
    for start in first:
        steps = [(start + k) % len(WORDS) for k in range(4)]
        texts.append(" ".join(WORDS[k] for k in steps))
        spanish.append(" ".join(SPANISH[k] for k in steps))
    table = pd.DataFrame({"text": texts, "spanish": spanish, "low": (first < 5).astype(int)})
    for pixel in range(16):
        table[f"pixel_{pixel}"] = (first >= 5) * 8 + chance.normal(size=count).round(2)
    table["x1"], table["x2"] = first - 5 + chance.normal(size=count).round(2), 0.0
    return table


def task_of(kind: str) -> dict[str, Any]:
    """Return a task over the columns of :func:`counting`."""
    classes = {"label": "low", "classes": ["0", "1"]}
    if kind == "tabular":
        features = {name: {"low": -5, "high": 5} for name in ("x1", "x2")}
        return {"kind": kind, **classes, "numeric": features}
    if kind == "image":
        image = {"height": 4, "width": 4, "low": -4, "high": 12}
        return {"kind": kind, **classes, "image": image}
    if kind == "text":
        return {"kind": kind, **classes, "max_tokens": 16}
    return {"kind": kind, "max_tokens": 16, **({"target": "spanish"} if "to" in kind else {})}


def family_plan(name: str, folder: Path, records: int = 60, **changes: Any) -> Plan:
    """Write the records of two sites; return a plan for them.

    Args:
        name: of :data:`FAMILIES`, or ``(task, model)``.
        folder: for the files.
        records: of each site.
        changes: of the plan's sections.
    """
    kind, model = FAMILIES[name]
    return plan_for(kind, model, folder, records, **changes)


def plan_for(
    kind: str, model: dict[str, Any], folder: Path, records: int = 60, **changes: Any
) -> Plan:
    """The same for any task and model."""
    for number in (1, 2):
        counting(number, records, 0).to_csv(folder / f"site-{number}.csv", index=False)
    value: dict[str, Any] = {
        "name": "family",
        "threads": 1,
        "task": task_of(kind),
        "model": model,
        "training": {"rounds": 1, "steps": 2, "sample_rate": 0.5, "micro_batch": 16},
        "privacy": {"epsilon": 8, "delta": 1e-3},
        "sites": [
            {"name": f"Site {n}", "nominal_size": 40, "path": str(folder / f"site-{n}.csv")}
            for n in (1, 2)
        ],
    }
    for key, change in changes.items():
        value[key] = {**value.get(key, {}), **change} if isinstance(change, dict) else change
    return Plan.parse(value, where="family")


def tokenizer_folder(folder: Path, save: Callable[[Path], None], **names: str) -> Path:
    """Write a model's folder as transformers does, with Privet's own tokenizer."""
    from transformers import PreTrainedTokenizerFast

    save(folder)
    PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER), **names).save_pretrained(folder)
    return folder
