"""Few witnesses instead of all: who they are, and that a rewritten history is found all the same."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from federation_kit import Silent
from flwr.app import Message
from test_collector import Brazen, backup, between, restore

from privet.client.site import Answer
from privet.common.errors import EvidenceError, PlanError
from privet.common.flower.wire import decode_show
from privet.common.order import Status
from privet.common.plan import Plan
from privet.privacy.audit.verify.cost.plans import AuditedPlan
from privet.privacy.audit.verify.rules.policy import SitePolicy
from privet.privacy.policy import Policy
from privet.server.evidence.collector import EvidenceCollector
from privet.server.evidence.witness_sets import FirstSites, SitesByLot, draw
from privet.simulations.grid import InProcessGrid

Make = Callable[..., Any]
NAMES = ("North", "East", "South", "West", "Up", "Down", "Left")
FEW = 2


@pytest.fixture
def seven(federation: Make) -> Make:
    """Make a federation of seven sites."""

    def make(**changes: Any) -> Any:
        sites = [{"name": n, "nominal_size": 12, "path": f"{n.lower()}.csv"} for n in NAMES]
        return federation(sites=sites, **{"training": {"rounds": 4, "steps": 1}, **changes})

    return make


def by_lot(fed: Any) -> Callable[[], EvidenceCollector]:
    """The coordinator's collector, with witnesses by lot; a quorum is all of them."""
    fed.roster = replace(fed.roster, quorum=FEW)
    fed.roster.save(fed.folder)
    fed.sites[:] = [fed.restart(name) for name in NAMES]
    made = fed.parties.collector

    def collector() -> EvidenceCollector:
        plain = made(fed.roster)
        plain.close()
        return EvidenceCollector(
            fed.parties.collector(fed.roster).journal,
            fed.parties._chief(),
            fed.roster,
            witnesses=SitesByLot(fed.roster, FEW),
        )

    return collector


def cosigners(fed: Any) -> list[dict[str, set[str]]]:
    """By round, the names of who cosigned each log."""
    names = {site.witness.name: site.name for site in fed.roster.sites}
    names[fed.roster.coordinator.witness.name] = "coordinator"
    return [
        {
            one["log"]: {names[who] for who in one["cosigners"]}
            for one in entry.predicate["witnessed"]
        }
        for entry in fed.journal_entries("round")
    ]


# the lot


def heads(number: int) -> list[tuple[str, int, str]]:
    return [(f"log-{name}", number, hashlib.sha256(name.encode()).hexdigest()) for name in NAMES]


def test_the_lot_draws_everybody_about_as_often() -> None:
    first = Counter(draw("run", n, "log-x", heads(n), NAMES)[0] for n in range(1, 2001))
    # 2,000 draws of seven: 286 ± 16 each.
    assert set(first) == set(NAMES) and all(200 < count < 370 for count in first.values())


@pytest.mark.parametrize("what", ["run", "round", "log", "size", "root"])
def test_the_lot_depends_on_all_that_it_names(what: str) -> None:
    def order(**changes: Any) -> tuple[str, ...]:
        said = heads(5)
        if "size" in changes or "root" in changes:
            log, size, root = said[3]
            said[3] = log, changes.get("size", size), changes.get("root", root)
        run, number, log = (
            changes.get(k, v) for k, v in (("run", "a"), ("round", 3), ("log", "log-x"))
        )
        return tuple(draw(run, number, log, said, NAMES))

    values: dict[str, list[Any]] = {
        "run": ["b", "c", "d"], "round": [4, 5, 6], "log": ["log-y", "log-z", "log-w"],
        "size": [6, 7, 8], "root": ["1" * 64, "2" * 64, "3" * 64],
    }  # fmt: skip
    assert len({order(), *(order(**{what: value}) for value in values[what])}) == 4


def test_no_author_has_a_hand_in_the_lot_of_its_own_log(seven: Make) -> None:
    fed = seven()
    own, other, chief = (
        fed.roster.sites[1].ledger.name,
        fed.roster.sites[2].ledger.name,
        fed.roster.coordinator.journal.name,
    )
    silent = fed.roster.sites[4].ledger.name
    said = [
        {"log": log, "size": 5, "root": f"sha256:{k:064x}"}
        for k, log in enumerate([*(s.ledger.name for s in fed.roster.sites), chief])
    ]

    def drawn(of: str, changed: str) -> set[tuple[str, ...]]:
        found = set()
        for ground in range(20):
            lots = SitesByLot(fed.roster, 3)
            root = f"sha256:{1000 + ground:064x}"
            witnessed = [{**one, "root": root} if one["log"] == changed else one for one in said]
            joined = [{"log": one["log"]} for one in said if one["log"] not in (chief, silent)]
            lots.begin_round(
                {"run": "run", "round": 1, "witnessed": witnessed, "joined": joined, "metrics": []}
            )
            found.add(tuple(lots.of(of) or ()))
        return found

    assert len(drawn(own, own)) == len(drawn(own, chief)) == len(drawn(chief, chief)) == 1
    # Nor has one that released nothing: a coordinator could leave it out, and nobody would know.
    assert len(drawn(own, silent)) == len(drawn(chief, silent)) == 1
    # The control: what another site writes moves it, so nobody knows it beforehand.
    assert len(drawn(own, other)) > 5 and len(drawn(chief, other)) > 5


