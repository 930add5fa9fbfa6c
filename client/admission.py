"""Admission control: which coordinator may run which plan at a site, within which limits.

It decides before anything is spent and before data is opened. Its rules come from the site's own
policy file; the budget is the ledger's.
"""

from __future__ import annotations

from collections.abc import Callable

from privet.client.operator.approval import (
    LISTED_BY,
    approval_fault,
    how_to_open,
    waits_for_approval,
)
from privet.client.operator.decisions import note_policy
from privet.common.errors import BudgetExceededError, PlanClosedError
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.order_keys import is_signed
from privet.privacy.evidence.roster import Roster
from privet.privacy.policy import Policy


class RefusalError(Exception):
    """An order is refused with a status; the reason goes to the operator's log only.

    Args:
        status: that the coordinator receives.
        reason: for the operator; it may contain private data.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class NotApprovedError(RefusalError):
    """A plan waits for people's approval; the site's answer to the offer says so, and does not
    refuse.
    """


class AdmissionControl:
    """Hold orders to the policy and the ledger of one site.

    Args:
        policy: the site's own file.
        ledger: holds populations, data sets, policy and approvals.
        roster: names the coordinator, by whose key orders are signed.
        data_set: name of the data set that is trained on; None takes the policy's only one.
        require_newest: raises as :meth:`privet.client.newest_head.NewestHeads.require`.
    """

    def __init__(
        self,
        policy: Policy,
        ledger: Ledger,
        roster: Roster,
        data_set: str | None = None,
        *,
        require_newest: Callable[[], None] = lambda: None,
    ) -> None:
        self.policy = policy
        self.ledger = ledger
        self.data_set, _ = policy.data_set(data_set)
        self.require_newest = require_newest
        self._listed_by = f"{LISTED_BY}{policy.digest[7:19]}"
        self._kept_plans: set[str] = set()
        self._roster = roster
        self._order_key = roster.coordinator.orders

    def open(self) -> None:
        """Note the policy and the roster in the ledger, where they are not noted yet.

        Raises:
            LedgerError: if the policy contradicts the ledger about a population.
        """
        note_policy(self.policy, self.ledger)
        # The newest one, and that of each coordinator.
        for name in ("newest", self._order_key.fingerprint):
            self.ledger.keep("roster", name, self._roster.to_dict())

    def look(self, plan: Plan, run: str) -> None:
        """Refuse a run that the policy, the operator or the budget does not allow.

        This runs none of the plan's code: a plan may name a model or a task of the site's own,
        which is not even imported before the plan is approved.

        Args:
            plan: the plan that the site knows.
            run: the run's identifier.

        Raises:
            RefusalError: with the status of the answer.
            HeadAwaitedError: if the site does not know yet whether its ledger is the newest.
        """
        self.require_newest()
        self.require_allowed(plan)
        self._keep_plan(plan)
        try:
            self.ledger.require_whole_run(self.data_set, run, plan.digest)
        except BudgetExceededError as error:
            raise RefusalError(Status.REFUSED_BUDGET, str(error)) from error

    def require_allowed(self, plan: Plan, *, in_force: bool = True) -> None:
        """Refuse a plan that the policy or the operator does not allow.

        Args:
            plan: the plan that the site knows.
            in_force: whether the policy must be the one in the ledger. A changed policy comes into
                force by :meth:`open`, for the first plan that it allows; until then nothing of it
                is noted.

        Raises:
            RefusalError: with the status of the answer.
        """
        self.ledger.log.refresh()  # the operator decides in another process
        noted = self.ledger.state.policy
        if in_force and noted is not None and noted != self.policy.public():
            # A verifier compares a reservation with the policy in the ledger.
            raise RefusalError(
                Status.REFUSED_POLICY,
                "the ledger has another policy than this client was started with: start it again",
            )
        if fault := self.policy.fault(plan, data_set=self.data_set):
            raise RefusalError(Status.REFUSED_POLICY, fault)
        self._require_approval(plan, note=in_force)
        try:
            self.ledger.require_open_plan(plan.digest)
        except PlanClosedError as error:
            raise RefusalError(
                Status.REFUSED_PLAN,
                f"{error}; this log says why. Correct it, then "
                f"{how_to_open(self.ledger.state, plan.digest)} opens it again",
            ) from error

    def require_size(self, plan: Plan, parameters: int) -> None:
        """Refuse a model that is larger than the policy allows.

        Args:
            plan: the plan that the site knows.
            parameters: number of trained parameters (scalars) of its model.

        Raises:
            RefusalError: with the status of the answer.
        """
        if fault := self.policy.fault(plan, parameters, data_set=self.data_set):
            raise RefusalError(Status.REFUSED_POLICY, fault)

    def tested(self, rows: tuple[str, ...]) -> tuple[str, ...]:
        """Return the rows of the assumption register that count as tested, of those that a model
        passed.

        H6 does not count where the policy itself attests that records are read independently of
        each other (``coupling_attested``): no test can show that.
        """
        attested = self.policy.data_set(self.data_set)[1].coupling_attested is not None
        return tuple(row for row in rows if row != "H6" or not attested)

    def _keep_plan(self, plan: Plan) -> None:
        """Store the plan beside the ledger, for verifiers."""
        if plan.digest not in self._kept_plans:
            self.ledger.keep("plan", plan.digest, plan.to_dict())
            self._kept_plans.add(plan.digest)

    def require_signature(self, order: Order) -> None:
        """Refuse an order that no coordinator of the policy signed.

        Raises:
            RefusalError: with the status of the answer.
        """
        key = self._order_key
        state = self.ledger.state
        if not self.policy.may_ask(key.fingerprint, state.order_keys):
            raise RefusalError(Status.REFUSED_SIGNATURE, f"{key.name} may not ask here (allow)")
        if state.is_replaced(key.fingerprint, order.run):
            raise RefusalError(Status.REFUSED_SIGNATURE, f"another order key follows {key.name}")
        if not is_signed(order, key):
            raise RefusalError(Status.REFUSED_SIGNATURE, f"the order is not signed by {key.name}")

    def _require_approval(self, plan: Plan, *, note: bool) -> None:
        if fault := approval_fault(self.policy, self.ledger.state, plan.digest):
            waits = waits_for_approval(self.policy, self.ledger.state, plan.digest)
            kind = NotApprovedError if waits else RefusalError
            raise kind(Status.REFUSED_PLAN, f"plan {plan.digest}: {fault}")
        if note and plan.digest in self.policy.allow.plans:
            how = "listed" if self.ledger.state.setting == "site" else "simulation"
            self.ledger.approve(plan.digest, [self._listed_by], how)
