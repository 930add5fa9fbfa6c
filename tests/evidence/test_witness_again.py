"""Ledgers that grow after a run, by runs with other coordinators, are witnessed all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from privet.client.app import _asked
from privet.common.errors import EvidenceError

Make = Callable[..., Any]


def test_what_grew_after_the_run_is_witnessed(federation: Make) -> None:
    fed = federation()
    fed.run()
    collector = fed.parties.collector(fed.roster)
    names = [site.name for site in fed.sites]
    asked: list[int] = []

    def show(questions: dict[str, Any]) -> dict[str, Any]:
        asked.append(len(questions))
        return {
            s.name: s.shown(_asked(questions[s.name])) for s in fed.sites if s.name in questions
        }

    # Nothing grew: one question each, and no more.
    assert collector.witness_again(names, show) == [] and asked == [3]
    entries = len(collector.journal.log)
    fed.sites[1].ledger.pause("Ada")
    assert any("East: unwitnessed tail" in note for note in fed.verdict("before").notes)
    assert collector.witness_again(names, show) == ["East"]
    verdict = fed.verdict("after")
    assert verdict.ok and verdict.notes == []
    assert len(collector.journal.log) == entries, "the journal gets no entry after its run"
    assert collector.witness_again(names, show) == []
    # Another process knows it from the papers.
    assert fed.parties.collector(fed.roster).witness_again(names, show) == []
    # Too few others are there: that is said, and nothing is kept.
    fed.sites[0].ledger.pause("Ada")
    with pytest.raises(EvidenceError, match="are needed"):
        collector.witness_again(["North"], show)
    assert any("North: unwitnessed tail" in note for note in fed.verdict("alone").notes)
