"""Why a model said what it said: what each word, cell or pixel added to one class's score.

Texts and images by integrated gradients (Sundararajan et al. 2017), tables by sampled Shapley
values (Štrumbelj and Kononenko 2010), both from captum. An explanation of a private record is
private: it goes into a file of its own and nowhere else.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from privet.common.canonical import write_atomic
from privet.common.errors import InputError
from privet.common.sections.sequence_task import TokenClassificationTaskSpec
from privet.common.sections.task import ImageTaskSpec, TabularTaskSpec

if TYPE_CHECKING:
    import pandas as pd

    from privet.common.tasks import Batch
    from privet.delivery.trained import Trained

_STEPS = 32
_SAMPLES = 50
_MAX_PARTS = 40
"""Parts that a page shows of the whole."""


@dataclass(frozen=True)
class ExplainedPart:
    """One word, cell or pixel.

    Attributes:
        name: the word as it is read, or the column.
        value: the cell; None for a word.
        weight: what it added to the score of the explained class; negative: took away.
    """

    name: str
    value: str | None
    weight: float


@dataclass(frozen=True)
class Explanation:
    """One prediction and its parts, in the record's order.

    Attributes:
        guess: the class that was predicted, with its ``probability``.
        explained: the class whose score the parts add up to.
        parts: what made it.
        off: how far the parts are from adding up, as a share of the largest part's weight.
    """

    guess: str
    probability: float
    explained: str
    parts: tuple[ExplainedPart, ...]
    off: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "guess": self.guess,
            "probability": self.probability,
            "explained": self.explained,
            "off": self.off,
            "parts": [
                {"name": part.name, "value": part.value, "weight": part.weight}
                for part in self.parts
            ],
        }


def explain(trained: Trained, frame: pd.DataFrame, target: str | None = None) -> list[Explanation]:
    """Explain each record of a table.

    Args:
        trained: a classifier.
        frame: records; a label is not needed.
        target: the class to explain; default each record's predicted one.

    Raises:
        InputError: if the model does not classify, or has no such class.
        DataError: if the records do not fit the task.
    """
    classes = trained.plan.task.labels
    if not classes or isinstance(trained.plan.task, TokenClassificationTaskSpec):
        raise InputError(f"a model for '{trained.plan.task.kind}' has no class to explain")
    if target is not None and target not in classes:
        raise InputError(f"there is no class '{target}'; there are {', '.join(classes[:20])}")
    batch = trained.encode(frame)
    scores = trained.scores(batch)
    found = []
    for row in range(len(frame)):
        alone = {name: tensor[row : row + 1] for name, tensor in batch.items() if name != "label"}
        guess = int(scores[row].argmax())
        wanted = classes.index(target) if target is not None else guess
        parts, off = _parts(trained, alone, frame.iloc[row], wanted)
        found.append(
            Explanation(
                classes[guess], float(scores[row, guess]), classes[wanted], tuple(parts), off
            )
        )
    return found


def whole(explanations: list[Explanation], most: int = _MAX_PARTS) -> list[ExplainedPart]:
    """Return the mean weight, whatever its sign, of each name over many explanations.

    A word counts if it is in at least two records, or in all of fewer.
    """
    weights: dict[str, list[float]] = defaultdict(list)
    for one in explanations:
        for part in one.parts:
            weights[part.name].append(abs(part.weight))
    least = min(2, len(explanations))
    means = [
        ExplainedPart(n, None, float(np.mean(w))) for n, w in weights.items() if len(w) >= least
    ]
    return sorted(means, key=lambda part: -part.weight)[:most]


Weighed = tuple[list[ExplainedPart], float]


def _parts(trained: Trained, record: Batch, row: pd.Series, target: int) -> Weighed:
    from privet.common.tasks.text import TextTask

    spec, task = trained.plan.task, trained.task
    if isinstance(task, TextTask):
        # As the model read it: what was cleaned out of it must not get on a page.
        text = task.cleaned(row[task.spec.text])
        return _words(trained, record["tokens"], text, target)
    if isinstance(spec, ImageTaskSpec):
        return _pixels(trained, record["pixels"], target, spec.image.columns)
    if isinstance(spec, TabularTaskSpec):
        names = [*sorted(spec.numeric), *sorted(spec.categorical)]
        return _cells(trained, record, row, target, names)
    raise InputError(f"explanations are for tabular, text and image tasks, not for '{spec.kind}'")


def _words(trained: Trained, tokens: Tensor, text: str, target: int) -> Weighed:
    from captum.attr import LayerIntegratedGradients

    from privet.common.models.text import tokens_for

    spec = tokens_for(trained.plan.model, tokens.shape[1])
    # Words left out, not absent ones: padding would make a shorter text of it.
    base = torch.where(tokens == spec.padding, tokens, spec.mask)
    method = LayerIntegratedGradients(trained.network, _table(trained.network))
    found, off = method.attribute(
        tokens, base, target=target, n_steps=_STEPS, return_convergence_delta=True
    )
    weights = found.sum(2)[0].detach()
    parts = [ExplainedPart(w, None, float(weights[places].sum())) for w, places in spec.words(text)]
    return parts, _share(off, parts)


def _table(network: nn.Module) -> nn.Module:
    """Return the layer that embeds tokens.

    Raises:
        InputError: if there is none.
    """
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            return module
    raise InputError("this model embeds no tokens, so its words cannot be explained")


def _pixels(trained: Trained, pixels: Tensor, target: int, columns: tuple[str, ...]) -> Weighed:
    from captum.attr import IntegratedGradients

    # The darkest image: nothing was written.
    base = torch.full_like(pixels, -1.0)
    found, off = IntegratedGradients(trained.network).attribute(
        pixels, base, target=target, n_steps=_STEPS, return_convergence_delta=True
    )
    weights, values = found.flatten().detach().numpy(), pixels.flatten().numpy()
    parts = [
        ExplainedPart(name, f"{value:.3g}", float(weight))
        for name, value, weight in zip(columns, values, weights, strict=True)
    ]
    return parts, _share(off, parts)


def _cells(
    trained: Trained, record: Batch, row: pd.Series, target: int, names: list[str]
) -> Weighed:
    from captum.attr import ShapleyValueSampling

    numeric, categorical = record["numeric"], record["categorical"]
    width = numeric.shape[1]
    inputs = (numeric, record["missing"], categorical)
    # The middle of every range, nothing missing, no known category: public constants.
    bases = tuple(torch.zeros_like(tensor) for tensor in inputs)
    numbers = torch.arange(width).unsqueeze(0)
    masks = (numbers, numbers, width + torch.arange(categorical.shape[1]).unsqueeze(0))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        found = ShapleyValueSampling(trained.network).attribute(
            inputs, bases, target=target, feature_mask=masks, n_samples=_SAMPLES,
            perturbations_per_eval=1,
        )  # fmt: skip
        moved = trained.network(*inputs)[0, target] - trained.network(*bases)[0, target]
    weights = [*found[0][0].tolist(), *found[2][0].tolist()]
    parts = [
        ExplainedPart(name, _shown(row.get(name)), float(weight))
        for name, weight in zip(names, weights, strict=True)
    ]
    return parts, _share(float(moved) - sum(part.weight for part in parts), parts)


def _shown(cell: Any) -> str:
    if cell is None or cell != cell:
        return "missing"
    return f"{cell:g}" if isinstance(cell, float) else str(cell)


def _share(off: Any, parts: list[ExplainedPart]) -> float:
    most = max((abs(part.weight) for part in parts), default=0.0)
    return abs(float(off)) / most if most else 0.0


def write_page(
    path: Path,
    title: str,
    explanations: list[Explanation],
    overall: list[ExplainedPart],
    terms: str,
) -> None:
    """Write one self-contained HTML page: highlighted words, or bars, or a picture.

    Args:
        path: of the page.
        title: its heading.
        explanations: displayed one below the other.
        overall: displayed first, if any.
        terms: what protects whose data, in a sentence.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("privet.delivery", "."), autoescape=select_autoescape(["j2"])
    )
    text = environment.get_template("explain.html.j2").render(
        title=title,
        terms=terms,
        overall=_bars(overall),
        records=[
            {
                "one": one,
                "bars": _bars(sorted(one.parts, key=lambda p: -abs(p.weight))[:20]),
                "words": _colours(one) if _is_text(one) else [],
                "cells": _picture(one),
            }
            for one in explanations
        ],
    )
    write_atomic(path, text.encode())


