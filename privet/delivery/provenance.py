"""Where a model's vocabulary and normalisation come from, in words (H12).

What is learnt from private records before the training, such as a vocabulary or a mean, leaks
past every accountant. A plan can hold none of it: ranges and classes are declared, vocabularies are
files that were there before.
"""

from __future__ import annotations

import re

from privet.common.models.start import digest_of
from privet.common.models.text import tokens_for
from privet.common.models.tokens import TOKENIZER
from privet.common.plan import Plan
from privet.common.sections.audio_task import AudioTaskSpec
from privet.common.sections.model import HuggingFaceSpec, ModelSpec
from privet.common.sections.task import CausalTaskSpec, ImageTaskSpec, TableTask
from privet.common.sections.task_base import TokenTask


def provenance(plan: Plan) -> list[str]:
    """Return one sentence or more on each thing that a model's inputs are made with.

    Raises:
        DataMissingError: if the model's tokenizer is not there.
    """
    task = plan.task
    found = []
    if isinstance(task, TableTask) and task.numeric:
        found.append(_ranges(task))
    if isinstance(task, TableTask) and task.categorical:
        found.append("Categories are those that the plan declares; any other cell is 'other'.")
    if isinstance(task, ImageTaskSpec):
        image = task.image
        found.append(f"Pixels are scaled by the declared range {image.low:g} to {image.high:g}.")
    if isinstance(task, AudioTaskSpec):
        found.append(
            f"Recordings have {task.rate:,} samples per second, and are cut or padded to "
            f"{task.samples:,} samples, as the plan declares."
        )
    if isinstance(task, TokenTask) and task.texts:
        found.append(_vocabulary(plan.model, task.max_tokens))
    if isinstance(task, CausalTaskSpec) and task.prompt is not None:
        how = "one text with nothing between them"
        if task.chat:
            how = "turns of the chat template that comes with the model"
        found.append(
            f"Prompts ({_code(task.prompt)}) and answers ({_code(task.text)}) are {how}; only the "
            "answers were learnt."
        )
    if task.labels:
        found.append("Classes are those that the plan declares.")
    if not found:
        found.append(f"{_code(task.kind)} is a task of the plan's authors: ask them.")
    return found


def _code(name: str) -> str:
    """Return a name of the plan's as code on one line: it is no Markdown of the card's."""
    return "`" + re.sub(r"[`\s\x00-\x1f\x7f]+", " ", name).strip() + "`"


def _ranges(task: TableTask) -> str:
    said = ", ".join(
        f"{_code(name)} {one.low:g} to {one.high:g}{' (logarithm)' if one.log else ''}"
        for name, one in task.numeric.items()
    )
    return f"Numbers are scaled by ranges that the plan declares, not by statistics: {said}."


def _vocabulary(model: ModelSpec, max_tokens: int) -> str:
    tokens = tokens_for(model, max_tokens)
    if tokens.path == TOKENIZER:
        who = (
            "it comes with Privet and was learnt on public-domain text, Shakespeare's plays and "
            "the gospels in English and Spanish"
        )
    elif not isinstance(model, HuggingFaceSpec):
        who = "it is that of all-MiniLM-L6-v2, learnt on public text by its makers, as its weights"
    else:
        name = model.options.name or model.options.folder
        who = f"it is that of {_code(str(name))}: its authors say what it was learnt on"
    return f"The vocabulary has {tokens.size:,} tokens (`{digest_of(tokens.path)}`); {who}."
