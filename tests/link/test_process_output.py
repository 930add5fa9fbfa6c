"""What a collector gets of a site's process: of errors their type and place, of a crash nothing."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

MARK = "PATIENT-7d3f"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the flag is Linux's")

SITE = """
import asyncio, ctypes, gc, logging, os, sys, threading, warnings
from pathlib import Path
from privet.cli.output.watch import logged
from privet.common.errors import DataError, RunError
from privet.common.output.logs import Level, Style
from privet.common.output.process_output import in_loop, to_operator

cell, act, log = sys.argv[1], sys.argv[2], Path(sys.argv[3])

class Fault(ValueError):
    pass

def fail():
    raise Fault(f"could not convert string to float: {cell}")

def in_thread():
    one = threading.Thread(target=fail); one.start(); one.join()

class Late:
    def __del__(self):
        fail()
    def __repr__(self):
        return cell

def unraisable():
    Late(); gc.collect()

async def unawaited():
    asyncio.get_running_loop().set_exception_handler(in_loop)
    asyncio.get_running_loop().call_soon(fail)
    async def failing():
        fail()
    task = asyncio.create_task(failing())
    await asyncio.sleep(0.01)
    del task; gc.collect()

def foreign():
    other = logging.getLogger("transformers")
    other.propagate = False
    other.addHandler(logging.StreamHandler())  # to standard error, whatever the root's have
    other.warning("a cell is %s", cell)
    other.addHandler(logging.StreamHandler(open("/dev/full", "w")))
    other.warning("a cell is %s", cell)
    logging.getLogger("pyarrow").error("a cell is %s", cell)
    lonely = logging.Logger("lonely")  # with no handler at all
    lonely.error("a cell is %s", cell)
    logging.getLogger("privet.endpoint").error("%d cells", cell)

def said():
    print("a cell is", cell); print("a cell is", cell, file=sys.stderr)
    sys.stdout.buffer.write(cell.encode() + b"\\n"); sys.stdout.flush()
    if sys.__stderr__:
        sys.__stderr__.write(cell); sys.__stderr__.flush()
    os.write(1, cell.encode()); os.write(2, cell.encode())
    os.system("echo " + cell + "; echo " + cell + " >&2")
    warnings.warn(f"invalid value {cell} met in cast")
    warnings.warn_explicit(cell, RuntimeWarning, "a.py", 1)

def named():
    raise type(f"E{cell}", (ValueError,), {})(cell)

def all_that_goes_on():
    in_thread(); unraisable(); asyncio.run(unawaited()); foreign(); said()

acts = {
    "goes on": all_that_goes_on,
    "raises": fail,
    "named": named,
    "data": lambda: (_ for _ in ()).throw(DataError(f"label '{cell}'")),
    "run": lambda: (_ for _ in ()).throw(RunError("hub:1: not a member")),
    "base": lambda: (_ for _ in ()).throw(BaseException(cell)),
    "exit": lambda: sys.exit(cell),
    "abort": os.abort,
    "segfault": lambda: ctypes.string_at(0),
}
warnings.simplefilter("always")
text = {"text": Style.TEXT, "json": Style.JSON}[sys.argv[4]]
with logged(text, Level.DEBUG, log), to_operator(log):
    logging.getLogger("privet.endpoint").info("begun")
    acts[act]()
"""


def run(
    folder: Path, act: str, style: str = "text", script: str = SITE, *, closed: bool = False
) -> tuple[int, str]:
    """Run a site's process that does something; return its exit code and what a collector has."""
    words = [sys.executable, "-c", script, MARK, act, str(folder / "operator.log"), style]
    # A core may be as long as it likes: whether there is one is the question.
    limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    prelude = "ulimit -S -c unlimited 2>/dev/null; " if limit == resource.RLIM_INFINITY else ""
    prelude += 'exec "$@" >&- 2>&-' if closed else 'exec "$@"'
    done = subprocess.run(
        ["sh", "-c", prelude, "sh", *words], cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.decode()


def elsewhere(folder: Path) -> list[str]:
    """The files that hold the cell, but for the operator's log."""
    return [
        path.name
        for path in folder.rglob("*")
        if path.is_file() and path.name != "operator.log" and MARK.encode() in path.read_bytes()
    ]


def test_what_goes_on_is_named_and_what_it_says_is_the_operators(tmp_path: Path) -> None:
    code, said = run(tmp_path, "goes on")
    assert code == 0
    assert MARK not in said and elsewhere(tmp_path) == []
    for event in (
        'an error in a thread that nobody caught exception="Fault"',
        'an error that could not be raised exception="Fault"',
        'an error in a task that nobody awaited exception="Fault"',
    ):
        assert event in said
    log = (tmp_path / "operator.log").read_text()
    # Thread, finaliser, callback, task: message and traceback; the rest once or twice each.
    assert log.count("could not convert string to float: " + MARK) >= 4
    assert log.count(f"a cell is {MARK}") >= 4
    assert f"invalid value {MARK} met in cast" in log
    assert (tmp_path / "operator.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize(
    ("act", "code", "words"),
    [
        ("raises", 1, "this should not have happened"),
        ("named", 1, "Exception"),
        ("data", 2, "DataError"),
        ("run", 1, "hub:1: not a member"),
        ("base", 1, "BaseException"),
        ("exit", 1, "SystemExit"),
    ],
)
def test_an_end_is_named_and_what_it_says_is_the_operators(
    tmp_path: Path, act: str, code: int, words: str, style: str
) -> None:
    # What ends a command is turned into an exit code by `privet` itself.
    body, end = SITE.split("with logged(")
    command = "".join(f"    {line}\n" for line in f"with logged({end}".splitlines())
    script = f"{body}from privet.cli import app, main\n@app.command()\ndef x() -> None:\n{command}"
    script += "sys.argv[1:] = ['x']\nmain()\n"
    found, said = run(tmp_path, act, style, script)
    assert (found, MARK in said, words in said) == (code, False, True), said
    assert elsewhere(tmp_path) == []
    log = (tmp_path / "operator.log").read_text()
    assert (MARK in log) is (act != "run")


def test_a_collector_that_is_gone_is_no_matter(tmp_path: Path) -> None:
    for folder in ("pipe", "closed"):
        (tmp_path / folder).mkdir()
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-c", SITE, MARK, "goes on", str(tmp_path / "pipe" / "operator.log")]
    done = subprocess.run([*words, "text"], stdout=write, stderr=write, check=False)
    os.close(write)
    assert done.returncode == 0
    assert run(tmp_path / "closed", "goes on", closed=True) == (0, "")
    for folder in ("pipe", "closed"):
        assert elsewhere(tmp_path / folder) == []
        assert (tmp_path / folder / "operator.log").read_text().count(MARK) > 10


def test_a_log_that_cannot_be_written_is_said_once_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "operator.log").symlink_to("/dev/full")
    code, said = run(tmp_path, "goes on")
    assert code == 0
    assert MARK not in said and elsewhere(tmp_path) == []
    assert said.count("the operator's log cannot be written") == 1
    assert "an error in a thread that nobody caught" in said


