"""The ledger of one site: nothing is promised that is not on disk, nothing is forgotten."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dp_kit import examples
from hypothesis import given
from hypothesis import strategies as st
from ledger_kit import (
    CAP,
    DELTA,
    EVENT,
    GAUSSIAN,
    PATIENTS,
    PLAN,
    RELEASE,
    SETUP,
    SITE,
    VISITS,
    asked,
    bare,
    charged,
    cost,
    entries,
    key,
    kinds,
    opened,
    order,
    plan_of,
    spend,
)

from privet.common.canonical import digest
from privet.common.errors import (
    BudgetExceededError,
    LedgerError,
    OutOfTurnError,
    WrongLedgerError,
)
from privet.privacy.accounting.events import Gaussian, NonPrivate, PoissonSampled, Repeated, covers
from privet.privacy.accounting.plan_events import training_event
from privet.privacy.accounting.pld import epsilon
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.ledger_state import Reservation

# a new ledger


def test_a_new_ledger_begins_with_who_keeps_it(folder: Path) -> None:
    ledger = bare(folder)
    (genesis,) = entries(ledger)
    assert genesis.kind == "genesis"
    value = genesis.predicate
    assert (value["sequence"], value["site"], value["setting"]) == (0, SITE, "site")
    assert value["log"] == ledger.log.origin == f"privet.ledger/{SITE}/{_hex(folder)[:16]}"
    assert value["key"] == str(ledger.log.key)
    assert genesis.digest == digest(ledger.log.key.public)
    assert ledger.log.head().is_signed_by(ledger.log.key)


def _hex(folder: Path) -> str:
    return digest(key(folder).public).partition(":")[2]


def test_a_ledger_is_not_made_by_looking_for_it(folder: Path) -> None:
    with pytest.raises(WrongLedgerError, match="there is no log here"):
        Ledger(folder, FileSigner.generate(), SITE)
    assert not folder.exists()


def test_opening_twice_writes_nothing(folder: Path) -> None:
    before = opened(folder).log.head()
    assert opened(folder).log.head() == before


def test_an_empty_history(ledger: Ledger) -> None:
    assert ledger.history() == []
    assert ledger.spent().epsilon == 0
    assert ledger.pending() == []


# reserve, commit, abort

_READ = """
import base64, json, sqlite3, sys
for (leaf,) in sqlite3.connect(sys.argv[1]).execute("SELECT leaf FROM entries ORDER BY sequence"):
    print(json.loads(base64.b64decode(json.loads(leaf)["payload"]))["predicateType"])
