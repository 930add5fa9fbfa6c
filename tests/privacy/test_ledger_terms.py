"""Whose budget it is, what was approved, and what the operator may do at any time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ledger_kit import (
    CAP,
    DELTA,
    EVENT,
    PATIENTS,
    PLAN,
    RELEASE,
    SITE,
    VISITS,
    asked,
    bare,
    budget,
    charged,
    close_budget,
    entries,
    kinds,
    opened,
    opened_only,
    order,
    plan_of,
    spend,
)

from privet.common.canonical import digest_json
from privet.common.errors import (
    BudgetExceededError,
    LedgerError,
    PlanError,
    PrivateKeyError,
    SitePausedError,
)
from privet.common.plan import Plan
from privet.privacy.accounting.pld import epsilon
from privet.privacy.accounting.units import Relation, Unit
from privet.privacy.evidence import charges
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger

# populations, data sets, policies, plans


def test_all_data_sets_of_a_population_share_its_budget(ledger: Ledger) -> None:
    """Tomorrow's extract of the same patients does not start at zero (H32)."""
    ledger.add_data_set("visits-2027", PATIENTS)
    for number, name in enumerate([VISITS, "visits-2027"] * 2, 1):
        ledger.reserve(asked(number, data_set=name, run=name))
    for name in (VISITS, "visits-2027"):
        with pytest.raises(BudgetExceededError):
            ledger.reserve(asked(5, data_set=name, run="other"))


def test_a_data_set_of_other_persons_has_a_budget_of_its_own(ledger: Ledger) -> None:
    ledger.register("staff", budget())
    ledger.add_data_set("payroll", "staff", "nobody on the payroll is a patient")
    for number in range(1, 5):
        ledger.reserve(asked(number))
    ledger.reserve(asked(1, data_set="payroll", run="staff"))
    assert charged(ledger) == 4
    assert ledger.spent("staff").epsilon == pytest.approx(epsilon([EVENT], DELTA))
    with pytest.raises(LedgerError, match="name a population"):
        ledger.spent()


@pytest.mark.parametrize("why", ["", " ", "\t\n"])
def test_a_new_population_needs_a_reason(ledger: Ledger, why: str) -> None:
    """The same patients under a new population's name would start at zero (H32)."""
    ledger.register("fresh", budget())
    with pytest.raises(LedgerError, match="H32"):
        ledger.add_data_set("visits-again", "fresh", why)
    ledger.add_data_set("payroll", "fresh", "nobody on the payroll is a patient")
    # Nor does the second data set of that population go without one.
    with pytest.raises(LedgerError, match="H32"):
        ledger.add_data_set("visits-again", "fresh", why)
    assert set(ledger.state.data_sets) == {VISITS, "payroll"}


def test_the_first_population_is_disjoint_from_nothing(ledger: Ledger) -> None:
    ledger.add_data_set("more", PATIENTS, "a reason that nobody asked for")
    assert entries(ledger)[-1].predicate["disjoint"] == ""


def test_a_data_set_stays_with_its_population(ledger: Ledger) -> None:
    ledger.register("fresh", budget())
    with pytest.raises(LedgerError, match="for its life"):
        ledger.add_data_set(VISITS, "fresh", "they are others now")
    before = ledger.log.head()
    ledger.add_data_set(VISITS, PATIENTS)
    assert ledger.log.head() == before


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 9.0}, {"epsilon": None}, {"delta": 1e-4}, {"unit": Unit.PERSON},
        {"relation": Relation.REPLACE_ONE}, {"max_records": 5},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_population_keeps_its_terms(ledger: Ledger, change: dict[str, Any]) -> None:
    with pytest.raises(LedgerError, match="for its life"):
        ledger.register(PATIENTS, budget(**{"epsilon": CAP, **change}))


@pytest.mark.parametrize("data_set", ["nobody", PATIENTS, ""])
def test_a_data_set_that_is_not_registered(ledger: Ledger, data_set: str) -> None:
    with pytest.raises(LedgerError, match="not registered"):
        ledger.reserve(asked(data_set=data_set))
    assert kinds(ledger) == []


def test_a_data_set_of_a_population_that_is_not_registered(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="not registered"):
        ledger.add_data_set("more", "nobody", "why not")
    assert set(ledger.state.data_sets) == {VISITS}