@pytest.mark.parametrize("act", ["abort", "segfault"])
def test_a_crash_leaves_no_core(tmp_path: Path, act: str) -> None:
    code, said = run(tmp_path, act)
    assert code == -{"abort": signal.SIGABRT, "segfault": signal.SIGSEGV}[act]
    assert MARK not in said
    assert {path.name for path in tmp_path.iterdir()} <= {"operator.log"}


SERVICE = """
import http.client, logging, socket, sys, threading, warnings
import uvicorn
from fastapi import FastAPI
from privet.cli.model import answer_at

service = FastAPI()

@service.get("/")
def answer() -> None:
    warnings.warn(f"a warning of {sys.argv[1]}")
    logging.getLogger("transformers").error("a cell is %s", sys.argv[1])
    raise ValueError(f"could not convert string to float: {sys.argv[1]}")

if sys.argv[2] == "as uvicorn does":
    def answer_at(listening, service):
        uvicorn.Server(uvicorn.Config(service, log_level="warning")).run(sockets=[listening])

listening = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=answer_at, args=(listening, service), daemon=True).start()
asked = http.client.HTTPConnection(*listening.getsockname())
asked.request("GET", "/")
answered = asked.getresponse()
print(answered.status, answered.read().decode())
"""


def test_a_service_says_nothing_of_what_it_was_asked(tmp_path: Path) -> None:
    """`privet model serve` has no operator's log: of what went wrong there are type and place."""
    code, said = run(tmp_path, "", script=SERVICE)
    assert (code, MARK in said) == (0, False)
    assert 'exception="ValueError"' in said and "Internal Server Error" in said
    assert MARK in run(tmp_path, "as uvicorn does", script=SERVICE)[1]  # the control


@LINUX
def test_the_controls_are_found(tmp_path: Path) -> None:
    """Without the hooks, the streams and the limit the same acts show the cell."""
    bare = SITE.replace("with logged(text, Level.DEBUG, log), to_operator(log):", "if True:")
    code, said = run(tmp_path, "goes on", script=bare)
    assert code == 0 and said.count(MARK) > 10
    assert MARK in run(tmp_path, "base", script=bare)[1]
    assert MARK in run(tmp_path, "named", script=bare)[1]
    run(tmp_path, "abort", script=bare)
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern == "core" and resource.getrlimit(resource.RLIMIT_CORE)[1] != 0:
        assert elsewhere(tmp_path) == ["core"]


@LINUX
@pytest.mark.parametrize("user", ["own", "nobody"])
def test_a_process_that_makes_no_core_can_do_what_it_needs(tmp_path: Path, user: str) -> None:
    """The flag gives /proc/self to root: what a process looks up of itself is there all the same."""
    script = """
import base64, ctypes, os, resource, sys
from prometheus_client import ProcessCollector
from privet.common.output.process_output import forbid_core_dumps
if sys.argv[1] == "nobody":
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
forbid_core_dumps()
assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0  # PR_GET_DUMPABLE
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
for name in ("stat", "status", "statm", "maps", "limits", "cgroup", "mountinfo", "cmdline"):
    open(f"/proc/self/{name}", "rb").read()
assert os.listdir("/proc/self/fd") and os.listdir("/proc/self/task")
folder = os.open("/", os.O_RDONLY)
assert os.listdir(f"/proc/self/fd/{folder}")  # as the socket of stock Flower is found
found = {one.name for one in ProcessCollector(registry=None).collect()}
assert {"process_open_fds", "process_resident_memory_bytes"} <= found, found
"""
    if user == "nobody" and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    done = subprocess.run(
        [sys.executable, "-c", script, user], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
