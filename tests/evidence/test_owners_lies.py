"""What the owner of keys can write, well formed and signed by all, and the rule that refuses it.

Each lie was accepted before; its control is the same history without it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import verify_kit
from verify_kit import HUB, SITES, Federation, digest, plan_of, train_event

from privet.client.operator.approval import people
from privet.privacy.audit.verify import Verdict, verify
from privet.privacy.audit.verify.cost import compositions, plans
from privet.privacy.audit.verify.result import NEW_RULE
from privet.privacy.audit.verify.rules import policy

NORTH, EAST, SOUTH = SITES
Lie = Callable[[str, str, dict[str, Any]], None]


def verdict(folder: Path, fed: Federation, **options: Any) -> Verdict:
    pinned = verify_kit.write_roster(folder / "roster.json", fed.fingerprints())
    path = verify_kit.write(folder / "bundle", fed.bundle())
    return verify(path, pinned, processes=1, **options)


def rules(answer: Verdict) -> set[tuple[str, str | None]]:
    return {(fault.rule, fault.site) for fault in answer.faults}


def allowing(**changes: Any) -> Lie:
    """Return a lie that changes what North's policy allows."""

    def lie(site: str, kind: str, entry: dict[str, Any]) -> None:
        if (site, kind) == (NORTH, "policy"):
            entry["policy"]["allow"].update(changes)

    return lie


def policy_without(part: str) -> Lie:
    def lie(site: str, kind: str, entry: dict[str, Any]) -> None:
        if (site, kind) == (NORTH, "policy"):
            del entry["policy"][part]

    return lie


def other_terms(**changes: Any) -> Lie:
    def lie(site: str, kind: str, entry: dict[str, Any]) -> None:
        if (site, kind) == (NORTH, "policy"):
            entry["policy"]["populations"]["patients"].update(changes)

    return lie


def empty_policy(site: str, kind: str, entry: dict[str, Any]) -> None:
    if (site, kind) == (NORTH, "policy"):
        entry["policy"] = {}


def of_another_site(site: str, kind: str, entry: dict[str, Any]) -> None:
    if (site, kind) == (NORTH, "policy"):
        entry["policy"]["site"] = EAST


def listed_and_is_not(site: str, kind: str, entry: dict[str, Any]) -> None:
    if (site, kind) == (NORTH, "plan-approved"):
        entry["how"] = "listed"


def every_test_passed(site: str, kind: str, entry: dict[str, Any]) -> None:
    if (site, kind) == (NORTH, "reserved"):
        entry["self_tests"] = [f"H{number}" for number in range(1, 33)]


def dated_2099(site: str, kind: str, entry: dict[str, Any]) -> None:
    if (site, kind) == (NORTH, "released"):
        entry["time"] = "2099-01-01T00:00:00Z"


def half_of_everybody(site: str, kind: str, entry: dict[str, Any]) -> None:
    if (site, kind) == (NORTH, "population"):
        entry["delta"] = "0.5"
    if (site, kind) == (NORTH, "policy"):
        entry["policy"]["populations"]["patients"]["delta"] = "0.5"


def parameters_for_one(site: str, kind: str, entry: dict[str, Any]) -> None:
    if (site, kind) == (NORTH, "order"):
        entry["parameters"] = ["w"]


def names_that_turn(site: str, kind: str, entry: dict[str, Any]) -> None:
    if (site, kind) == (NORTH, "plan-approved"):
        entry["by"] = ["dpo \u202eevil\u202c"]


