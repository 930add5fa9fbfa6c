"""Who is asked again in a round, after how long, and when a round gives up: the whole table."""

from __future__ import annotations

import pytest

from privet.server.retry import MAX_PAUSE_S, Again, End, Heard, SiteStanding, decide, pause

RELEASED, SILENT, NOT_NOW, UNPROVED, FAILED, OUT = SiteStanding
NAMES = ("North", "East", "South")


def of(*standings: SiteStanding | Heard) -> dict[str, Heard]:
    """What was heard of the three sites; a bare standing is a first try that just came."""
    made = [one if isinstance(one, Heard) else Heard(one) for one in standings]
    return dict(zip(NAMES, made, strict=True))


@pytest.mark.parametrize(
    ("heard", "quorum", "expected"),
    [
        # A quorum has released: nobody waits for the others, whatever they said.
        (of(RELEASED, RELEASED, RELEASED), 2, End.QUORUM),
        (of(RELEASED, RELEASED, NOT_NOW), 2, End.QUORUM),
        (of(RELEASED, RELEASED, SILENT), 2, End.QUORUM),
        (of(RELEASED, RELEASED, FAILED), 2, End.QUORUM),
        # Who is silent gets the same order when it is back; there is no time to wait for.
        (of(RELEASED, SILENT, OUT), 2, Again(away=("East",))),
        (of(SILENT, SILENT, SILENT), 2, Again(away=NAMES)),
        # Who says not-now gets the same order after 1, 2, 4 … seconds, for as long as it takes.
        (of(RELEASED, NOT_NOW, OUT), 2, Again(same=("East",), seconds=1.0)),
        (of(RELEASED, Heard(NOT_NOW, 3), OUT), 2, Again(same=("East",), seconds=4.0)),
        (of(RELEASED, Heard(NOT_NOW, 1000), OUT), 2, Again(same=("East",), seconds=60.0)),
        (of(NOT_NOW, NOT_NOW, NOT_NOW), 3, Again(same=NAMES, seconds=1.0)),
        # Who failed gets a new attempt, three in all.
        (of(RELEASED, FAILED, OUT), 2, Again(anew=("East",), seconds=1.0)),
        (of(RELEASED, Heard(FAILED, 2), OUT), 2, Again(anew=("East",), seconds=2.0)),
        (of(RELEASED, Heard(FAILED, 3), OUT), 2, End.NO_QUORUM),
        # Who proved nothing gets the same order, as often.
        (of(RELEASED, UNPROVED, OUT), 2, Again(same=("East",), seconds=1.0)),
        (of(RELEASED, Heard(UNPROVED, 3), OUT), 2, End.NO_QUORUM),
        # Who sits the round out is not asked beside one that is.
        (of(RELEASED, Heard(FAILED, 3), NOT_NOW), 2, Again(same=("South",), seconds=1.0)),
        # Refusals are for good.
        (of(OUT, OUT, RELEASED), 2, End.NO_QUORUM),
        (of(OUT, OUT, OUT), 1, End.NO_QUORUM),
        (of(RELEASED, NOT_NOW, OUT), 3, End.NO_QUORUM),
        (of(RELEASED, OUT, SILENT), 3, End.NO_QUORUM),
        # Each has its own time: the first that is due is asked, and nobody before.
        (
            of(Heard(NOT_NOW, 4), Heard(FAILED, 2), SILENT),
            3,
            Again(away=("South",), anew=("East",), seconds=2.0),
        ),
        (
            of(Heard(NOT_NOW, 4, ago=7.5), Heard(FAILED, 2), OUT),
            2,
            Again(same=("North",), seconds=0.5),
        ),
        (
            of(Heard(NOT_NOW, 1), Heard(FAILED, 1), OUT),
            2,
            Again(same=("North",), anew=("East",), seconds=1.0),
        ),
        # Whose time has passed while another was asked is asked at once.
        (
            of(Heard(NOT_NOW, 1, ago=30.0), SILENT, OUT),
            2,
            Again(away=("East",), same=("North",), seconds=0.0),
        ),
    ],
)
def test_who_is_asked_again(heard: dict[str, Heard], quorum: int, expected: Again | End) -> None:
    assert decide(heard, quorum, attempts=3) == expected


def test_pauses_follow_from_the_number_of_tries_alone() -> None:
    assert [pause(tries) for tries in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pause(10**9) == MAX_PAUSE_S


@pytest.mark.parametrize("standing", SiteStanding)
@pytest.mark.parametrize("others", [(a, b) for a in SiteStanding for b in SiteStanding])
def test_nobody_is_asked_anew_but_who_failed(
    standing: SiteStanding, others: tuple[SiteStanding, SiteStanding]
) -> None:
    """A new attempt may cost another charge: over all combinations only one standing leads to it."""
    heard = of(standing, *others)
    for quorum in (1, 2, 3):
        again = decide(heard, quorum, attempts=3)
        if isinstance(again, Again):
            assert {heard[site].standing for site in again.anew} <= {FAILED}
            assert {heard[site].standing for site in again.same} <= {NOT_NOW, UNPROVED}
            released = sum(one.standing is RELEASED for one in heard.values())
            assert released < quorum
