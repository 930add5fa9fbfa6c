"""Killed processes, full disks, and several processes on one ledger."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_kit import (
    CAP,
    PATIENTS,
    SETUP,
    asked,
    charged,
    cost,
    entries,
    kinds,
    opened,
    opened_only,
    spend,
)
from short_kit import short

from privet.common.errors import (
    BudgetExceededError,
    LedgerError,
)
from privet.privacy.evidence.ledger import Ledger, Request
from privet.privacy.evidence.ledger_state import Reservation
from privet.privacy.evidence.log import Log
from privet.privacy.evidence.store import Store

PREAMBLE = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from ledger_kit import *
from privet.common.errors import BudgetExceededError, LedgerError
folder = Path(sys.argv[1])
ledger = opened(folder, eval(sys.argv[2]))
"""


def started(folder: Path, script: str, epsilon_: float | None = CAP) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, str(folder), repr(epsilon_)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def lines(child: subprocess.Popen[str]) -> Iterator[str]:
    assert child.stdout is not None
    for line in child.stdout:
        yield line.strip()


def test_killed_after_reserving_the_charge_stays(folder: Path) -> None:
    child = started(folder, "ledger.reserve(asked(1)); os.kill(os.getpid(), signal.SIGKILL)")
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    ledger = opened(folder)
    assert charged(ledger) == len(ledger.pending()) == 1


STORM = """
for number in range(1, 10_000):
    reservation = ledger.reserve(asked(number))
    print("reserved", number, flush=True)
    ledger.commit(reservation, EVENT, "sha256:" + "d" * 64)
    print("released", number, flush=True)
"""


@pytest.mark.parametrize("promises", [1, 4, 9])
def test_killed_at_any_moment_every_promise_stands(folder: Path, promises: int) -> None:
    child = started(folder, STORM, None)
    said = lines(child)
    given = [next(said) for _ in range(promises)]
    child.send_signal(signal.SIGKILL)
    given += list(said)
    child.communicate()
    ledger = opened(folder, None)
    found = [
        f"{entry.kind} {entry.predicate['round']}" if entry.kind == "reserved" else entry.kind
        for entry in entries(ledger)[SETUP:]
    ]
    reserved = [line for line in given if line.startswith("reserved")]
    assert found[::2][: len(reserved)] == reserved
    assert found.count("released") >= len(given) - len(reserved)
    # At most the one that was under way is there without having been promised.
    assert len(found) - len(given) in (0, 1)
    assert charged(ledger) == len(found[::2])
    assert len(ledger.pending()) == len(found) % 2
    spend(ledger, 10_001)


FULL_DISK = """
import resource
most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
ledger.reserve(asked(1))
wal = Path(str(folder / "ledger.db") + "-wal")
resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + int(sys.stdin.readline()), most))
try:
    ledger.reserve(asked(2))
    print("given")
except LedgerError:
    print("LedgerError")
except BaseException as error:
    print(type(error).__name__)
print(charged(ledger))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
print(ledger.reserve(asked(3)).number - SETUP, charged(opened(folder)))
"""


@pytest.mark.parametrize("room", [0, 10, 4096, 4130])
def test_a_full_disk_gives_no_promise_and_breaks_nothing(folder: Path, room: int) -> None:
    """Short writes too: a file may grow by less than is written."""
    child = started(folder, FULL_DISK)
    said, _ = child.communicate(f"{room}\n")
    assert said.split() == ["LedgerError", "1", "1", "2"]
    ledger = opened(folder)
    assert kinds(ledger) == ["reserved", "reserved"]


def test_a_disk_with_room_is_written(folder: Path) -> None:
    """The control: with room for the whole transaction the promise is given."""
    said, _ = started(folder, FULL_DISK).communicate("1000000\n")
    assert said.split() == ["given", "2", "2", "3"]


RACE = """
print("ready", flush=True)
sys.stdin.readline()
given = []
try:
    for attempt in range(1, 100):
        run = f"run-{os.getpid()}"
        given.append(ledger.reserve(asked(attempt, run=run)).number)
except BudgetExceededError:
    print(*given)
"""


