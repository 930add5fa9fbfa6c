"""What commands that stay share: how they log, and whether Prometheus may ask them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from privet.common.errors import PrivetError, reason_of
from privet.common.logs import Level, Style, set_up

Log = Annotated[Style, typer.Option("--log", help="How lines on standard error are written.")]
LogLevel = Annotated[Level, typer.Option("--log-level", help="The least that is written there.")]
Metrics = Annotated[
    str,
    typer.Option(
        help="Serve figures for Prometheus there, on this machine only.", metavar="[HOST:]PORT"
    ),
]
_LOG = logging.getLogger("privet.cli")


@contextmanager
def logged(style: Style, level: Level, operator: Path | None = None) -> Iterator[None]:
    """Log while the command runs; where lines are JSON, also how it ended.

    What ends it by an error of Privet's own is said in full: it is about keys, policy, ledger or
    link. What is wrong with records ends no client, but is answered with a status.

    Args:
        style: as in :func:`privet.common.logs.set_up`.
        level: the same.
        operator: the same.
    """
    set_up(style, level, operator=operator)
    try:
        yield
    except (PrivetError, OSError) as error:
        if style is Style.TEXT:
            raise
        _LOG.error("ended", extra={"why": reason_of(error)})
        raise typer.Exit(error.exit_code if isinstance(error, PrivetError) else 1) from None
    except (typer.Exit, ModuleNotFoundError):
        raise
    except Exception:
        _LOG.exception("this should not have happened")
        raise typer.Exit(1) from None
