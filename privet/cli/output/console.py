"""Where commands print tables and sentences: as wide as a terminal, else 100 columns."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """Return the console of standard output, or of standard error."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 100
    return Console(stderr=stderr, width=width)


OUT = console()


def say(text: str) -> None:
    """Print a line as it is: names may hold what the library takes for markup."""
    OUT.print(text, soft_wrap=True, markup=False, highlight=False)


def or_dash(value: Any, form: Callable[[Any], str] = "{:.3f}".format) -> str:
    """Return a cell of a table: a dash for None."""
    if value is None:
        return "–"
    return form(value)
