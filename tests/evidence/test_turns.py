"""Sites that take turns: who is in which round, what it costs, and what a verifier makes of it."""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import rfc8785
from federation_kit import Silent
from flwr.app import Message

from privet.client import site as site_module
from privet.client.order_check import require_planned
from privet.common.errors import PlanError, QuorumError
from privet.common.order import Status
from privet.common.plan import Plan
from privet.common.schedule import MAX_TURNS, Schedule
from privet.privacy.accounting.noise_calibration import calibrated, measuring
from privet.privacy.accounting.plan_events import gate_releases, planned, trainings
from privet.privacy.audit.verify import verify
from privet.privacy.audit.verify.cost.plans import AuditedPlan
from privet.privacy.audit.verify.cost.turns import Turns
from privet.privacy.audit.verify.formats.strict import Malformed
from privet.server.app import FlowerLink
from privet.server.evidence.witness_sets import SitesByLot
from privet.server.rounds import _Rounds
from privet.simulations.grid import InProcessGrid

Make = Callable[..., Any]
NAMES = ("North", "East", "South", "West", "Up", "Down", "Left")
SIZES = [(7, 3, 10), (7, 6, 20), (7, 7, 4), (5, 1, 12), (9, 4, 40), (50, 3, 10), (2, 1, 3)]


def names(count: int) -> list[str]:
    return [f"Site {k}" for k in range(count)]


@pytest.fixture
def seven(federation: Make) -> Make:
    """Make a federation of seven sites, three of which take part in a round."""

    def make(**changes: Any) -> Any:
        sites = [{"name": n, "nominal_size": 12, "path": f"{n.lower()}.csv"} for n in NAMES]
        strategy = {"sites_per_round": 3, **changes.pop("strategy", {})}
        return federation(
            sites=sites, strategy=strategy, **{"training": {"rounds": 5, "steps": 1}, **changes}
        )

    return make


# who is in which round


