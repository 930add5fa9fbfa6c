"""The tokenizer of an exported folder, as transformers reads it.

It gives the numbers that the network was trained on. Two things are rules of Privet's tasks that a
tokenizer's file cannot say: an end that a task puts after a text is not put after one that is cut,
and text that spells a special token is plain text in a record (the file can say it for classifiers,
``split_special_tokens``; elsewhere people write ``[MASK]`` and turns of a chat on purpose).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privet.common.canonical import write_json
from privet.common.errors import InputError, RunError
from privet.common.models.text import tokens_for
from privet.common.models.tokens import Tokens
from privet.common.sections.task_base import TokenTask
from privet.delivery.probe import Probe

if TYPE_CHECKING:
    from privet.delivery.trained import Trained

_THEIRS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip
_CONFIG = "tokenizer_config.json"
_JSON = "tokenizer.json"


def write_tokenizer(trained: Trained, out: Path, probe: Probe) -> None:
    """Write the tokenizer, where the task reads texts.

    Args:
        trained: the model.
        out: folder, with the model's ``config.json``.
        probe: generated texts, with the numbers that must be read.

    Raises:
        RunError: if transformers cannot be made to read these numbers.
    """
    task = trained.plan.task
    if not isinstance(task, TokenTask) or not task.texts:
        return
    tokens = tokens_for(trained.plan.model, task.max_tokens)
    if trained.plan.model.kind != "huggingface":
        _write_own(task, tokens, out)
        return
    for name in _THEIRS:
        if (path := tokens.path.parent / name).is_file():
            shutil.copyfile(path, out / name)
    _settle(task, tokens, out, is_left=probe.is_left)
    if probe.tokens is not None and not _agrees(out, probe):
        _as_it_was_read(task, tokens, out)


def open_tokenizer(folder: Path, name: str = "AutoTokenizer") -> Any:
    """Return a folder's tokenizer, as transformers opens it.

    Args:
        folder: that was written.
        name: the class of transformers that opens it.

    Raises:
        RunError: if it cannot be opened.
    """
    import transformers

    try:
        return getattr(transformers, name).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # it raises whatever its parts raise
        reason = str(error).strip().partition("\n")[0]
        raise RunError(f"{name} cannot open it: {reason}") from error


def agreeing_tokenizer(folder: Path, probe: Probe) -> tuple[Any, str, str]:
    """Return a folder's tokenizer that reads what the run read, its class, and a note for the card.

    It is ``AutoTokenizer``; for some architectures that builds another tokenizer than the file
    holds, and ``PreTrainedTokenizerFast`` reads the file itself.

    Args:
        folder: that was written.
        probe: generated texts, with the numbers that the run's tokenizer gives.

    Raises:
        RunError: if neither reads the same numbers.
    """
    wrong = []
    for name in ("AutoTokenizer", "PreTrainedTokenizerFast"):
        try:
            tokenizer = open_tokenizer(folder, name)
        except RunError as error:
            wrong.append(str(error))
            continue
        difference = first_difference(probe, tokenizer)
        if not difference:
            note = f"Open its tokenizer with {name}: {wrong[0]}." if wrong else ""
            return tokenizer, name, note
        wrong.append(f"{name} gives other numbers than the run read: {difference}")
    raise RunError(
        f"the tokenizer of the exported folder is not that of the run. {'; '.join(wrong)}. Nothing "
        "was written; check tokenizer.json and tokenizer_config.json of the folder that the run "
        "started from"
    )


def first_difference(probe: Probe, tokenizer: Any) -> str:
    """Return where a tokenizer gives other numbers than the run's, in words; '' if nowhere.

    Args:
        probe: generated texts, with the numbers that the run's tokenizer gives.
        tokenizer: of transformers.
    """
    for text, wanted in zip(probe.texts, probe.wanted, strict=True):
        found = read(probe, tokenizer, [text])["input_ids"][0]
        if not same_numbers(probe, found, wanted):
            short = text if len(text) <= 40 else text[:40] + "…"
            return f"{short!r} is {found[:12]}… and was {wanted[:12]}… in the run"
    return ""


def read(probe: Probe, tokenizer: Any, texts: list[str], **how: Any) -> Any:
    """Return what a tokenizer of transformers makes of texts, as the documentation calls it.

    Args:
        probe: says whether they are turns of a chat.
        tokenizer: of transformers.
        texts: of records.
        **how: further arguments, such as padding.
    """
    if probe.chat:
        chats = [[{"role": "user", "content": text}] for text in texts]
        return tokenizer.apply_chat_template(chats, add_generation_prompt=True, **how)
    return tokenizer(texts, truncation=True, **how)


def same_numbers(probe: Probe, found: list[int], wanted: list[int]) -> bool:
    """Whether a tokenizer's numbers are the run's, but for an end that a task puts.

    Args:
        probe: with the run's tokenizer.
        found: the numbers of a text.
        wanted: the run's.
    """
    assert probe.tokens is not None
    end, longest = probe.tokens.end, probe.tokens.max_tokens
    if found == wanted or found == [*wanted, end]:
        return True
    is_cut = len(found) == len(wanted) == longest and found[-1] == end
    return is_cut and found[:-1] == wanted[:-1]


def _agrees(folder: Path, probe: Probe) -> bool:
    try:
        return not first_difference(probe, open_tokenizer(folder))
    except RunError:
        return False


def _settle(task: Any, tokens: Tokens, out: Path, *, is_left: bool) -> None:
    """Write the run's settings into the configuration: where texts are cut, and what is read."""
    path = out / _CONFIG
    settings: dict[str, Any] = (
        _read(path) if path.is_file() else {"tokenizer_class": "PreTrainedTokenizerFast"}
    )
    settings.pop("auto_map", None)  # code that is not in this folder
    prompt, chat = getattr(task, "prompt", None), getattr(task, "chat", False)
    # Without a start, a prompt that fills a row would leave no place for an answer's first token.
    full = prompt is not None and not chat and tokens.start is None
    settings |= {
        "model_max_length": task.max_tokens - full,
        "truncation_side": "right" if prompt is None else "left",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if task.kind != "causal-text":  # texts that are continued are padded at the left
        settings["padding_side"] = "left" if is_left else "right"
    if task.kind in ("text", "token-classification", "question-answering"):
        settings["split_special_tokens"] = True
    if settings.get("pad_token") is None and (name := _padding(tokens, out)) is not None:
        settings["pad_token"] = name
    write_json(path, settings)


def _padding(tokens: Tokens, out: Path) -> str | None:
    """Return the token that the model's configuration names as padding, if there is one."""
    from tokenizers import Tokenizer

    number = _read(out / "config.json").get("pad_token_id")
    if not isinstance(number, int) or number < 0:
        return None
    name: str | None = Tokenizer.from_file(str(tokens.path)).id_to_token(number)
    return name


def _as_it_was_read(task: Any, tokens: Tokens, out: Path) -> None:
    """Write a tokenizer that is its file and nothing else, with the start and end of the task.

    Some classes of transformers build another tokenizer than the file holds.
    """
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(tokens.path))
    frame = tokenizer.encode("", add_special_tokens=True).ids
    puts = task.kind == "causal-text" and not task.chat
    start = _name(tokenizer, tokens.start) if puts else None
    end = _name(tokenizer, tokens.end) if task.kind == "text-to-text" else None
    parts: list[str] = ["$A"]
    names: list[tuple[str, int | None]] = []
    if start is not None and frame[:1] != [tokens.start]:
        parts, names = [start, *parts], [*names, (start, tokens.start)]
    if end is not None and frame[-1:] != [tokens.end]:
        parts, names = [*parts, end], [*names, (end, tokens.end)]
    if names:
        put = processors.TemplateProcessing(
            single=parts, pair=[*parts, "$B:1"], special_tokens=names
        )
        before = tokenizer.post_processor
        tokenizer.post_processor = put if before is None else processors.Sequence([before, put])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(out / _JSON))
    settings = {**_read(out / _CONFIG), "tokenizer_class": "PreTrainedTokenizerFast"}
    for name in ("add_bos_token", "add_eos_token", "add_prefix_space"):
        settings.pop(name, None)  # what they ask for is in the file
    write_json(out / _CONFIG, settings)


def _name(tokenizer: Any, number: int | None) -> str | None:
    return None if number is None else tokenizer.id_to_token(number)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path.name}: holds no settings; it must be a table")
    return value


def _write_own(task: Any, tokens: Tokens, out: Path) -> None:
    """Write the tokenizer of Privet's own models."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(tokens.path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": task.max_tokens,
        "truncation_side": "right" if getattr(task, "prompt", None) is None else "left",
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": tokenizer.id_to_token(tokens.padding),
    }
    if task.kind == "text":
        settings["split_special_tokens"] = True
    if task.kind in ("causal-text", "text-to-text") and tokens.end is not None:
        end = settings["eos_token"] = tokenizer.id_to_token(tokens.end)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, tokens.end)]
        )
    if task.kind == "masked-text":
        settings["mask_token"] = tokenizer.id_to_token(tokens.mask)
    tokenizer.save(str(out / _JSON))
    write_json(out / _CONFIG, settings)