def test_a_policy_is_noted_once_and_again_when_it_changes(ledger: Ledger) -> None:
    ledger.set_policy({"site": SITE})
    assert kinds(ledger) == []
    ledger.set_policy({"site": SITE, "plans": []})
    ledger.set_policy({"site": SITE})
    assert kinds(ledger) == ["policy", "policy"]


def test_nothing_is_reserved_before_a_policy(folder: Path) -> None:
    ledger = bare(folder)
    ledger.register(PATIENTS, budget())
    ledger.add_data_set(VISITS, PATIENTS)
    ledger.keep("plan", PLAN.digest, PLAN.to_dict())
    ledger.approve(PLAN.digest, ["Ada"], "manual")
    with pytest.raises(LedgerError, match="policy"):
        ledger.reserve(asked())


def test_a_plan_is_approved_refused_and_approved_again(folder: Path, ledger: Ledger) -> None:
    ledger.approve(PLAN.digest, ["Ada", "Ada"], "manual")
    assert kinds(ledger) == []
    ledger.refuse_plan(PLAN.digest, ["Bo"])
    ledger.refuse_plan(PLAN.digest, ["Bo"])
    assert kinds(ledger) == ["plan-refused"]
    for each in (ledger, opened_only(folder)):
        with pytest.raises(LedgerError, match="not approved"):
            each.reserve(asked())
    ledger.approve(PLAN.digest, ["Ada"], "manual")
    ledger.reserve(asked())
    assert kinds(ledger) == ["plan-refused", "plan-approved", "reserved"]


def test_a_plan_that_nobody_approved(ledger: Ledger) -> None:
    other = plan_of(rounds=2)
    ledger.keep("plan", other.digest, other.to_dict())
    with pytest.raises(LedgerError, match="not approved"):
        ledger.reserve(asked(plan=other.digest))
    assert charged(ledger) == 0


def test_two_approvers_are_two_names(ledger: Ledger) -> None:
    ledger.approve(PLAN.digest, ["Ada", "Bo"], "manual")
    assert ledger.state.approvals[PLAN.digest] == ("Ada", "Bo")


# what an operator may do


def test_a_paused_site_reserves_nothing_until_it_resumes(folder: Path, ledger: Ledger) -> None:
    taken = ledger.reserve(asked(1))
    ledger.pause("Ada")
    ledger.pause("Ada")
    for each in (ledger, opened_only(folder)):
        with pytest.raises(SitePausedError):
            each.reserve(asked(2))
    # What was paid for before the pause may end.
    ledger.commit(taken, EVENT, RELEASE)
    ledger.resume("Ada")
    ledger.resume("Ada")
    spend(ledger, 2)
    assert kinds(ledger) == ["reserved", "paused", "released", "resumed", "reserved", "released"]


def test_a_site_that_withdrew_never_comes_back(folder: Path, ledger: Ledger) -> None:
    taken = ledger.reserve(asked(1))
    ledger.withdraw("Ada")
    ledger.withdraw("Ada")
    again = opened(folder)
    wishes: list[Callable[[], object]] = [
        lambda: again.reserve(asked(2)),
        lambda: again.resume("Ada"),
        lambda: again.pause("Ada"),
        lambda: again.register("fresh", budget()),
        lambda: again.add_data_set("more", PATIENTS),
        lambda: again.approve("sha256:" + "2" * 64, ["Ada"], "manual"),
        lambda: again.commit(taken, EVENT, RELEASE),
        lambda: again.rotate(FileSigner.generate()),
        lambda: close_budget(again, PATIENTS),
    ]
    for wish in wishes[:1]:
        with pytest.raises(SitePausedError):
            wish()
    again.resume("Ada")  # it is not paused: nothing to do
    for wish in wishes[2:]:
        with pytest.raises((LedgerError, SitePausedError), match="the site has withdrawn"):
            wish()
    again.refuse(order(2), "refused-paused")
    again.abort(taken, data_opened=True)
    assert kinds(again) == ["reserved", "withdrawn", "aborted"]
    assert charged(again) == 1


