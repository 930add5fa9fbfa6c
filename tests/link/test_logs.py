"""Lines on standard error: their form, and what never gets into them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from privet.common.errors import (
    DataError,
    DataMissingError,
    InputError,
    LedgerError,
    PlanError,
    RunError,
)
from privet.common.output.logs import Level, Style, set_up, why

MARK = "Kowalczyk"
_LOG = logging.getLogger("privet.test")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave logging and warnings of this process as they were."""
    root, own, flower = (logging.getLogger(name) for name in ("", "privet", "flwr"))
    before = list(root.handlers), root.level, own.level, list(flower.filters), flower.propagate
    # Where an earlier test left capture on, pytest took the hook away and logging would not know.
    logging.captureWarnings(False)
    yield
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers, root.level, own.level, flower.filters, flower.propagate = before
    logging.captureWarnings(False)


def fail(error: Exception) -> None:
    try:
        raise error
    except Exception:
        _LOG.exception("it failed")


def lines(said: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in said.splitlines()]


def test_a_line_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(Style.JSON, Level.INFO)
    _LOG.debug("not this")
    _LOG.info("a round is done", extra={"run": "first\nsecond", "round": 3, "ratio": 0.5})
    _LOG.warning("an ε of %.1f at %s", 1.25, "Łódź")
    first, second = lines(capsys.readouterr().err)
    when = datetime.fromisoformat(str(first.pop("time")))
    assert when.utcoffset() == timedelta(0)
    assert first == {
        "level": "info", "logger": "privet.test", "event": "a round is done",
        "run": "first\nsecond", "round": 3, "ratio": 0.5,
    }  # fmt: skip
    assert second["event"] == "an ε of 1.2 at Łódź" and second["level"] == "warning"


def test_a_line_of_text_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(Style.TEXT, Level.WARNING)
    _LOG.info("not this")
    _LOG.warning("refused\nfaked", extra={"peer": "a\nb"})
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].endswith('Z warning privet.test: refused\\nfaked peer="a\\nb"')


@pytest.mark.parametrize(
    "error",
    [DataError(MARK), DataMissingError(MARK), PlanError(MARK), ValueError(MARK), KeyError(MARK)],
)
def test_at_a_site_the_text_of_an_error_goes_to_the_operator_alone(
    error: Exception, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    set_up(Style.JSON, Level.DEBUG, operator=tmp_path / "operator.log")
    fail(error)
    _LOG.error("refused", extra={"why": error})
    _LOG.error("refused: %s", error)
    said = capsys.readouterr().err
    assert MARK not in said
    first, second, third = lines(said)
    assert first["exception"] == second["why"] == type(error).__name__
    assert str(first["where"]).startswith("test_logs.py:")
    assert third["event"] == f"refused: {type(error).__name__}"
    kept = (tmp_path / "operator.log").read_text()
    assert kept.count(MARK) >= 3 and "Traceback" in kept


def test_what_a_library_says_or_warns_of_goes_to_the_operator_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import flwr.supercore.logger  # noqa: F401  (gives Flower's logger its own handler)

    set_up(Style.JSON, Level.DEBUG, operator=tmp_path / "operator.log")
    for name in ("pandas", "asyncio", "flwr"):
        logging.getLogger(name).error("%s of %s", MARK, name)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"{MARK} of a column", UserWarning, stacklevel=1)
    out, err = capsys.readouterr()
    assert out + err == ""
    kept = (tmp_path / "operator.log").read_text()
    assert kept.count(MARK) >= 4


def test_the_coordinator_says_why_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    """The negative control of the two above: without an operator's file texts are said."""
    set_up(Style.JSON, Level.INFO)
    fail(ValueError(MARK))
    logging.getLogger("asyncio").error(MARK)
    first, second = lines(capsys.readouterr().err)
    assert MARK in str(first["traceback"]) and second["event"] == MARK


def test_which_errors_are_said() -> None:
    assert why(LedgerError("locked")) == "locked"
    assert why(InputError("no parcel")) == "no parcel"
    assert why(RunError("unknown")) == "unknown"
    assert why(DataError("a column")) == "DataError"


def test_a_start_that_fails_is_a_line_too(tmp_path: Path) -> None:
    words = ["server", "start", str(tmp_path / "nowhere"), "--log", "json"]
    done = subprocess.run(
        [sys.executable, "-c", "from privet.cli import main; main()", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    (line,) = lines(done.stderr)
    assert line["event"] == "ended" and "privet server init" in str(line["why"])


def test_fields_are_kept_apart_from_what_logging_has(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(Style.JSON, Level.INFO)
    _LOG.info("plain")
    (line,) = lines(capsys.readouterr().err)
    assert set(line) == {"time", "level", "logger", "event"}
