"""The operator's log when it cannot be written, when it is moved, and when a cell wants to write it."""

from __future__ import annotations

import errno
import logging
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privet.common.output.operator_log import (
    INDENT,
    MAX_LINE_CHARS,
    MAX_TRACEBACK_LINES,
    NOT_WRITTEN,
    OperatorFile,
    OperatorFormatter,
    OperatorLogHandler,
    one_line,
    operator_logger,
)

MARK = "PATIENT-7d3f"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[logging.Logger]:
    """A site's logger, on a file of its own."""
    (tmp_path / "site").mkdir()
    logger = operator_logger(tmp_path / "site" / "operator.log", "North")
    yield logger
    logger.handlers[0].close()
    logger.handlers.clear()


@pytest.fixture
def path(log: logging.Logger, tmp_path: Path) -> Path:
    return tmp_path / "site" / "operator.log"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fail(log: logging.Logger) -> None:
    """Log an error that quotes a cell, in its message, its arguments and its traceback."""
    try:
        raise ValueError(f"could not convert string to float: {MARK}")
    except ValueError as error:
        log.exception("slot: failed: %r", error)


# a sink that fails

FAULTS = {
    "full device": "path.symlink_to('/dev/full')",
    "standard error": "path.symlink_to('/dev/stderr')",
    "pipe": "os.mkfifo(path)",
    "folder": "path.mkdir()",
    "no folder": "path.parent.rmdir()",
    "file above": "path.parent.rmdir(); path.parent.write_text('')",
    "not ours to write": "path.write_text(''); path.chmod(0o400); leave()",
    "folder to be read only": "path.parent.chmod(0o500); leave()",
}
_FAIL = """
import logging, os, shutil, sys
from pathlib import Path
from privet.common.output.operator_log import operator_logger
path = Path(sys.argv[1])
log = operator_logger(path, "North")

def leave():
    if os.geteuid() == 0:  # who may write everywhere
        os.chown(path.parent, 65534, 65534)
        path.exists() and os.chown(path, 65534, 65534)
        os.seteuid(65534)

def fail():
    try:
        raise ValueError("could not convert string to float: " + sys.argv[2])
    except ValueError as error:
        log.exception("slot: failed: %r", error, extra={"cell": sys.argv[2]})

exec(sys.argv[3])
for _ in range(3):
    fail()
os.seteuid(os.getuid())
above = path.parent
above.unlink() if above.is_file() else above.exists() and (above.chmod(0o700), shutil.rmtree(above))
above.mkdir()
log.warning("again")
log.warning("and again")
"""


def said_by(script: str, *words: str) -> str:
    """Run a script as a process of its own; return what a collector has of it."""
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_written_is_counted_and_not_said(tmp_path: Path, fault: str) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "site" / "operator.log"
    path.parent.mkdir()
    assert said_by(_FAIL, str(path), MARK, FAULTS[fault]).splitlines() == [NOT_WRITTEN]
    first, second, third = path.read_text().splitlines()
    assert "3 lines were lost" in first and second.endswith("North WARNING again")
    assert third.endswith("North WARNING and again")


def test_the_old_log_said_it(tmp_path: Path) -> None:
    """The control: what the standard library does where a file cannot be written."""
    (tmp_path / "site").mkdir()
    old = """
def operator_logger(path, name):
    logger = logging.getLogger("privet.site")
    logger.propagate = False
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {name} %(levelname)s %(message)s"))
    logger.addHandler(handler)
    return logger
"""
    new = "from privet.common.output.operator_log import operator_logger"
    said = said_by(
        _FAIL.replace(new, old),
        str(tmp_path / "site" / "operator.log"),
        MARK,
        FAULTS["full device"],
    )
    assert MARK in said and said.count("--- Logging error ---") >= 3


def test_a_disk_that_is_full_tears_no_line(tmp_path: Path) -> None:
    """By a limit on the size of a file, in a process of its own: half a line is written."""
    script = f"""
import logging, resource, sys
from pathlib import Path
from privet.common.output.operator_log import operator_logger
path = Path({str(tmp_path / "operator.log")!r})
log = operator_logger(path, "North")
log.warning("before")
most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, most))
for number in range(5):
    log.error("%s is not a number", "{MARK}")
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
log.warning("after")
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    assert said_by(script).strip() == NOT_WRITTEN
    lines = (tmp_path / "operator.log").read_text().splitlines()
    assert lines[0].endswith("North WARNING before")
    assert "5 lines were lost" in lines[2] and lines[3].endswith("North WARNING after")
    assert len(lines) == 4 and MARK not in "".join(lines)


def test_a_descriptor_that_is_full_is_no_error() -> None:
    """As the trainer's: open since before, so that only the writing fails."""
    script = """
import logging, os, sys
from privet.common.output.operator_log import OperatorFile, OperatorLogHandler
handle = os.open("/dev/full", os.O_WRONLY)
root = logging.getLogger()
root.handlers = [OperatorLogHandler(OperatorFile(handle=handle))]
logging.error("the cell %s", sys.argv[1])
logging.error("the cell %s", sys.argv[1])
try:
    os.write(handle, b"x")
except OSError as error:
    print(error.errno)
"""
    assert said_by(script, MARK) == f"{errno.ENOSPC}\n"