# what a verifier and a policy make of it


def notes_on_lots(fed: Any) -> list[str]:
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults
    return [note for note in verdict.notes if "the lot" in note]


def test_a_verifier_repeats_the_lot_of_a_plan(seven: Make) -> None:
    fed = seven(strategy={"witnesses": FEW})
    assert fed.roster.quorum == 2
    fed.run()
    assert all(len(who) in (FEW, FEW + 1) for one in cosigners(fed)[1:] for who in one.values())
    assert notes_on_lots(fed) == []


def test_a_coordinator_that_chooses_the_witnesses_itself_is_named(seven: Make) -> None:
    """The control: always the same two, whatever the lot says."""
    fed = seven(strategy={"witnesses": FEW})

    def chosen() -> EvidenceCollector:
        first = FirstSites(fed.roster, FEW)
        return EvidenceCollector(
            fed.parties._journal(), fed.parties._chief(), fed.roster, witnesses=first
        )

    fed.run(collector=chosen)
    (note,) = notes_on_lots(fed)
    assert "in 4 rounds of 4, first in round 1" in note


def test_silent_witnesses_are_noted(seven: Make) -> None:
    fed = seven(strategy={"witnesses": FEW, "min_sites": 2})

    class Mute(Silent):
        nodes = (2, 3, 4)

    fed.run(fed.grid(Mute))
    (note,) = notes_on_lots(fed)
    assert "did not answer" in note


@pytest.mark.parametrize(
    ("witnesses", "said", "allowed"),
    [(2, None, False), (4, None, False), (5, None, True), (2, 2, True), (5, 6, False),
     (None, 6, True), (6, None, True)],
)  # fmt: skip
def test_a_policy_says_how_few_may_cosign(
    plan_value: Make, witnesses: int | None, said: int | None, allowed: bool
) -> None:
    sites = [{"name": n, "nominal_size": 12, "path": "x.csv"} for n in NAMES]
    strategy = {} if witnesses is None else {"witnesses": witnesses}
    plan = Plan.parse(plan_value(sites=sites, strategy=strategy))
    key = "sha256:" + "a" * 64
    policy = Policy.for_simulation(plan, "East", key)
    allow = policy.allow.model_copy(update={"witnesses": said})
    policy = policy.model_copy(update={"allow": allow})
    fault = policy.fault(plan)
    assert (fault is None) == allowed
    if not allowed:
        assert fault is not None and f"allow.witnesses is {said or 5}" in fault
    published = json.loads(json.dumps(policy.public()))
    assert ("witnesses" in published["allow"]) == (said is not None)
    audited = SitePolicy(published)
    why = audited._refuses_plan(AuditedPlan(plan.to_dict()))
    assert (why is None) == allowed, why


def test_a_plan_without_the_key_is_the_same_plan(plan_value: Make) -> None:
    plan = Plan.parse(plan_value())
    assert "witnesses" not in plan.to_dict()["strategy"]
    assert Plan.parse(plan_value(strategy={"witnesses": 2})).digest != plan.digest
    for wrong in (1, 0, -3, 2.5, "2", True):
        with pytest.raises(PlanError, match=r"strategy\.witnesses"):
            Plan.parse(plan_value(strategy={"witnesses": wrong}))


# rounds


def test_in_each_round_a_log_is_cosigned_by_those_that_were_drawn(seven: Make) -> None:
    fed = seven()
    collector = by_lot(fed)
    fed.run(collector=collector)
    found = cosigners(fed)
    owners = {site.ledger.name: site.name for site in fed.roster.sites}
    journal = fed.roster.coordinator.journal.name
    for log, who in found[0].items():
        assert who - {"coordinator"} == set(NAMES) - {owners.get(log)}
    rounds = [entry.predicate for entry in fed.journal_entries("round")]
    for before, now, who in zip(rounds, rounds[1:], found[1:], strict=False):
        told = [(w["log"], w["size"], w["root"]) for w in before["witnessed"]]
        for log, cosigned in who.items():
            others = [name for name in NAMES if name != owners.get(log)]
            known = [one for one in told if one[0] not in (log, journal)]
            lot = draw(now["run"], now["round"], log, known, others)[:FEW]
            assert cosigned - {"coordinator"} == set(lot)
            assert ("coordinator" in cosigned) == (log != journal)
    drawn = {tuple(sorted(who)) for one in found[1:] for who in one.values()}
    assert len(drawn) > 5
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults
    assert any("weak quorum" in note for note in verdict.notes)


