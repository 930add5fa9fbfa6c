from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import subprocess
import sys
import threading

import pytest
from dp_kit import examples
from hypothesis import given
from hypothesis import strategies as st

from privet.common.errors import BudgetExceeded, LedgerError
from privet.privacy.accounting import epsilon
from privet.privacy.dpsgd import DpSgd
from privet.privacy.events import Gaussian, NonPrivate, PoissonSampled, Repeated, to_json
from privet.privacy.ledger import Budget, Reservation, RunHistory, fits
from privet.privacy.units import Relation, Unit

EVENT = Gaussian(10.0, 1.0)
DELTA = 1e-5
ONE, FOUR, FIVE = (epsilon([EVENT] * n, DELTA) for n in (1, 4, 5))
CAP = (FOUR + FIVE) / 2  # pays for four
BUDGET = Budget(CAP, DELTA, Unit.RECORD, Relation.ADD_OR_REMOVE_ONE)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "site" / "events.jsonl"


def opened(path, budget=BUDGET) -> RunHistory:
    return RunHistory(path, budget)


# --- reserve, commit, abort ---------------------------------------------------------------


def test_an_empty_history(path):
    ledger = opened(path)
    assert ledger.history() == []
    assert ledger.spent().epsilon == 0
    assert not path.exists()


def test_a_reservation_is_on_disk_before_it_is_given(path):
    reservation = opened(path).reserve("run/1", EVENT)
    assert reservation == Reservation(0, "run/1", EVENT)
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == ["reserved"]
    assert opened(path).history() == [EVENT]
    assert opened(path).spent().epsilon == ONE


def test_commit_adds_nothing_to_the_charge(path):
    ledger = opened(path)
    ledger.commit(ledger.reserve("run/1", EVENT), EVENT, "sha256:00")
    assert ledger.history() == opened(path).history() == [EVENT]
    assert [entry["kind"] for entry in ledger.entries] == ["reserved", "released"]
    assert ledger.entries[1]["digest"] == "sha256:00"


def test_the_cap_holds_and_a_refusal_changes_nothing(path):
    ledger = opened(path)
    for number in range(4):
        ledger.reserve(f"run/{number}", EVENT)
    before = path.read_bytes()
    with pytest.raises(BudgetExceeded) as refusal:
        ledger.reserve("run/5", EVENT)
    assert path.read_bytes() == before
    assert ledger.spent().epsilon == FOUR <= CAP < FIVE
    said = str(refusal.value)
    assert all(word in said for word in ("run/5", "1e-05", "per record", "add or remove one"))


def test_a_plan_that_uses_its_whole_budget_fits(path):
    mechanism = DpSgd(0.3, clip=0.5, steps=2).calibrated(2.0, DELTA, releases=3)
    ledger = opened(path, dataclasses.replace(BUDGET, epsilon=2.0))
    for number in range(3):
        ledger.commit(ledger.reserve(f"run/{number}", mechanism.event), mechanism.event, "d")
    with pytest.raises(BudgetExceeded):
        ledger.reserve("run/4", mechanism.event)


def test_what_is_not_private_never_fits_a_budget(path):
    for event in (NonPrivate("clear"), Repeated(NonPrivate("clear"), 2)):
        with pytest.raises(BudgetExceeded):
            opened(path).reserve("run/1", event)
    ledger = opened(path.with_name("open.jsonl"), None)
    ledger.reserve("run/1", NonPrivate("clear"))
    assert ledger.spent().epsilon == math.inf


def test_abort_is_free_only_before_data_was_opened(path):
    ledger = opened(path)
    ledger.abort(ledger.reserve("a", EVENT), data_opened=False)
    assert ledger.history() == []
    ledger.abort(ledger.reserve("b", EVENT), data_opened=True)
    assert ledger.history() == opened(path).history() == [EVENT]


def test_failures_after_data_was_opened_use_up_the_budget(path):
    """A refunded failure would be a free query (H30)."""
    ledger = opened(path)
    for number in range(4):
        ledger.abort(ledger.reserve(f"try/{number}", EVENT), data_opened=True)
    with pytest.raises(BudgetExceeded):
        ledger.reserve("try/5", EVENT)


def test_the_same_slot_pays_again(path):
    ledger = opened(path)
    for _ in range(2):
        ledger.reserve("run/1", EVENT)
    assert ledger.history() == [EVENT, EVENT]


