"""Evidence of a simulation in full, light or off: the same training, and what may be claimed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privet.common.errors import InputError, QuorumError
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.verify import verify
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import Store
from privet.simulations.planning import Setting
from privet.simulations.run import Result, run_plan

Make = Callable[..., Any]
LEVELS = ("full", "light", "off")


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What a log says in its entries of a kind."""
    found = map(Entry.read, Store(folder).leaves())
    return [entry.predicate for entry in found if entry.kind == kind]


# who has which


@pytest.mark.parametrize(("count", "level"), [(20, "full"), (21, "light")])
def test_few_sites_have_all_and_many_have_light(many: Make, count: int, level: str) -> None:
    assert Setting().evidence_of(many(count)) == level
    for asked in LEVELS:
        assert Setting(evidence=asked).evidence_of(many(count)) == asked  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"ledgers": Path("x")}, "--ledgers"), ({"cap": 5.0}, "--cap"),
        ({"open_again": True}, "--open-again"), ({"engine": "ray"}, "--engine ray"),
    ],
)  # fmt: skip
def test_what_needs_a_ledger_is_refused_without_one(
    many: Make, tmp_path: Path, setting: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        run_plan(many(3), Setting(evidence="off", **setting), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# the same training


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"privacy": None}, {"metrics": {"source": "gate"}}, {"compression": {"kind": "int8"}},
        {"privacy": {"unit": "person", "max_records": 3}, "data": {"person_column": "patient"}},
        {"strategy": {"kind": "fedadam"}},
    ],
    ids=["private", "plain", "gate", "int8", "people", "fedadam"],
)  # fmt: skip
@pytest.mark.parametrize("engine", ["inline", "auto"])
def test_the_level_changes_nothing_of_the_training(
    many: Make, simulated: Callable[..., Result], changes: dict[str, Any], engine: str
) -> None:
    made = {one: simulated(many(5, **changes), one, evidence=one, engine=engine) for one in LEVELS}
    full = made["full"]
    for level, result in made.items():
        assert result.evidence == result.to_dict()["evidence"] == level
        assert all(np.array_equal(result.model[n], full.model[n]) for n in full.model)
        assert result.metrics == full.metrics
        for one, other in zip(result.sites, full.sites, strict=True):
            assert (one.status, one.released) == (other.status, other.released)
            assert one.loss == other.loss
    assert made["off"].claim == "none"


