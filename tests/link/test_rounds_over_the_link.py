"""The rounds of a simulation over real gRPC with mutual TLS: the same bits, the same evidence."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from link_kit import Ends, answering, until

from privet.client.link.dial import LinkRequest, LinkResponse, Serve
from privet.client.site import Site
from privet.common.flat import Arrays

Make = Callable[..., Any]
NAMES = ["North", "East", "South"]


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path / "hub", NAMES)
    yield made
    made.close()


def test_a_run_over_the_link_is_the_run_in_process(
    federation: Make, ends: Ends, same: Callable[[Arrays, Arrays], bool]
) -> None:
    inside = federation(folder="inside", noise_seed=7, metrics={"source": "gate"})
    expected = inside.run()
    outside = federation(folder="outside", noise_seed=7, metrics={"source": "gate"})
    for site in outside.sites:
        ends.dial(site.name, answering(site))
    outcome = outside.run(ends.grid())
    assert same(outcome.model, expected.model)
    assert [step.statuses for step in outcome.progress] == [
        step.statuses for step in expected.progress
    ]
    assert outside.verdict().ok


def test_a_release_that_came_late_is_a_charge_that_no_round_used(
    federation: Make, ends: Ends
) -> None:
    fed = federation(strategy={"min_sites": 2, "grace": 0.2}, training={"rounds": 3})
    free = threading.Event()
    for site in fed.sites:
        ends.dial(site.name, held(site, free) if site.name == "East" else answering(site))
    outcome = fed.run(ends.grid())
    # Nobody waited for it, and it was asked once: a second order would be another charge.
    assert [set(step.statuses) for step in outcome.progress] == [{"North", "South"}] * 3
    rounds = [entry.predicate["orders"] for entry in fed.journal_entries("round")]
    said = [{order["site"]: order["answer"] for order in orders} for orders in rounds]
    assert [one["East"] for one in said] == ["no-reply"] * 3
    free.set()
    until(lambda: ends.hub.late["East"] >= 1 and fed.charged("East") == 1, 60)
    assert fed.kinds("East") == ["reserved", "released"]
    assert [fed.charged(name) for name in ("North", "South")] == [3, 3]
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults
    # The evidence names it.
    assert [
        note for note in verdict.notes if "1 release is neither aggregated nor published" in note
    ]


def held(site: Site, free: threading.Event) -> Serve:
    """Answer by the site's app, but no order before ``free`` is set."""
    answer = answering(site)

    def wait(asked: LinkRequest) -> LinkResponse:
        if asked.kind == "train":
            assert free.wait(120)
        return answer(asked)

    return wait