@pytest.mark.parametrize(
    "ran",
    [
        Gaussian(9.9, 1.0),
        Gaussian(10.0, 1.1),
        Repeated(EVENT, 4),
        PoissonSampled(0.5, EVENT),
        NonPrivate("clear"),
    ],
)
def test_what_ran_must_fit_what_was_reserved(path, ran):
    ledger = opened(path)
    reservation = ledger.reserve("run/1", Repeated(EVENT, 3))
    with pytest.raises(LedgerError, match="does not fit"):
        ledger.commit(reservation, ran, "d")
    assert ledger.history() == opened(path).history() == [Repeated(EVENT, 3)]
    ledger.commit(reservation, Repeated(EVENT, 3), "d")


@examples(60)
@given(st.integers(0, 6), st.integers(0, 6))
def test_as_often_as_reserved_or_less(ran, reserved):
    assert fits(Repeated(EVENT, ran), Repeated(EVENT, reserved)) == (ran <= reserved)


def test_a_reservation_is_used_once(path):
    ledger = opened(path)
    done, dropped = ledger.reserve("a", EVENT), ledger.reserve("b", EVENT)
    ledger.commit(done, EVENT, "d")
    ledger.abort(dropped, data_opened=True)
    for again in (done, dropped):
        with pytest.raises(LedgerError, match="not open"):
            ledger.commit(again, EVENT, "d")
        with pytest.raises(LedgerError, match="not open"):
            ledger.abort(again, data_opened=False)
    assert ledger.history() == [EVENT, EVENT]


@pytest.mark.parametrize("number", [1, 7])
def test_a_reservation_nobody_gave(path, number):
    ledger = opened(path)
    ledger.commit(ledger.reserve("a", EVENT), EVENT, "d")
    with pytest.raises(LedgerError, match="not open"):
        ledger.commit(Reservation(number, "a", EVENT), EVENT, "d")


def test_a_reservation_that_was_tampered_with(path):
    ledger = opened(path)
    reservation = ledger.reserve("a", EVENT)
    larger = dataclasses.replace(reservation, event=Repeated(EVENT, 50))
    with pytest.raises(LedgerError):
        ledger.commit(larger, Repeated(EVENT, 50), "d")


def test_a_negative_reservation(path):
    ledger = opened(path)
    ledger.reserve("a", EVENT)
    with pytest.raises(LedgerError, match="not open"):
        ledger.abort(Reservation(-1, "a", EVENT), data_opened=False)


@examples(25)
@given(st.lists(st.sampled_from(["keep", "commit", "abort", "free", "reopen"]), max_size=12))
def test_any_sequence_keeps_every_charge(tmp_path_factory, actions):
    path = tmp_path_factory.mktemp("sequence") / "events.jsonl"
    ledger, charged = opened(path, None), 0
    for number, action in enumerate(actions):
        if action == "reopen":
            ledger = opened(path, None)
            continue
        reservation = ledger.reserve(str(number), EVENT)
        charged += action != "free"
        if action == "commit":
            ledger.commit(reservation, EVENT, "d")
        elif action != "keep":
            ledger.abort(reservation, data_opened=action == "abort")
    assert ledger.history() == opened(path, None).history() == [EVENT] * charged


# --- crashes ------------------------------------------------------------------------------

PREAMBLE = f"""
import os, signal, sys
from pathlib import Path
from privet.common.errors import BudgetExceeded, LedgerError
from privet.privacy.events import Gaussian
from privet.privacy.ledger import Budget, RunHistory
from privet.privacy.units import Relation, Unit
EVENT = Gaussian(10.0, 1.0)
BUDGET = Budget({CAP!r}, {DELTA!r}, Unit.RECORD, Relation.ADD_OR_REMOVE_ONE)
path = Path(sys.argv[1])
ledger = RunHistory(path, BUDGET)
"""