@pytest.mark.parametrize(("sites", "count", "rounds"), SIZES)
@pytest.mark.parametrize("seed", [0, 7])
def test_sites_take_turns(sites: int, count: int, rounds: int, seed: int) -> None:
    made = Schedule(names(sites), count, seed, rounds)
    found = [made.sites_in(number) for number in range(1, rounds + 1)]
    assert {len(one) for one in found} == {count}
    turns_of = Counter(site for one in found for site in one)
    every = [turns_of[name] for name in names(sites)]
    assert max(every) - min(every) <= 1
    assert made.most(range(1, rounds + 1)) == max(every) == -(-count * rounds // sites)
    assert made.participants == set(turns_of)
    assert made.sites_in(0) == made.sites_in(rounds + 1) == set()
    # The verifier's own code makes the same.
    theirs = Turns(names(sites), count, seed, rounds)
    assert [theirs.sites_of(number) for number in range(1, rounds + 1)] == found
    assert theirs.most == theirs.most_of(range(1, rounds + 1)) == max(every)


def test_the_seed_and_the_cycle_move_the_order() -> None:
    def first(seed: int) -> list[frozenset[str]]:
        made = Schedule(names(30), 10, seed, 6)
        return [made.sites_in(number) for number in range(1, 7)]

    assert first(1) != first(2) and first(1) == first(1)
    assert first(1)[:3] != first(1)[3:]


def test_the_order_of_names_does_not_matter() -> None:
    one, other = (Schedule(given, 4, 0, 9) for given in (names(10), names(10)[::-1]))
    assert all(one.sites_in(n) == other.sites_in(n) for n in range(1, 10))


# the plan


def test_a_plan_without_the_key_is_the_same_plan(plan_value: Make) -> None:
    plan = Plan.parse(plan_value())
    assert "sites_per_round" not in plan.to_dict()["strategy"] and plan.schedule is None
    assert plan.participants == plan.sites
    two = Plan.parse(plan_value(strategy={"sites_per_round": 2}))
    assert two.digest != plan.digest and Plan.parse(two.to_dict()) == two
    assert (two.sites_in_a_round, two.quorum, plan.quorum) == (2, 2, 2)
    assert two.changed(strategy={"sites_per_round": None}).schedule is None
    once = two.changed(training={"rounds": 1})
    assert len(once.participants) == 2
    other = two.changed(seed=5)
    rounds = range(1, two.last_round + 1)
    assert any(two.takes_part(s.name, n) for s in two.sites for n in rounds)
    assert other.schedule is not two.schedule


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": {"sites_per_round": 4}}, "above the number of sites, 3"),
        ({"strategy": {"sites_per_round": 0}}, r"strategy\.sites_per_round"),
        ({"strategy": {"sites_per_round": True}}, r"strategy\.sites_per_round"),
        ({"strategy": {"sites_per_round": 2, "min_sites": 3}}, "above the sites of a round, 2"),
        (
            {"strategy": {"sites_per_round": 2}, "training": {"rounds": MAX_TURNS}},
            "times 'training.rounds' is above",
        ),
        (
            {
                "strategy": {"sites_per_round": 2},
                "training": {"rounds": 0},
                "metrics": {"source": "gate"},
                "split": {"test": 0.2},
            },
            "every site measures",
        ),
    ],
)
def test_an_impossible_number_is_refused(
    plan_value: Make, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(PlanError, match=said):
        Plan.parse(plan_value(**changes))


@pytest.mark.parametrize("value", [0, 4, -1, "2", 1.5, True, [2]])
def test_a_verifier_refuses_what_is_no_number_of_sites(plan_value: Make, value: Any) -> None:
    told = calibrated(Plan.parse(plan_value())).to_dict()
    told["strategy"]["sites_per_round"] = value
    with pytest.raises(Malformed):
        AuditedPlan(told)


def test_a_verifier_counts_no_more_turns_than_it_can(plan_value: Make) -> None:
    told = calibrated(Plan.parse(plan_value())).to_dict()
    told["strategy"]["sites_per_round"] = 2
    told["training"]["rounds"] = 10**9
    began = time.monotonic()
    with pytest.raises(Malformed):
        AuditedPlan(told)
    assert time.monotonic() - began < 60


# what it costs


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_what_is_planned_is_that_of_the_site_with_most_turns(
    seven: Make, every: int, count: int
) -> None:
    plan = seven(
        strategy={"sites_per_round": count}, metrics={"source": "gate", "every": every}
    ).plan
    rounds = range(1, 6)
    measured = [n for n in rounds if n % every == 0 or n == 5]
    assert plan.schedule is not None
    sets = [plan.schedule.sites_in(n) for n in rounds]
    assert trainings(plan) == max(sum(name in one for one in sets) for name in NAMES)
    assert gate_releases(plan) == max(sum(name in sets[n - 1] for n in measured) for name in NAMES)
    audited = AuditedPlan(plan.to_dict())
    assert (audited.trainings, audited.evaluations) == (trainings(plan), gate_releases(plan))
    theirs = {event.count for event in audited.planned}
    assert {count for _, count in planned(plan)} == theirs
    assert audited.quorum == plan.quorum == count // 2 + 1


def test_noise_is_that_of_the_rounds_in_which_a_site_trains(plan_value: Make) -> None:
    def noise(some: int | None, rounds: int) -> float:
        strategy = {} if some is None else {"sites_per_round": some}
        privacy = {"epsilon": 3.0, "noise_multiplier": None}
        value = plan_value(strategy=strategy, training={"rounds": rounds}, privacy=privacy)
        plan = calibrated(Plan.parse(value))
        assert plan.privacy is not None and plan.privacy.noise_multiplier is not None
        return plan.privacy.noise_multiplier

    # Six rounds of one site of three are two rounds for each: no less noise than that (H22).
    assert noise(1, 6) == noise(None, 2) == noise(2, 3) < noise(None, 6)


def test_a_plan_that_measures_asks_every_site(seven: Make) -> None:
    plan = measuring(seven().plan, "sha256:" + "a" * 64, 1.0)
    assert plan.schedule is None and plan.sites_in_a_round == 7


# rounds, and what a verifier makes of them


def charges(fed: Any) -> dict[str, set[int]]:
    """By site, the rounds in which it released an update."""
    found: dict[str, set[int]] = {}
    for name in NAMES:
        slots = {
            e.predicate["order"]: e.predicate for e in fed.answers(name) if e.kind == "reserved"
        }
        done = [e.predicate["order"] for e in fed.answers(name) if e.kind == "released"]
        found[name] = {slots[order]["round"] for order in done}
    return found


def of_schedule(plan: Plan) -> dict[str, set[int]]:
    rounds = range(1, plan.last_round + 1)
    return {name: {n for n in rounds if plan.takes_part(name, n)} for name in NAMES}


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"metrics": {"source": "gate", "every": 2}}, {"strategy": {"kind": "fedadam"}},
        {"strategy": {"witnesses": 2}}, {"strategy": {"witnesses": 2, "sites_per_round": 1}},
        {"strategy": {"average_last": 2}}, {"privacy": None},
    ],
    ids=["train", "gate", "fedadam", "lot", "lot of one", "averages", "plain"],
)  # fmt: skip
def test_a_site_trains_in_its_own_rounds_and_the_evidence_says_so(
    seven: Make, changes: dict[str, Any]
) -> None:
    fed = seven(**changes)
    outcome = fed.run()
    for step in outcome.progress:
        assert set(step.statuses) == fed.plan.schedule.sites_in(step.round)
        assert set(step.statuses.values()) == {Status.RELEASED}
    assert charges(fed) == of_schedule(fed.plan)
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults
    assert not [note for note in verdict.notes if "the lot" in note]