LIES: dict[str, tuple[str, str | None, Lie]] = {
    "a cap above the policy's": ("policy", NORTH, other_terms(epsilon="3.0")),
    "another unit": ("policy", NORTH, other_terms(unit="person")),
    "more rounds than allowed": ("policy", NORTH, allowing(max_rounds=1)),
    "a foreign coordinator": ("policy", NORTH, allowing(coordinators=[digest(b"other")])),
    "nobody may ask": ("policy", NORTH, allowing(coordinators=[])),
    "a forbidden model": ("policy", NORTH, allowing(models=["linear"])),
    "a forbidden task": ("policy", NORTH, allowing(tasks=["text"])),
    "forbidden metrics": ("policy", NORTH, allowing(metrics=["public"])),
    "a plan that is not listed": ("policy", NORTH, allowing(approval="listed")),
    "one approver of two": ("policy", NORTH, allowing(approvers=2)),
    "listed, and it is not": ("policy", NORTH, listed_and_is_not),
    "no policy in the entry": ("policy", NORTH, empty_policy),
    "no limits in the policy": ("policy", NORTH, policy_without("allow")),
    "a policy without data sets": ("policy", NORTH, policy_without("data")),
    "the policy of another site": ("policy", NORTH, of_another_site),
    "tests that do not exist": ("entry", NORTH, every_test_passed),
    "dated after it was cosigned": ("witness", NORTH, dated_2099),
    "a delta of a half": ("population", NORTH, half_of_everybody),
    "other parameters for one site": ("order", None, parameters_for_one),
    "names that turn their direction": ("entry", NORTH, names_that_turn),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_that_all_have_signed(tmp_path: Path, name: str) -> None:
    rule, at, lie = LIES[name]
    fed = Federation(tweak=lie)
    fed.run()
    answer = verdict(tmp_path, fed)
    assert (rule, at) in rules(answer)
    assert any(f.message.endswith(NEW_RULE) for f in answer.faults) or rule == "entry"


def test_without_a_lie_nothing_is_refused(tmp_path: Path) -> None:
    fed = Federation(tweak=allowing(models=["*"], approvers=1, max_rounds=2))
    fed.run()
    assert verdict(tmp_path, fed).faults == []


@pytest.mark.parametrize("other", ["DPO", " dpo", "dpo\u00ad", "dpo\ufe0f", "dpo\u034f", "\u3164"])
def test_two_spellings_are_one_approver(tmp_path: Path, other: str) -> None:
    """Nor is a name that shows nothing; site and verifier, who share no code, count alike."""
    by = ["dpo", other]
    assert people(by) == policy.people(by) == 1

    def lie(site: str, kind: str, entry: dict[str, Any]) -> None:
        allowing(approvers=2)(site, kind, entry)
        if kind == "plan-approved":
            entry["by"] = by

    fed = Federation(tweak=lie)
    fed.run()
    assert ("policy", NORTH) in rules(verdict(tmp_path, fed))


def test_two_approvers_are_enough(tmp_path: Path) -> None:
    def two(site: str, kind: str, entry: dict[str, Any]) -> None:
        allowing(approvers=2)(site, kind, entry)
        if kind == "plan-approved":
            entry["by"] = ["dpo", "cio"]

    fed = Federation(tweak=two)
    fed.run()
    assert verdict(tmp_path, fed).faults == []


def children(fed: Federation, cap: str = "8.0") -> None:
    """Give North a second population, in ledger and policy alike."""
    terms = {
        "unit": "record", "relation": "add_or_remove_one", "epsilon": cap, "delta": "1e-05",
        "max_records": 1,
    }  # fmt: skip
    log = fed.sites[NORTH]
    log.add("population", population="children", **terms)
    log.add("data-set", data_set="ward", population="children", disjoint=".")
    policy = fed.policy(NORTH, "8.0", "site")
    policy["populations"]["children"] = terms
    policy["data"]["ward"] = {"population": "children", "disjoint": "."}
    log.add("policy", policy=policy)


@pytest.mark.parametrize("lies", [True, False])
def test_one_run_over_two_populations(tmp_path: Path, lies: bool) -> None:
    seen: list[int] = []

    def turns(site: str, kind: str, entry: dict[str, Any]) -> None:
        if lies and (site, kind) == (NORTH, "reserved"):
            seen.append(1)
            if len(seen) % 2:
                entry.update(population="children", data_set="ward")

    fed = Federation(tweak=turns)
    children(fed)
    fed.run()
    answer = verdict(tmp_path, fed)
    assert (("population", NORTH) in rules(answer)) is lies
    assert answer.ok is not lies


def test_a_policy_that_came_later_does_not_judge_what_was_before(tmp_path: Path) -> None:
    fed = Federation()
    fed.run()
    fed.sites[NORTH].add("policy", policy=fed.policy(NORTH, "8.0", "site", coordinators=[]))
    assert verdict(tmp_path, fed).faults == []


@pytest.mark.parametrize(("epsilon", "ok"), [(8.0, True), (0.5, False)])
def test_a_plan_costs_no_more_than_it_asks_for(tmp_path: Path, epsilon: float, ok: bool) -> None:
    fed = Federation()
    fed.run(plan=plan_of(privacy={"epsilon": epsilon}))
    answer = verdict(tmp_path, fed)
    assert answer.ok is ok
    assert rules(answer) == (set() if ok else {("plan", site) for site in SITES})


def test_a_plan_uses_no_more_records_of_a_person_than_the_population_allows(
    tmp_path: Path,
) -> None:
    fed = Federation()
    fed.run(plan=plan_of(privacy={"max_records": 2}))
    assert ("plan", NORTH) in rules(verdict(tmp_path, fed))


@pytest.mark.parametrize(("size", "noted"), [(100, False), (100_001, True)])
def test_a_delta_above_one_in_the_nominal_size_is_noted(
    tmp_path: Path, size: int, noted: bool
) -> None:
    fed = Federation()
    sites = [{"name": name, "nominal_size": size} for name in SITES]
    plan = plan_of()
    plan["sites"] = sites
    fed.run(plan=plan)
    answer = verdict(tmp_path, fed)
    assert answer.ok
    assert any("above one in" in note for note in answer.notes) is noted


@pytest.mark.parametrize(("opened", "ok"), [(True, True), (False, False)])
def test_a_charge_is_not_given_back_for_what_ran(tmp_path: Path, opened: bool, ok: bool) -> None:
    fed = Federation(cap="20.0")
    fed.run()
    plan = fed.plans[0]
    _, order = fed.order("run-1", NORTH, 2, "evaluate", digest(plan), digest(b"run-1 2"), 2)
    fed.orders.pop()
    keyid = fed.order_key.hex
    place = fed.reserve(NORTH, order, verify_kit.gate_event(plan), keyid=keyid)
    fed.sites[NORTH].add("aborted", reservation=place, data_opened=opened, reason="does-not-fit")
    refused = ("reservation", NORTH) in rules(verdict(tmp_path, fed))
    assert refused is not ok


@pytest.mark.parametrize("site", [NORTH, EAST])
def test_one_release_is_not_two(tmp_path: Path, site: str) -> None:
    """At two sites, or in two rounds of one."""
    same = digest(b"the same update")
    count = {"n": 0}

    def copy(who: str, kind: str, entry: dict[str, Any]) -> None:
        if kind == "released" and who in (NORTH, site):
            count["n"] += 1
            entry["digest"] = same if count["n"] <= 2 else entry["digest"]

    fed = Federation(tweak=copy)
    fed.run()
    assert "release" in {rule for rule, _ in rules(verdict(tmp_path, fed))}


def rounds_of(tmp_path: Path, least: int | None, answered: int) -> Verdict:
    """A run of one round to which so many sites release."""
    fed = Federation()
    strategy = {} if least is None else {"min_sites": least}
    plan = plan_of(metrics={"source": "off"}, training={"rounds": 1}, strategy=strategy)
    name, model, after = fed.approve(plan), digest(b"0"), digest(b"1")
    fed.hub.add("run-opened", run="r", plan=name, model=model, sites=list(SITES))
    done = []
    for site in SITES[:answered]:
        _, order = fed.order("r", site, 1, "train", name, model)
        place = fed.reserve(site, order, train_event(plan))
        done.append((site, order, fed.release(site, order, place, train_event(plan))))
    fed.close_round("r", 1, model, after, done)
    fed.hub.add("run-closed", run="r", rounds=1, model=after, how="done", fault=None)
    return verdict(tmp_path, fed)


@pytest.mark.parametrize(
    ("least", "answered", "ok"),
    [(None, 2, True), (None, 1, False), (3, 2, False), (1, 1, True), (1, 0, False)],
)
def test_a_round_has_the_quorum_of_its_plan(
    tmp_path: Path, least: int | None, answered: int, ok: bool
) -> None:
    answer = rounds_of(tmp_path, least, answered)
    assert answer.ok is ok
    assert ("round", HUB) in rules(answer) or ok


def spent(answer: Verdict, site: str = NORTH) -> float | None:
    return next(found.epsilon for found in answer.sites if found.site == site)


def test_a_fault_in_an_entry_takes_no_charge_away(tmp_path: Path) -> None:
    """What is told wrongly beside a charge is a fault, and the charge counts."""
    honest = Federation()
    honest.run()
    for lie in (every_test_passed, names_that_turn):
        fed = Federation(tweak=lie)
        fed.run()
        answer = verdict(tmp_path, fed)
        assert ("entry", NORTH) in rules(answer)
        assert all(NEW_RULE in one.message for one in answer.faults if one.rule == "entry")
        assert spent(answer) == spent(verdict(tmp_path, honest))


def test_what_cannot_be_read_may_be_a_charge(tmp_path: Path) -> None:
    def unreadable(site: str, kind: str, entry: dict[str, Any]) -> None:
        if (site, kind) == (NORTH, "reserved"):
            entry["round"] = 0

    fed = Federation(tweak=unreadable)
    fed.run()
    answer = verdict(tmp_path, fed)
    assert spent(answer) is None and spent(answer, EAST) is not None
    assert any("is not known: " in note for note in answer.notes)


# How far others stand behind it.


def test_a_history_that_nobody_witnessed(tmp_path: Path) -> None:
    fed = Federation(journal=False)
    fed.run()
    fed.alone = {NORTH}
    answer = verdict(tmp_path, fed)
    assert ("witness", NORTH) in rules(answer)
    assert answer.witnessed[NORTH].upto == 0 and answer.witnessed[NORTH].by == ()
    assert answer.witnessed[EAST].upto == len(fed.sites[EAST].leaves)
    assert verdict(tmp_path, fed, require_witnessed=False).ok


def test_a_simulation_need_not_be_witnessed_unless_asked(tmp_path: Path) -> None:
    fed = Federation(setting="simulation", journal=False)
    fed.run()
    fed.alone = {NORTH}
    assert verdict(tmp_path, fed).ok
    assert rules(verdict(tmp_path, fed, require_witnessed=True)) == {("witness", NORTH)}


def test_a_quorum_of_none_witnesses_nothing(tmp_path: Path) -> None:
    fed = Federation(quorum=0)
    fed.run()
    assert {("witness", site) for site in SITES} <= rules(verdict(tmp_path, fed))


def test_a_run_that_was_cut_short_names_what_it_cost(tmp_path: Path) -> None:
    fed = Federation()
    fed.run(rounds=1, close="failed")
    answer = verdict(tmp_path, fed)
    assert answer.ok
    by_site = {(one.site, one.run): one for one in answer.unfinished}
    assert set(by_site) == {(site, "run-1") for site in SITES}
    one = by_site[NORTH, "run-1"]
    spent = next(found.epsilon for found in answer.sites if found.site == NORTH)
    assert one.releases == 2 and one.epsilon == pytest.approx(spent)
    assert any("that no finished run accounts for" in note for note in answer.notes)


def test_a_finished_run_accounts_for_what_it_used(tmp_path: Path) -> None:
    fed = Federation()
    fed.run()
    assert verdict(tmp_path, fed).unfinished == []


def test_many_plans_are_not_composed_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the ceiling passes cost nothing; of the others so many, and a note."""
    monkeypatch.setattr(compositions, "MAX_SECONDS", 2)
    fed = Federation(cap="60.0")
    for number in range(4):  # above their ε by the ceiling alone
        privacy = {"epsilon": 1.9, "noise_multiplier": 3.0 + number / 1000}
        plan = plan_of(name=f"plan {number}", privacy=privacy)
        fed.run(f"run-{number}", plan)
    parts = plans.AuditedPlan(fed.plans[0])
    assert not parts.is_cheap and not parts.overspends
    answer = verdict(tmp_path, fed)
    assert answer.faults == []
    assert sum("the plans take more time to compose" in note for note in answer.notes) == 1


def test_one_wrong_clock_among_witnesses_accuses_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verify_kit.Key.line

    def line(self: verify_kit.Key, body: str, time: int = verify_kit.START) -> str:
        return real(self, body, 1 if self.kind == 4 and EAST in self.name else time)

    monkeypatch.setattr(verify_kit.Key, "line", line)
    fed = Federation()
    fed.run()
    assert verdict(tmp_path, fed).faults == []


def test_a_policy_that_listed_a_plan_is_no_person(tmp_path: Path) -> None:
    """Once it lists the plan no more, people must have approved it."""

    def listed(site: str, kind: str, entry: dict[str, Any]) -> None:
        if kind == "plan-approved":
            entry.update(how="listed", by=["policy sha256:0123456789ab"])

    plan = plan_of()
    fed = Federation(tweak=listed)
    for site in SITES:
        policy = fed.policy(site, "8.0", "site", plans=[digest(plan)])
        fed.sites[site].add("policy", policy=policy)
    fed.approve(plan)
    for site in SITES:
        fed.sites[site].add("policy", policy=fed.policy(site, "8.0", "site"))
    fed.run(plan=plan)
    assert {("policy", site) for site in SITES} <= rules(verdict(tmp_path, fed))


def test_a_policy_dressed_up_afterwards(tmp_path: Path) -> None:
    fed = Federation()
    fed.run()
    policy = fed.policy(NORTH, "1.0", "site")
    fed.sites[NORTH].add("policy", policy=policy)
    assert ("policy", NORTH) in rules(verdict(tmp_path, fed))


def test_the_end_of_a_run_is_witnessed_also_where_something_follows(tmp_path: Path) -> None:
    for witnessed in (True, False):
        fed = Federation()
        fed.run()
        if witnessed:
            fed.witness(fed.hub, most=fed.quorum)
        fed.hub.add("run-opened", run="idle", plan=digest(fed.plans[0]), model=digest(b"x"),
                    sites=list(SITES))  # fmt: skip
        fed.hub.checkpoint([])
        answer = verdict(tmp_path, fed)
        assert (("witness", HUB) in rules(answer)) is not witnessed


def test_a_flood_of_notes_is_counted(tmp_path: Path) -> None:
    fed = Federation()
    fed.run(rounds=1, close="failed")
    for number in range(1100):
        fed.hub.add("run-opened", run=f"idle-{number}", plan=digest(fed.plans[0]),
                    model=digest(b"x"), sites=list(SITES))  # fmt: skip
    answer = verdict(tmp_path, fed)
    assert sum("not closed" in note for note in answer.notes) == 1
    assert any("that no finished run accounts for" in note for note in answer.notes)


@pytest.mark.parametrize("opened", [True, False])
def test_a_charge_that_was_given_back_needs_no_witness(tmp_path: Path, opened: bool) -> None:
    fed = Federation(cap="60.0")
    fed.run()
    log, keyid = fed.sites[NORTH], "0" * 64
    keys = ["sha256:" + fed.order_key.hex, "sha256:" + keyid]
    log.add("policy", policy=fed.policy(NORTH, "60.0", "site", coordinators=keys))
    plan = fed.plans[0]
    _, order = fed.order("elsewhere", NORTH, 1, "train", digest(plan), digest(b"x"))
    fed.orders.pop()
    place = fed.reserve(NORTH, order, train_event(plan), keyid=keyid)
    log.add("aborted", reservation=place, data_opened=opened, reason="failed")
    log.checkpoint([])
    assert rules(verdict(tmp_path, fed)) == ({("witness", NORTH)} if opened else set())


def test_a_real_site_that_calls_itself_a_simulation_is_held_to_its_witnesses(
    tmp_path: Path,
) -> None:
    def lie(site: str, kind: str, entry: dict[str, Any]) -> None:
        if (site, kind) == (NORTH, "genesis"):
            entry["setting"] = "simulation"
        if (site, kind) == (NORTH, "policy"):
            entry["policy"]["setting"] = "simulation"

    fed = Federation(tweak=lie, journal=False)
    fed.run()
    fed.alone = {NORTH}
    answer = verdict(tmp_path, fed)
    assert rules(answer) == {("witness", NORTH)}
    assert any("its ledger says that it is of a simulation" in note for note in answer.notes)
