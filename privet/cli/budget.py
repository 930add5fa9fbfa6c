"""``privet budget``: what a plan will cost a site, before anything is spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privet.cli import app

if TYPE_CHECKING:
    from collections.abc import Callable

    from privet.common.plan import Plan
    from privet.privacy.events import Counts
    from privet.privacy.filter import Decision, History
    from privet.privacy.policy import Policy
    from privet.privacy.units import PrivacyLoss

_MANY = 1000
"""From here on the number of runs that fit is given as "at least"."""

_EPILOG = """[bold]Examples[/bold]

privet budget plan.toml site.toml

privet budget lending site.toml --json > cost.json
"""


@app.command(epilog=_EPILOG)
def budget(
    plan: Annotated[str, typer.Argument(help="A scenario or a plan file.", metavar="PLAN")],
    policy: Annotated[Path, typer.Argument(help="The site's policy file.", metavar="POLICY")],
    data_set: Annotated[
        str | None, typer.Option("--data-set", help="Which one, if the policy names several.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output.")
    ] = False,
) -> None:
    """Say what a plan will cost and what will be left, before anything is spent.

    PLAN is the name of a scenario or a plan file (*.toml), POLICY the site's own file; it
    names the ledger, which is read without its key. Nothing is written and no record is
    read. The exit code is 3 if the site would not let the plan run to its end now: the
    policy or the budget forbids it, the site is paused, or nobody approved the plan yet.
    The digest that is shown is the one that `privet client approve` takes.
    """
    from privet.cli import show, show_site
    from privet.common.errors import Refused
    from privet.privacy import program
    from privet.privacy.policy import Policy
    from privet.simulations.planning import attestations, find_plan

    site = Policy.load(policy)
    chosen, _ = find_plan(plan)
    chosen = chosen.changed(attested=attestations(chosen))  # as `privet simulate` runs it
    name, _ = site.data_set(data_set or site.data_set_for(chosen))
    place = _Place(policy, site)
    with show.stage("budget") as tell:
        if chosen.trains and chosen.privacy and chosen.privacy.noise_multiplier is None:
            tell(f"calibrating the noise to ε {chosen.privacy.epsilon:g}, the plan's own …")
        fitted = program.calibrated(chosen)
        forecast = Forecast(chosen, fitted, place, name)
    if as_json:
        typer.echo(json.dumps(forecast.to_dict(), ensure_ascii=False))
    else:
        show_site.budget(forecast)
    if forecast.faults:
        raise Refused("\n".join(forecast.faults))


class _Place:
    """A policy, and what the ledger that it names says, read without its key.

    Raises:
        WrongLedger: if the ledger is another site's, or was lost.
        LedgerError: if it cannot be read.
    """

    def __init__(self, file: Path, policy: Policy) -> None:
        from privet.client.desk import has_ledger
        from privet.privacy.book import Book
        from privet.privacy.ledger import Ledger

        self.file, self.policy = file, policy
        self.note = ""
        self._ledger: Ledger | None = None
        if has_ledger(policy):
            self._ledger = Ledger.read(policy.ledger_folder, policy.site)
        else:
            self.note = f"no ledger at {policy.ledger_folder}: taken as empty"
        self.book = self._ledger.book if self._ledger else Book()

    def charges(self, population: str) -> History:
        """Return what was charged to a population, by run."""
        return self._ledger.charges(population) if self._ledger else {}

    def closed(self, plan: str) -> str | None:
        """Return why failures closed a plan (by digest) here, or None."""
        from privet.common.errors import PlanClosed

        try:
            if self._ledger is not None:
                self._ledger.require_open_plan(plan)
        except PlanClosed as error:
            return f"{error}; `privet client approve {plan}` opens it again"
        return None


class Forecast:
    """What a plan would cost one population of a site.

    Attributes:
        plan: the plan, noise calibrated.
        calibrated: the plan left its noise to be calibrated.
        per_round, total: cost of a round, of the whole run.
        spent, after: cost of all charges so far, and of those with the run; None where the plan
            has another unit or relation than the population, so that they cannot be added.
        decision: of the cap; None in the same case.
        runs_left: how many such runs may be begun and come to their end, this one included.
        faults: why the site would not let the plan run to its end now; empty if it would.
        only_undecided: nothing is missing but a decision of the operator.
        notes: what is to be known about the figures.
    """

    def __init__(self, asked: Plan, fitted: Plan, place: _Place, data_set: str) -> None:
        from privet.client.approval import approval_fault, standing_faults
        from privet.privacy import program
        from privet.privacy.accounting import privacy_loss
        from privet.privacy.events import Repeated
        from privet.privacy.filter import Cap
        from privet.privacy.units import Relation, Unit

        policy = place.policy
        self.plan, self.policy, self.data_set = fitted, policy, data_set
        self.calibrated = asked != fitted
        self.population = policy.data_set(data_set)[1].population
        limits = policy.populations[self.population]
        terms = policy.terms(self.population)
        self.cap = Cap(limits.epsilon, limits.delta, *terms)
        privacy = fitted.privacy
        own = (Unit(privacy.unit), Relation(privacy.relation)) if privacy else terms
        planned = program.planned(fitted)

        def cost(counts: Counts) -> PrivacyLoss:
            events = [Repeated(event, count) for event, count in counts]
            return privacy_loss(events, limits.delta, *own)

        self.per_round, self.total = cost(program.one_round(fitted)), cost(planned)
        self.spent: PrivacyLoss | None = None
        self.after: PrivacyLoss | None = None
        self.decision: Decision | None = None
        self.runs_left: int | None = None
        self.notes = [place.note] if place.note else []
        self.faults = standing_faults(policy, place.book, data_set)
        # A plan approved by its digest was approved with its noise.
        forbidden = policy.fault(fitted, data_set=data_set)
        self.faults += [forbidden] if forbidden else []
        closed = place.closed(fitted.digest)
        self.faults += [closed] if closed else []
        if own == terms:
            once = program.one_round(fitted)
            self._add_up(cost, place.charges(self.population), planned, once)
            if self.decision and not self.decision.allowed and not forbidden:
                against = self.decision.against(self.cap)
                self.faults.append(f"the budget does not cover the plan: {against}")
        refused = fitted.digest in place.book.refused_plans
        self.only_undecided = not self.faults and not refused
        undecided = approval_fault(policy, place.book, fitted.digest, place.file)
        if undecided and (refused or policy.allow.approval == "manual"):
            self.faults.append(undecided)

    def _add_up(
        self,
        cost: Callable[[Counts], PrivacyLoss],
        history: History,
        planned: Counts,
        once: Counts,
    ) -> None:
        from privet.privacy.filter import decide_whole, merged, runs_that_fit

        before = merged(charges.counts for charges in history.values())
        self.spent, self.after = cost(before), cost(merged([before, planned]))
        self.decision = decide_whole(self.cap, history, planned, once)
        self.runs_left = runs_that_fit(self.cap, history, planned, once)
        for what, loss in (("spent so far", self.spent), ("left after this run", self.after)):
            if loss.remark:
                self.notes.append(f"{what}: {loss.remark}")

    @property
    def left_after(self) -> float | None:
        """ε left after the run; None without a cap or a common unit."""
        if self.after is None or self.cap.epsilon is None:
            return None
        return max(0.0, self.cap.epsilon - self.after.epsilon)

    @property
    def many(self) -> bool:
        """Whether more runs fit than are worth counting."""
        return self.runs_left is not None and self.runs_left >= _MANY

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as JSON; numbers that are infinite or unknown are null."""
        privacy = self.plan.privacy
        return {
            "cost": {
                "per_round": self.per_round.to_dict()["epsilon"],
                "total": self.total.to_dict()["epsilon"],
            },
            "spent": self.spent.to_dict()["epsilon"] if self.spent else None,
            "left_after": self.left_after,
            "runs_left": min(self.runs_left, _MANY) if self.runs_left is not None else None,
            "runs_left_at_least": self.many,
            **{key: self.total.to_dict()[key] for key in ("delta", "unit", "relation")},
            "cap": self.cap.epsilon,
            "allowed": not self.faults,
            "reason": "; ".join(self.faults) or None,
            "rule": self.decision.rule if self.decision else None,
            "plan": self.plan.digest,
            "site": self.policy.site,
            "population": self.population,
            "data_set": self.data_set,
            "noise_multiplier": privacy.noise_multiplier if privacy else None,
            "calibrated": self.calibrated,
            "notes": self.notes,
        }
