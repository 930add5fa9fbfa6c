"""``privet budget`` beside a site's own ledger: what it holds decides, and no key is needed."""

from __future__ import annotations

import json

import pytest
from budget_kit import Desk, charged, policy_value
from ledger_kit import close_budget
from read_only_kit import names, read_only

from privet.common.plan import Plan
from privet.privacy.accounting import noise_calibration


@pytest.fixture
def site(desk: Desk) -> Desk:
    """A site with a new ledger and a policy that a plan waits for."""
    assert desk.run("client", "init", "north", "--site", "North", "--plain-keys")[0] == 0
    value = policy_value()
    desk.write(desk.folder / "plan.toml", desk.plan())
    desk.write(desk.folder / "north" / "site.toml", value)
    return desk


POLICY = ("--policy", "north/site.toml")


def answer(desk: Desk) -> tuple[int, dict]:
    code, out, _ = desk.ask("plan.toml", "north/site.toml", "--json")
    return code, json.loads(out)


def approved(desk: Desk) -> str:
    digest = answer(desk)[1]["plan"]
    desk.client("approve", digest, "--ahead", "--as", "Ann", *POLICY)
    return digest


def test_a_plan_that_nobody_approved_may_not_run_yet(site: Desk) -> None:
    code, said = answer(site)
    assert (code, said["allowed"]) == (3, False)
    command = f"`privet client approve {said['plan']} --policy north/site.toml`"
    assert "not approved yet (0 of 1)" in said["reason"]
    assert command in said["reason"]
    _, out, err = site.ask("plan.toml", "north/site.toml")
    assert "once it is approved" in out
    assert said["plan"] in out
    assert command in err
    site.run(*command.strip("`").split()[1:], "--ahead", "--as", "Ann")
    code, said = answer(site)
    assert (code, said["allowed"], said["reason"], said["notes"]) == (0, True, None, [])


def test_the_second_of_two_approvals(site: Desk) -> None:
    value = policy_value()
    value["allow"]["approvers"] = 2
    site.write(site.folder / "north" / "site.toml", value)
    approved(site)
    assert "not approved yet (1 of 2)" in answer(site)[1]["reason"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("pause",), "the site is paused"),
        (("withdraw", "--yes"), "the site has withdrawn"),
        (("refuse", "DIGEST"), "the operator refused this plan (Bo)"),
    ],
)
def test_what_the_operator_decided_counts(site: Desk, words: tuple[str, ...], reason: str) -> None:
    digest = approved(site)
    assert answer(site)[0] == 0
    site.client(*(digest if w == "DIGEST" else w for w in words), "--as", "Bo", *POLICY)
    code, said = answer(site)
    assert (code, said["allowed"]) == (3, False)
    assert reason in said["reason"]
    code, out, err = site.ask("plan.toml", "north/site.toml")
    assert code == 3
    assert "would refuse this plan" in out
    assert reason in err


def test_a_plan_that_the_policy_lists_can_still_be_refused(site: Desk) -> None:
    digest = answer(site)[1]["plan"]
    value = policy_value()
    value["allow"] |= {"plans": [digest], "approval": "listed"}
    site.write(site.folder / "north" / "site.toml", value)
    assert answer(site)[0] == 0
    site.client("refuse", digest, "--as", "Bo", *POLICY)
    assert answer(site)[1]["reason"] == "the operator refused this plan (Bo)"


def test_a_budget_that_was_closed(desk: Desk) -> None:
    from privet.privacy.evidence.keys import FileSigner
    from privet.privacy.evidence.ledger import Ledger

    charged(desk, {}, runs=0)
    desk.json({}, policy_value())
    key = FileSigner.load(desk.folder / "ledger.pem", None)
    ledger = Ledger(desk.folder / "ledger", key, "North")
    close_budget(ledger, "patients")
    ledger.log.store.close()
    code, said = desk.json({}, policy_value())
    assert code == 3
    assert said["reason"] == "the budget of population 'patients' was closed permanently"


def test_nobody_may_ask(site: Desk) -> None:
    approved(site)
    value = policy_value()
    value["allow"]["coordinators"] = []
    site.write(site.folder / "north" / "site.toml", value)
    code, said = answer(site)
    assert code == 3
    assert "nobody may ask" in said["reason"]


