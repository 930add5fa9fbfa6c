"""A planted cell is in the operator's log and nowhere else, whatever breaks at the site.

Real processes: a site as `privet client start` runs it, its trainer and its loader.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sinks_kit
from sinks_kit import ACTING, CUSTOM, FORGED, MARK

from privet.common.errors import RunError

LOGS = ("operator.log", "trainer.log")
INPUT = ("records.csv", "records.db", "acting.py", "sitecustomize.py")
pytestmark = pytest.mark.xdist_group("sinks")


def run(folder: Path, *acts: str, before: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run the site's process; core dumps may be as long as they like."""
    (folder / "code").mkdir(parents=True, exist_ok=True)
    (folder / "code" / "acting.py").write_text(ACTING)
    (folder / "code" / "sitecustomize.py").write_text(CUSTOM)
    tests = Path(sinks_kit.__file__).parent
    path = [folder / "code", tests, *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
    script = f'ulimit -S -c unlimited 2>/dev/null; umask 000; {before} exec "$@"'
    words = [sys.executable, sinks_kit.__file__, str(folder / "run"), *acts]
    return subprocess.run(
        ["sh", "-c", script, "sh", *words],
        cwd=folder, capture_output=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": ":".join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


def elsewhere(folder: Path) -> list[str]:
    """The files that hold a planted cell, but for the site's input and its operator's log."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in (*LOGS, *INPUT)
        and MARK.encode() in path.read_bytes()
    ]


def answers(folder: Path) -> dict[str, str]:
    """What was answered by act; no byte that leaves is of a planted cell."""
    found = json.loads((folder / "run" / "wire").read_text())
    if found["limits"]:
        (line,) = [one for one in found["limits"].splitlines() if "core file" in one]
        assert line.split()[4:6] == ["0", "0"]
    assert not [act for act, said in found["answers"] if MARK.encode() in bytes.fromhex(said)]
    failed = {said for act, said in found["answers"] if act.endswith("failed")}
    assert len(failed) <= 1  # any failure has the same bytes
    return dict(act.split(": ") for act, _ in found["answers"])


ACTS = ("encode", "say", "raise", "named", "base", "abort", "sqlite", "loader", "built-in")


def test_a_planted_cell_is_in_the_operators_log_and_nowhere_else(tmp_path: Path) -> None:
    done = run(tmp_path, *ACTS)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said.decode()
    assert MARK.encode() not in said and done.stdout == b""
    assert all(json.loads(line)["logger"].startswith("privet.") for line in said.splitlines())
    assert elsewhere(tmp_path) == []
    (tmp_path / "control").write_text(f"a cell is {MARK}")
    assert elsewhere(tmp_path) == ["control"]
    assert not [path for path in tmp_path.rglob("core*") if path.is_file()]
    told = answers(tmp_path)
    assert told["say"] == "released"
    assert told["encode"] == "released"  # a record that cannot be encoded is left out
    crashes = ("raise", "named", "base", "abort")
    assert [act for act in crashes if told[act] != "failed"] == []
    # The trainer had ended, so the database is probed, which costs nothing, and the loader with it.
    assert told["loader"] not in ("released", "failed")

    home = tmp_path / "run" / "sites" / "North"
    operators, trainers = ((home / name).read_text() for name in LOGS)
    # The operator learns of it: each kind of cell, what was said, raised, and left in a crash.
    for kind in ("number", "category", "label", "person", "text", "unread"):
        assert f"{MARK} {kind}" in operators and f"{MARK} {kind}" in trainers
    assert f"could not convert string to float: {MARK}" in operators
    assert f"BaseException: could not convert string to float: {MARK}" in trainers
    assert operators.count("signal 6") == 2  # the trainer and the loader
    for path in tmp_path.rglob("*"):
        if path.name in LOGS:
            assert path.stat().st_mode & 0o777 == 0o600
    # A cell with a line's end in it is no line of it.
    assert FORGED[1:] in operators
    assert not [line for line in operators.splitlines() if line.startswith(FORGED[1:])]


def test_logs_on_a_full_disk_give_nothing_away(tmp_path: Path) -> None:
    """Both logs on a file system without room; where none can be had, at /dev/full."""
    home = tmp_path / "run" / "sites" / "North"
    home.mkdir(parents=True)
    (tmp_path / "full").mkdir()
    mount = f'mount -t tmpfs -o size=16k none "{tmp_path}/full"'
    enough = (
        shutil.which("unshare")
        and not subprocess.run(
            ["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False
        ).returncode
    )
    before = ""
    if enough:
        links = "; ".join(f'ln -s "{tmp_path}/full/{one}" "{home}/{one}"' for one in LOGS)
        fill = f'cat /dev/zero > "{tmp_path}/full/zero" 2>/dev/null; {links};'
        full = tmp_path / "full.sh"
        full.write_text(f'{mount}; touch "{tmp_path}"/full/operator.log "{tmp_path}"/full/trainer.log\n'
                        f'{fill} exec "$@"\n')  # fmt: skip
        before = f'set -- unshare -rm sh "{full}" "$@";'
    else:
        for name in LOGS:
            (home / name).symlink_to("/dev/full")
    done = run(tmp_path, "say", "raise", "abort", before=before)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    assert MARK not in said and elsewhere(tmp_path) == []
    assert answers(tmp_path) == {"say": "released", "raise": "failed", "abort": "failed"}
    # Once for each of the two.
    assert said.count("the operator's log cannot be written") == 2
    assert bool(enough) is ("No space left on device" in said)


def test_a_site_has_no_process_but_those_that_are_closed(root: Path) -> None:
    """No pool, no worker of a data loader: a process that is started elsewhere would say all."""
    started: set[str] = set()
    for room in ("client", "privacy", "common"):
        for path in (root / room).rglob("*.py"):
            where = str(path.relative_to(root))
            if where.startswith("privacy/audit/"):
                continue  # the auditor's, who has no record
            for node in ast.walk(ast.parse(path.read_text())):
                names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{one.name}" for one in node.names]
                if isinstance(node, ast.Attribute):
                    names = [node.attr]
                for name in names:
                    if any(word in name.split(".") for word in _STARTS):
                        started.add(f"{where}: {name}")
    assert started == {
        "client/data/loader.py: subprocess",
        "client/stock_flower/daemon.py: multiprocessing.connection.Connection",
        "client/stock_flower/daemon.py: posix_spawn",
        "client/start.py: concurrent.futures.ThreadPoolExecutor",  # threads, no processes
        "client/training/worker/remote.py: subprocess",
        "privacy/accounting/interval.py: subprocess",
    }


_STARTS = (
    "DataLoader", "Pool", "Process", "ProcessPoolExecutor", "concurrent", "fork", "forkpty",
    "multiprocessing", "posix_spawn", "posix_spawnp", "subprocess", "system", "popen",
)  # fmt: skip


def test_a_message_that_breaks_off_is_not_quoted() -> None:
    """Between endpoint and trainer: cut anywhere, or with a byte that is no text."""
    import io

    from privet.client.training.worker.pipe import Pipe

    whole = io.BytesIO()
    Pipe(io.BytesIO(), whole).send({"error": "ValueError", "text": f"a cell is {MARK}"})
    sent = whole.getvalue()
    broken = [sent[:cut] for cut in range(len(sent))]
    broken += [sent[:16] + b"\xff" + sent[17:], sent[:16] + b"[" * (len(sent) - 16)]
    broken.append(sent.replace(b"}", b"\xff"))
    for message in broken:
        with pytest.raises((EOFError, RunError)) as caught:
            Pipe(io.BytesIO(message), io.BytesIO()).receive()
        assert MARK not in repr(caught.value) and caught.value.__cause__ is None
    # The control: what Python says of the byte holds the whole message.
    with pytest.raises(UnicodeDecodeError) as quoted:
        sent.replace(b"}", b"\xff").decode()
    assert MARK in repr(quoted.value)