"""


def seen_by_others(folder: Path) -> list[str]:
    """The kinds of all entries as another process reads them: what is committed, no more."""
    words = [sys.executable, "-c", _READ, str(folder / "ledger.db")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [line.rpartition(":")[2] for line in done.stdout.split()]


def test_a_reservation_is_on_disk_before_it_is_given(folder: Path, ledger: Ledger) -> None:
    reservation = ledger.reserve(asked())
    assert reservation == Reservation(SETUP, order().digest, order().slot, EVENT)
    assert seen_by_others(folder)[SETUP:] == ["reserved"]
    again = opened(folder)
    assert charged(again) == 1
    assert again.spent().epsilon == pytest.approx(epsilon([EVENT], DELTA))
    assert again.pending() == [reservation]


def test_what_is_reserved_is_on_the_wire_of_the_evidence(ledger: Ledger) -> None:
    ledger.reserve(dataclasses.replace(asked(), self_tests=("H6", "H16")))
    value = entries(ledger)[-1].predicate
    wanted = order()
    assert {name: value[name] for name in ("run", "round", "attempt", "purpose")} == {
        "run": "run", "round": 1, "attempt": 1, "purpose": "train"
    }  # fmt: skip
    assert (value["order"], value["plan"]) == (wanted.digest, PLAN.digest)
    assert (value["population"], value["data_set"]) == (PATIENTS, VISITS)
    assert value["self_tests"] == ["H6", "H16"]
    assert entries(ledger)[-1].digest == wanted.digest


def test_commit_adds_nothing_to_the_charge(folder: Path, ledger: Ledger) -> None:
    number = ledger.commit(ledger.reserve(asked()), EVENT, RELEASE)
    assert charged(ledger) == charged(opened(folder)) == 1
    assert kinds(ledger) == ["reserved", "released"]
    released = entries(ledger)[number]
    assert (released.kind, released.digest) == ("released", RELEASE)
    assert released.predicate["reservation"] == number - 1
    assert ledger.pending() == []
    assert ledger.committed(order().slot) == RELEASE
    assert ledger.entry_of(order().slot) == number


def test_metrics_are_released_under_their_own_name(ledger: Ledger) -> None:
    request = dataclasses.replace(asked(), order=order(purpose="evaluate"))
    ledger.commit(ledger.reserve(request), EVENT, RELEASE)
    assert kinds(ledger) == ["reserved", "metric-released"]


def test_the_cap_holds_and_a_refusal_changes_nothing(folder: Path, ledger: Ledger) -> None:
    for number in range(1, 5):
        ledger.reserve(asked(number))
    before = ledger.log.head()
    with pytest.raises(BudgetExceededError) as refusal:
        ledger.reserve(asked(5))
    assert ledger.log.head() == opened(folder).log.head() == before
    assert charged(ledger) == 4
    assert cost(4) <= CAP < cost(5)
    said = str(refusal.value)
    words = ("run/train/5/1", "1e-05", "per record", "add or remove one", f"ε {CAP:g}")
    assert all(word in said for word in words), said


def test_a_plan_that_uses_its_whole_budget_fits_and_nothing_after_it(folder: Path) -> None:
    plan = plan_of(rounds=3, noise=4.0)
    event = training_event(plan)
    whole = epsilon([event] * 3, DELTA)
    ledger = opened(folder, whole)
    ledger.keep("plan", plan.digest, plan.to_dict())
    ledger.approve(plan.digest, ["Ada"], "manual")
    for number in (1, 2, 3):
        request = asked(number, event=event, plan=plan.digest)
        ledger.commit(ledger.reserve(request), event, RELEASE)
    assert ledger.spent().epsilon == pytest.approx(whole)
    for run in ("run", "other"):
        with pytest.raises(BudgetExceededError):
            ledger.reserve(asked(4, event=event, plan=plan.digest, run=run))


def test_a_budget_that_was_enough_for_one_plan_is_not_for_two(folder: Path) -> None:
    """Another plan was chosen after seeing the first one's results (H29)."""
    plan = plan_of(rounds=2, noise=4.0)
    event = training_event(plan)
    ledger = opened(folder, epsilon([event] * 2, DELTA))
    less, more = plan_of(rounds=2, noise=3.9), plan_of(rounds=2, noise=4.1)
    for chosen in (plan, less, more):
        ledger.keep("plan", chosen.digest, chosen.to_dict())
        ledger.approve(chosen.digest, ["Ada"], "manual")
    ledger.reserve(asked(1, event=event, plan=plan.digest))
    with pytest.raises(BudgetExceededError, match="the Gaussian filter counts"):
        ledger.reserve(asked(1, event=training_event(less), plan=less.digest, run="other"))
    ledger.reserve(asked(1, event=training_event(more), plan=more.digest, run="third"))
    assert ledger.spent().epsilon < budget_of(ledger)


def budget_of(ledger: Ledger) -> float:
    return float(ledger.state.populations[PATIENTS].budget.epsilon or 0)


def test_a_run_keeps_its_plan(ledger: Ledger) -> None:
    other = plan_of(rounds=49)
    ledger.keep("plan", other.digest, other.to_dict())
    ledger.approve(other.digest, ["Ada"], "manual")
    spend(ledger, 1)
    with pytest.raises(OutOfTurnError, match="another plan"):
        ledger.reserve(asked(2, plan=other.digest))
    assert charged(ledger) == 1


