"""Claim and figures are stated once: card, result, report, registry and verifier say the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import report_kit as kit
import verify_kit

from privet.cli.output import answer, show
from privet.common.plan import Plan
from privet.privacy.accounting import assumptions
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.card import gather, write_card
from privet.privacy.audit.report import write_report
from privet.privacy.audit.summary import (
    claim_sentence,
    figures_sentence,
    standing,
    trust_sentence,
)
from privet.privacy.audit.verify import Verdict, verify

Ran = Callable[..., Any]


@pytest.fixture(scope="module")
def twice(files: Path, plan_value: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same plan, asked twice of ledgers that last; and once without noise."""
    from privet.simulations.run import Setting, run_plan

    folder = tmp_path_factory.mktemp("claim")
    setting = Setting(base=files, ledgers=folder / "kept", cap=20.0)
    one = run_plan(Plan.parse(plan_value(name="one", title="A title")), setting, folder / "one")
    sources = [folder / "one", folder / "kept"]
    bundles = {"one": write_bundle(sources, folder / "one.bundle").path}
    two = run_plan(Plan.parse(plan_value(name="two", title="A title")), setting, folder / "two")
    bundles["two"] = write_bundle([folder / "two", folder / "kept"], folder / "two.bundle").path
    bare = Plan.parse(plan_value(privacy=None, metrics={"source": "public"}))
    plain = run_plan(bare, Setting(base=files), folder / "plain")
    bundles["plain"] = write_bundle([folder / "plain"], folder / "plain.bundle").path
    return {"one": one, "two": two, "plain": plain, "bundles": bundles}


