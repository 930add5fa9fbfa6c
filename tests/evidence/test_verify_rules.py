"""One planted fault for each thing a bundle can get wrong, and the rule that names it.

Entries are changed before they are signed, so that nothing but the rule itself is broken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from verify_kit import (
    HUB,
    SITES,
    Federation,
    Key,
    Tweak,
    digest,
    gate_event,
    gaussian,
    plan_of,
    repeated,
    train_event,
    write,
    write_roster,
)

from privet.common.errors import InputError
from privet.privacy.audit.verify import RULES, Verdict, verify

NORTH = SITES[0]
CODE = digest(b"code")


def verdict(tmp_path: Path, fed: Federation, *, pin: bool = True, **options: Any) -> Verdict:
    roster = write_roster(tmp_path / "roster.json", fed.fingerprints()) if pin else None
    return verify(write(tmp_path / "bundle", fed.bundle()), roster, **options)


def found(answer: Verdict) -> set[tuple[str, str | None]]:
    assert {fault.rule for fault in answer.faults} <= set(RULES)
    assert not any("could not continue" in fault.message for fault in answer.faults)
    return {(fault.rule, fault.site) for fault in answer.faults}


def test_a_sound_bundle(tmp_path: Path) -> None:
    fed = Federation()
    fed.run()
    answer = verdict(tmp_path, fed)
    assert answer.faults == [] and answer.ok and answer.roster == "pinned"
    assert [finding.site for finding in answer.sites] == list(SITES)
    first = answer.sites[0]
    assert (first.population, first.unit, first.relation) == (
        "patients",
        "record",
        "add_or_remove_one",
    )
    assert (first.delta, first.cap, first.charges, first.runs) == (1e-5, 8.0, 4, 1)
    assert first.enforced_by == "pld" and first.conditional == ()
    assert first.epsilon is not None and first.rdp_epsilon is not None
    assert 0 < first.epsilon < first.rdp_epsilon < 8
    assert answer.record is None


def test_the_answer_has_the_keys_of_the_format_page(tmp_path: Path) -> None:
    fed = Federation()
    fed.run()
    value = verdict(tmp_path, fed, pin=False).to_dict()
    assert set(value) == {"ok", "roster", "code", "witnessed", "faults", "sites", "unfinished"}
    size = len(fed.sites[NORTH].leaves)
    others = sorted({*SITES, HUB} - {NORTH})
    assert value["witnessed"]["quorum"] == 2
    assert value["witnessed"]["sites"][NORTH] == {"upto": size, "entries": size, "by": others}
    assert value["code"] == {"pinned": False, "runs": {"run-1": [CODE]}}
    assert value["roster"] == "unpinned"
    assert {"site", "population", "unit", "relation", "delta", "epsilon", "cap", "entries"} <= set(
        value["sites"][0]
    )
    fed.sites[NORTH].add("surprise")
    assert set(verdict(tmp_path, fed).to_dict()["faults"][0]) == {
        "site",
        "entry",
        "rule",
        "message",
    }


def test_what_is_kept_on_request(tmp_path: Path) -> None:
    fed = Federation()
    fed.run()
    record = verdict(tmp_path, fed, keep=True).record
    assert record is not None
    assert record.roster == fed.roster()
    assert record.plans == {digest(plan): plan for plan in fed.plans}
    assert [(log.name, log.role) for log in record.logs] == [
        *((name, "site") for name in SITES),
        (HUB, "coordinator"),
    ]
    for log, mine in zip(record.logs, fed.logs(), strict=True):
        assert [(e.kind, e.predicate) for e in log.entries] == mine.predicates
        assert [size for size, _ in log.checkpoints] == sorted(mine.notes)
    names = sorted(log.witness.name for log in fed.logs() if log.name != NORTH)
    assert list(record.logs[0].checkpoints[-1][1]) == names


def test_two_runs_are_conditional_and_held_by_the_filter(tmp_path: Path) -> None:
    fed = Federation(cap="9.0")
    fed.run("a")
    fed.run("b", plan_of(name="other"))
    answer = verdict(tmp_path, fed)
    assert answer.ok
    assert answer.sites[0].conditional == ("H29",)
    assert (answer.sites[0].runs, answer.sites[0].enforced_by) == (2, "filter")


def test_keys_rotate_and_are_recovered(tmp_path: Path) -> None:
    fed = Federation()
    fed.sites[NORTH].rotate()
    fed.run("a")
    fed.sites[NORTH].rotate("newer", "recovery", fed.recovery[NORTH])
    fed.hub.rotate()
    fed.run("b")
    assert verdict(tmp_path, fed).faults == []


def test_a_bundle_of_sites_says_what_was_not_checked(tmp_path: Path) -> None:
    fed = Federation(journal=False)
    fed.run()
    answer = verdict(tmp_path, fed)
    assert answer.faults == []
    assert any("not checked" in note for note in answer.notes)


def test_a_site_that_went_on_alone_is_noted(tmp_path: Path) -> None:
    fed = Federation()
    fed.run()
    log = fed.sites[NORTH]
    held = len(log.leaves)
    log.add("paused", by=["dpo"])
    log.checkpoint([])
    answer = verdict(tmp_path, fed)
    assert answer.faults == []
    assert f"North: unwitnessed tail, entries {held} to {held}" in answer.notes


def test_retries_aborts_and_refusals_are_fine(tmp_path: Path) -> None:
    fed = Federation()
    plan = plan_of(metrics={"source": "off"}, strategy={"min_sites": 1})
    name = fed.approve(plan)
    model, after = digest(b"0"), digest(b"1")
    fed.hub.add("run-opened", run="r", plan=name, model=model, sites=list(SITES))
    event = train_event(plan)
    _, order = fed.order("r", NORTH, 1, "train", name, model)
    lost = fed.reserve(NORTH, order, event)
    fed.sites[NORTH].add("aborted", reservation=lost, data_opened=False, reason="recovered")
    again = fed.reserve(NORTH, order, event)
    less = repeated(event["event"], 2)
    done = [(NORTH, order, fed.release(NORTH, order, again, less))]
    _, refused = fed.order("r", "East", 1, "train", name, model)
    fed.refuse("East", refused, "refused-budget")
    _, silent = fed.order("r", "South Bay", 1, "train", name, model)

    def add_answers(who: str, kind: str, fields: dict[str, Any]) -> None:
        if kind == "round":
            for asked, answer in ((refused, "refused-budget"), (silent, "no-reply")):
                fields["orders"].append({
                    "site": asked["site"], "order": digest(asked), "purpose": "train",
                    "attempt": 1, "answer": answer,
                })  # fmt: skip

    fed.hub.tweak = add_answers
    fed.close_round("r", 1, model, after, done)
    open_order = fed.order("r", NORTH, 2, "train", name, after)[1]
    fed.reserve(NORTH, open_order, event)
    fed.hub.add("run-closed", run="r", rounds=1, model=after, how="failed", fault="quorum")
    answer = verdict(tmp_path, fed)
    assert answer.faults == []
    assert any("left open" in note for note in answer.notes)
    assert answer.sites[0].charges == 2


# Entries changed before they are signed: rule, site of the fault, kind of entry, change.

Change = Callable[[dict[str, Any]], None]


def put(**fields: Any) -> Change:
    return lambda predicate: predicate.update(fields)


def drop(name: str) -> Change:
    return lambda predicate: predicate.pop(name)


def item(list_: str, **fields: Any) -> Change:
    return lambda predicate: predicate[list_][0].update(fields)


OTHER = digest(b"other")
WEAK = train_event(plan_of(privacy={"noise_multiplier": 3.9}))
MORE = repeated(train_event(plan_of())["event"], 4)
PLANTED: list[tuple[str, str | None, str, str, Change]] = [
    ("sequence", NORTH, NORTH, "policy", put(sequence=7)),
    ("sequence", NORTH, NORTH, "policy", put(time="2020-01-01T00:00:00Z")),
    ("entry", NORTH, NORTH, "policy", put(time="2026-11-22 03:40:07Z")),
    ("entry", NORTH, NORTH, "policy", put(more=1)),
    ("entry", NORTH, NORTH, "policy", put(log="privet.ledger/East/0123456789abcdef")),
    ("entry", NORTH, NORTH, "data-set", drop("disjoint")),
    ("entry", NORTH, NORTH, "population", put(max_records=True)),
    ("entry", NORTH, NORTH, "population", put(delta="1e-5")),
    ("entry", NORTH, NORTH, "reserved", put(self_tests=["H0"])),
    ("entry", NORTH, NORTH, "reserved", put(round=0)),
    ("entry", NORTH, NORTH, "reserved", put(keyid="0" * 63)),
    ("entry", NORTH, NORTH, "released", put(reproducible=1)),
    ("entry", HUB, HUB, "round", item("joined", more=1)),
    ("entry", HUB, HUB, "round", item("orders", answer="perhaps")),
    ("roster", NORTH, NORTH, "genesis", put(site="East")),
    ("roster", NORTH, NORTH, "genesis", put(witness=Key("privet.witness", "x", 4).vkey)),
    ("roster", NORTH, NORTH, "genesis", put(key=Key("privet.ledger", "x", 1).vkey)),
    ("roster", HUB, HUB, "genesis", put(orders=Key("privet.orders", "x", 1).vkey)),
    ("population", NORTH, NORTH, "data-set", put(population="unheard-of")),
    ("population", NORTH, NORTH, "data-set", put(disjoint="other persons")),
    ("population", NORTH, NORTH, "reserved", put(population="unheard-of")),
    ("population", NORTH, NORTH, "reserved", put(data_set="unheard-of")),
    ("population", NORTH, NORTH, "population", put(epsilon=None)),
    ("plan", NORTH, NORTH, "plan-approved", put(plan=OTHER)),
    ("plan", None, NORTH, "reserved", put(plan=OTHER)),
    ("plan", NORTH, NORTH, "reserved", put(plan=OTHER)),
    ("plan", NORTH, NORTH, "reserved", put(round=3)),
    ("plan", NORTH, NORTH, "population", put(unit="person")),
    ("plan", NORTH, NORTH, "population", put(relation="replace_one")),
    ("plan", NORTH, NORTH, "population", put(epsilon="7.9")),
    ("plan", NORTH, NORTH, "population", put(delta="1e-06")),
    ("plan", HUB, HUB, "run-opened", put(sites=["South Bay", "North", "East"])),
    ("plan", HUB, HUB, "run-opened", put(plan=OTHER)),
    ("roster", HUB, HUB, "run-opened", put(sites=["North", "East", "West"])),
    ("code", "East", "East", "reserved", put(code=OTHER)),
    ("event", NORTH, NORTH, "reserved", put(event=WEAK)),
    ("event", NORTH, NORTH, "reserved", put(event=MORE)),
    ("event", NORTH, NORTH, "reserved", put(event={"type": "quantum"})),
    ("event", NORTH, NORTH, "reserved", put(event=gaussian(-1.0, 1.0))),
    ("event", NORTH, NORTH, "released", put(event=MORE)),
    ("event", NORTH, NORTH, "released", put(event=WEAK)),
    ("event", NORTH, NORTH, "metric-released", put(event=gaussian(19.0, 1.0))),
    ("release", NORTH, NORTH, "released", put(order=OTHER)),
    ("release", NORTH, NORTH, "released", put(reservation=0)),
    ("release", HUB, HUB, "round", item("joined", digest=OTHER)),
    ("release", HUB, HUB, "round", item("joined", entry=0)),
    ("release", HUB, HUB, "round", item("joined", site="East")),
    ("release", HUB, HUB, "round", item("joined", log="privet.ledger/x/0123456789abcdef")),
    ("release", HUB, HUB, "round", item("metrics", digest=OTHER)),
    ("order", NORTH, NORTH, "reserved", put(order=OTHER)),
    ("order", NORTH, NORTH, "reserved", put(attempt=2)),
    ("order", HUB, NORTH, "reserved", put(keyid="0" * 64)),
    ("reservation", NORTH, NORTH, "reserved", put(keyid="0" * 64)),
    ("order", NORTH, NORTH, "reserved", put(model=OTHER)),
    ("order", HUB, HUB, "round", item("orders", order=OTHER)),
    ("order", HUB, HUB, "round", item("orders", attempt=2)),
    ("order", HUB, HUB, "round", item("orders", answer="refused-plan")),
    ("order", HUB, HUB, "round", lambda p: p["orders"].pop()),
    ("order", HUB, HUB, "round", lambda p: p["orders"].append(p["orders"][0])),
    ("round", HUB, HUB, "round", put(round=5)),
    ("round", HUB, HUB, "round", put(run="unheard-of")),
    ("round", HUB, HUB, "round", lambda p: p["joined"].append(p["joined"][0])),
    ("round", HUB, HUB, "run-closed", put(rounds=1)),
    ("model", HUB, HUB, "round", put(model=OTHER)),
    ("model", HUB, HUB, "round", put(next=OTHER)),
    ("model", HUB, HUB, "round", put(shown=OTHER)),
    ("model", HUB, HUB, "run-closed", put(model=OTHER)),
    ("model", HUB, HUB, "run-opened", put(model=OTHER)),
    ("model", HUB, NORTH, "order", put(model=OTHER)),
    ("witness", HUB, HUB, "round", item("witnessed", root=OTHER)),
    ("witness", HUB, HUB, "round", item("witnessed", size=2)),
    ("witness", HUB, HUB, "round", lambda p: p["witnessed"][0]["cosigners"].pop()),
    ("witness", HUB, HUB, "round", item("witnessed", log="privet.ledger/x/0123456789abcdef")),
    ("witness", HUB, HUB, "round", put(witnessed=[])),
    ("entry", HUB, HUB, "round", lambda p: p["witnessed"][0]["cosigners"].reverse()),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "at", "who", "kind", "change"), PLANTED)
def test_a_planted_entry(
    tmp_path: Path, rule: str, at: str | None, who: str, kind: str, change: Change
) -> None:
    fed = Federation(tweak=once(who, kind, change))
    fed.run()
    answer = verdict(tmp_path, fed)
    assert not answer.ok
    assert (rule, at) in found(answer)


def once(who: str, kind: str, change: Change) -> Tweak:
    """Change the first entry of a kind in one log."""
    done = []

    def tweak(name: str, entry_kind: str, predicate: dict[str, Any]) -> None:
        if (name, entry_kind) == (who, kind) and not done:
            change(predicate)
            done.append(True)

    return tweak


# Histories with a fault in their order.


def second_genesis(fed: Federation) -> None:
    fed.genesis(fed.sites[NORTH])


def unknown_kind(fed: Federation) -> None:
    fed.sites[NORTH].add("teleported", by=["dpo"])


def after_withdrawn(fed: Federation) -> None:
    fed.sites[NORTH].add("withdrawn", by=["dpo"])
    fed.sites[NORTH].add("paused", by=["dpo"])


def population_twice(fed: Federation) -> None:
    fed.sites[NORTH].add(
        "population", population="patients", unit="record", relation="add_or_remove_one",
        epsilon="80.0", delta="1e-05", max_records=1,
    )  # fmt: skip


def data_set_twice(fed: Federation) -> None:
    fed.sites[NORTH].add("data-set", data_set="er", population="patients", disjoint="")


def closed_twice(fed: Federation) -> None:
    for _ in range(2):
        fed.sites[NORTH].add("budget-closed", population="patients")


def another(fed: Federation, round_: int = 9, **more: Any) -> tuple[dict[str, Any], int]:
    """One more reservation of a run that is of no journal."""
    plan = fed.plans[0]
    order = {
        "run": "elsewhere", "site": NORTH, "round": round_, "attempt": 1, "purpose": "train",
        "plan": digest(plan), "model": OTHER, "parameters": [], "run_": more.pop("run_", ""),
    }  # fmt: skip
    return order, fed.reserve(NORTH, order, train_event(plan), **more)


def while_paused(fed: Federation) -> None:
    fed.sites[NORTH].add("paused", by=["dpo"])
    another(fed, 1)


def while_closed(fed: Federation) -> None:
    fed.sites[NORTH].add("budget-closed", population="patients")
    another(fed, 1)


def after_refusal(fed: Federation) -> None:
    fed.sites[NORTH].add("plan-refused", plan=digest(fed.plans[0]), by=["dpo"], how="manual")
    another(fed, 1)


def slot_back(fed: Federation) -> None:
    another(fed, 2)
    another(fed, 1)


def begun_by_another(fed: Federation) -> None:
    another(fed, 1)
    another(fed, 2, keyid="0" * 64)


def slot_twice(fed: Federation) -> None:
    another(fed, 1)
    another(fed, 1)


def slot_for_another_order(fed: Federation) -> None:
    _, place = another(fed, 1)
    fed.sites[NORTH].add("aborted", reservation=place, data_opened=True, reason="failed")
    another(fed, 1, run_="x")


def aborted_twice(fed: Federation) -> None:
    _, place = another(fed, 1)
    for _ in range(2):
        fed.sites[NORTH].add("aborted", reservation=place, data_opened=True, reason="failed")


def released_twice(fed: Federation) -> None:
    order, place = another(fed, 1)
    for _ in range(2):
        fed.release(NORTH, order, place, train_event(fed.plans[0]))


def released_as_another_kind(fed: Federation) -> None:
    order, place = another(fed, 1)
    event = train_event(fed.plans[0])
    fed.sites[NORTH].add(
        "metric-released", reservation=place, order=digest(order), digest=OTHER, event=event,
        reproducible=False,
    )  # fmt: skip


def old_key(fed: Federation) -> None:
    old = fed.sites[NORTH].key
    fed.sites[NORTH].rotate()
    fed.sites[NORTH].add("paused", by=["dpo"], signers=[old])


def recovery_key_on_an_entry(fed: Federation) -> None:
    fed.sites[NORTH].add("paused", by=["dpo"], signers=[fed.recovery[NORTH]])


def strangers_key(fed: Federation) -> None:
    fed.sites[NORTH].add("paused", by=["dpo"], signers=[fed.order_key])


def recovery_by_the_key_in_force(fed: Federation) -> None:
    fed.sites[NORTH].rotate(why="recovery")


def rotation_by_one(fed: Federation) -> None:
    log = fed.sites[NORTH]
    new = Key("privet.ledger", NORTH, 1, salt="new", name=log.origin)
    log.add("key-rotated", key=new.vkey, why="rotation", signers=[log.key])


def rotation_to_another_name(fed: Federation) -> None:
    log = fed.sites[NORTH]
    new = Key("privet.ledger", NORTH, 1, salt="new")
    log.add("key-rotated", key=new.vkey, why="rotation", signers=[log.key, new])


def rotation_back(fed: Federation) -> None:
    log = fed.sites[NORTH]
    first = log.key
    log.rotate()
    log.add("key-rotated", key=first.vkey, why="rotation", signers=[log.key, first])


def two_signatures(fed: Federation) -> None:
    log = fed.sites[NORTH]
    log.add("paused", by=["dpo"], signers=[log.key, log.key])


def checkpoint_by_the_old_key(fed: Federation) -> None:
    log = fed.sites[NORTH]
    old = log.key
    log.rotate()
    fed.witness(log, old)


def checkpoint_by_a_stranger(fed: Federation) -> None:
    log = fed.sites[NORTH]
    log.add("paused", by=["dpo"])
    log.checkpoint([Key("privet.witness", "Nobody", 4), fed.hub.witness])


def checkpoint_not_signed_by_the_log(fed: Federation) -> None:
    log = fed.sites[NORTH]
    log.add("paused", by=["dpo"])
    log.checkpoint([fed.sites["East"].witness], fed.hub.witness)


def checkpoint_signed_twice(fed: Federation) -> None:
    log = fed.sites[NORTH]
    log.add("paused", by=["dpo"])
    log.checkpoint([fed.hub.witness, fed.hub.witness])


def another_tree(fed: Federation) -> None:
    log = fed.sites[NORTH]
    log.add("paused", by=["dpo"])
    kept, log.leaves[2] = log.leaves[2], log.leaves[3]
    fed.witness(log)
    log.leaves[2] = kept


def another_prefix(fed: Federation) -> None:
    another_tree(fed)
    fed.sites[NORTH].add("resumed", by=["dpo"])


def unwitnessed_end(fed: Federation) -> None:
    fed.hub.checkpoint([])


def too_many_cosigners(fed: Federation) -> None:
    fed.witness(fed.hub)


def too_few_cosigners(fed: Federation) -> None:
    fed.witness(fed.hub, most=1)


def an_owners_cosignature(fed: Federation) -> None:
    others = [log.witness for log in fed.sites.values()]
    fed.hub.checkpoint([*others[:2], fed.hub.witness])


def surplus_checkpoint(fed: Federation) -> None:
    log = fed.sites[NORTH]
    log.add("paused", by=["dpo"])
    fed.witness(log)
    log.add("resumed", by=["dpo"])


def surplus_plan(fed: Federation) -> None:
    fed.plans.append(plan_of(name="nobody's"))


def missing_plan(fed: Federation) -> None:
    fed.plans.clear()


def impossible_plan(fed: Federation) -> None:
    fed.approve(plan_of(name="odd", training={"rounds": -1}))


def surplus_order(fed: Federation) -> None:
    fed.order("run-1", NORTH, 3, "train", digest(fed.plans[0]), OTHER)


def foreign_order(fed: Federation) -> None:
    fed.order("elsewhere", NORTH, 1, "train", digest(fed.plans[0]), OTHER)


def missing_order(fed: Federation) -> None:
    fed.orders.pop()


def order_by_another_key(fed: Federation) -> None:
    true = fed.order_line
    stranger = Key("privet.orders", "Nobody", 1)

    def line(order: dict[str, Any]) -> dict[str, Any]:
        value = true(order)
        if order is fed.orders[0]:
            fed.order_key, kept = stranger, fed.order_key
            value = {**true(order), "keyid": value["keyid"]}
            fed.order_key = kept
        return value

    fed.order_line = line  # type: ignore[method-assign]


def both_reserved_and_refused(fed: Federation) -> None:
    fed.refuse(NORTH, fed.orders[0], "refused-budget")


def run_twice(fed: Federation) -> None:
    fed.hub.add(
        "run-opened", run="run-1", plan=digest(fed.plans[0]), model=OTHER, sites=list(SITES)
    )


def closed_run_twice(fed: Federation) -> None:
    model = fed.hub.predicates[-1][1]["model"]
    fed.hub.add("run-closed", run="run-1", rounds=2, model=model, how="done", fault=None)


def done_too_early(fed: Federation) -> None:
    fed.run("short", fed.plans[0], rounds=1)


def more_rounds(fed: Federation) -> None:
    fed.run("long", fed.plans[0], rounds=3, close=None)


def receipt_missing(fed: Federation) -> None:
    fed.receipts.pop()


def receipts_swapped(fed: Federation) -> None:
    fed.receipts[0], fed.receipts[1] = fed.receipts[1], fed.receipts[0]


def receipt_too_many(fed: Federation) -> None:
    fed.receipts.append(fed.receipts[-1])


def receipt_of_another_place(fed: Federation) -> None:
    log = fed.sites[NORTH]
    fed.receipts[0] = {**fed.receipts[0], "proof": log.proof(2, min(log.notes))}


def receipt_with_another_checkpoint(fed: Federation) -> None:
    log, size = fed.sites[NORTH], min(fed.sites[NORTH].notes)
    kept = log.notes[size]
    entry = int(fed.receipts[0]["proof"].split("\n")[1].split(" ")[1])
    log.checkpoint([])
    short = kept.rsplit("— ", 1)[0]
    fed.receipts[0] = {**fed.receipts[0], "proof": log.proof(entry, size).replace(kept, short)}
    fed.witness(log)


def receipt_before_the_release(fed: Federation) -> None:
    log = fed.sites[NORTH]
    early, late = sorted(log.notes)[:2]
    place = next(i for i, r in enumerate(fed.receipts) if r["round"] == 2 and r["site"] == NORTH)
    entry = fed.receipts[place]["proof"].split("\n")[1]
    proof = log.proof(0, early).replace("index 0", entry, 1)
    fed.receipts[place] = {**fed.receipts[place], "proof": proof}
    assert early < late


HISTORIES: list[tuple[str, str | None, Callable[[Federation], None]]] = [
    ("sequence", NORTH, second_genesis), ("vocabulary", NORTH, unknown_kind),
    ("sequence", NORTH, after_withdrawn), ("population", NORTH, population_twice),
    ("population", NORTH, data_set_twice), ("population", NORTH, closed_twice),
    ("reservation", NORTH, while_paused), ("population", NORTH, while_closed),
    ("plan", NORTH, after_refusal), ("reservation", NORTH, slot_back),
    ("reservation", NORTH, slot_twice), ("reservation", NORTH, slot_for_another_order),
    ("reservation", NORTH, begun_by_another), ("reservation", NORTH, aborted_twice), ("release", NORTH, released_twice),
    ("release", NORTH, released_as_another_kind), ("signature", NORTH, old_key),
    ("signature", NORTH, recovery_key_on_an_entry), ("signature", NORTH, strangers_key),
    ("signature", NORTH, recovery_by_the_key_in_force), ("signature", NORTH, rotation_by_one),
    ("signature", NORTH, rotation_to_another_name), ("signature", NORTH, rotation_back),
    ("signature", NORTH, two_signatures), ("signature", NORTH, checkpoint_by_the_old_key),
    ("signature", NORTH, checkpoint_by_a_stranger), ("signature", NORTH, checkpoint_signed_twice),
    ("signature", NORTH, checkpoint_not_signed_by_the_log), ("tree", NORTH, another_tree),
    ("consistency", NORTH, another_prefix), ("bundle", NORTH, surplus_checkpoint),
    ("plan", None, surplus_plan), ("plan", None, missing_plan), ("plan", None, impossible_plan),
    ("order", HUB, surplus_order), ("order", HUB, foreign_order), ("order", "South Bay", missing_order),
    ("order", None, order_by_another_key), ("order", HUB, both_reserved_and_refused),
    ("round", HUB, run_twice), ("round", HUB, closed_run_twice), ("round", HUB, done_too_early),
    ("round", HUB, more_rounds), ("receipt", None, receipt_missing), ("receipt", HUB, receipts_swapped),
    ("receipt", HUB, receipt_too_many), ("receipt", HUB, receipt_of_another_place),
    ("receipt", HUB, receipt_with_another_checkpoint), ("receipt", HUB, receipt_before_the_release),
    ("witness", HUB, unwitnessed_end), ("witness", HUB, too_many_cosigners),
    ("witness", HUB, too_few_cosigners), ("witness", HUB, an_owners_cosignature),
]  # fmt: skip


def test_signature_lines_in_another_order_are_noticed(tmp_path: Path) -> None:
    """No byte of a bundle is free: not even the order of lines that are all valid."""
    fed = Federation()
    fed.run()
    log = fed.sites[NORTH]
    size = max(log.notes)
    body, _, lines = log.notes[size].rpartition("\n\n")
    first, *others = lines.splitlines(keepends=True)
    for turned in ([*others, first], [first, *reversed(others)]):
        log.notes[size] = body + "\n\n" + "".join(turned)
        assert ("signature", NORTH) in found(verdict(tmp_path, fed))


@pytest.mark.parametrize(("quorum", "weak"), [(0, True), (1, True), (2, False), (3, False)])
def test_a_quorum_of_half_the_witnesses_or_fewer_is_noted(
    tmp_path: Path, quorum: int, weak: bool
) -> None:
    fed = Federation(quorum=quorum)
    fed.run()
    assert any("weak quorum" in note for note in verdict(tmp_path, fed).notes) == weak


def test_what_another_coordinator_asks_is_charged_and_noted(tmp_path: Path) -> None:
    """Its run may even be called as one of this journal, if the site refused that."""
    fed = Federation(cap="60.0")
    fed.run()
    before = verdict(tmp_path, fed).sites[0]
    own = "sha256:" + fed.order_key.hex
    both = fed.policy(NORTH, "60.0", "site", coordinators=[own, "sha256:" + "0" * 64])
    fed.sites[NORTH].add("policy", policy=both)
    order, place = another(fed, 1, keyid="0" * 64, code=OTHER)
    fed.release(NORTH, order, place, train_event(fed.plans[0]))
    fed.refuse(NORTH, {**fed.orders[0], "attempt": 2}, "refused-conflict", keyid="0" * 64)
    answer = verdict(tmp_path, fed)
    assert answer.ok
    assert any("2 entries answer another coordinator" in note for note in answer.notes)
    assert answer.sites[0].charges == before.charges + 1
    assert (answer.sites[0].epsilon or 0) > (before.epsilon or 0)


def test_code_that_is_pinned(tmp_path: Path) -> None:
    """Each run at each site, also one that another coordinator asked for; once each."""
    fed = Federation(cap="60.0")
    fed.run()
    assert verdict(tmp_path, fed, code=[CODE]).ok
    wrong = verdict(tmp_path, fed, code=[OTHER])
    assert sorted(fault.site or "" for fault in wrong.faults) == sorted(SITES)
    assert found(wrong) == {("code", site) for site in SITES}
    own = "sha256:" + fed.order_key.hex
    both = fed.policy(NORTH, "60.0", "site", coordinators=[own, "sha256:" + "0" * 64])
    fed.sites[NORTH].add("policy", policy=both)
    order, place = another(fed, 1, keyid="0" * 64, code=OTHER)
    fed.release(NORTH, order, place, train_event(fed.plans[0]))
    unpinned = verdict(tmp_path, fed)
    assert unpinned.ok and unpinned.code.runs[order["run"]] >= {OTHER}
    assert found(verdict(tmp_path, fed, code=[CODE])) == {("code", NORTH)}
    assert verdict(tmp_path, fed, code=[OTHER, CODE]).ok
    with pytest.raises(InputError, match="no digest of code"):
        verdict(tmp_path, fed, code=CODE)  # a text is a list of letters


@pytest.mark.parametrize(("rule", "at", "plant"), HISTORIES)
def test_a_planted_history(
    tmp_path: Path, rule: str, at: str | None, plant: Callable[[Federation], None]
) -> None:
    fed = Federation(cap="60.0")
    fed.run()
    plant(fed)
    answer = verdict(tmp_path, fed)
    assert not answer.ok
    assert (rule, at) in found(answer)


def test_a_reservation_before_a_policy(tmp_path: Path) -> None:
    fed = Federation(tweak=lambda who, kind, p: None)
    for log in fed.sites.values():
        log.leaves.pop()
        log.predicates.pop()
    fed.run()
    assert {rule for rule, _ in found(verdict(tmp_path, fed))} == {"policy"}


def test_a_time_may_go_back_by_ten_minutes(tmp_path: Path) -> None:
    fed = Federation()
    fed.run()
    fed.sites[NORTH].ticks -= 610
    fed.sites[NORTH].add("paused", by=["dpo"])
    assert verdict(tmp_path, fed).ok
    fed.sites[NORTH].ticks -= 20
    fed.sites[NORTH].add("resumed", by=["dpo"])
    assert ("sequence", NORTH) in found(verdict(tmp_path, fed))


def test_a_second_population_says_why(tmp_path: Path) -> None:
    for why, ok in (("children's ward, no shared persons", True), ("", False)):
        fed = Federation()
        log = fed.sites[NORTH]
        log.add(
            "population", population="children", unit="record", relation="add_or_remove_one",
            epsilon="1.0", delta="1e-05", max_records=1,
        )  # fmt: skip
        log.add("data-set", data_set="ward", population="children", disjoint=why)
        assert verdict(tmp_path, fed).ok == ok


# The cap.


def test_the_cap_of_one_run_names_the_first_entry(tmp_path: Path) -> None:
    plan = plan_of(privacy={"epsilon": 1.2})
    fed = Federation(cap="1.2")
    fed.run(plan=plan)
    answer = verdict(tmp_path, fed)
    assert {rule for rule, _ in found(answer)} == {"cap", "plan"}
    kinds = [kind for kind, _ in fed.sites[NORTH].predicates]
    reserved = [place for place, kind in enumerate(kinds) if kind == "reserved"]
    assert next(f.entry for f in answer.faults if f.rule == "cap") == reserved[1]
    assert answer.sites[0].epsilon is not None and answer.sites[0].epsilon > 1.2


def test_the_cap_over_runs_names_the_first_entry(tmp_path: Path) -> None:
    plan = plan_of(privacy={"epsilon": 1.5})
    fed = Federation(cap="1.6")
    fed.run("a", plan)
    count = len(fed.sites[NORTH].leaves)
    fed.run("b", plan)
    answer = verdict(tmp_path, fed)
    assert {rule for rule, _ in found(answer)} == {"cap"}
    assert answer.faults[0].entry is not None and answer.faults[0].entry >= count


def test_what_is_given_back_does_not_count(tmp_path: Path) -> None:
    for opened, charges in ((False, 4), (True, 5)):
        fed = Federation(cap="60.0")
        fed.run()
        _, place = another(fed, 1)
        fed.sites[NORTH].add("aborted", reservation=place, data_opened=opened, reason="failed")
        finding = verdict(tmp_path, fed).sites[0]
        assert finding.charges == charges
        assert finding.enforced_by == ("filter" if opened else "pld")


def test_without_privacy_there_is_no_epsilon(tmp_path: Path) -> None:
    plan = plan_of()
    del plan["privacy"]
    fed = Federation(cap=None, setting="simulation")
    fed.run(plan=plan)
    answer = verdict(tmp_path, fed)
    assert answer.ok
    assert (answer.sites[0].epsilon, answer.sites[0].cap) == (None, None)
    assert answer.sites[0].enforced_by == "none"
    fed = Federation(cap="100.0")
    fed.run(plan=plan)
    assert {rule for rule, _ in found(verdict(tmp_path, fed))} == {"cap"}


def test_an_unknown_event_is_non_private(tmp_path: Path) -> None:
    def quantum(who: str, kind: str, predicate: dict[str, Any]) -> None:
        if who == NORTH and predicate.get("event") == gate_event(plan_of()):
            predicate["event"] = {"type": "quantum", "qubits": 3}

    fed = Federation(tweak=quantum)
    fed.run()
    answer = verdict(tmp_path, fed)
    assert answer.sites[0].epsilon is None and answer.sites[1].epsilon is not None
    assert found(answer) == {("event", NORTH), ("cap", NORTH)}


def test_accountants_that_contradict_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from privet.privacy.audit.verify.cost import accounting

    monkeypatch.setattr(accounting, "epsilon", lambda *_: (3.0, 2.0, ""))
    fed = Federation()
    fed.run()
    assert {rule for rule, _ in found(verdict(tmp_path, fed))} == {"accounting"}


# The roster.


@pytest.mark.parametrize("member", ["journal", "orders", "witness", "ledger"])
def test_a_pinned_key_that_differs(tmp_path: Path, member: str) -> None:
    fed = Federation()
    fed.run()
    path = write(tmp_path / "bundle", fed.bundle())
    roster = fed.fingerprints()
    (roster["sites"][0] if member == "ledger" else roster["coordinator"])[member] = OTHER
    answer = verify(path, write_roster(tmp_path / "roster.json", roster))
    assert found(answer) == {("roster", None)} and answer.roster == "pinned"


def test_a_pinned_roster_of_verifier_keys_in_another_order(tmp_path: Path) -> None:
    fed = Federation()
    fed.run()
    path = write(tmp_path / "bundle", fed.bundle())
    roster = fed.roster()
    roster["sites"].reverse()
    assert verify(path, write_roster(tmp_path / "roster.json", roster)).ok


def reroster(name: str, value: Any) -> Change:
    return lambda roster: roster.update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        reroster("quorum", 1), lambda r: r["sites"].pop(),
        lambda r: r["sites"][0].update(name="West"), lambda r: r["coordinator"].update(name="Bub"),
    ],
)  # fmt: skip
def test_another_pinned_roster(tmp_path: Path, change: Change) -> None:
    fed = Federation()
    path = write(tmp_path / "bundle", fed.bundle())
    roster = fed.fingerprints()
    change(roster)
    answer = verify(path, write_roster(tmp_path / "roster.json", roster))
    assert found(answer) == {("roster", None)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reroster("quorum", 1), "the quorum is 2 in the bundle and 1 in the pinned roster"),
        (lambda r: r["coordinator"].update(name="Bub"),
         "the coordinator is Hub in the bundle and Bub in the pinned roster"),
        (lambda r: r["sites"].pop(0), "the site North of the bundle is not in the pinned roster"),
        (lambda r: r["sites"].append({**r["sites"][0], "name": "West", "ledger": OTHER}),
         "the site West of the pinned roster is not in the bundle"),
        (lambda r: r["sites"][0].update(name="West"),
         "the site that the pinned roster calls West is called North in the bundle"),
        (lambda r: r["sites"][1].update(witness=OTHER),
         "the witness key of East is not the pinned one"),
        (lambda r: r["coordinator"].update(orders=OTHER),
         "the order key of Hub is not the pinned one"),
    ],
)  # fmt: skip
def test_what_differs_is_named(tmp_path: Path, change: Change, message: str) -> None:
    fed = Federation()
    path = write(tmp_path / "bundle", fed.bundle())
    roster = fed.fingerprints()
    change(roster)
    answer = verify(path, write_roster(tmp_path / "roster.json", roster))
    assert [fault.message for fault in answer.faults] == [message]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reroster("quorum", "2"), "'quorum' must be an integer from 0"),
        (reroster("more", 1),
         "a roster must have exactly the fields format, quorum, coordinator, sites"),
        (reroster("sites", {}), "a roster must list its sites"),
        (lambda r: r["sites"][2].update(ledger="sha256:12"),
         "'ledger' of South Bay is neither a fingerprint (sha256: and 64 hex digits) nor a verifier "
         "key: not a verifier key (name+id+key)"),
        (lambda r: r["sites"][2].pop("ledger"),
         "site 3 of the roster, South Bay, must have exactly the fields name, ledger, witness"),
        (lambda r: r["sites"][1].update(name="no/name"),
         "the name of site 2 of the roster is not a proper one: 'no/name'"),
        (lambda r: r["sites"].append(r["sites"][0]), "the roster names North twice"),
        (lambda r: r.pop("coordinator"),
         "a roster must have exactly the fields format, quorum, coordinator, sites"),
        (lambda r: r["coordinator"].update(orders=7),
         "'orders' of Hub is neither a fingerprint (sha256: and 64 hex digits) nor a verifier key: "
         "not a verifier key (name+id+key)"),
    ],
)  # fmt: skip
def test_a_roster_that_was_typed_wrongly_is_not_the_bundles_fault(
    tmp_path: Path, change: Change, message: str
) -> None:
    fed = Federation()
    path = write(tmp_path / "bundle", fed.bundle())
    roster = fed.fingerprints()
    change(roster)
    with pytest.raises(InputError) as caught:
        verify(path, write_roster(tmp_path / "roster.json", roster))
    assert str(caught.value).endswith(f"the roster that you brought: {message}")


def test_fingerprints_may_be_in_upper_case(tmp_path: Path) -> None:
    fed = Federation()
    path = write(tmp_path / "bundle", fed.bundle())
    roster = fed.fingerprints()
    for member in (roster["coordinator"], *roster["sites"]):
        for field in member.keys() - {"name"}:
            member[field] = "sha256:" + member[field][7:].upper()
    answer = verify(path, write_roster(tmp_path / "roster.json", roster))
    assert answer.ok and answer.roster == "pinned"


def test_a_key_of_the_bundles_roster_is_named(tmp_path: Path) -> None:
    fed = Federation()
    roster = fed.roster()
    roster["sites"][1]["witness"] = "nonsense"
    lines = fed.bundle()
    lines[1] = rfc8785.dumps({"kind": "roster", "roster": roster})
    [first, *_] = verify(write(tmp_path / "bundle", lines)).faults
    assert first.message == "the witness key of East: not a verifier key (name+id+key)"


@pytest.mark.parametrize(
    "content",
    [b"", b"[", b"\xff", b"null", b'{"a":1,"a":2}', b"1e400", b'{"format": "privet/roster/v2"}'],
)
def test_a_pinned_roster_that_is_none(tmp_path: Path, content: bytes) -> None:
    fed = Federation()
    path = write(tmp_path / "bundle", fed.bundle())
    (tmp_path / "roster.json").write_bytes(content)
    with pytest.raises(InputError, match=r"roster\.json is not a roster"):
        verify(path, tmp_path / "roster.json")


def test_a_witness_counts_once_and_never_for_its_own_log(tmp_path: Path) -> None:
    fed = Federation(quorum=3)
    log = fed.sites[NORTH]
    log.checkpoint([fed.hub.witness, fed.sites["East"].witness, log.witness])
    answer = verdict(tmp_path, fed)
    assert any(note.startswith("North: unwitnessed tail") for note in answer.notes)


def test_one_key_for_two_witnesses(tmp_path: Path) -> None:
    fed = Federation()
    twin = Key.__new__(Key)
    twin.__dict__.update(fed.sites[NORTH].witness.__dict__)
    twin.name = f"privet.witness/East/{twin.hex[:16]}"
    twin.id = hashlib.sha256(twin.name.encode() + b"\n\x04" + twin.raw).digest()[:4]
    fed.sites["East"].witness = twin
    assert ("roster", None) in found(verdict(tmp_path, fed))