def test_a_run_keeps_its_data_set(folder: Path, ledger: Ledger) -> None:
    ledger.add_data_set("feedback", PATIENTS)
    assert ledger.state.data_set_of("run") is None
    spend(ledger, 1)
    for again in (ledger, opened(folder)):
        with pytest.raises(OutOfTurnError, match=f"begun on data set '{VISITS}'"):
            again.reserve(asked(2, data_set="feedback"))
    assert charged(ledger) == 1
    # The control: another run may.
    ledger.reserve(asked(1, run="second", data_set="feedback"))
    assert ledger.state.data_set_of("second") == "feedback"


def test_a_run_keeps_its_code(folder: Path, ledger: Ledger) -> None:
    """What was changed in the middle of a run would make evidence that does not verify."""
    spend(ledger, 1)
    changed = dataclasses.replace(asked(2), code="sha256:" + "d" * 64)
    for again in (ledger, opened(folder)):
        with pytest.raises(
            OutOfTurnError, match="begun with code sha256:ccc.*sha256:ddd.* is here now"
        ):
            again.reserve(changed)
    assert charged(ledger) == 1
    # The controls: the earlier code, and another run.
    ledger.reserve(asked(2))
    ledger.reserve(dataclasses.replace(asked(1, run="second"), code=changed.code))


def test_a_plan_that_is_kept_under_another_ones_name(ledger: Ledger) -> None:
    """A plan swapped beside the ledger must not widen what a run may spend."""
    ledger.keep("plan", PLAN.digest, plan_of(rounds=2).to_dict())
    fresh = Ledger(ledger.log.store.path.parent, ledger.log.signer, SITE)
    with pytest.raises(LedgerError, match="is another one"):
        fresh.reserve(asked())
    assert charged(fresh) == 0


def test_what_is_not_private_never_fits_a_budget(folder: Path, ledger: Ledger) -> None:
    for event in (NonPrivate("clear"), Repeated(NonPrivate("clear"), 2)):
        with pytest.raises(BudgetExceededError):
            ledger.reserve(asked(event=event))
    free = opened(folder.with_name("free"), None)
    free.reserve(asked(event=NonPrivate("clear")))
    assert free.spent().epsilon == float("inf")


def test_abort_is_free_only_before_data_was_opened(folder: Path, ledger: Ledger) -> None:
    ledger.abort(ledger.reserve(asked(1)), data_opened=False)
    assert ledger.history() == opened(folder).history() == []
    ledger.abort(ledger.reserve(asked(2)), data_opened=True)
    assert charged(ledger) == charged(opened(folder)) == 1
    assert kinds(ledger) == ["reserved", "aborted"] * 2
    assert [entry.predicate["reason"] for entry in entries(ledger)[-3::2]] == ["failed"] * 2


def test_failures_after_data_was_opened_use_up_the_budget(ledger: Ledger) -> None:
    """A refunded failure would be a free query (H30)."""
    for attempt in range(1, 5):
        ledger.abort(ledger.reserve(asked(1, attempt)), data_opened=True)
    with pytest.raises(BudgetExceededError):
        ledger.reserve(asked(1, 5))


def test_what_was_given_back_can_be_spent(ledger: Ledger) -> None:
    """The control: failures before data was opened use up nothing."""
    for attempt in range(1, 7):
        ledger.abort(ledger.reserve(asked(1, attempt)), data_opened=False)
    for number in range(2, 6):
        spend(ledger, number)
    with pytest.raises(BudgetExceededError):
        ledger.reserve(asked(6))


