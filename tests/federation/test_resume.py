"""A run that failed goes on after its last round; its evidence verifies, a forger's does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from federation_kit import Federation

from privet.client.site import Site
from privet.common.errors import InputError, LedgerError, QuorumError, RunError
from privet.common.flat import Arrays
from privet.delivery.trained import load
from privet.server.snapshot import Snapshots

Make = Callable[..., Any]
SITES = ("North", "East", "South")


def resume(fed: Federation, run: str = "tiny-run") -> Any:
    """Run on, as a coordinator does that was told to resume."""

    def collector() -> Any:
        made = fed.parties.collector(fed.roster)
        made.journal.resume_run(run)
        return made

    return fed.run(collector=collector)


def fails_in_round_2(federation: Make, **strategy: Any) -> Federation:
    """All sites release in round 1; in round 2 East says not-now, and the quorum is all three."""
    fed: Federation = federation(
        noise_seed=7, strategy={"min_sites": 3, **strategy}, training={"rounds": 3}
    )

    class Pauses(Site):
        def answer(self, order: Any, model: Arrays, head: str = "") -> Any:
            if (order.round, self.name) == (2, "East") and not paused:
                paused.append(1)
                fed.ledger("East").pause("Ada")
            return super().answer(order, model, head)

    paused: list[int] = []
    for site in fed.sites:
        site.__class__ = Pauses
    with pytest.raises(QuorumError, match="1 not-now"):
        fed.run()
    return fed


ADAM = {"kind": "fedadam", "options": {"beta_1": 0.9, "beta_2": 0.9}}


@pytest.mark.parametrize("strategy", [{}, ADAM], ids=["fedavg", "fedadam"])
def test_a_failed_run_goes_on_and_pays_for_no_round_twice(
    federation: Make, same: Callable[[Arrays, Arrays], bool], strategy: dict[str, Any]
) -> None:
    """Also by a strategy that keeps moments from round to round."""
    whole = federation(
        folder="whole", noise_seed=7, strategy={"min_sites": 3, **strategy},
        training={"rounds": 3},
    )  # fmt: skip
    expected = whole.run()
    fed = fails_in_round_2(federation, **strategy)
    assert fed.verdict().ok
    with pytest.raises(RunError, match="has ended"):
        fed.run()  # nobody said that it is to go on
    fed.ledger("East").resume("Ada")
    outcome = resume(fed)
    assert [step.round for step in outcome.progress] == [2, 3]
    assert same(outcome.model, expected.model)
    # North and South had released in the round that broke: the same releases were joined.
    assert [fed.charged(name) for name in SITES] == [3, 3, 3]
    kinds = [entry.kind for entry in fed.journal_entries()]
    assert kinds == [
        "genesis", "run-opened", "round", "round", "run-closed", "run-resumed", "round", "round",
        "run-closed",
    ]  # fmt: skip
    (entry,) = fed.journal_entries("run-resumed")
    assert entry.predicate["rounds"] == 1
    verdict = fed.verdict("resumed.bundle")
    assert verdict.ok, verdict.faults
    assert not any("unused" in note for note in verdict.notes)


def test_who_failed_or_refused_when_the_run_broke_is_asked_anew(federation: Make) -> None:
    fed = federation(strategy={"min_sites": 3}, training={"rounds": 2, "max_attempts": 100})

    class Fails(Site):
        def _store(self, *given: Any) -> Any:
            raise RuntimeError("no")

    fed.sites[1].__class__ = Fails
    fed.ledger("South").refuse_plan(fed.plan.digest, ["Ada"])
    with pytest.raises(QuorumError, match="1 failed, 1 refused-plan, 1 released"):
        fed.run()
    fed.sites[1].__class__ = Site
    fed.ledger("South").approve(fed.plan.digest, ["Ada"], "manual")
    fed.sites[:] = [fed.restart(name) for name in SITES]
    assert [step.round for step in resume(fed).progress] == [1, 2]
    assert [fed.charged(name) for name in SITES] == [2, 3, 2]
    asked = fed.journal_entries("round")[1].predicate["orders"]
    assert sorted((one["site"], one["attempt"], one["answer"]) for one in asked) == [
        ("East", 1, "no-reply"), ("East", 2, "released"), ("North", 1, "released"),
        ("South", 1, "no-reply"), ("South", 2, "released"),
    ]  # fmt: skip
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults


def test_a_run_may_be_resumed_more_than_once(federation: Make) -> None:
    fed = fails_in_round_2(federation)
    with pytest.raises(QuorumError):
        resume(fed)  # the site still pauses
    fed.ledger("East").resume("Ada")
    resume(fed)
    assert len(fed.journal_entries("run-resumed")) == 2
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults


def test_what_has_not_failed_is_not_resumed(federation: Make) -> None:
    fed = federation()
    fed.run()
    journal = fed.parties.collector(fed.roster).journal
    journal.resume_run("tiny-run")  # it is done: nothing is noted
    assert fed.journal_entries("run-resumed") == []
    model = fed.journal_entries("run-closed")[0].predicate["model"]
    with pytest.raises(LedgerError, match="has not failed"), journal.log.writing():
        journal.log.append(
            "run-resumed", "model", model, run="tiny-run", rounds=2, model=model
        )  # fmt: skip


@pytest.mark.parametrize("average", [1, 2])
def test_the_model_of_a_failed_run_is_that_of_its_last_round(
    federation: Make, average: int
) -> None:
    fed: Federation = federation(
        strategy={"min_sites": 3, "average_last": average}, training={"rounds": 4}
    )
    shown: list[str] = []

    class Pauses(Site):
        def answer(self, order: Any, model: Arrays, head: str = "") -> Any:
            if (order.round, self.name) == (3, "East"):
                fed.ledger("East").pause("Ada")
            return super().answer(order, model, head)

    for site in fed.sites:
        site.__class__ = Pauses
    with pytest.raises(QuorumError):
        fed.run()
    shown = [entry.predicate["shown"] for entry in fed.journal_entries("round")]
    folder = fed.folder
    (folder / "plan.json").write_text(_json(fed.plan.to_dict()))
    with pytest.raises(InputError, match="or of one that failed"):
        load(folder)  # it may be running
    (folder / "status.json").write_text('{"state": "failed"}')
    from privet.common.flat import digest_arrays

    trained = load(folder)
    assert digest_arrays(trained.arrays) == shown[1] == shown[2]
    assert trained.facts["round"] == "2"
    stored = Snapshots(folder / "model").latest()
    assert stored is not None and len(stored.earlier) == average - 1
    assert isinstance(folder, Path)


def _json(value: Any) -> str:
    import json

    return json.dumps(value)