def said_everywhere(
    result: Any, bundle: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    """What each of those who state the claim says of one run, on one line each."""
    written: dict[str, str] = {}
    capsys.readouterr()
    show.result(result, None)
    written["result"] = capsys.readouterr().out
    answer.show(verify(bundle, brief=True))
    written["verify"] = capsys.readouterr().out
    whole = verify(bundle, keep=True)
    for path in write_report(whole, out, bundle=bundle):
        written[path.name] = path.read_text(encoding="utf-8").replace("&#39;", "'")
    written["result.json"] = (result.out / "result.json").read_text(encoding="utf-8")
    if result.plan.privacy is not None:
        written["card of the run"] = (result.out / "model" / "README.md").read_text("utf-8")
        evidence = gather(bundle, None, "sha256:" + "0" * 64)
        written["card handed on"] = write_card(result.plan, {}, evidence, source="a test")
    return {name: " ".join(text.split()) for name, text in written.items()}


@pytest.mark.parametrize("name", ["one", "two", "plain"])
def test_all_state_the_same_claim_and_figures(
    twice: dict[str, Any], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, bundle = twice[name], twice["bundles"][name]
    top = standing(verify(bundle, brief=True))
    assert claim_sentence(top) == claim_sentence(result.standing)
    assert figures_sentence(top) == figures_sentence(result.standing)
    states = {row.id: (row.state, row.why) for row in top.rows}
    assert states == {row.id: (row.state, row.why) for row in result.honesty}
    for text in said_everywhere(result, bundle, tmp_path / "out", capsys).values():
        assert claim_sentence(top) in text
        assert figures_sentence(top) in text


def test_a_second_run_on_kept_ledgers_is_conditional_everywhere(twice: dict[str, Any]) -> None:
    one, two = twice["one"], twice["two"]
    assert "H29" not in one.conditional_on and "H29" in two.conditional_on
    assert two.loss.epsilon > one.loss.epsilon
    assert "on 1 run." in figures_sentence(one.standing)
    text = figures_sentence(two.standing)
    assert "on 2 runs." in text and "conditional (H29)" in text and "the cap, ε 20" in text
    assert "in this run" not in text


def test_what_was_not_protected_is_said_with_its_site() -> None:
    found = kit.verdict(kit.three_sites())
    found.sites[1] = replace(found.sites[1], epsilon=None)
    assert figures_sentence(standing(found)) == (
        "At Lakeside something was let out without a privacy guarantee."
    )


def test_each_delta_unit_and_relation_has_its_sentence() -> None:
    found = kit.verdict(kit.three_sites())
    found.sites[2] = replace(found.sites[2], unit="account", delta=1e-5)
    text = figures_sentence(standing(found))
    assert text.count("Each site spent at most ε 1.250 (") == 2
    assert "(δ 1e-06, per person, add or remove one)" in text
    assert "(δ 1e-05, per account, add or remove one)" in text


# What lifts a row of the assumption register, and what does not.


def rows(found: Verdict) -> dict[str, assumptions.Assumption]:
    return {row.id: row for row in standing(found).rows}


def test_self_tests_lift_their_own_rows_alone() -> None:
    books = [kit.ledger(name, tests=assumptions.IDS) for name in ("North", "South")]
    found = rows(kit.verdict(books))
    assert found["H16"].state == found["H6"].state == "tested"
    assert found["H21"].state == found["H31"].state == "unknown"
    assert standing(kit.verdict(books)).claim.word == "conditional"
    lifted = assumptions.assess(assumptions.Facts(self_tests=(*assumptions.IDS, "H99")))
    assert [row.id for row in lifted if row.state == "tested"] == ["H6", "H16"]


def test_a_site_that_lists_a_row_as_a_test_still_has_to_vouch_for_it() -> None:
    books = [
        kit.ledger("North", attested={"H21": "one county each"}),
        kit.ledger("South", tests=(*assumptions.SELF_TESTS, "H21")),
    ]
    assert rows(kit.verdict(books))["H21"].state == "unknown"


def second(ledger_state: kit.Book, disjoint: str | None) -> None:
    ledger_state.add(
        "population", population="staff", unit="person", relation="add_or_remove_one",
        epsilon="3.0", delta="1e-06", max_records=4,
    )  # fmt: skip
    if disjoint is not None:
        ledger_state.add("data-set", data_set="staff-2026", population="staff", disjoint=disjoint)


@pytest.mark.parametrize(
    ("disjoint", "state", "said"),
    [
        ("staff are no patients", "attested", "site St. Anna says: staff are no patients"),
        (".", "attested", "site St. Anna says: ."),
        (" ", "unknown", "site St. Anna does not say why nobody is in both"),
        (None, "attested", "the second population has no data set yet"),
    ],
)
def test_a_second_population_rests_on_the_sites_word(
    tmp_path: Path, disjoint: str | None, state: str, said: str
) -> None:
    books = kit.three_sites(attested={"H21": "one county each"})
    assert rows(kit.verdict(books))["H32"].state == "enforced"
    second(books[0], disjoint)
    for ledger_state in books:
        ledger_state.witnessed("St. Anna", "Lakeside", "Harbour", "centre")
    found = kit.verdict(books)
    assert rows(found)["H32"].state == state and said in rows(found)["H32"].why
    text = write_report(found, tmp_path / "out")[0].read_text(encoding="utf-8")
    first = text[: text.index("Spent and left, in detail")]
    assert "<dt>Two populations</dt>" in first and "is its own word" in first
    if disjoint == "staff are no patients":
        assert said in first
    assert standing(found).claim.word == (
        "conditional" if state == "unknown" else "proved-in-model"
    )


@pytest.mark.parametrize(
    ("trust", "state", "said"),
    [
        ("local", "enforced", "Trust: local, nobody outside a site saw un-noised values."),
        (
            "central",
            "unknown",
            "Trust: central, the coordinator saw the updates of all sites without noise.",
        ),
        (None, "enforced", "Trust: not stated by the plan."),
    ],
)
def test_trust_is_what_the_plan_says(
    tmp_path: Path, trust: str | None, state: str, said: str
) -> None:
    plan = kit.plan()
    if trust is not None:
        plan["privacy"]["trust"] = trust
    found = kit.verdict(kit.three_sites(), plans={kit.PLAN: plan})
    assert rows(found)["H25"].state == state
    assert trust_sentence(standing(found)) == said
    paths = write_report(found, tmp_path / "out")
    assert said in paths[0].read_text(encoding="utf-8")
    words = json.loads(paths[1].read_text(encoding="utf-8"))["plans"][kit.PLAN]["words"]
    assert {"local": "noise is added", "central": "‘central’", None: "not stated"}[trust] in words[
        "Trust"
    ]


def test_a_brief_record_has_the_same_rows(tmp_path: Path) -> None:
    fed = verify_kit.Federation(cap="60.0")
    fed.run("run-1")
    fed.run("run-2")
    path = verify_kit.write(tmp_path / "bundle", fed.bundle())
    whole, brief = verify(path, keep=True), verify(path, brief=True)
    assert whole.ok and standing(whole).rows == standing(brief).rows
