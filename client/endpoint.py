"""The endpoint of a site: it answers what arrives over the link.

::

    Dialer ── SiteEndpoint ─┬─ offer: is it our coordinator, our key in its roster, a plan of our
                            │         policy that was approved, and within the budget?
                            └─ all else ── Flower's ClientApp ── Site (reserve, train, commit)

A log is sent also while a trainer is at work: all that touches ledger and witness has one lock, and
the trainer does its part without it. An offer waits: it may replace the trainer.

A site has one run of each coordinator at a time, and an endpoint for each coordinator. All
endpoints of a site share one ledger and take turns (:class:`~privet.client.turns.Turns`). The
policy is read again at each offer, so a change holds from the next run on, or from the
coordinator's next start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

from privet.client.admission import AdmissionControl, NotApprovedError, RefusalError
from privet.client.app import context_of, create_app, serve
from privet.client.data.probe import DatabaseProbe
from privet.client.data.source import misfit, require_source
from privet.client.link.addresses import Addresses
from privet.client.link.coordinators import Membership
from privet.client.link.dial import LinkRequest, LinkResponse
from privet.client.link.notices import Notices
from privet.client.link.offers import Offers
from privet.client.link.order_keys import follow_handovers
from privet.client.link.refusals import Refusals
from privet.client.link.roster_check import RosterCheck
from privet.client.offered_run import OfferedRun, OpeningSteps
from privet.client.passing import is_passing, require_ledger_room
from privet.client.recovery.journal_copies import FOLDER as JOURNALS
from privet.client.recovery.journal_copies import JournalCopies
from privet.client.site import Site
from privet.client.training.aside import Aside
from privet.client.training.protocol import TrainerProtocol
from privet.client.turns import Turns
from privet.common.canonical import digest_json
from privet.common.code import code_digest
from privet.common.errors import (
    DataError,
    DiskFullError,
    EvidenceError,
    NoteError,
    PolicyError,
    PrivetError,
)
from privet.common.link import link_pb2 as pb
from privet.common.link import offer
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.roster import Roster
from privet.privacy.evidence.witness import Witness
from privet.privacy.policy import Policy

_LOG = logging.getLogger("privet.endpoint")

ORDERS = ("train", "evaluate")
"""Kinds of requests that are answered one at a time, for all coordinators together."""

TrainingFor = Callable[[Plan, Policy, str], TrainerProtocol]
"""Makes the trainer of a plan for a data set of the policy."""


@dataclass
class SiteEndpoint:
    """Answers what comes over the link.

    Args:
        policy: reads the site's policy as it is now.
        ledger: the site's own.
        witness: the site's own.
        membership: with this endpoint's coordinator. Its home is the folder for offers, outbox and
            the operator's log.
        training_for: makes the trainer of a plan that is allowed.
        turns: shared with the endpoints of the site's other coordinators.
    """

    policy: Callable[[], Policy]
    ledger: Ledger
    witness: Witness
    membership: Membership
    training_for: TrainingFor
    turns: Turns = field(default_factory=Turns)
    _run: OfferedRun = field(default_factory=OfferedRun)
    _site: Site | None = None
    _training: TrainerProtocol | None = None
    _said: str = ""

    def __post_init__(self) -> None:
        self.join, self.home = self.membership.join, self.membership.home
        self.refusals = Refusals(self.membership.state)
        self._app = create_app(
            lambda context: self._current(),
            self.refusals.note_order,
            self._unopened,
            lambda: self._run.is_rolled_back,
        )
        self._context = context_of(self.join.site)
        self._offers = Offers.of(self.membership)
        folder = self.membership.link
        self.addresses = Addresses(folder, self.join.address)
        self.notices = Notices(folder, self.addresses)
        # Apart from those of other coordinators: a run is called as its coordinator likes.
        self._journals = JournalCopies(self.membership.state / JOURNALS)
        self._roster_check = RosterCheck(self.membership, self.ledger, self.witness)
        self._database = DatabaseProbe()
        # A site that was restarted in the middle of a run continues with it.
        if (offered := self._offers.run) is not None:
            self._offered(offered)

    def __call__(self, asked: LinkRequest) -> LinkResponse:
        """Answer one request; what is wrong with it is a status, and a line in the log.

        Questions (:data:`privet.client.link.dial.BESIDE`) may be asked while another call answers.
        """
        round_s = 0.0 if (site := self._site) is None else site.plan.strategy.timeout
        turn = self.turns.for_order(round_s) if asked.kind in ORDERS else nullcontext()
        with turn, self.turns.ledger:
            if asked.kind == offer.RUNS:
                journals = self._journals.all(self._roster_check.order_keys_of_ours())
                return LinkResponse(offer.encode_runs(journals), {})
            if asked.kind == offer.KIND:
                return LinkResponse(offer.encode_answer(self._offered(asked.records)), {})
            if asked.kind in ORDERS:
                self._follow_policy()
            self._run = self._run.asked()
            return LinkResponse(
                *serve(self._app, self._context, asked.kind, asked.records, asked.arrays)
            )

    def take_notice(self, notice: pb.Notice) -> None:
        """Keep what the coordinator says of itself (:mod:`privet.client.link.notices`).

        Raises:
            InputError: if it cannot be taken.
            OSError: if it cannot be written.
        """
        with self.turns.ledger:
            shown = self.notices.take(notice)
            follow_handovers(self.policy(), self.ledger, shown)

    def take_head(self, head: pb.Head) -> None:
        """Compare the newest head that the coordinator saw of this ledger with what is here.

        Raises:
            RolledBackError: if the ledger is older.
            NoteError: if it cannot be compared.
        """
        with self.turns.ledger:
            try:
                note = head.note.decode()
            except UnicodeDecodeError:
                raise NoteError("what the coordinator saw of the ledger is no text") from None
            self.turns.heads.take(self.membership.name, self.ledger, note)

    def _require_newest(self) -> None:
        self.turns.heads.require(self.membership.name)

    def close(self) -> None:
        """Let go of the run: end its trainer."""
        if self._training is not None:
            self._training.close()
        self._run, self._site, self._training = self._run.closed(), None, None

    def _current(self) -> Site:
        """Return the run that is open here.

        Raises:
            RefusalError: if none does; why is in the log.
        """
        if self._run.is_tried_again and (kept := self._offers.run) is not None:
            self._offered(kept)
        if self._site is None:
            raise RefusalError(Status.REFUSED_PLAN, "no run was offered")
        return self._site

    def _unopened(self, order: Order) -> Status:
        """Return how an order is answered while its run is not open here."""
        is_answered = self.ledger.state.is_answered(order)
        return self._run.status_of_unopened(is_answered=is_answered)

    def _follow_policy(self) -> None:
        """Apply a policy that another coordinator's offer brought into force meanwhile.

        What is reserved is checked against the policy in the ledger, so a run that continues under
        an older one would be refused. It is offered again here, as after a restart.
        """
        self.ledger.log.refresh()
        noted = self.ledger.state.policy
        if self._site is None or noted is None or noted == self._site.admission.policy.public():
            return
        if (offered := self._offers.run) is not None and noted == self.policy().public():
            self._offered(offered)

    def _offered(self, records: bytes) -> Status:
        """Take a run that is offered, where nothing speaks against it; return where it stands."""
        standing = self._taken(records)
        self._run = self._run.answered(standing)
        return standing

    def _taken(self, records: bytes) -> Status:
        about: dict[str, str] = {}
        try:
            run, plan_value, roster_value = offer.decode(records)
            plan, roster = Plan.parse(plan_value, where="offer"), Roster.parse(roster_value)
            about = {"plan": plan.digest}
            policy = self.policy()
            self._roster_check.require_ours(roster, run, policy)
            self._require_same_journal(run, roster)
            self._offers.keep(plan, self.membership.name)
            # A run keeps to the data set that it began with, whatever the policy says since.
            data_set = self.ledger.state.data_set_of(run) or policy.data_set_for(plan)
            admission = AdmissionControl(
                policy, self.ledger, roster, data_set, require_newest=self._require_newest
            )
            admission.require_newest()  # first: an old copy of a ledger gets no further entry
            # Only a plan that is allowed makes a site of it, which registers populations for life.
            admission.require_allowed(plan, in_force=False)
            self.ledger.require_not_paused()
            key = digest_json([plan_value, policy.model_dump(mode="json"), code_digest(plan)])
            self._open(self._run.steps(key, roster), key, plan, admission, roster)
            admission.look(plan, run)
            self._offers.keep_run(records)
        except RefusalError as no:
            if no.status is Status.REFUSED_ROLLBACK:
                # Kept: the site takes part in it once its operator has the newer ledger back.
                self.close()
                with suppress(OSError):  # a full disk; the next offer keeps it
                    self._offers.keep_run(records)
            if not isinstance(no, NotApprovedError):
                return self._tell(no.status, str(no), about)
            before = self._said
            self._tell(Status.WAITS_FOR_APPROVAL, str(no), about)
            if self._said != before and (fault := misfit(policy, plan)):
                # An error's text is for the operator's log alone: it names columns.
                _LOG.warning(
                    "an offered plan does not fit", extra={**about, "why": DataError(fault)}
                )
            return Status.WAITS_FOR_APPROVAL
        except PolicyError as error:
            return self._tell(Status.REFUSED_POLICY, str(error), about)  # it holds no record
        except (PrivetError, OSError) as error:
            status = Status.NOT_NOW if self._passes(error) else Status.REFUSED_POLICY
            return self._tell(status, error, about)
        return self._tell(offer.READY, None, about)

    def _open(
        self,
        steps: OpeningSteps,
        trainer: str,
        plan: Plan,
        admission: AdmissionControl,
        roster: Roster,
    ) -> None:
        """Do what an offer needs that is allowed.

        Args:
            steps: what it needs.
            trainer: digest of what its trainer is made for.
            plan: of the run.
            admission: that allowed it.
            roster: of the run.

        Raises:
            InputError: if the data set is not there.
        """
        policy, data_set = admission.policy, admission.data_set
        if steps.check_data:
            require_source(policy, data_set, plan)
            self._database.require(policy, data_set, trainer)
        if steps.make_trainer:
            self.close()
            self._training = self.training_for(plan, policy, data_set)
            self._run = self._run.with_trainer(trainer)
        if steps.make_site:
            assert self._training is not None
            training = Aside(self._training, self.turns.ledger)
            self._site = Site(
                self.join.site, plan, self.home, admission, self.witness, roster, training,
                live=True, journals=self._journals,
            )  # fmt: skip
            self._run = self._run.opened(roster)

    def _passes(self, error: Exception) -> bool:
        """Return whether the same offer may have another outcome later, without a new decision."""
        if is_passing(error):
            return True
        try:
            require_ledger_room(self.ledger)
        except DiskFullError:
            return True
        return False

    def _tell(self, status: Status, why: Exception | str | None, about: dict[str, str]) -> Status:
        """Log what an offer is answered with, once: it is repeated every second.

        Args:
            status: the answer, which is returned.
            why: it is not ready; None if it is.
            about: which plan, where the offer could be read.
        """
        if (said := f"{status} {why} {about}") == self._said:
            if why is not None:
                self.refusals.note_repeated()
            return status
        self._said = said
        if why is None:
            _LOG.info("ready for the run that was offered", extra=about)
            self.refusals.note_ready()
            return status
        waits = status is Status.WAITS_FOR_APPROVAL
        event = "an offered plan waits for approval" if waits else "not ready"
        _LOG.warning(event, extra={"status": str(status), **about, "why": why})
        self.refusals.note_offer(about.get("plan", ""), status)
        return status

    def _require_same_journal(self, run: str, roster: Roster) -> None:
        """Check that a run continues with the journal that it was begun with."""
        try:
            self._journals.require_same(run, roster)
        except EvidenceError as error:
            raise RefusalError(Status.REFUSED_CONFLICT, str(error)) from error
