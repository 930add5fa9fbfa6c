"""A plan that fails at a site is closed there after ``max_attempts``, whatever the reason was."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from privet.client.data.records import SiteData
from privet.client.outbox import Outbox
from privet.client.site import Site
from privet.common.errors import DataError, QuorumError
from privet.common.flat import Arrays
from privet.common.models import initial_model
from privet.common.order import Order, Status
from privet.common.release import Release
from privet.privacy.evidence.ledger import Ledger

Make = Callable[..., Any]
Orders = Callable[..., Order]
ROUNDS = {"rounds": 6, "steps": 1}


def broken() -> SiteData:
    raise DataError("the file is not a table")


def killed() -> SiteData:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class FullDisk(Outbox):
    def put(self, slot: str, release: Release) -> None:
        raise OSError(28, "No space left on device")


def fail(fed: Any, site: Site, order: Order, model: Arrays, how: str) -> Status:
    """Let one attempt fail after data was opened; return what the site answers."""
    if how == "killed":
        # A process of its own, which ends while the records are being opened.
        child = os.fork()
        if not child:
            fed.restart(site.name, killed).answer(order, model)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        return Status.FAILED  # to its coordinator it is silent, then says so when it is asked again
    if how == "full-disk":
        site = fed.restart(site.name)
        site.outbox = FullDisk(fed.home(site.name) / "outbox")
    else:
        site = fed.restart(site.name, broken)
    return site.answer(order, model).status


def charged_by_failing(fed: Any, order_for: Orders, how: str) -> tuple[int, list[Status]]:
    """Ask North for six rounds that all fail; return its charges and its answers."""
    model = initial_model(fed.plan)
    said = [
        fail(fed, fed.sites[0], order_for(fed, "North", model, round=number), model, how)
        for number in range(1, 7)
    ]
    return fed.charged("North"), said


@pytest.mark.parametrize("how", ["exception", "full-disk"])
def test_two_failures_are_paid_for_and_no_third(
    federation: Make, order_for: Orders, how: str
) -> None:
    fed = federation(training=ROUNDS)
    charges, said = charged_by_failing(fed, order_for, how)
    assert said == [Status.FAILED] * 2 + [Status.REFUSED_PLAN] * 4
    assert charges == 2
    assert fed.kinds("North") == ["reserved", "aborted"] * 2 + ["refused"] * 4
    log = fed.log("North")
    assert "2 attempts failed in a row" in log
    assert "--open-again" in log  # at a real site: `privet client approve`


@pytest.mark.parametrize("how", ["exception", "full-disk"])
def test_a_site_that_does_not_count_pays_for_each_round(
    federation: Make, order_for: Orders, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the old ledger, which closed nothing."""
    monkeypatch.setattr(Ledger, "_require_open_plan", lambda self, plan: None)
    fed = federation(training=ROUNDS)
    charges, said = charged_by_failing(fed, order_for, how)
    assert charges == 6
    assert said == [Status.FAILED] * 6


def test_a_killed_process_counts_like_any_failure(federation: Make, order_for: Orders) -> None:
    fed = federation(training=ROUNDS)
    model = initial_model(fed.plan)
    for number in (1, 2):
        order = order_for(fed, "North", model, round=number)
        fail(fed, fed.sites[0], order, model, "killed")
    assert fed.kinds("North") == ["reserved", "aborted", "reserved"]
    # The last one is still open: it is named first, and then the plan is closed.
    site = fed.restart("North")
    assert site.answer(order, model).status is Status.FAILED
    assert site.answer(order_for(fed, "North", model, round=3), model).status is (
        Status.REFUSED_PLAN
    )
    assert fed.charged("North") == 2
    reasons = [e.predicate["reason"] for e in fed.answers("North") if e.kind == "aborted"]
    assert reasons == ["recovered", "recovered"]
    assert fed.opened == []


def test_it_stays_closed_over_a_restart_until_somebody_approves_it(
    federation: Make, order_for: Orders
) -> None:
    fed = federation(training={**ROUNDS, "max_attempts": 1})
    model, digest = initial_model(fed.plan), fed.plan.digest
    fail(fed, fed.sites[0], order_for(fed, "North", model), model, "exception")
    site = fed.restart("North")
    # Its plan is listed in the policy; that alone opens nothing.
    assert digest in site.admission.policy.allow.plans
    assert site.answer(order_for(fed, "North", model, round=2), model).status is (
        Status.REFUSED_PLAN
    )
    fed.ledger("North").approve(digest, ["Ann"], "manual", again=True)
    assert site.answer(order_for(fed, "North", model, round=3), model).status is Status.RELEASED
    assert fed.ledger("North").attempts(digest) == (0, 1)
    assert fed.verdict().ok