def test_all_reasons_are_named_at_once(site: Desk) -> None:
    site.client("pause", "--as", "Ann", *POLICY)
    value = policy_value(epsilon=5.0)
    value["allow"]["coordinators"] = []
    site.write(site.folder / "north" / "site.toml", value)
    reason = answer(site)[1]["reason"]
    for part in ("paused", "nobody may ask", "asks for ε 20", "not approved yet"):
        assert part in reason


def test_a_ledger_that_is_not_there_is_said(desk: Desk) -> None:
    code, said = desk.json({}, policy_value())
    assert (code, said["spent"]) == (0, 0)
    assert said["notes"] == ["no ledger at ledger: taken as empty"]
    _, out, _ = desk.ask("plan.toml", "site.toml")
    assert "no ledger at ledger: taken as empty" in out


def test_a_ledger_that_was_lost_is_not_an_empty_one(site: Desk) -> None:
    (site.folder / "north" / "ledger" / "ledger.db").unlink()
    said = site.refused(2, "budget", "plan.toml", "north/site.toml")
    assert "the ledger is missing" in said
    assert "Restore" in said


def test_another_sites_ledger(site: Desk) -> None:
    site.write(
        site.folder / "south.toml", {**policy_value(), "site": "South", "ledger": "north/ledger"}
    )
    said = site.refused(2, "budget", "plan.toml", "south.toml")
    assert "this is the ledger of 'North', not of 'South'" in said


def test_a_population_is_not_renamed(desk: Desk) -> None:
    """Its budget would begin at zero (H32)."""
    charged(desk, {}, runs=1)
    value = policy_value()
    value["populations"] = {"people": value["populations"]["patients"]}
    value["data"]["admissions"]["population"] = "people"
    desk.files({}, value)
    said = desk.refused(2, "budget", "plan.toml", "site.toml")
    assert "population 'people' is not in the ledger, which has 'patients'" in said
    # A second one beside it is another matter.
    value["populations"] = {**policy_value()["populations"], **value["populations"]}
    staff = {**value["data"].pop("admissions"), "disjoint": "the staff is treated elsewhere"}
    value["data"]["payroll"] = staff
    desk.files({}, value)
    assert desk.ask("plan.toml", "site.toml")[0] == 0


def test_a_cap_that_was_raised_later(desk: Desk) -> None:
    charged(desk, {}, runs=1)
    code, said = desk.json({}, policy_value(epsilon=30.0))
    assert code == 3
    assert "the ledger holds population 'patients' with ε 20" in said["reason"]
    assert "the policy says ε 30" in said["reason"]


def test_the_digest_is_that_of_the_plan_with_its_noise(site: Desk) -> None:
    site.write(site.folder / "plan.toml", desk_plan := site.plan())
    del desk_plan["privacy"]["noise_multiplier"]
    site.write(site.folder / "plan.toml", desk_plan)
    plan = Plan.load(site.folder / "plan.toml")
    assert answer(site)[1]["plan"] == noise_calibration.calibrated(plan).digest != plan.digest


def test_a_scenarios_digest_is_that_of_its_run(site: Desk) -> None:
    """A scenario writes into the plan what it attests."""
    from privet.simulations.planning import attestations, find_plan

    plan, _ = find_plan("lending")
    run = noise_calibration.calibrated(plan.changed(attested=attestations(plan)))
    _, out, _ = site.ask("lending", "north/site.toml", "--json")
    assert json.loads(out)["plan"] == run.digest


def test_a_ledger_that_may_not_be_written_is_read(site: Desk) -> None:
    approved(site)
    folder = site.folder / "north" / "ledger"
    before = names(folder)
    with read_only(folder):
        assert answer(site)[0] == 0
        assert site.client("status", *POLICY)["plans"]
        assert names(folder) == before
    assert names(folder) == before


def test_a_plan_in_the_place_of_a_policy(site: Desk) -> None:
    said = site.refused(2, "budget", "plan.toml", "plan.toml")
    assert "plan.toml: this is a plan, not a policy" in said
    assert len(said.splitlines()) == 1
    said = site.refused(2, "budget", "north/site.toml", "north/site.toml")
    assert "site.toml: this is a policy, not a plan" in said
