"""Rounds are made again from the very releases that were joined, or it is said what is missing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from privet.common.errors import RunError
from privet.common.flat import Arrays, digest_arrays
from privet.common.order import Order, Status
from privet.common.release import Release
from privet.server.recovery.replay import Replay, Restored
from privet.server.replies import Reply

MODEL: Arrays = {"w": np.zeros(2, dtype=np.float32)}
NEXT: Arrays = {"w": np.ones(2, dtype=np.float32)}
DIGEST, PLAN = digest_arrays(NEXT), "sha256:" + "0" * 64


class Link:
    """Answers what the test says, in turn, and remembers who was asked."""

    def __init__(self, *answers: dict[str, Any], waits: bool = True) -> None:
        self.answers, self.asked, self.waits = list(answers), [], waits

    def ask(
        self, round_number: int, orders: list[Order], model: Arrays, heads: dict[str, str]
    ) -> list[Reply]:
        self.asked.append([(order.site, order.attempt) for order in orders])
        said = self.answers.pop(0)
        return [
            Reply(order.site, said[order.site][0], said[order.site][1])
            for order in orders
            if order.site in said
        ]

    def wait(self, away: list[str], seconds: float | None = None) -> list[str] | None:
        return list(away) if self.waits else None

    def join(self, round_number: int, model: Arrays, replies: list[Reply]) -> Arrays:
        return NEXT


class Collector:
    """A journal's papers and a site's heads, and what the coordinator would note."""

    def __init__(self, orders: list[Order]) -> None:
        self.texts = {
            order.digest: json.dumps({"order": order.to_dict(), "keyid": "", "sig": ""})
            for order in orders
        }
        self.said: list[str] = []
        self.on_restored = self.said.append

    def kept_order(self, digest: str) -> Order | None:
        text = self.texts.get(digest)
        return None if text is None else Order.decode(json.loads(text)["order"])

    def head(self, site: str) -> str:
        return ""


def order(site: str, attempt: int) -> Order:
    return Order("run", site, 3, attempt, "train", PLAN, digest_arrays(MODEL), ("w",))


def released(digest: str = DIGEST) -> tuple[Status, Release]:
    return Status.RELEASED, Release("", {"digest": digest}, NEXT)


def replay(link: Link, sites: tuple[str, ...] = ("North", "East")) -> tuple[Replay, Collector]:
    orders = [order("North", 1), order("North", 2), order("East", 1), order("South", 1)]
    answers = ["failed", "released", "released", "no-reply"]
    record = {
        "round": 3,
        "next": digest_arrays(NEXT),
        "metrics": [],
        "joined": [{"site": site, "digest": DIGEST} for site in ("North", "East")],
        "orders": [
            {"site": one.site, "order": one.digest, "purpose": "train", "attempt": one.attempt,
             "answer": answer}
            for one, answer in zip(orders, answers, strict=True)
        ],
    }  # fmt: skip
    collector: Any = Collector(orders)
    restored = Restored(2, {3: record}, 1, False)
    return Replay(link, collector, restored, list(sites)), collector


def test_only_what_was_joined_is_asked_for_by_the_attempt_that_released() -> None:
    link = Link({"North": released(), "East": released()})
    replies, joined = replay(link)[0].train(3, MODEL)
    assert link.asked == [[("North", 2), ("East", 1)]]
    assert [one.site for one in replies] == ["North", "East"] and joined is NEXT


def test_who_is_silent_or_says_not_now_is_asked_the_same_again() -> None:
    link = Link({"North": (Status.NOT_NOW, None)}, {"East": released()}, {"North": released()})
    made, collector = replay(link)
    made.train(3, MODEL)
    assert link.asked == [[("North", 2), ("East", 1)], [("North", 2), ("East", 1)], [("North", 2)]]
    assert "once these sites have handed out" in collector.said[0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((Status.FAILED, None), "site 'East' answered 'failed'"),
        ((Status.REFUSED_CONFLICT, None), "site 'East' answered 'refused-conflict'"),
        (released("sha256:" + "1" * 64), "site 'East' released something else"),
    ],
)
def test_a_release_that_is_gone_ends_it_and_nobody_is_asked_anew(answer: Any, said: str) -> None:
    link = Link({"North": released(), "East": answer})
    with pytest.raises(RunError, match=f"Lost: the model of round 3, for {said}"):
        replay(link)[0].train(3, MODEL)
    assert len(link.asked) == 1


def test_who_does_not_come_ends_it() -> None:
    with pytest.raises(RunError, match="not connected: East"):
        replay(Link(), ("North",))[0].train(3, MODEL)
    with pytest.raises(RunError, match="did not answer"):
        replay(Link({"North": released()}, waits=False))[0].train(3, MODEL)


def test_another_model_than_the_journals_is_not_taken() -> None:
    made, _ = replay(Link({"North": released(), "East": released()}))
    made.rounds[3]["next"] = "sha256:" + "2" * 64
    with pytest.raises(RunError, match="another model than the journal says"):
        made.train(3, MODEL)
