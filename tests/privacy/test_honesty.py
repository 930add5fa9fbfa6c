from __future__ import annotations

import re
from pathlib import Path

import pytest

from privet.privacy.accounting.assumptions import IDS, Facts, assess, claim

NAMES = """sampling public-constants weighted-sampler partial-batch buffers coupled-forward
non-finite bypass fresh-accountant wrong-count composition provenance metrics rng floating-point
per-sample-gradient parameter-coverage accumulation empty-batch unit overlap client-sampling
dropouts local-steps trust-model adaptive-clip bare-epsilon saved-state adaptive-parameters
side-channels rollback re-registered""".split()
STATES = {"enforced", "tested", "attested", "unknown"}
SELF_TESTS = ("H6", "H7", "H16", "H17")


def states(rows):
    return {row.id: row.state for row in rows}


def test_thirty_two_rows_in_order():
    assert [f"H{i}" for i in range(1, 33)] == list(IDS)
    rows = assess(Facts())
    assert [row.id for row in rows] == list(IDS)
    assert [row.name for row in rows] == NAMES
    assert {row.state for row in rows} <= STATES
    assert all(row.why for row in rows)


def test_a_self_test_that_did_not_run_leaves_its_row_unknown():
    before, after = states(assess(Facts())), states(assess(Facts(self_tests=SELF_TESTS)))
    assert before["H6"] == before["H16"] == "unknown"
    assert after["H6"] == after["H16"] == "tested"
    assert {key for key in IDS if before[key] != after[key]} == {"H6", "H16"}


def test_attesting_lifts_unknown_rows_and_no_others():
    why = {"H21": "disjoint by registry", "H12": "constants from the literature", "H1": "trust me"}
    rows = {row.id: row for row in assess(Facts(attested=why))}
    assert rows["H21"].state == rows["H12"].state == "attested"
    assert rows["H21"].why == "disjoint by registry"
    assert rows["H1"].state == "enforced"
    assert rows["H1"].why != "trust me"


def test_a_passed_self_test_is_not_turned_into_an_attestation():
    rows = assess(Facts(self_tests=("H6",), attested={"H6": "looked at it"}))
    assert states(rows)["H6"] == "tested"


@pytest.mark.parametrize(
    ("metrics", "state"), [("public", "unknown"), ("gate", "enforced"), ("off", "enforced")]
)
def test_where_figures_come_from(metrics, state):
    row = {row.id: row for row in assess(Facts(metrics=metrics))}["H13"]
    assert row.state == state
    vouched = {row.id: row for row in assess(Facts(metrics=metrics, attested={"H13": "open"}))}
    assert vouched["H13"].state == ("attested" if metrics == "public" else "enforced")


def test_figures_in_the_clear_make_the_claim_conditional():
    """Nobody but the plan's author knows whether a test split is public."""
    facts = {"self_tests": SELF_TESTS, "attested": dict.fromkeys(set(IDS) - {"H13"}, "signed")}
    assert claim(assess(Facts(metrics="public", **facts)), private=True) == ("conditional", ["H13"])
    for source in ("gate", "off"):
        assert claim(assess(Facts(metrics=source, **facts)), private=True)[0] == "proved-in-model"


def test_the_unit_is_named():
    record, person = (
        {row.id: row.why for row in assess(Facts(person=person))}["H20"] for person in (False, True)
    )
    assert "per record" in record
    assert "per person" in person


# --- the claim ----------------------------------------------------------------------------


def test_unknown_rows_make_the_claim_conditional_and_are_named():
    rows = assess(Facts(self_tests=SELF_TESTS))
    word, unknown = claim(rows, private=True)
    assert word == "conditional"
    assert unknown == [row.id for row in rows if row.state == "unknown"]
    assert {"H11", "H12", "H13", "H21", "H31", "H32"} == set(unknown)


def test_no_unknown_row_makes_it_proved_in_the_model():
    unknown = [row.id for row in assess(Facts(self_tests=SELF_TESTS)) if row.state == "unknown"]
    everything = Facts(self_tests=SELF_TESTS, attested=dict.fromkeys(unknown, "signed"))
    assert claim(assess(everything), private=True) == ("proved-in-model", [])
    # Control: any one row that stays unknown is enough to lose it.
    for left in unknown:
        rest = {key: "signed" for key in unknown if key != left}
        rows = assess(Facts(self_tests=SELF_TESTS, attested=rest))
        assert claim(rows, private=True) == ("conditional", [left])


def test_a_run_without_self_tests_is_never_proved():
    known = dict.fromkeys(("H11", "H12", "H13", "H21", "H31", "H32"), "signed")
    everything = Facts(attested=known)
    assert claim(assess(everything), private=True) == ("conditional", ["H6", "H16"])


def test_what_is_not_private_claims_nothing():
    facts = Facts(self_tests=SELF_TESTS, attested=dict.fromkeys(IDS, "signed"))
    assert claim(assess(facts), private=False) == ("none", [])


def test_every_stage_has_its_test(root: Path) -> None:
    """The table from a byte to an answer names tests that are there."""
    text = (root / "docs" / "reference" / "honesty.md").read_text(encoding="utf-8")
    table = text.split("## From a byte to an answer")[1].split("\n\n")[1]
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", table))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (root / name).is_file()] == []
    assert all("`tests/" in line for line in table.splitlines()[2:])