def test_a_closed_budget_stays_closed(folder: Path, ledger: Ledger) -> None:
    ledger.register("staff", budget())
    ledger.add_data_set("payroll", "staff", "nobody on the payroll is a patient")
    taken = ledger.reserve(asked(1))
    close_budget(ledger, PATIENTS)
    close_budget(ledger, PATIENTS)
    for each in (ledger, opened_only(folder)):
        with pytest.raises(SitePausedError):
            each.reserve(asked(2))
    ledger.commit(taken, EVENT, RELEASE)
    ledger.reserve(asked(1, data_set="payroll", run="staff"))
    assert kinds(ledger)[-4:] == ["reserved", "budget-closed", "released", "reserved"]


def test_a_kept_plan_whose_way_to_clip_was_removed_is_still_charged(
    ledger: Ledger, plan_value: Callable[..., dict[str, Any]]
) -> None:
    now = Plan.parse(plan_value(training={"max_attempts": 7}))
    old = now.to_dict()
    old["training"]["clipping"] = "opacus-ghost"
    with pytest.raises(PlanError, match="'opacus-ghost' was removed"):
        Plan.parse(old)
    for value in (old, now.to_dict()):
        ledger.keep("plan", digest_json(value), value)
    assert charges.plan_attempts(ledger.log.store, digest_json(old)) == 7
    both = [charges.plan_events(ledger.log.store, digest_json(v)) for v in (old, now.to_dict())]
    assert both[0] == both[1] is not None
    ledger.keep("plan", "sha256:" + "0" * 64, old)
    with pytest.raises(LedgerError, match="is another one"):
        charges.plan_events(ledger.log.store, "sha256:" + "0" * 64)


# the clock


def test_time_never_goes_back_in_a_ledger(
    folder: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verifier refuses a log whose time goes back; a clock that is set back must not make one."""
    monkeypatch.setattr("privet.privacy.evidence.log.now", lambda: "2031-01-01T00:00:00Z")
    spend(ledger, 1)
    monkeypatch.setattr("privet.privacy.evidence.log.now", lambda: "2026-01-01T00:00:00Z")
    spend(ledger, 2)
    again = opened_only(folder)
    spend(again, 3)
    times = [entry.predicate["time"] for entry in entries(again)]
    assert times == sorted(times)
    assert times[-1] == "2031-01-01T00:00:00Z"


def test_no_entry_says_how_much_data_there_is(ledger: Ledger) -> None:
    """Neither sizes nor paths: the policy is noted as it is published."""
    spend(ledger, 1)
    fields = {name for entry in entries(ledger) for name in entry.predicate}
    assert fields & {"records", "rows", "batch", "size", "path", "n"} == set()


def test_the_environment_names_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from privet.privacy.evidence.keys import passphrase_from_environment

    monkeypatch.delenv("PRIVET_PASSPHRASE", raising=False)
    assert passphrase_from_environment() is None
    monkeypatch.setenv("PRIVET_PASSPHRASE", "")
    assert passphrase_from_environment() is None
    monkeypatch.setenv("PRIVET_PASSPHRASE", "correct horse")
    assert passphrase_from_environment() == "correct horse"
    assert os.environ["PRIVET_PASSPHRASE"] == "correct horse"


def test_a_passphrase_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from privet.privacy.evidence.keys import passphrase_from_environment

    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    monkeypatch.delenv("PRIVET_PASSPHRASE", raising=False)
    monkeypatch.setenv("PRIVET_PASSPHRASE_FILE", str(secret))
    for content in (b"correct horse ", b"correct horse \n", b"correct horse \r\n"):
        secret.write_bytes(content)
        assert passphrase_from_environment() == "correct horse "
    for content, said in ((b"", "one line"), (b"\n", "one line"), (b"a\nb", "one line"),
                          (b"\xff\xfe", "UTF-8")):  # fmt: skip
        secret.write_bytes(content)
        with pytest.raises(PrivateKeyError, match=said):
            passphrase_from_environment()
    secret.unlink()
    with pytest.raises(PrivateKeyError, match="cannot be read"):
        passphrase_from_environment()
    monkeypatch.setenv("PRIVET_PASSPHRASE", "another one")
    with pytest.raises(PrivateKeyError, match="both"):
        passphrase_from_environment()