def race(folder: Path) -> list[list[int]]:
    opened(folder)
    racers = [started(folder, RACE) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    return [[int(n) for n in racer.communicate()[0].split()] for racer in racers]


@pytest.mark.parametrize("times", short(range(3), [0]))
def test_two_processes_never_overspend_the_last_epsilon(folder: Path, times: int) -> None:
    given = race(folder)
    assert sorted(given[0] + given[1]) == list(range(SETUP, SETUP + 4))
    assert charged(opened(folder)) == 4


def test_two_handles_see_each_other(folder: Path) -> None:
    one, two = opened(folder), opened(folder)
    for number in range(1, 5):
        (one, two)[number % 2].reserve(asked(number))
    for ledger in (one, two):
        with pytest.raises(BudgetExceededError):
            ledger.reserve(asked(5))


def test_a_handle_that_looks_before_it_holds_the_lock_overspends(folder: Path) -> None:
    """The control of the three tests above: they would see it."""

    class Hasty(Ledger):
        def reserve(self, request: Request) -> Reservation:
            raise NotImplementedError

        def look(self, request: Request) -> None:
            self.log.refresh()
            super()._require_cover(PATIENTS, request)

        def _require_cover(self, name: str, request: Request) -> None:
            """It was looked at before."""

    one, two = opened(folder), opened(folder)
    for ledger in (one, two):
        ledger.__class__ = Hasty
    for number in range(1, 4):
        one.reserve = Ledger.reserve.__get__(one)  # type: ignore[method-assign]
        one.reserve(asked(number))
    one.look(asked(4))  # type: ignore[attr-defined]
    two.look(asked(4, run="other"))  # type: ignore[attr-defined]
    one.reserve(asked(4))
    Ledger.reserve(two, asked(4, run="other"))
    assert charged(opened_only(folder)) == 5
    assert cost(5) > CAP


def test_a_handle_that_does_not_look_again_writes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even so, the second history cannot be written over the first."""
    one, two = opened(folder), opened(folder)
    one.reserve(asked(1))
    monkeypatch.setattr(Log, "refresh", lambda self: None)
    with pytest.raises(LedgerError):
        two.reserve(asked(1, run="other"))
    monkeypatch.undo()
    assert charged(opened_only(folder)) == 1


HOLD = """
with ledger.log.store.transaction():
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_waits_and_then_says_why(folder: Path) -> None:
    mine = opened(folder, patience=0.3)
    child = started(folder, HOLD)
    said = lines(child)
    assert next(said) == "held"
    assert child.stdin is not None
    began = time.monotonic()
    with pytest.raises(LedgerError, match="is a second client running"):
        mine.reserve(asked(1))
    assert 0.2 < time.monotonic() - began < 20
    # Reading goes on meanwhile, and so does opening what there is.
    assert mine.history() == []
    assert len(opened_only(folder).log) == SETUP
    child.communicate("\n")
    mine.reserve(asked(1))
    assert charged(mine) == 1


RELEASE_LATER = HOLD.replace("sys.stdin.readline()", "import time; time.sleep(1)")


def test_a_second_process_that_waits_gets_its_turn(folder: Path) -> None:
    mine = opened(folder)
    child = started(folder, RELEASE_LATER)
    assert next(lines(child)) == "held"
    mine.reserve(asked(1))
    child.communicate()
    assert charged(opened(folder)) == 1


def test_opening_while_another_process_writes_sees_one_state(folder: Path) -> None:
    """Entries and head are read as of one moment, whatever is written in between."""
    child = started(folder, STORM, None)
    said = lines(child)
    next(said)
    sizes = [len(opened_only(folder).log) for _ in range(40)]
    child.kill()
    child.communicate()
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


def test_a_head_read_apart_from_its_entries_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: another process writes between the two readings."""
    other = opened(folder)
    honest = Store.fact

    def slow(self: Store, name: str) -> str | None:
        if self is not other.log.store:
            other.reserve(asked(len(other.log)))
        return honest(self, name)

    monkeypatch.setattr(Store, "fact", slow)
    opened_only(folder)
    monkeypatch.setattr(Store, "reading", lambda self: _Nothing())
    with pytest.raises(LedgerError, match="do not lead to the signed head"):
        opened_only(folder)


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def test_nothing_is_written_while_a_state_is_read(ledger: Ledger) -> None:
    """It would be rolled back with the reading."""
    with (
        pytest.raises(LedgerError, match="nothing is written while"),
        ledger.log.store.reading(),
        ledger.log.store.transaction(),
    ):
        pass
    spend(ledger, 1)


def test_a_forked_process_has_a_connection_of_its_own(folder: Path) -> None:
    script = """
child = os.fork()
if not child:
    ledger.reserve(asked(1, run="child"))
    os._exit(0)
os.waitpid(child, 0)
ledger.reserve(asked(1))
print(charged(ledger))
"""
    said, _ = started(folder, script).communicate()
    assert said.split() == ["2"]


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_a_second_store_of_a_process_does_not_let_go_of_the_first_ones_locks(
    folder: Path, how: str
) -> None:
    """To close a file lets go of all locks that the process holds on it: another process took
    itself for the last one then, and removed the write-ahead file that was still written to.
    """
    child = started(
        folder,
        "ledger.add_data_set('heart', PATIENTS)\n"
        "reader = Ledger.read(folder)  # as a client that serves figures has one\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "ledger.add_data_set('lungs', PATIENTS)\n"
        "print('written', flush=True)\n"
        "sys.stdin.readline()\n",
    )
    said = lines(child)
    assert next(said) == "ready"
    other = started(folder, "Ledger.read(folder).log.refresh()")  # as `privet client status`
    other.communicate(timeout=60)
    assert other.returncode == 0
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert next(said) == "written"
    if how == "killed":
        child.kill()
    child.communicate(timeout=60)
    assert set(opened(folder).state.data_sets) >= {"heart", "lungs"}
