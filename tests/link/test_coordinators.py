"""The folders of a site's coordinators, and whose turn it is."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privet.client.housekeeping import clear_outbox
from privet.client.link.coordinators import Membership, memberships, place_for
from privet.client.link.join import FORMAT, Join
from privet.client.link.offers import Offers
from privet.client.outbox import Outbox
from privet.client.start import _with_certificate
from privet.client.turns import Turns
from privet.common.errors import InputError
from privet.common.link import offer
from privet.common.plan import Plan
from privet.common.release import Release

STUDY = Join(
    "study", "North", "hub:1", "hub:2", "pem", {"orders": "sha256:a", "witness": "sha256:b"}, "", ""
)
HEARTS = replace(STUDY, federation="hearts", coordinator={"orders": "sha256:c", "witness": "d"})


def keep(join: Join, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    kept = {"format": FORMAT, **{k: v for k, v in vars(join).items() if k != "token"}}
    (place / "join.json").write_text(json.dumps(kept))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    keep(STUDY, tmp_path / "link")
    return tmp_path


def test_a_site_of_one_coordinator_has_the_folders_that_it_had(home: Path) -> None:
    (one,) = memberships(home)
    assert (one.name, one.link, one.state) == ("study", home / "link", home)
    with pytest.raises(InputError, match="not enrolled"):
        memberships(home / "elsewhere")


def test_each_further_coordinator_has_a_folder_of_its_own(home: Path) -> None:
    assert place_for(STUDY, home) == home / "link"
    assert place_for(HEARTS, home) == home / "link" / "hearts"
    keep(HEARTS, place_for(HEARTS, home))
    # By its keys it is known again, wherever it lives and whatever it is called now.
    moved = replace(HEARTS, federation="moved", address="other:1", authority="another")
    assert place_for(moved, home) == home / "link" / "hearts"
    # One of the same name is another one, and is called otherwise here.
    for name in ("study", "hearts"):
        twin = replace(STUDY, federation=name, coordinator={"orders": "x", "witness": "y"})
        assert place_for(twin, home).name == f"{name}-2"
    first, second = memberships(home)
    assert (first.name, second.name, second.state) == (
        "study",
        "hearts",
        home / "coordinators/hearts",
    )
    # The first one may go; the other keeps its place.
    (home / "link" / "join.json").unlink()
    assert [one.name for one in memberships(home)] == ["hearts"]
    assert place_for(STUDY, home) == home / "link"


def test_a_name_that_is_a_file_of_the_first_is_taken(home: Path) -> None:
    (home / "link" / "link.pem").write_text("")
    assert place_for(replace(HEARTS, federation="link.pem"), home).name == "link.pem-2"


def test_a_plan_says_who_offers_it(home: Path, plan_value: Any) -> None:
    keep(HEARTS, home / "link" / "hearts")
    first, second = memberships(home)
    plan = Plan.parse(plan_value())
    for one in (first, second, second, first):
        Offers.of(one).keep(plan, one.name)
    (found,) = Offers(home).all()
    assert (found.coordinator, found.also) == ("study", ("hearts",))


def test_releases_of_each_coordinators_run_stay(home: Path) -> None:
    keep(HEARTS, home / "link" / "hearts")
    outbox = Outbox(home / "outbox")
    for run, one in zip(("theirs", "ours"), memberships(home), strict=True):
        Offers.of(one).keep_run(offer.encode(run, {}, {}))
        outbox.put(f"{run}/train/1/1", Release("sha256:0", {}, {}))
    outbox.put("old/train/1/1", Release("sha256:0", {}, {}))
    policy: Any = type("P", (), {"keep": type("K", (), {"releases_days": -1})})
    assert clear_outbox(home, policy) == 1
    assert outbox.get("old/train/1/1") is None and outbox.get("ours/train/1/1") is not None


def test_orders_take_their_turns_until_the_client_stops() -> None:
    turns, done = Turns(), threading.Event()
    said: list[str] = []

    def other() -> None:
        try:
            with turns.for_order():
                said.append("in")
        except InputError as error:
            said.append(str(error))
        done.set()

    with turns.for_order():
        threading.Thread(target=other).start()
        assert not done.wait(0.2)
    assert done.wait(10) and said == ["in"]
    done.clear()
    with turns.for_order():
        threading.Thread(target=other).start()
        turns.stopping.set()
        assert done.wait(10) and "being stopped" in said[-1]
    with pytest.raises(InputError, match="being stopped"), turns.for_order():
        pass


def test_a_membership_is_named_by_its_folder() -> None:
    one = Membership(Path("n"), Path("n/link/hearts-2"), HEARTS)
    assert (one.name, one.is_first) == ("hearts-2", False)


def test_a_certificate_that_has_not_come_holds_no_other_up(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(HEARTS, home / "link" / "hearts")
    both = memberships(home)
    assert _with_certificate(both) == both  # none has one: each says so itself
    (home / "link" / "link.pem").write_text("")
    assert _with_certificate(both) == both[:1]
    assert "its certificate has not come yet" in caplog.text
