"""Compare how a file writes its cells with what is declared of it, for its owner."""

from __future__ import annotations

from pathlib import Path

from privet.client.data.detect import detected
from privet.client.data.suffix import is_parquet
from privet.client.operator.check import DataCheck
from privet.common.errors import DataError
from privet.common.plan_file import toml_value
from privet.common.text_format import PLAIN, TextFormat


def compare_format(found: DataCheck, path: Path, declared: TextFormat | None, where: str) -> None:
    """Add a warning where a text file seems to have another format than the declared one.

    Args:
        found: the check of its records.
        path: of the file.
        declared: its format; None is the usual one.
        where: that it is declared, such as "[data] of the plan".
    """
    if not path.is_file() or is_parquet(path):
        return
    try:
        guess = detected(path)
    except DataError as error:
        found.add("warning", "format", str(error))
        return
    except Exception as error:  # a proposal alone, and what it says may quote a record
        found.add("warning", "format", f"its format cannot be detected ({type(error).__name__})")
        return
    said = declared or PLAIN
    seems: dict[str, object] = {}
    for key in ("separator", "decimal", "encoding"):
        seen, own = getattr(guess, key), getattr(said, key)
        if seen == own or (key == "separator" and seen is None):  # that of the file's name
            continue
        if key == "encoding" and seen == "utf-8":
            continue
        seems[key] = seen
    if missing := [mark for mark in guess.na if mark not in said.na]:
        seems["na"] = [*said.na, *missing]
    if not seems:
        return
    whole = {**said.model_dump(mode="json", exclude_defaults=True), **seems}
    found.add(
        "warning",
        "format",
        f"the file seems to have {_words(seems)}, which is not declared; if so, write "
        f"format = {toml_value(whole)} under {where}",
    )


def _words(seems: dict[str, object]) -> str:
    return ", ".join(f"{key} {toml_value(value)}" for key, value in seems.items())
