"""Write the clipping method that was measured into a plan's file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from privet.common.canonical import write_atomic
from privet.common.errors import InputError, PlanError
from privet.common.plan import Plan

_SECTION = re.compile(r"\s*\[\s*training\s*\]\s*(#.*)?$")
_ANY_SECTION = re.compile(r"\s*\[")
_KEY = re.compile(r"(\s*clipping\s*=\s*)(\"[^\"]*\"|'[^']*')(.*)$")


def write_clipping(path: Path, method: str) -> Plan:
    """Set ``training.clipping`` in a plan's file; all else stays as it is written.

    Args:
        path: of the plan.
        method: of clipping.

    Returns:
        The plan that the file holds now: another one, with another digest.

    Raises:
        InputError: if the section is written in a way in which the key cannot be set; the file is
            as it was.
    """
    before = Plan.load(path)
    text = _changed(path.read_text(encoding="utf-8"), method)
    try:
        value = {"name": path.stem, **tomllib.loads(text)}
        after = Plan.draft(value, where=str(path))
    except (tomllib.TOMLDecodeError, PlanError):
        after = before
    if after != before.changed(training={"clipping": method}):
        raise InputError(
            f'{path}: the key cannot be set there; write clipping = "{method}" under [training]'
        )
    write_atomic(path, text.encode())
    return after


def _changed(text: str, method: str) -> str:
    lines = text.splitlines()
    line = f'clipping = "{method}"'
    start = next((at for at, one in enumerate(lines) if _SECTION.match(one)), None)
    if start is None:
        return "\n".join([*lines, "", "[training]", line, ""])
    for at in range(start + 1, len(lines)):
        if _ANY_SECTION.match(lines[at]):
            break
        if found := _KEY.match(lines[at]):
            lines[at] = f'{found[1]}"{method}"{found[3]}'
            return "\n".join([*lines, ""])
    return "\n".join([*lines[: start + 1], line, *lines[start + 1 :], ""])
