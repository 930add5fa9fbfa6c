"""What a site did not do is shown as long as it is so."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from privet.client.link.refusals import OFFER_GOES_S, Refusals
from privet.common.order import Order, Status

PLAN = f"sha256:{'a' * 64}"


def order(attempt: int = 1) -> Order:
    return Order("first", "North", 1, attempt, "train", PLAN, PLAN, ("w",))


def be_older(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / "refusals.json", (then, then))


@pytest.mark.parametrize(
    ("status", "stays"),
    [
        (Status.NOT_NOW, False),
        (Status.REFUSED_POLICY, False),
        (Status.WAITS_FOR_APPROVAL, False),
        (Status.REFUSED_ROLLBACK, True),  # an old ledger is old, whoever asks
    ],
)
def test_an_offer_that_nobody_makes_any_more_is_gone(
    tmp_path: Path, status: Status, stays: bool
) -> None:
    kept = Refusals(tmp_path)
    kept.note_offer(PLAN, status)
    be_older(tmp_path, OFFER_GOES_S - 30)
    offer = kept.read()["offer"]
    assert offer is not None and offer["status"] == status
    be_older(tmp_path, OFFER_GOES_S + 30)
    assert (kept.read()["offer"] is not None) is stays
    # It is repeated each second: whoever still asks is still not served.
    kept.note_offer(PLAN, status)
    be_older(tmp_path, OFFER_GOES_S + 30)
    kept.note_repeated()
    assert kept.read()["offer"] is not None
    kept.note_ready()
    assert kept.read()["offer"] is None


@pytest.mark.parametrize(("status", "stays"), [(Status.NOT_NOW, False), (Status.FAILED, True)])
def test_a_release_says_that_a_passing_state_has_passed(
    tmp_path: Path, status: Status, stays: bool
) -> None:
    kept = Refusals(tmp_path)
    kept.note_order(order(), status)
    assert kept.read()["last_order"] is not None
    kept.note_order(order(2), Status.RELEASED)
    assert (kept.read()["last_order"] is not None) is stays
