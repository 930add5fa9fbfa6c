"""For those who sign: persons, δ, witnesses, who answers for the data, what each policy allows."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
import report_kit as kit
import verify_kit

from privet.common.plan import Plan
from privet.privacy.audit.report import input, signing, write_report
from privet.privacy.audit.verify import AuditedRecord, Verdict, verify
from privet.privacy.policy import GOVERNANCE, Policy

STATED = {
    "controller": "St. Anna Trust", "purpose": "research", "retention": "until 2027",
    "contact": "dpo@anna.example", "next_review": "2026-03-01",
}  # fmt: skip
KEY = b"k" * 32
CHIEF = "sha256:" + hashlib.sha256(KEY).hexdigest()


def case_of(found: Verdict) -> input.ReportInput:
    return input.read(found.record or AuditedRecord())


def with_sizes(nominal: int) -> dict[str, Any]:
    names = ("St. Anna", "Lakeside", "Harbour")
    return {kit.PLAN: kit.plan(sites=[{"name": name, "nominal_size": nominal} for name in names])}


def policy(**more: Any) -> dict[str, Any]:
    return Policy.parse(
        {
            "site": "St. Anna",
            "populations": {"patients": {"unit": "person", "epsilon": 3.0, "delta": 1e-6}},
            "data": {
                "er": {"population": "patients", "nominal_size": 9, "person_column": "patient"}
            },
            "allow": {
                "tasks": ["tabular"], "models": ["*"], "max_rounds": 200, "plans": [kit.PLAN],
                "coordinators": [CHIEF, kit.OTHER], "approval": "listed", "approvers": 2,
            },
            **more,
        }
    ).public()  # fmt: skip


def written(found: Verdict, out: Path) -> tuple[str, Any]:
    paths = write_report(found, out)
    text = " ".join(paths[0].read_text(encoding="utf-8").split())
    first = text[text.index('<h2 id="short-h"') : text.index('<h2 id="sees-h"')]
    return first, json.loads(paths[1].read_text(encoding="utf-8"))["signing"]


@pytest.mark.parametrize(("nominal", "large"), [(1_000_000, False), (1_000_001, True), (9, False)])
def test_delta_stands_beside_one_by_nominal_and_warns_above_it(
    tmp_path: Path, nominal: int, large: bool
) -> None:
    found = kit.verdict(kit.three_sites(), plans=with_sizes(nominal))  # δ is 1e-6
    first, value = written(found, tmp_path / "out")
    assert f"{nominal:,} persons" in first
    assert ("δ is above 1 / number of units at St. Anna, Lakeside, Harbour" in first) is large
    assert ("δ is above it" in first) is large
    assert [site["populations"][0]["delta_above_one_by_nominal"] for site in value] == [large] * 3
    assert value[0]["populations"][0]["nominal_size"] == nominal


def test_of_several_plans_the_largest_size_counts() -> None:
    plans = {**with_sizes(100), kit.OTHER: with_sizes(5000)[kit.PLAN]}
    books = kit.three_sites(runs={"a": kit.PLAN, "b": kit.OTHER})
    assert [size.nominal for size in signing.sizes(case_of(kit.verdict(books, plans=plans)))] == [
        5000, 5000, 5000,
    ]  # fmt: skip


@pytest.mark.parametrize("sites", [None, 3, [{}], [{"name": "St. Anna", "nominal_size": "9"}]])
def test_a_plan_without_sizes_names_none(sites: Any) -> None:
    plans = {kit.PLAN: kit.plan(sites=sites)}
    sizes = signing.sizes(case_of(kit.verdict(kit.three_sites(), plans=plans)))
    assert {size.nominal for size in sizes} == {None} and not any(s.too_large for s in sizes)


def test_who_witnessed_and_up_to_which_entry(tmp_path: Path) -> None:
    books = kit.three_sites()
    books[1].add("paused", by="dpo")
    books[2].record.checkpoints.clear()
    books[2].witnessed("centre", "stranger", "Harbour")  # one of two that a quorum needs
    size = len(books[1].record.entries)
    first, value = written(kit.verdict(books), tmp_path / "out")
    assert f"Harbour, St. Anna, centre: the first {size - 1} of {size} entries" in first
    assert "the rest is self-asserted" in first
    seen = {site["site"]: site["witnessed"] for site in value}
    assert seen["St. Anna"]["by"] == ["Harbour", "Lakeside", "centre"]
    assert seen["St. Anna"]["upto"] == seen["St. Anna"]["entries"]
    assert seen["Harbour"] == {
        "upto": 0, "entries": len(books[2].record.entries), "by": [], "self_asserted": True,
    }  # fmt: skip
    assert '<td role="cell" data-label="Witnessed by">self-asserted</td>' in first


def test_a_real_bundle_names_its_witnesses(tmp_path: Path) -> None:
    fed = verify_kit.Federation(cap="60.0")
    fed.run()
    path = verify_kit.write(tmp_path / "bundle", fed.bundle())
    found = signing.watched(case_of(verify(path, keep=True)))
    assert [(one.upto, one.entries) for one in found] == [
        (len(log.leaves), len(log.leaves)) for log in fed.sites.values()
    ]
    assert found[0].by == ("East", "Hub", "South Bay")


def test_who_answers_is_the_sites_own_word_and_may_be_missing(tmp_path: Path) -> None:
    books = kit.three_sites()
    books[0].add("policy", policy=policy(**STATED))
    first, value = written(kit.verdict(books), tmp_path / "out")
    assert "each site&#39;s own words, checked by nobody" in first
    for text in STATED.values():
        assert text in first
    assert "2026-03-01 (has passed)" in first  # the evidence is of March 2026
    assert value[0]["own_words"] == STATED
    assert value[1]["own_words"] == dict.fromkeys(GOVERNANCE, "not stated")
    assert "Lakeside and Harbour" in first and first.count(">not stated</td>") >= 5


def test_a_policy_is_a_table_of_what_it_allows(tmp_path: Path) -> None:
    books = kit.three_sites()
    books[0].add("policy", policy=policy())
    found = kit.verdict(books)
    assert found.record is not None
    found.record.roster["coordinator"]["orders"] = (
        "privet.orders/centre/0+00+" + b64encode(b"\x01" + KEY).decode()
    )
    (_, rows), (others, bare) = signing.policies(case_of(found))
    # It is newer than what was charged, and says so first.
    assert rows[0] == ("Changed", "2026-03-04; all charges are from before, under earlier ones")
    assert dict(rows[1:]) == {
        "Tasks": "tabular",
        "Models": "any",
        "Rounds of a plan, at most": "200",
        "Trained parameters, at most": "100,000,000",
        "Metrics of the model": "public, gate, off",
        "Coordinators that may ask": f"“centre” ({CHIEF[:19]}…), {kit.OTHER[:19]}…",
        "Plans approved beforehand": f"“Who is readmitted” ({kit.PLAN[:19]}…)",
        "Approval": "plans approved beforehand alone",
        "People who must approve": "2",
        "Officers, who sign by keys of their own": "none: names of approvers are as they were typed",
        "Populations, with their lifetime caps": "“patients”: ε 3 (δ 1e-06, per person, "
        "add or remove one)",
    }
    assert others == "Lakeside and Harbour"
    assert set(dict(bare).values()) == {
        "not stated", "none: names of approvers are as they were typed",
    }  # fmt: skip
    first, value = written(found, tmp_path / "out")
    assert "What the policy of St. Anna allows, as signed there" in first
    assert value[0]["policy"] == dict(rows)


@pytest.mark.parametrize(
    "broken", [{}, [], "none", {"allow": 3, "populations": [1]}, {"allow": {"tasks": {"a": 1}},
     "populations": {"x": None, "y": {"epsilon": "nan", "delta": []}}, "controller": ["a"]}],
)  # fmt: skip
def test_a_policy_may_be_anything(tmp_path: Path, broken: Any) -> None:
    books = kit.three_sites()
    books[0].add("policy", policy=broken)
    first, value = written(kit.verdict(books), tmp_path / "out")
    assert "For those who sign" in first and value[0]["site"] == "St. Anna"


def test_alike_simulated_sites_share_a_table(plan_value: Any) -> None:
    plan = Plan.parse(plan_value())
    books = []
    for site in plan.sites:
        state = kit.ledger(site.name)
        state.add("policy", policy=Policy.for_simulation(plan, site.name, CHIEF).public())
        books.append(state)
    ((sites, rows),) = signing.policies(case_of(kit.verdict(books)))
    assert sites == "all 3 sites"
    assert dict(rows)["Populations, with their lifetime caps"].startswith("named after the site:")