def test_a_site_that_fails_is_told_at_each_level(
    many: Make, simulated: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its operator's log says why; the coordinator learns that it failed."""
    from privet.client.training.trainer import Trainer

    honest = Trainer.release

    def failing(self: Trainer, order: Any, model: Any) -> Any:
        if order.site == "Site 1":
            raise ValueError("a secret of a record")
        return honest(self, order, model)

    monkeypatch.setattr(Trainer, "release", failing)
    for level in LEVELS:
        result = simulated(many(4), level, evidence=level, engine="inline")
        assert [site.released for site in result.sites] == [2, 0, 2, 2]
        assert result.sites[1].status == "failed"
        assert "a secret of a record" in result.sites[1].reason
        assert "secret" not in json.dumps(result.to_dict()["history"])
    monkeypatch.setattr(Trainer, "release", lambda *given: 1 / 0)
    with pytest.raises(QuorumError, match="division by zero"):
        simulated(many(3), "none", evidence="off", engine="inline")


# light


def test_light_evidence_is_whole_and_verifies(many: Make, simulated: Callable[..., Result]) -> None:
    result = simulated(many(22), "run", None)
    assert (result.evidence, result.claim) == ("light", "conditional")
    roster = json.loads((result.out / "roster.json").read_text())
    assert roster["quorum"] == 2
    witnesses = {site["name"]: site["witness"].split("+")[0] for site in roster["sites"]}
    first = {witnesses[f"Site {k}"] for k in range(3)}
    chief = roster["coordinator"]["witness"].split("+")[0]
    rounds = lines(result.out / "coordinator" / "journal.db", "round")
    assert len(rounds) == 2
    for said in rounds:
        assert len(said["witnessed"]) == 23 and len(said["joined"]) == 22
        for one in said["witnessed"]:
            by = {name.split("+")[0] for name in one["cosigners"]}
            assert len(by - {chief}) == 2 and by - {chief} < first
    # Every charge is in its ledger, before its release.
    for site in result.plan.sites:
        kinds = [
            entry.kind
            for entry in map(
                Entry.read, Store(result.out / "sites" / site.name / "ledger.db").leaves()
            )
            if entry.kind in ("reserved", "released")
        ]
        assert kinds == ["reserved", "released"] * 2
    bundle = write_bundle([result.out], result.out / "run.bundle").path
    found = verify(bundle, result.out / "roster-fingerprints.json", processes=1)
    assert found.ok, found.faults
    assert [note for note in found.notes if "weak quorum" in note]
    assert all(one.upto == one.entries for one in found.witnessed.values())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_sites_than_light_evidence_has_witnesses(
    many: Make, simulated: Callable[..., Result], count: int
) -> None:
    result = simulated(many(count), "run", None, evidence="light")
    bundle = write_bundle([result.out], result.out / "run.bundle").path
    found = verify(bundle, result.out / "roster-fingerprints.json", processes=1)
    assert found.ok, found.faults
    assert all(one.upto == one.entries for one in found.witnessed.values())


def test_every_light_ledger_pays_before_a_record_is_read(
    many: Make, simulated: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from privet.simulations.cohort.member import CohortMember

    opened: list[int] = []
    begin = CohortMember.begin

    def counted(self: CohortMember, order: Any) -> Any:
        folder = next(iter(many_out)) / "sites" / order.site
        entries = [entry.kind for entry in map(Entry.read, Store(folder / "ledger.db").leaves())]
        opened.append(entries.count("reserved") - order.round)
        return begin(self, order)

    monkeypatch.setattr(CohortMember, "begin", counted)
    plan = many(5)
    many_out = [Path(plan.sites[0].path or "").parent / "run"]
    simulated(plan, "run", None, evidence="light")
    assert opened == [0] * 10


def test_a_light_ledger_that_lasts_is_charged_again(
    many: Make, simulated: Callable[..., Result], tmp_path: Path
) -> None:
    setting = {"ledgers": tmp_path / "banks", "cap": 60.0, "evidence": "light"}
    one, two = (simulated(many(4), name, None, **setting) for name in ("one", "two"))
    assert one.loss is not None and two.loss is not None and two.loss.epsilon > one.loss.epsilon
    assert len(Ledger.read(tmp_path / "banks" / "Site 0").history()) == 2
    bundle = write_bundle([two.out, tmp_path / "banks"], tmp_path / "b.bundle").path
    assert verify(bundle, None, processes=1).ok


# off


def test_without_evidence_nothing_is_written_down_and_nothing_is_claimed(
    many: Make, simulated: Callable[..., Result]
) -> None:
    result = simulated(many(4), "run", None, evidence="off")
    assert (result.claim, result.conditional_on) == ("none", [])
    assert "--evidence off" in result.standing.claim.why
    said = result.to_dict()["in_words"]
    assert "Claim: none (nothing was written down" in said and "spent at most" in said
    names = {path.name for path in result.out.rglob("*")}
    assert {"result.json", "plan.json", "model.safetensors", "README.md"} <= names
    assert not names & {
        "roster.json", "roster-fingerprints.json", "journal.db", "ledger.db", "witness.json",
        "outbox", "sites", "coordinator",
    }  # fmt: skip
    assert not [name for name in names if name.endswith((".pem", ".db"))]
    assert "none" in (result.out / "model" / "README.md").read_text()
    with pytest.raises(InputError):
        write_bundle([result.out], result.out / "run.bundle")


def test_without_privacy_and_evidence_the_claim_says_so(
    many: Make, simulated: Callable[..., Result]
) -> None:
    result = simulated(many(3, privacy=None), "run", evidence="off")
    assert (result.claim, result.standing.claim.why) == ("none", "trained without noise")
    assert result.loss is None and result.to_dict()["epsilon"] is None
