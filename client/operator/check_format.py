"""Compare how a file writes its cells with what is declared of it, for its owner."""

from __future__ import annotations

from pathlib import Path

from privet.client.data.detect import detected
from privet.client.data.suffix import is_parquet
from privet.client.operator.check import DataCheck
from privet.common.errors import DataError
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
    except (DataError, OSError, ValueError) as error:
        found.add("warning", "format", str(error))
        return
    said = declared or PLAIN
    for key in ("separator", "decimal", "encoding"):
        seen, own = getattr(guess, key), getattr(said, key)
        if key == "separator" and seen is None:
            continue  # that of the file's name
        if seen != own and not (key == "encoding" and seen == "utf-8"):
            found.add(
                "warning",
                "format",
                f"{key} seems to be {seen!r} in the file, and {own!r} is declared; if so, "
                f'write format = {{ {key} = "{seen}" }} under {where}',
            )
    if missing := [mark for mark in guess.na if mark not in said.na]:
        found.add(
            "warning",
            "format",
            f"{missing[0]!r} is in columns of numbers; if it marks a missing value, write "
            f'format = {{ na = ["{missing[0]}"] }} under {where}',
        )