def _is_text(one: Explanation) -> bool:
    return all(part.value is None for part in one.parts)


def _colours(one: Explanation) -> list[dict[str, Any]]:
    most = max((abs(part.weight) for part in one.parts), default=0.0) or 1.0
    return [
        {"name": part.name, "weight": part.weight, "colour": _colour(part.weight / most)}
        for part in one.parts
    ]


def _colour(share: float) -> str:
    """Return green for what added and red for what took away, as strong as it is."""
    red, green, blue = (47, 111, 79) if share > 0 else (179, 65, 46)
    return f"rgba({red}, {green}, {blue}, {min(1.0, abs(share)) * 0.75:.3f})"


def _bars(parts: list[ExplainedPart]) -> list[dict[str, Any]]:
    most = max((abs(part.weight) for part in parts), default=0.0) or 1.0
    return [
        {
            "name": part.name, "value": part.value, "weight": part.weight,
            "share": round(100 * abs(part.weight) / most, 1), "adds": part.weight >= 0,
        }
        for part in parts
    ]  # fmt: skip


def _picture(one: Explanation) -> list[list[dict[str, Any]]]:
    """Return rows of coloured cells where the parts are the pixels of one square channel."""
    side = round(len(one.parts) ** 0.5)
    pixels = all(part.name.startswith("pixel_") for part in one.parts)
    if not side or side * side != len(one.parts) or not pixels:
        return []
    cells = _colours(one)
    return [cells[start : start + side] for start in range(0, len(cells), side)]


__all__ = ["Explanation", "ExplainedPart", "explain", "whole", "write_page"]