# whose file it is


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_it_is_its_owners_whatever_the_umask(log: logging.Logger, path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        fail(log)
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    # The control: the handler of the standard library leaves it to the umask.
    plain = logging.FileHandler(path.with_name("plain.log"))
    plain.close()
    assert mode(path.with_name("plain.log")) == 0o666 & ~before != 0o600


def test_it_is_its_owners_after_a_rotation(log: logging.Logger, path: Path) -> None:
    log.warning("one")
    path.chmod(0o644)
    log.warning("two")
    assert mode(path) == 0o600
    moved = path.rename(path.with_name("operator.log.1"))
    log.warning("three")
    assert (mode(path), mode(moved)) == (0o600, 0o600)
    path.rename(path.with_name("operator.log.2"))
    path.touch(0o644)  # logrotate's create
    path.chmod(0o644)
    log.warning("four")
    assert mode(path) == 0o600 and path.read_text().endswith("four\n")
    os.truncate(path, 0)  # logrotate's copytruncate
    log.warning("five")
    assert path.read_text().endswith("five\n") and "\0" not in path.read_text()
    path.unlink()
    log.warning("six")
    assert path.read_text().count("\n") == 1 and mode(path) == 0o600


# what a cell can write into it

HEAD = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z North (INFO|WARNING|ERROR) "
FORGED = "\n2026-01-01T00:00:00.000Z North INFO all is well"


@given(st.text() | st.text(alphabet="\r\n\x0b\x0c\x1b\x85\u2028\u2029\u202e\ud800 a"))
def test_a_message_is_one_line_and_shows_no_control_character(cell: str) -> None:
    formatter = OperatorFormatter("North")
    (line,) = formatter.format(logging.makeLogRecord({"msg": "%s", "args": (cell,)})).splitlines()
    assert line.isprintable()


def test_a_cell_forges_no_line(log: logging.Logger, path: Path) -> None:
    try:
        raise ValueError(MARK + FORGED)
    except ValueError as error:
        log.exception("failed: %s", error, extra={"cell": FORGED})
    lines = path.read_text().splitlines()
    assert [line for line in lines if not line.startswith(INDENT)] == lines[:1]
    assert FORGED[1:] in path.read_text()
    # The control: the formatter of the standard library writes it as a line.
    plain = logging.Formatter("%(asctime)s North %(levelname)s %(message)s")
    said = plain.format(logging.makeLogRecord({"msg": MARK + FORGED}))
    assert said.splitlines()[-1] == FORGED[1:]


def test_a_long_cell_is_cut(log: logging.Logger, path: Path) -> None:
    log.error("%s", "x" * 10_000_000)
    assert len(path.read_text()) < MAX_LINE_CHARS + 200
    assert f"({10_000_000 - MAX_LINE_CHARS} more characters)" in path.read_text()
    assert one_line("x" * MAX_LINE_CHARS) == "x" * MAX_LINE_CHARS

    def deep(left: int) -> None:
        try:
            raise ValueError("y\n" * 50)
        except ValueError:
            if left:
                deep(left - 1)
            raise

    path.unlink()
    try:
        deep(50)
    except ValueError:
        log.exception("failed")
    lines = path.read_text().splitlines()
    assert len(lines) == MAX_TRACEBACK_LINES + 2 and "lines are left out" in path.read_text()


def test_an_error_that_cannot_be_shown_is_named_by_its_place(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from privet.common.output.operator_log import operator_logger

class Unspeakable(ValueError):
    def __repr__(self):
        raise RuntimeError(sys.argv[2])

log = operator_logger(Path(sys.argv[1]), "North")
log.error("failed: %r", Unspeakable(sys.argv[2]))
log.error("%d of %d", sys.argv[2])
"""
    assert said_by(script, str(tmp_path / "operator.log"), MARK) == ""
    written = (tmp_path / "operator.log").read_text()
    assert written.count("could not be formatted") == 2 and MARK not in written


def test_two_handlers_of_one_file_share_what_was_lost(log: logging.Logger, path: Path) -> None:
    """The site's own logger, and the root's, which has what libraries say."""
    other = OperatorLogHandler(OperatorFile.of(path))
    path.mkdir()
    fail(log)
    other.handle(logging.makeLogRecord({"name": "torch", "msg": MARK}))
    path.rmdir()
    other.handle(logging.makeLogRecord({"name": "torch", "levelname": "INFO", "msg": "there"}))
    first, second = path.read_text().splitlines()
    assert "2 lines were lost" in first and second.endswith(" torch INFO there")
    other.close()