@pytest.mark.parametrize("by", [None, FEW], ids=["all", "by lot"])
def test_a_log_that_does_not_grow_keeps_its_witnesses(seven: Make, by: int | None) -> None:
    """Its site says "not now" after two rounds: one checkpoint, which five rounds name."""
    fed = seven(strategy={"witnesses": by} if by else {}, training={"rounds": 6, "steps": 1})

    def busy() -> None:
        fed.sites[1].answer = lambda *given: Answer(Status.NOT_NOW)

    fed.run(fed.grid(between(2, busy)))
    log = fed.roster.sites[1].ledger.name
    sizes = [
        (one["size"], tuple(one["cosigners"]))
        for entry in fed.journal_entries("round")
        for one in entry.predicate["witnessed"]
        if one["log"] == log
    ]
    assert len(sizes) == 6 and len(set(sizes[1:])) == 1
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults


def test_a_round_asks_only_those_that_were_drawn(seven: Make) -> None:
    fed, asked = seven(), []

    class Counting(InProcessGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            messages = list(messages)
            shows = [m for m in messages if m.metadata.message_type == "query.show"]
            asked.extend(decode_show(message.content) for message in shows)
            return super().send_and_receive(messages, timeout=timeout)

    few, everyone = by_lot(fed), []
    fed.run(fed.grid(Counting), collector=few)
    sent = sum(len(one["shown"]) for one in asked)
    # A restarted site's memory is asked of all: twice as the run begins.
    assert sum("seen" not in one for one in asked[: 2 * len(NAMES)]) == 2 * len(NAMES)
    asked.clear()
    other = seven(folder="everyone")
    other.run(other.grid(Counting))
    everyone = sum(len(one["shown"]) for one in asked)
    # 8 logs, two of seven sites each, in three rounds and at the end; all of them in the first.
    assert everyone == 5 * (7 * 6 + 7) and sent == (7 * 6 + 7) + 4 * 8 * FEW


def test_where_those_that_were_drawn_are_silent_all_are_asked(seven: Make) -> None:
    fed = seven(strategy={"min_sites": 2})
    collector = by_lot(fed)

    class Mute(Silent):
        nodes = (2, 3)

    outcome = fed.run(fed.grid(Mute), collector=collector)
    assert len(outcome.progress) == 4
    quorum = fed.roster.quorum
    for one in cosigners(fed):
        assert all(len(who) >= quorum and not who & {"East", "South"} for who in one.values())
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults


@pytest.mark.parametrize("few", [True, False], ids=["by lot", "first sites"])
def test_a_site_that_rewrites_its_ledger_stops_the_run(seven: Make, few: bool) -> None:
    """It goes on whatever head it is shown; the coordinator's witness saw the longer history."""
    fed = seven() if few else seven(witnesses=FEW)
    collector = by_lot(fed) if few else None
    kept = backup(fed, "East")
    grid = fed.grid(between(2, lambda: restore(fed, "East", kept, Brazen)))
    with pytest.raises(EvidenceError, match="the history of a log does not hold"):
        fed.run(grid, collector=collector)
    assert {fault.site for fault in fed.verdict().faults} >= {"East"}


@pytest.mark.parametrize("forgets", [True, False], ids=["forgets", "remembers"])
def test_a_rewritten_history_is_found_by_a_site_that_was_drawn_before(
    seven: Make, forgets: bool
) -> None:
    """Without the coordinator's memory, as where the coordinator colludes: in the next run all are
    asked, and the sites that cosigned it once object. Where they forgot too, nobody knows."""
    fed = seven()
    collector = by_lot(fed)
    kept = backup(fed, "East")
    fed.run(collector=collector)
    restore(fed, "East", kept, Brazen)
    office = fed.folder / "coordinator"
    for name in ("witness.json", "journal.db"):
        (office / name).unlink()
    if forgets:
        for name in NAMES:
            (fed.home(name) / "witness.json").unlink(missing_ok=True)
    fed.sites[:] = [fed.restart(name, kind=Brazen) for name in NAMES]
    again = {"run": "second", "snapshots": "second", "collector": by_lot_again(fed)}
    if forgets:
        fed.run(**again)
        return
    with pytest.raises(EvidenceError, match=r"East|history of a log"):
        fed.run(**again)


def by_lot_again(fed: Any) -> Callable[[], EvidenceCollector]:
    """As :func:`by_lot`, with what the parties keep now."""
    return lambda: EvidenceCollector(
        fed.parties.collector(fed.roster).journal,
        fed.parties._chief(),
        fed.roster,
        witnesses=SitesByLot(fed.roster, FEW),
    )


def test_a_question_of_an_older_coordinator_has_no_names(seven: Make) -> None:
    """A site answers with all that it saw where it is not told of what."""
    from privet.client.site import LogQuery

    fed = seven()
    fed.run()
    seen = fed.sites[0].shown(LogQuery())["seen"]
    assert len(seen) == len(NAMES)
    one = fed.roster.sites[3].ledger.name
    assert list(fed.sites[0].shown(LogQuery(seen=(one, "another/log")))["seen"]) == [one]
    assert fed.sites[0].shown(LogQuery(seen=()))["seen"] == {}
    assert json.dumps(seen)