def test_a_site_refuses_a_round_of_others_at_no_cost(
    seven: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that orders from everybody, so that it has more updates for one approval."""
    fed = seven(strategy={"min_sites": 1})
    monkeypatch.setattr(_Rounds, "_due", lambda self, number: self.sites)
    outcome = fed.run()
    for step in outcome.progress:
        assert set(step.statuses) == fed.plan.schedule.sites_in(step.round)
        assert set(step.statuses.values()) == {Status.RELEASED}
    assert charges(fed) == of_schedule(fed.plan)
    for name in NAMES:
        refused = [entry for entry in fed.answers(name) if entry.kind == "refused"]
        assert len(refused) == 5 - len(charges(fed)[name])
        assert "the plan lets others train in round" in fed.log(name)
    assert fed.verdict().ok


def test_a_verifier_names_a_site_that_trained_in_a_round_of_others(
    seven: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key owner's lie: site and coordinator agree, and all is signed and witnessed."""
    fed = seven()

    def obliging(order: Any, site: str, plan: Plan) -> None:
        if site != "North":
            require_planned(order, site, plan)

    monkeypatch.setattr(site_module, "require_planned", obliging)
    monkeypatch.setattr(
        _Rounds,
        "_turn",
        lambda self, n: [s for s in self.sites if s == "North" or self.plan.takes_part(s, n)],
    )
    fed.run()
    assert charges(fed)["North"] == {1, 2, 3, 4, 5}
    faults = fed.verdict().faults
    assert {(fault.site, fault.rule) for fault in faults} >= {("North", "plan")}
    assert "no 'train' of this site in round" in str(faults)


@pytest.mark.parametrize("rest", ["again", "new process"])
def test_a_run_continues_with_the_turns_that_are_left(
    seven: Make, rest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed, rounds = seven(), []

    class Dying(InProcessGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            messages = list(messages)
            rounds.extend(m for m in messages if m.metadata.message_type == "train")
            if len(rounds) > 8:
                raise KeyboardInterrupt
            return super().send_and_receive(messages, timeout=timeout)

    with pytest.raises(KeyboardInterrupt):
        fed.run(fed.grid(Dying))
    if rest == "new process":
        fed.sites[:] = [fed.restart(name) for name in NAMES]
    outcome = fed.run()
    assert outcome.progress[-1].round == 5 and charges(fed) == of_schedule(fed.plan)
    assert fed.verdict().ok


def test_a_round_goes_on_without_a_site_of_its_turn(seven: Make) -> None:
    fed = seven()

    class Mute(Silent):
        nodes = (2,)

    outcome = fed.run(fed.grid(Mute))
    assert len(outcome.progress) == 5
    for step in outcome.progress:
        assert set(step.statuses) == fed.plan.schedule.sites_in(step.round) - {"East"}
    assert fed.verdict().ok


def test_a_run_whose_round_has_nobody_does_not_begin(
    seven: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one site of a round is not connected: nothing is spent, and nobody waits for ever."""
    fed = seven(strategy={"sites_per_round": 1}, training={"rounds": 7, "steps": 1})
    (absent,) = fed.plan.schedule.sites_in(7)
    enrolled = FlowerLink.enrolled
    monkeypatch.setattr(
        FlowerLink, "enrolled", lambda self: [s for s in enrolled(self) if s != absent]
    )
    with pytest.raises(QuorumError, match=f"round 7 is the turn of .*: {absent}"):
        fed.run()
    assert not any(fed.answers(name) for name in NAMES) and fed.journal_entries("run-opened") == []
    monkeypatch.undo()
    assert len(fed.run().progress) == 7


def test_plans_that_nobody_used_cost_a_verifier_nothing(seven: Make) -> None:
    """Each has as many turns as there may be; together they would take minutes and gigabytes."""
    fed = seven()
    fed.run()
    path = fed.bundle()
    lines = path.read_text().splitlines()
    place = next(k for k, line in enumerate(lines) if json.loads(line).get("kind") == "plan")
    plan = json.loads(lines[place])
    more = []
    for seed in range(30):
        value = copy.deepcopy(plan)
        inner = next(v for v in value.values() if isinstance(v, dict) and "strategy" in v)
        inner["seed"], inner["training"]["rounds"] = seed, MAX_TURNS
        inner["strategy"]["sites_per_round"] = 1
        more.append(rfc8785.dumps(value).decode())
    path.write_text("\n".join([*lines[:place], *more, *lines[place:]]) + "\n")
    began = time.process_time()
    verdict = verify(path, processes=1)
    assert not verdict.ok and time.process_time() - began < 60
    assert any("more turns than are counted" in fault.message for fault in verdict.faults)


@pytest.mark.parametrize("name", ["A" * 100, "\ud800", "Ö"])
def test_a_verifier_takes_no_name_that_a_plan_would_not(plan_value: Make, name: str) -> None:
    told = calibrated(Plan.parse(plan_value(strategy={"sites_per_round": 2}))).to_dict()
    told["sites"][0]["name"] = name
    with pytest.raises(Malformed, match="names"):
        AuditedPlan(told)


@pytest.mark.parametrize("honest", [True, False])
def test_a_log_without_a_lot_is_cosigned_by_more_than_half_or_noted(
    seven: Make, monkeypatch: pytest.MonkeyPatch, honest: bool
) -> None:
    """The site of the last round is that of this one: nobody else's head can be drawn from."""
    changes: dict[str, Any] = {
        "strategy": {"sites_per_round": 1, "witnesses": 2},
        "training": {"rounds": 8, "steps": 1},
    }
    seed = next(
        seed
        for seed in range(100)
        if (made := Schedule(NAMES, 1, seed, 8)).sites_in(7) == made.sites_in(8)
    )
    fed = seven(seed=seed, **changes)
    if not honest:
        of = SitesByLot.of
        monkeypatch.setattr(
            SitesByLot,
            "of",
            lambda self, log: (
                of(self, log) or [s.name for s in self.roster.sites if s.ledger.name != log][:2]
            ),
        )
    fed.run()
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults
    assert bool([note for note in verdict.notes if "the lot" in note]) != honest
