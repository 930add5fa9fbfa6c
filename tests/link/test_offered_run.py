"""What a site does with an offered run, decided without any of it: every state, every input."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from privet.client.offered_run import OfferedRun, OpeningSteps
from privet.common.link.offer import READY
from privet.common.order import Status
from privet.privacy.evidence.roster import CoordinatorKeys, Roster
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Key

TRAINERS = ("sha256:a", "sha256:b")
LOG, WITNESS = Key("log", SIGN, bytes(32)), Key("witness", COSIGN, bytes(32))
FIRST = Roster(CoordinatorKeys("hub", LOG, LOG, WITNESS), (), quorum=1)
SECOND = Roster(CoordinatorKeys("hub", LOG, LOG, WITNESS), (), quorum=2)
NOTHING = OfferedRun()
WAITING = NOTHING.answered(Status.NOT_NOW)
OPEN = NOTHING.with_trainer("sha256:a").opened(FIRST).answered(READY)
BEGUN = OPEN.asked()
ROLLED_BACK = BEGUN.closed().answered(Status.REFUSED_ROLLBACK)


@pytest.mark.parametrize(
    ("state", "trainer", "roster", "steps"),
    [
        (NOTHING, "sha256:a", FIRST, OpeningSteps(True, True, True)),
        (WAITING, "sha256:a", FIRST, OpeningSteps(True, True, True)),
        (OPEN, "sha256:a", FIRST, OpeningSteps(True, False, False)),
        (OPEN, "sha256:a", SECOND, OpeningSteps(True, False, True)),
        (OPEN, "sha256:b", FIRST, OpeningSteps(True, True, True)),
        # Its data set is in use: it is not looked at again each second.
        (BEGUN, "sha256:a", FIRST, OpeningSteps(False, False, False)),
        (BEGUN, "sha256:a", SECOND, OpeningSteps(False, False, True)),
        (BEGUN, "sha256:b", SECOND, OpeningSteps(True, True, True)),
        (ROLLED_BACK, "sha256:a", FIRST, OpeningSteps(True, True, True)),
    ],
)
def test_what_an_offer_needs(
    state: OfferedRun, trainer: str, roster: Roster, steps: OpeningSteps
) -> None:
    assert state.steps(trainer, roster) == steps


@pytest.mark.parametrize("standing", list(Status))
@pytest.mark.parametrize("is_answered", [True, False])
def test_an_order_of_a_run_that_is_not_open(standing: Status, is_answered: bool) -> None:
    """Only what leaves no entry is answered as passing; what has an entry never is."""
    leaves_no_entry = {Status.NOT_NOW, Status.REFUSED_ROLLBACK}
    told = NOTHING.answered(standing).status_of_unopened(is_answered=is_answered)
    expected = standing if standing in leaves_no_entry and not is_answered else Status.FAILED
    assert told is expected


def test_a_kept_offer_is_looked_at_again_only_while_it_waits() -> None:
    assert WAITING.is_tried_again
    assert not any(state.is_tried_again for state in (NOTHING, OPEN, BEGUN, ROLLED_BACK))
    # A later offer that has to wait stops no run that goes on.
    assert not BEGUN.answered(Status.NOT_NOW).is_tried_again


def test_every_state_that_can_be_reached_is_whole() -> None:
    """A run that goes on has a trainer, and what is asked next never finds half of one."""
    moves: list[Callable[[OfferedRun], OfferedRun]] = [
        OfferedRun.asked,
        OfferedRun.closed,
        *(lambda state, to=status: state.answered(to) for status in Status),
        *(lambda state, to=trainer: state.with_trainer(to) for trainer in TRAINERS),
        *(
            lambda state, to=roster: state.opened(to) if state.trainer else state
            for roster in (FIRST, SECOND)
        ),
    ]
    seen, new = {NOTHING}, [NOTHING]
    while new:
        state = new.pop()
        for found in {move(state) for move in moves} - seen:
            seen.add(found)
            new.append(found)
    assert len(seen) == (1 + 2 * 3) * 2 * len(Status)
    for state in seen:
        assert state.trainer or not state.is_open
        for trainer in TRAINERS:
            steps = state.steps(trainer, FIRST)
            assert steps.make_site or (state.is_open and state.trainer == trainer)
            assert steps.make_site or not steps.make_trainer


def test_a_run_is_not_opened_without_a_trainer() -> None:
    with pytest.raises(ValueError, match="with a trainer"):
        NOTHING.opened(FIRST)