@pytest.mark.parametrize(
    "ran",
    [
        Gaussian(9.9, 1.0),
        Gaussian(10.0, 1.1),
        Repeated(GAUSSIAN, 4),
        PoissonSampled(0.5, GAUSSIAN),
        NonPrivate("clear"),
    ],
    ids=["less noise", "wider clip", "more often", "sampled", "clear"],
)
def test_what_does_not_fit_keeps_its_charge_under_its_name(folder: Path, ran: Any) -> None:
    ledger = opened(folder, 3.0)
    reservation = ledger.reserve(asked(event=Repeated(GAUSSIAN, 3)))
    with pytest.raises(LedgerError, match="does not fit"):
        ledger.commit(reservation, ran, RELEASE)
    again = opened(folder, 3.0)
    assert charged(ledger) == charged(again) == 3
    assert kinds(again) == ["reserved", "aborted"]
    value = entries(again)[-1].predicate
    assert (value["reason"], value["data_opened"]) == ("does-not-fit", True)
    assert again.committed(reservation.slot) is None
    with pytest.raises(LedgerError, match="not open"):
        ledger.commit(reservation, Repeated(GAUSSIAN, 3), RELEASE)


@examples(60)
@given(st.integers(0, 6), st.integers(0, 6))
def test_as_often_as_reserved_or_less(ran: int, reserved: int) -> None:
    assert covers(Repeated(EVENT, reserved), Repeated(EVENT, ran)) == (ran <= reserved)


def test_a_reservation_is_used_once(ledger: Ledger) -> None:
    done = ledger.reserve(asked(1))
    ledger.commit(done, EVENT, RELEASE)
    dropped = ledger.reserve(asked(2))
    ledger.abort(dropped, data_opened=True)
    for again in (done, dropped):
        with pytest.raises(LedgerError, match="not open"):
            ledger.commit(again, EVENT, RELEASE)
        with pytest.raises(LedgerError, match="not open"):
            ledger.abort(again, data_opened=False)
    assert charged(ledger) == 2


@pytest.mark.parametrize("number", [-1, 0, SETUP - 1, SETUP + 1, 99])
def test_a_reservation_nobody_gave(ledger: Ledger, number: int) -> None:
    given = ledger.reserve(asked())
    false = dataclasses.replace(given, number=number)
    with pytest.raises(LedgerError, match="not open"):
        ledger.commit(false, EVENT, RELEASE)
    with pytest.raises(LedgerError, match="not open"):
        ledger.abort(false, data_opened=False)
    assert ledger.pending() == [given]


def test_a_reservation_that_was_tampered_with(ledger: Ledger) -> None:
    reservation = ledger.reserve(asked())
    larger = dataclasses.replace(reservation, event=Repeated(EVENT, 50))
    with pytest.raises(LedgerError, match="not open"):
        ledger.commit(larger, Repeated(EVENT, 50), RELEASE)


