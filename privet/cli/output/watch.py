"""What commands that stay share: how they log, and whether Prometheus may ask them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from privet.common.errors import PrivetError, reason_of
from privet.common.output.logs import Level, Style, set_up, why_ended
from privet.common.output.process_output import protect_process

Log = Annotated[Style, typer.Option("--log", help="How lines on standard error are written.")]
LogLevel = Annotated[Level, typer.Option("--log-level", help="The least that is written there.")]
Metrics = Annotated[
    str,
    typer.Option(
        help="Serve metrics for Prometheus there, on this machine only.", metavar="[HOST:]PORT"
    ),
]
_LOG = logging.getLogger("privet.cli")


@contextmanager
def logged(style: Style, level: Level, operator: Path | None = None) -> Iterator[None]:
    """Log while the command runs; where lines are JSON, also how it ended.

    At a site an error is logged in full only if its text is about keys, policy, ledger or link
    (:func:`privet.common.output.logs.why_ended`); of any other the type and the line of code.

    Args:
        style: as in :func:`privet.common.output.logs.set_up`.
        level: the same.
        operator: the same.
    """
    set_up(style, level, operator=operator)
    if operator is not None:
        protect_process()
    try:
        yield
    except (PrivetError, OSError) as error:
        said = reason_of(error) if operator is None else why_ended(error)
        if said is None:
            _LOG.error("ended", exc_info=error)  # its text in the operator's log alone
        elif style is Style.TEXT:
            raise
        else:
            _LOG.error("ended", extra={"why": said})
        raise typer.Exit(getattr(error, "exit_code", 1)) from None
    except (typer.Exit, ModuleNotFoundError):
        raise
    except SystemExit as error:
        if operator is None or isinstance(error.code, int | None):
            raise
        _LOG.error("ended", exc_info=error)  # Python would print what the code is
        raise typer.Exit(1) from None
    except Exception:
        _LOG.exception("this should not have happened")
        raise typer.Exit(1) from None