def test_a_release_in_between_ends_the_row(federation: Make, order_for: Orders) -> None:
    fed = federation(training=ROUNDS)
    model = initial_model(fed.plan)
    for number in range(1, 7):
        order = order_for(fed, "North", model, round=number)
        if number % 2:
            assert fail(fed, fed.sites[0], order, model, "exception") is Status.FAILED
        else:
            assert fed.restart("North").answer(order, model).status is Status.RELEASED


def test_an_evaluation_that_works_does_not_forgive_a_training_that_fails(
    federation: Make, order_for: Orders
) -> None:
    fed = federation(training=ROUNDS, metrics={"source": "gate"})
    model = initial_model(fed.plan)
    for number in (1, 2):
        order = order_for(fed, "North", model, round=number)
        assert fail(fed, fed.sites[0], order, model, "exception") is Status.FAILED
        measure = order_for(fed, "North", model, round=number, purpose="evaluate")
        said = fed.restart("North").answer(measure, model).status
        assert said is (Status.RELEASED if number == 1 else Status.REFUSED_PLAN)


def test_a_training_and_an_evaluation_that_fail_count_together(
    federation: Make, order_for: Orders
) -> None:
    fed = federation(training=ROUNDS, metrics={"source": "gate"})
    model = initial_model(fed.plan)
    for purpose in ("train", "evaluate"):
        order = order_for(fed, "North", model, purpose=purpose)
        assert fail(fed, fed.sites[0], order, model, "exception") is Status.FAILED
    order = order_for(fed, "North", model, round=2)
    assert fail(fed, fed.sites[0], order, model, "exception") is Status.REFUSED_PLAN


def test_the_runs_of_a_plan_count_together(federation: Make, order_for: Orders) -> None:
    fed = federation(training=ROUNDS, cap=100.0)
    model = initial_model(fed.plan)
    for run, wanted in (("a", "failed"), ("b", "failed"), ("c", "refused-plan")):
        order = order_for(fed, "North", model, run=run)
        assert fail(fed, fed.sites[0], order, model, "exception") == wanted


def test_a_run_goes_on_and_its_coordinator_asks_ever_more_rarely(federation: Make) -> None:
    fed = federation(training={"rounds": 12, "steps": 1}, strategy={"min_sites": 2})
    fed.sites[0] = fed.restart("North", broken)
    outcome = fed.run()
    said = [step.statuses["North"] for step in outcome.progress]
    assert said == [Status.FAILED] * 2 + [Status.REFUSED_PLAN] * 10
    # Asked in rounds 1, 2, then 3, 5, 8, and in 13, which there is not.
    rounds = [e.predicate["round"] for e in fed.answers("North") if e.kind != "aborted"]
    assert rounds == [1, 2, 3, 5, 8]
    assert fed.charged("North") == 2
    assert all(fed.charged(name) == 12 for name in ("East", "South"))
    assert fed.verdict().ok


def test_a_site_that_was_opened_again_is_asked_again(federation: Make) -> None:
    fed = federation(training={"rounds": 6, "steps": 1}, strategy={"min_sites": 2})
    fed.sites[0] = fed.restart("North", broken)

    class Mending(type(fed.grid())):  # type: ignore[misc]
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            found = list(messages)
            if found and found[0].metadata.group_id == "4":
                fed.ledger("North").approve(fed.plan.digest, ["Ann"], "manual", again=True)
                fed.sites[0] = fed.restart("North")
            return super().send_and_receive(found, timeout=timeout)

    said = [step.statuses["North"] for step in fed.run(fed.grid(Mending)).progress]
    assert said == ["failed", "failed", "refused-plan", "refused-plan", "released", "released"]


def test_a_run_that_needs_a_closed_site_ends(federation: Make) -> None:
    fed = federation(training=ROUNDS, strategy={"min_sites": 3})
    fed.sites[0] = fed.restart("North", broken)
    with pytest.raises(QuorumError, match="1 failed, 2 released"):
        fed.run()
    assert fed.charged("North") == 1


def test_figures_that_cannot_be_computed_end_no_run(federation: Make) -> None:
    from federation_kit import RUN, context

    from privet.server.app import create_app
    from privet.server.rounds import Outcome
    from privet.server.snapshot import Snapshots

    fed = federation(metrics={"source": "public"})
    outcomes: list[Outcome] = []

    def figures(model: Arrays) -> dict[str, Any]:
        raise ValueError("continuous is not supported")

    server = create_app(
        RUN, fed.plan, lambda: initial_model(fed.plan), Snapshots(fed.folder / "model"),
        lambda: fed.parties.collector(fed.roster), evaluate=figures, finish=outcomes.append,
    )  # fmt: skip
    server(fed.grid(), context())
    assert [step.metrics for step in outcomes[0].progress] == [{}, {}]
    assert "could not be computed" in outcomes[0].progress[0].remarks[0]
    assert [entry.kind for entry in fed.journal_entries()][-1] == "run-closed"
