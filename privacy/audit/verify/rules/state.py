"""What the logs of one bundle share while it is read: findings, roster, plans, orders, runs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

import rfc8785

from privet.privacy.audit.verify.cost.compositions import Compositions
from privet.privacy.audit.verify.cost.plans import AuditedPlan
from privet.privacy.audit.verify.formats.lines import AuditedOrder
from privet.privacy.audit.verify.formats.roster import AuditedRoster
from privet.privacy.audit.verify.formats.strict import Malformed, digest
from privet.privacy.audit.verify.result import NEW_RULE, Findings, SiteFinding, short, show
from privet.privacy.audit.verify.rules.orders import OrderOutcome, outcome_of

_MOST_TURNS = 20_000_000
"""Most turns of all plans of a bundle: they are counted in a minute or so."""

#: How much of a bundle is kept: what a claim depends on, or all.
Kept = Literal["nothing", "brief", "all"]


@dataclass
class Head:
    """A checkpoint whose signatures were verified.

    Attributes:
        size, root: of the tree.
        cosigners: names of the witness keys that cosigned it, sorted.
        text: SHA-256 of its text.
        named: something refers to it.
        told: a journal says who cosigned it.
    """

    size: int
    root: bytes
    cosigners: tuple[str, ...]
    text: bytes
    named: bool = False
    told: bool = False


@dataclass
class RunStatements:
    """The statements about one run, which must be the same in all of its entries and orders.

    Attributes:
        plan, code: of its reservations.
        parameters: what its orders ask for, as a digest, by purpose.
        without_order: the first entry of each site that answers an order that is not here.
    """

    plan: str | None = None
    code: str | None = None
    parameters: dict[str, bytes] = field(default_factory=dict)
    without_order: dict[str, int] = field(default_factory=dict)


class VerificationState:
    """One bundle under examination.

    Args:
        findings: what is wrong goes there.
        roster: of the bundle.
        roster_value: the same, as JSON.
        kept: how much of the entries is kept for a report.
    """

    def __init__(
        self, findings: Findings, roster: AuditedRoster, roster_value: dict[str, Any], kept: Kept
    ) -> None:
        self.findings, self.roster, self.kept = findings, roster, kept
        self.roster_value = roster_value
        self.plans: dict[str, AuditedPlan | None] = {}
        self.plan_values: dict[str, dict[str, Any]] = {}
        #: Plans that something names, and those without which it cannot be checked.
        self.referred: set[str] = set()
        self.needed: set[str] = set()
        #: By the digest of the order.
        self.orders: dict[str, OrderOutcome] = {}
        self.runs: defaultdict[str, RunStatements] = defaultdict(RunStatements)
        #: By the name of the log, and the size or the SHA-256 of the text.
        self.heads: dict[str, dict[int, Head]] = {}
        self.texts: dict[str, dict[bytes, Head]] = {}
        self.findings_of_sites: list[SiteFinding] = []
        #: Noised releases of all sites, by what is left of their digests.
        self.releases: dict[int, str] = {}
        self.compositions = Compositions()
        self._passed_over = False
        self._turns = 0
        #: Members whose log is not in the bundle: what would be in it is asked of nobody.
        self.absent: set[str] = set()
        self.members = {member.name: member for member in (roster.coordinator, *roster.sites)}
        self.origins = {member.log.name: member.name for member in self.members.values()}

    def add_plan(self, value: dict[str, Any]) -> str:
        """Keep a plan, which must be a possible one (``plan``); return its digest."""
        name = digest(rfc8785.dumps(value))
        try:
            plan = self.plans[name] = AuditedPlan(value)
            if plan.turns is not None:
                self._turns += plan.turns.total
                if self._turns > _MOST_TURNS:
                    raise Malformed("the plans of the bundle have more turns than are counted")
        except (Malformed, RecursionError, TypeError) as error:
            self.plans[name] = None
            self.findings.fault("plan", f"plan {short(name)}: {error}")
        if self.kept != "nothing":
            self.plan_values[name] = value
        return name

    def may_compose(self, plan: AuditedPlan) -> bool:
        """Return whether there is time to compose what a plan costs; else a note says so.

        A plan is composed in some tenths of a second, at worst in a minute. A history of
        thousands of plans shall not take days, so only the first ones are that need it.
        """
        if plan.budget is None or plan.is_cheap:
            return True
        _, delta, _, relation = plan.budget
        if self.compositions.may(plan.planned, delta, relation):
            return True
        if not self._passed_over:
            self._passed_over = True
            self.findings.note(
                "the plans take more time to compose than a verifier gives a bundle: of some it is"
                " not checked whether they cost more than the epsilon that they ask for; the cap"
                " of each population is"
            )
        return False

    def add_order(self, order: AuditedOrder) -> None:
        """Rule 29 (``order``): orders of a run ask for the same; none stands here twice."""
        self.needed.add(order.plan)
        asked = self.runs[order.run].parameters
        if asked.setdefault(order.purpose, order.parameters) != order.parameters:
            self.findings.fault(
                "order", f"orders of run {show(order.run)} ask for different parameters" + NEW_RULE
            )
        if order.digest in self.orders:
            self.findings.fault("order", "an order is in the bundle twice")
            return
        self.orders[order.digest] = outcome_of(order)

    def others(self, cosigners: tuple[str, ...], owner: str) -> int:
        """Return how many witnesses cosigned.

        Args:
            cosigners: names of their keys.
            owner: of the log, whose own cosignature does not count.
        """
        owners = self.roster.owners
        return len({name for name in cosigners if owners.get(name) not in (None, owner)})

    def quorum(self, cosigners: tuple[str, ...], owner: str) -> bool:
        """Return whether enough witnesses other than ``owner`` cosigned; as :meth:`others`."""
        return self.others(cosigners, owner) >= self.roster.quorum

    def check_plans(self) -> None:
        """Plans that are needed are here, and none that nothing names (``plan``).

        A plan that was only approved or refused, or whose order was refused, was never run; nobody
        may have it.
        """
        for name in sorted(self.needed - self.plans.keys()):
            self.findings.fault("plan", f"plan {short(name)} is referred to and not here")
        if self.absent:  # whose entries may be those that refer to it
            return
        for name in sorted(self.plans.keys() - self.referred - self.needed):
            self.findings.fault("plan", f"plan {short(name)} is not referred to")