def started(path, script: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_after_reserving_the_charge_stays(path):
    child = started(path, "ledger.reserve('run/1', EVENT); os.kill(os.getpid(), signal.SIGKILL)")
    child.communicate()
    assert child.returncode < 0
    ledger = opened(path)
    assert ledger.history() == [EVENT]
    assert ledger.spent().epsilon == ONE


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_last_line_cut_by_a_crash(path, left):
    """The promise of a cut line was never given; the lines before it stand."""
    ledger = opened(path)
    ledger.reserve("a", EVENT)
    whole = path.read_bytes()
    ledger.reserve("b", EVENT)
    path.write_bytes(whole + path.read_bytes()[len(whole) :][: left if left > 0 else -1])
    again = opened(path)
    assert again.history() == [EVENT]
    assert again.reserve("c", EVENT).number == 1
    assert opened(path).history() == [EVENT, EVENT]


def damaged_lines():
    line = json.dumps({"number": 1, "kind": "reserved", "slot": "b", "event": to_json(EVENT)})
    return {
        "no JSON": "{" + line[3:],
        "not UTF-8": "\udcff\udcfe",
        "empty": "",
        "no object": "[1]",
        "out of sequence": line.replace('"number": 1', '"number": 2'),
        "unknown kind": line.replace("reserved", "refunded"),
        "no kind": '{"number": 1}',
    }


@pytest.mark.parametrize("damage", damaged_lines())
def test_a_damaged_line_stops_everything(path, damage):
    ledger = opened(path)
    for slot in "abc":
        ledger.reserve(slot, EVENT)
    first, _, third = path.read_bytes().splitlines(keepends=True)
    bad = damaged_lines()[damage].encode(errors="surrogateescape") + b"\n"
    path.write_bytes(first + bad + third)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="entry 1 is damaged"):
        opened(path)
    with pytest.raises(LedgerError, match="entry 1 is damaged"):
        ledger.reserve("d", EVENT)
    assert path.read_bytes() == before


def test_a_line_that_is_gone_is_noticed(path):
    ledger = opened(path)
    for slot in "abc":
        ledger.reserve(slot, EVENT)
    first, _, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + third)
    with pytest.raises(LedgerError, match="out of sequence"):
        opened(path)


@pytest.mark.parametrize(
    "line",
    [
        {"number": 0, "kind": "reserved", "slot": "a"},
        {"number": 0, "kind": "reserved", "slot": "a", "event": {"type": "gaussian"}},
        {"number": 0, "kind": "aborted", "slot": "a", "reservation": 0},
    ],
)
def test_a_line_with_missing_fields_is_damaged(path, line):
    path.parent.mkdir()
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(LedgerError, match="damaged"):
        opened(path).history()


FULL_DISK = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger.reserve("a", EVENT)
most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, most))
try:
    ledger.reserve("b", EVENT)
except LedgerError:
    print("LedgerError")
except OSError:
    print("OSError")
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
print(ledger.reserve("c", EVENT).number, len(RunHistory(path, BUDGET).history()))
"""


def full_disk(path) -> list[str]:
    output, _ = started(path, FULL_DISK).communicate()
    return output.split()


def test_a_full_disk_gives_no_promise_and_breaks_nothing(path):
    error, *after = full_disk(path)
    assert error in ("LedgerError", "OSError")
    assert after == ["1", "2"]


def test_a_full_disk_raises_ours(path):
    assert full_disk(path)[0] == "LedgerError"


# --- processes ----------------------------------------------------------------------------

RACE = """
print("ready", flush=True)
sys.stdin.readline()
given = []
try:
    while True:
        given.append(ledger.reserve(str(os.getpid()), EVENT).number)
except BudgetExceeded:
    print(*given)
"""


def test_two_processes_never_overspend_the_last_epsilon(path):
    racers = [started(path, RACE) for _ in range(2)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    given = [[int(n) for n in racer.communicate()[0].split()] for racer in racers]
    assert sorted(given[0] + given[1]) == [0, 1, 2, 3]
    assert opened(path).spent().epsilon == FOUR <= CAP


def test_two_handles_see_each_other(path):
    one, two = opened(path), opened(path)
    for number in range(4):
        (one, two)[number % 2].reserve(str(number), EVENT)
    for ledger in (one, two):
        with pytest.raises(BudgetExceeded):
            ledger.reserve("more", EVENT)


def test_a_handle_that_does_not_look_again_is_noticed(path, monkeypatch):
    """The control of the two tests above: without reading under the lock, both overspend."""
    one, two = opened(path), opened(path)
    monkeypatch.setattr("privet.privacy.ledger._read", lambda path: [])
    for ledger in (one, two):
        for number in range(3):
            ledger.reserve(str(number), EVENT)
    events = [line for line in path.read_text().splitlines() if '"reserved"' in line]
    assert epsilon([EVENT] * len(events), DELTA) > CAP


def test_opening_does_not_cut_a_line_that_is_being_written(path):
    opened(path).reserve("a", EVENT)
    line = json.dumps({"number": 1, "kind": "reserved", "slot": "b", "event": to_json(EVENT)})
    reader = threading.Thread(target=opened, args=(path,))
    with open(path.with_suffix(".lock"), "a") as lock, open(path, "ab", buffering=0) as stream:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stream.write(line[:30].encode())
        reader.start()
        reader.join(2.0)  # it may wait for the lock; if it did not, it is done by now
        stream.write(line[30:].encode() + b"\n")
    reader.join()
    assert opened(path).history() == [EVENT, EVENT]
