"""A run that failed and was resumed: its evidence holds, and that of who misuses it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_verify_rules import found, verdict
from verify_kit import HUB, SITES, Federation, digest, plan_of, train_event

NORTH, EAST, SOUTH = SITES
RUN = "run-1"
OTHER = digest(b"another model")
MODELS = [digest(f"{RUN} {number}".encode()) for number in range(3)]


class Story:
    """Two rounds; the second joins nothing at first, and is done once the run is resumed."""

    def __init__(self, **changes: Any) -> None:
        self.fed, self.changes = Federation(), changes
        self.plan = plan_of()
        assert self.plan["training"]["rounds"] == 2
        name = self.fed.approve(self.plan)
        self.add("run-opened", run=RUN, plan=name, model=MODELS[0], sites=list(SITES))
        done = self.fed.ask(RUN, 1, "train", self.plan, MODELS[0])
        self.fed.close_round(RUN, 1, MODELS[0], MODELS[1], done)

    def add(self, kind: str, /, **fields: Any) -> None:
        self.fed.hub.add(kind, **{**fields, **self.changes.get(kind, {})})

    def orders(self) -> list[dict[str, Any]]:
        name = digest(self.plan)
        return [self.fed.order(RUN, site, 2, "train", name, MODELS[1])[1] for site in SITES]

    def pay(self, order: dict[str, Any]) -> tuple[str, dict[str, Any], int]:
        event, site = train_event(self.plan), order["site"]
        number = self.fed.reserve(site, order, event)
        return site, order, self.fed.release(site, order, number, event)

    def broken(self, orders: list[dict[str, Any]], answers: list[str]) -> None:
        listed = [
            {"site": order["site"], "order": digest(order), "purpose": "train", "attempt": 1,
             "answer": answer}
            for order, answer in zip(orders, answers, strict=True)
        ]  # fmt: skip
        self.add(
            "round", run=RUN, round=2, model=MODELS[1], next=MODELS[1], shown=MODELS[1], joined=[],
            metrics=[], orders=listed, witnessed=[],
        )  # fmt: skip

    def closed(self, how: str, number: int, rounds: int = 2) -> None:
        fault = None if how == "done" else "no quorum"
        self.add("run-closed", run=RUN, rounds=rounds, model=MODELS[number], how=how, fault=fault)

    def resumed(self, rounds: int = 1, model: str = MODELS[1]) -> None:
        self.add("run-resumed", run=RUN, rounds=rounds, model=model)

    def last_round(self, done: list[Any]) -> None:
        self.fed.close_round(RUN, 2, MODELS[1], MODELS[2], done)
        self.closed("done", 2)


def told(**changes: Any) -> Federation:
    """The whole story; ``changes`` are of entries before they are signed."""
    story = Story(**changes)
    orders = story.orders()
    first = story.pay(orders[0])
    story.broken(orders, ["released", "not-now", "no-reply"])
    story.closed("failed", 1)
    story.resumed()
    story.last_round([first, *map(story.pay, orders[1:])])
    return story.fed


def test_a_resumed_run_verifies_and_each_release_is_used_once(tmp_path: Path) -> None:
    answer = verdict(tmp_path, told())
    assert answer.faults == []
    assert not any("unused" in note or "finished run" in note for note in answer.notes)
    assert [site.charges for site in answer.sites] == [2, 2, 2]


def test_a_run_that_stays_failed_with_not_now_verifies(tmp_path: Path) -> None:
    story = Story()
    story.broken(story.orders(), ["not-now"] * 3)
    story.closed("failed", 1)
    answer = verdict(tmp_path, story.fed)
    assert answer.faults == []


@pytest.mark.parametrize("broken", [True, False])
def test_not_now_of_an_order_that_was_reserved_is_a_lie(tmp_path: Path, broken: bool) -> None:
    """A charge hides behind it; also where the run broke and was never resumed."""
    story = Story()
    orders = story.orders()
    paid = [story.pay(order) for order in orders]
    if broken:
        story.broken(orders, ["released", "not-now", "released"])
        story.closed("failed", 1)
    else:

        def lie(who: str, kind: str, fields: dict[str, Any]) -> None:
            if kind == "round":
                fields["orders"].append({
                    "site": EAST, "order": digest(orders[1]), "purpose": "train", "attempt": 1,
                    "answer": "not-now",
                })  # fmt: skip

        story.fed.hub.tweak = lie
        story.last_round([paid[0], paid[2]])
    assert ("order", HUB) in found(verdict(tmp_path, story.fed))


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("round", {"rounds": 2}), ("round", {"rounds": 0}), ("model", {"model": OTHER}),
        ("model", {"model": MODELS[0]}), ("round", {"run": "unheard-of"}),
    ],
)  # fmt: skip
def test_a_run_goes_on_where_it_ended(tmp_path: Path, rule: str, change: dict[str, Any]) -> None:
    assert (rule, HUB) in found(verdict(tmp_path, told(**{"run-resumed": change})))


def without_close(story: Story, orders: list[dict[str, Any]]) -> None:
    story.broken(orders, ["released", "not-now", "no-reply"])
    story.resumed()


def without_failure(story: Story, orders: list[dict[str, Any]]) -> None:
    story.broken(orders, ["released", "not-now", "no-reply"])
    story.closed("done", 1)
    story.resumed()


def without_resuming(story: Story, orders: list[dict[str, Any]]) -> None:
    story.broken(orders, ["released", "not-now", "no-reply"])
    story.closed("failed", 1)


def twice(story: Story, orders: list[dict[str, Any]]) -> None:
    story.broken(orders, ["released", "not-now", "no-reply"])
    story.closed("failed", 1)
    story.resumed()
    story.resumed()


@pytest.mark.parametrize("told_wrong", [without_close, without_failure, without_resuming, twice])
def test_an_entry_that_is_missing_or_too_many(
    tmp_path: Path, told_wrong: Callable[[Story, list[dict[str, Any]]], None]
) -> None:
    story = Story()
    orders = story.orders()
    first = story.pay(orders[0])
    told_wrong(story, orders)
    story.last_round([first, *map(story.pay, orders[1:])])
    assert ("round", HUB) in found(verdict(tmp_path, story.fed))


def test_a_round_that_was_joined_is_not_done_again(tmp_path: Path) -> None:
    """Round 1 joined releases: to close the run and go back before it is refused."""
    story = Story()
    story.closed("failed", 1, rounds=1)
    story.resumed(rounds=0, model=MODELS[0])
    name = digest(story.plan)
    again = [story.fed.order(RUN, site, 1, "train", name, MODELS[0], 2)[1] for site in SITES]
    story.fed.close_round(RUN, 1, MODELS[0], OTHER, [story.pay(order) for order in again])
    assert {("round", HUB), ("model", HUB)} <= found(verdict(tmp_path, story.fed))