@examples(15)
@given(st.lists(st.sampled_from(["keep", "commit", "abort", "free", "reopen"]), max_size=9))
def test_any_sequence_keeps_every_charge(
    tmp_path_factory: pytest.TempPathFactory, actions: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("sequence")
    ledger, expected = opened(folder, None), 0
    for number, action in enumerate(actions, 1):
        if action == "reopen":
            ledger = opened(folder, None)
            continue
        reservation = ledger.reserve(asked(number))
        expected += action != "free"
        if action == "commit":
            ledger.commit(reservation, EVENT, RELEASE)
        elif action != "keep":
            ledger.abort(reservation, data_opened=action == "abort")
    assert charged(ledger) == charged(opened(folder, None)) == expected
    ledger.log.store.close()


# turns


def test_a_slot_is_answered_once(ledger: Ledger) -> None:
    spend(ledger, 1)
    with pytest.raises(OutOfTurnError):
        ledger.reserve(asked(1))
    assert charged(ledger) == 1


def test_a_slot_is_not_reserved_twice_at_once(ledger: Ledger) -> None:
    ledger.reserve(asked(1))
    with pytest.raises(OutOfTurnError):
        ledger.reserve(asked(1))


@pytest.mark.parametrize("state", ["open", "released", "aborted"])
def test_another_order_for_a_slot(ledger: Ledger, state: str) -> None:
    """Two models for one round (H11): whatever became of the first, the second is refused."""
    reservation = ledger.reserve(asked(1))
    if state == "released":
        ledger.commit(reservation, EVENT, RELEASE)
    elif state == "aborted":
        ledger.abort(reservation, data_opened=False)
    with pytest.raises(OutOfTurnError, match="for one order"):
        ledger.reserve(asked(1, model="sha256:" + "1" * 64))
    assert kinds(ledger).count("reserved") == 1


def test_the_same_order_after_an_abort_pays_again(ledger: Ledger) -> None:
    ledger.abort(ledger.reserve(asked(1)), data_opened=True)
    ledger.commit(ledger.reserve(asked(1)), EVENT, RELEASE)
    assert charged(ledger) == 2


def test_a_second_attempt_pays_again(ledger: Ledger) -> None:
    spend(ledger, 1)
    spend(ledger, 1, 2, model="sha256:" + "1" * 64)
    assert charged(ledger) == 2
    with pytest.raises(OutOfTurnError):
        ledger.reserve(asked(1, 1))


@pytest.mark.parametrize("late", [(1, 1), (1, 9), (2, 1)])
def test_a_run_never_goes_back(ledger: Ledger, late: tuple[int, int]) -> None:
    ledger.abort(ledger.reserve(asked(1)), data_opened=False)
    ledger.abort(ledger.reserve(asked(2, 2)), data_opened=False)
    with pytest.raises(OutOfTurnError):
        ledger.reserve(asked(*late))
    # Other runs, and evaluations of this one, have turns of their own.
    spend(ledger, 1, run="other")
    ledger.reserve(dataclasses.replace(asked(), order=order(1, purpose="evaluate")))


def test_turns_are_remembered_on_disk(folder: Path, ledger: Ledger) -> None:
    spend(ledger, 2)
    again = opened(folder)
    for late in (asked(1), asked(2), asked(2, model="sha256:" + "1" * 64)):
        with pytest.raises(OutOfTurnError):
            again.reserve(late)


def test_a_refusal_is_noted_once_and_stands(folder: Path, ledger: Ledger) -> None:
    """An order has one answer: what was refused is not reserved later (format: orders)."""
    ledger.refuse(order(), "refused-paused")
    ledger.refuse(order(), "refused-plan")
    assert kinds(ledger) == ["refused"]
    assert ledger.refusal(order()) == opened(folder).refusal(order())
    assert ledger.refusal(order()) == "refused-paused"
    with pytest.raises(OutOfTurnError, match="was refused"):
        ledger.reserve(asked())
    assert ledger.refusal(order(1, 2)) is None
    ledger.reserve(asked(1, 2))


def test_a_run_keeps_its_coordinator(folder: Path, ledger: Ledger) -> None:
    spend(ledger, 1)
    for again in (ledger, opened(folder)):
        with pytest.raises(OutOfTurnError, match="another coordinator"):
            again.reserve(asked(2, keyid="0b" * 32))
    ledger.reserve(asked(2))


def test_the_refusal_of_one_coordinator_binds_no_other(ledger: Ledger) -> None:
    """The same order, asked by a second one first."""
    assert ledger.refuse(order(keyid="0b" * 32), "refused-policy")
    assert ledger.refusal(order()) is None
    ledger.reserve(asked())


def test_an_order_without_a_key_has_no_place(ledger: Ledger) -> None:
    for act in (
        lambda: ledger.reserve(asked(keyid="")),
        lambda: ledger.refuse(order(keyid=""), "x"),
    ):
        with pytest.raises(LedgerError, match="nobody signed"):
            act()
    assert kinds(ledger) == []


def test_what_was_reserved_is_not_noted_as_refused(ledger: Ledger) -> None:
    spend(ledger, 1)
    ledger.refuse(order(), "refused-conflict")
    assert kinds(ledger) == ["reserved", "released"]


def test_a_run_that_got_everything_back_is_not_the_first_one_again(folder: Path) -> None:
    """Else a plan that never ran would say how much of delta the run that did leaves."""
    ledger = opened(folder, 90.0)
    ledger.abort(ledger.reserve(asked(run="A")), data_opened=False)
    ledger.reserve(asked(run="B"))
    ledger.reserve(asked(attempt=2, run="A"))
    assert list(ledger.state.charges(PATIENTS)) == ["B", "A"]
