"""Ledgers that grow after a run, by runs with other coordinators, are witnessed all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from privet.client.app import _asked
from privet.common.errors import EvidenceFault

Make = Callable[..., Any]


def test_what_grew_after_the_run_is_witnessed(federation: Make) -> None:
    fed = federation()
    fed.run()
    recorder = fed.parties.recorder(fed.roster)
    names = [site.name for site in fed.sites]
    asked: list[int] = []

    def show(questions: dict[str, Any]) -> dict[str, Any]:
        asked.append(len(questions))
        return {
            s.name: s.shown(_asked(questions[s.name])) for s in fed.sites if s.name in questions
        }

    # Nothing grew: one question each, and no more.
    assert recorder.witness_again(names, show) == [] and asked == [3]
    entries = len(recorder.journal.log)
    fed.sites[1].ledger.pause("Ada")
    assert any("East: unwitnessed tail" in note for note in fed.verdict("before").notes)
    assert recorder.witness_again(names, show) == ["East"]
    verdict = fed.verdict("after")
    assert verdict.ok and verdict.notes == []
    assert len(recorder.journal.log) == entries, "the journal gets no entry after its run"
    assert recorder.witness_again(names, show) == []
    # Another process knows it from the papers.
    assert fed.parties.recorder(fed.roster).witness_again(names, show) == []
    # Too few others are there: that is said, and nothing is kept.
    fed.sites[0].ledger.pause("Ada")
    with pytest.raises(EvidenceFault, match="are needed"):
        recorder.witness_again(["North"], show)
    assert any("North: unwitnessed tail" in note for note in fed.verdict("alone").notes)
