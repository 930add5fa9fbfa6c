"""The endpoint of a site: what comes in over the link is answered here.

::

    Dialer ── SiteEndpoint ─┬─ offer: is it our coordinator, our key in its roster, a plan of our
                            │         policy that was approved, and within the budget?
                            └─ all else ── Flower's ClientApp ── Site (reserve, train, commit)

A log is shown while a trainer is at work: all that touches ledger and witness has one lock, and
the trainer does its part without it. An offer waits: it may replace the trainer.

A site has one run of each coordinator at a time, and a gate for each coordinator; all gates of a
site share one ledger, and take their turns (:class:`~privet.client.turns.Turns`). The policy
is read anew at each offer, so what its operator changed holds from the next run on, or from when
the coordinator was started again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from privet.client.admission import AdmissionControl, NotApproved, Refusal
from privet.client.app import context_of, create_app, serve
from privet.client.data.loader import probe_database
from privet.client.data.source import misfit, require_source
from privet.client.link.addresses import Addresses
from privet.client.link.coordinators import Membership, memberships
from privet.client.link.dial import LinkRequest, LinkResponse
from privet.client.link.notices import Notices
from privet.client.link.offers import Offers
from privet.client.link.order_keys import follow_handovers, kept_handovers
from privet.client.link.refusals import Refusals
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
    EvidenceFault,
    InputError,
    NoRoom,
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

_LOG = logging.getLogger("privet.gate")

ORDERS = ("train", "evaluate")
"""Kinds of parcels that are answered one at a time, whoever asks."""
PROBE_INTERVAL_S = 30.0
"""Seconds between two looks at a database while a run is offered."""

TrainingFor = Callable[[Plan, Policy, str], TrainerProtocol]
"""Makes the trainer of a plan for a data set of the policy."""


@dataclass
class SiteEndpoint:
    """Answers what comes over the link.

    Args:
        policy: reads the site's policy as it is now.
        ledger: the site's own.
        witness: the site's own.
        membership: as the site came in to this gate's coordinator. Its home is the folder for
            offers, outbox and the operator's log.
        training_for: makes the trainer of a plan that is allowed.
        turns: shared with the gates of the site's other coordinators.
    """

    policy: Callable[[], Policy]
    ledger: Ledger
    witness: Witness
    membership: Membership
    training_for: TrainingFor
    turns: Turns = field(default_factory=Turns)
    _site: Site | None = None
    _training: TrainerProtocol | None = None
    _of: str = ""
    _roster: Roster | None = None
    _ordered: bool = False
    _said: str = ""
    _stands: Status = Status.FAILED  # where the run that was offered last stands
    _probed: tuple[str, float, InputError | None] = ("", 0.0, None)

    def __post_init__(self) -> None:
        self.join, self.home = self.membership.join, self.membership.home
        self.refusals = Refusals(self.membership.state)
        self._app = create_app(
            lambda context: self._current(),
            self.refusals.note_order,
            self._unopened,
            lambda: self._stands is Status.REFUSED_ROLLBACK,
        )
        self._context = context_of(self.join.site)
        self._offers = Offers.of(self.membership)
        folder = self.membership.link
        self.addresses = Addresses(folder, self.join.address)
        self.notices = Notices(folder, self.addresses)
        # Apart from those of other coordinators: a run is called as its coordinator likes.
        self._journals = JournalCopies(self.membership.state / JOURNALS)
        # A site that was restarted in the middle of a run goes on with it.
        if (offered := self._offers.run) is not None:
            self._offered(offered)

    def __call__(self, asked: LinkRequest) -> LinkResponse:
        """Answer one parcel; what is wrong with it is a status, and a line in the log.

        Questions (:data:`privet.client.link.dial.BESIDE`) may be asked while another call answers.
        """
        round_s = 0.0 if (site := self._site) is None else site.plan.strategy.timeout
        turn = self.turns.for_order(round_s) if asked.kind in ORDERS else nullcontext()
        with turn, self.turns.ledger:
            if asked.kind == offer.RUNS:
                return LinkResponse(offer.encode_runs(self._journals_of_ours()), {})
            if asked.kind == offer.KIND:
                return LinkResponse(offer.encode_answer(self._offered(asked.records)), {})
            if asked.kind in ORDERS:
                self._follow_policy()
            self._ordered = True
            return LinkResponse(
                *serve(self._app, self._context, asked.kind, asked.records, asked.arrays)
            )

    def take_notice(self, notice: pb.Notice) -> None:
        """Keep what the coordinator tells of itself (:mod:`privet.client.link.notices`).

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
            RolledBack: if the ledger is older.
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
        self._site, self._training, self._of, self._roster = None, None, "", None

    def _current(self) -> Site:
        """Return the run that goes on here.

        What kept it back when the client was started may have passed: a head of another
        coordinator that was awaited, a pause, a database. Nobody offers a run again that goes on.

        Raises:
            Refusal: if none does; why is in the log.
        """
        waits = self._site is None and self._stands is Status.NOT_NOW
        if waits and (kept := self._offers.run) is not None:
            self._offered(kept)
        if self._site is None:
            raise Refusal(Status.REFUSED_PLAN, "no run was offered")
        return self._site

    def _unopened(self, order: Order) -> Status:
        """Return how an order is answered while its run does not go on here.

        One that was reserved or refused before has an entry, and may not be answered as if it had
        none.
        """
        leaves_no_entry = self._stands in (Status.NOT_NOW, Status.REFUSED_ROLLBACK)
        if leaves_no_entry and not self.ledger.book.is_answered(order):
            return self._stands
        return Status.FAILED

    def _follow_policy(self) -> None:
        """Take a policy up that another coordinator's offer brought into force meanwhile.

        What is reserved is held against the policy in the ledger, so a run that goes on under an
        older one would be refused. It is offered again here, as after a restart.
        """
        self.ledger.log.refresh()
        noted = self.ledger.book.policy
        if self._site is None or noted is None or noted == self._site.guard.policy.public():
            return
        if (offered := self._offers.run) is not None and noted == self.policy().public():
            self._offered(offered)

    def _offered(self, records: bytes) -> Status:
        """Take a run that is offered, where nothing speaks against it; return where it stands."""
        self._stands = self._taken(records)
        return self._stands

    def _taken(self, records: bytes) -> Status:
        about: dict[str, str] = {}
        try:
            run, plan_value, roster_value = offer.decode(records)
            plan, roster = Plan.parse(plan_value, where="offer"), Roster.parse(roster_value)
            about = {"plan": plan.digest}
            policy = self.policy()
            self._check_roster(roster, run, policy)
            self._require_same_journal(run, roster)
            self._offers.keep(plan, self.membership.name)
            # A run keeps to the data set that it began with, whatever the policy says since.
            data_set = self.ledger.book.data_set_of(run) or policy.data_set_for(plan)
            guard = AdmissionControl(
                policy, self.ledger, roster, data_set, require_newest=self._require_newest
            )
            guard.require_newest()  # first: an old copy of a ledger gets no further entry
            # Only a plan that is allowed makes a site of it, which registers populations for life.
            guard.require_allowed(plan, in_force=False)
            self.ledger.require_not_paused()
            # A module that was changed since needs a trainer that has not loaded it yet.
            of = digest_json([plan_value, policy.model_dump(mode="json"), code_digest(plan)])
            if self._of != of or not self._ordered:
                require_source(policy, guard.data_set, plan)
                self._require_database(policy, guard.data_set, of)
            if self._of != of:
                self.close()
                self._training = self.training_for(plan, policy, guard.data_set)
                self._of, self._roster, self._ordered = of, None, False
            if self._roster != roster:
                # Its trainer stays: a roster says nothing of data or model.
                assert self._training is not None
                self._site = Site(
                    self.join.site, plan, self.home, guard, self.witness, roster,
                    Aside(self._training, self.turns.ledger), live=True,
                    journals=self._journals,
                )  # fmt: skip
                self._roster = roster
            guard.look(plan, run)
            self._offers.keep_run(records)
        except Refusal as no:
            if no.status is Status.REFUSED_ROLLBACK:
                # Kept: the site takes part in it once its operator has the newer ledger back.
                self.close()
                with suppress(OSError):  # a full disk; the next offer keeps it
                    self._offers.keep_run(records)
            if not isinstance(no, NotApproved):
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

    def _require_database(self, policy: Policy, data_set: str, of: str) -> None:
        """Check a database, but not each second: to connect is an event in its own log.

        Raises:
            InputError: what was found, also where that was a while ago.
        """
        if policy.data_set(data_set)[1].sql is None:
            return
        asked, when, fault = self._probed
        if asked != of or time.monotonic() - when > PROBE_INTERVAL_S:
            fault = None
            try:
                probe_database(policy, data_set)
            except InputError as error:
                fault = error
            self._probed = of, time.monotonic(), fault
        if fault is not None:
            raise fault.with_traceback(None)

    def _passes(self, error: Exception) -> bool:
        """Return whether a run may be offered again with another outcome, nobody deciding anew."""
        if is_passing(error):
            return True
        try:
            require_ledger_room(self.ledger)
        except NoRoom:
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

    def _journals_of_ours(self) -> list[dict[str, Any]]:
        """Return the runs of this coordinator, and of no other, whose journals are kept here."""
        keys = {self.join.coordinator["orders"]}
        for one in kept_handovers(self.membership.link):
            keys |= {one.new.fingerprint} if one.old.fingerprint in keys else set()
        return self._journals.all(keys)

    def _require_same_journal(self, run: str, roster: Roster) -> None:
        """Check that a run goes on with the journal that it was begun with."""
        try:
            self._journals.require_same(run, roster)
        except EvidenceFault as error:
            raise Refusal(Status.REFUSED_CONFLICT, str(error)) from error

    def _check_roster(self, roster: Roster, run: str, policy: Policy) -> None:
        """Check that the roster is of our coordinator, and has this site as it is."""
        chief, said = roster.coordinator, self.join.coordinator
        if chief.witness.fingerprint != said["witness"]:
            self._refuse("the coordinator's witness key is not the join file's")
        self._check_order_key(chief.orders.fingerprint, said["orders"], run, policy)
        own = roster.site(self.join.site)
        if (own.ledger, own.witness) != (self.ledger.log.first_key, self.witness.key):
            self._refuse("the roster has other keys of this site")

    def _check_order_key(self, key: str, joined: str, run: str, policy: Policy) -> None:
        """Check that a run's order key is ours: the join file's, one of its line, or a listed one.

        Args:
            key: fingerprint of the run's order key.
            joined: fingerprint in the join file.
            run: the run's identifier.
            policy: as it is now.
        """
        if key != joined:
            # It may be that the policy lets a key ask since the coordinator showed it.
            follow_handovers(policy, self.ledger, kept_handovers(self.membership.link))
        keys = self.ledger.book.order_keys
        is_kin = key in keys.line(joined) or joined in keys.line(key)
        if not is_kin and key not in policy.allow.coordinators:
            self._refuse("the coordinator's orders key is not the join file's")
        if not is_kin and self._is_of_another(key):
            self._refuse("the run is under the order key of another coordinator of this site")
        if self.ledger.book.is_replaced(key, run):
            self._refuse(
                f"the run is under order key {key}, and {keys.successor(key)} follows it: the "
                "coordinator has to submit the plan again"
            )

    def _is_of_another(self, key: str) -> bool:
        """Whether another coordinator came here with an order key, or with one of its line.

        Who shows that one's signed orders would be handed what it was answered.
        """
        keys = self.ledger.book.order_keys
        others = [one for one in memberships(self.home) if one.link != self.membership.link]
        theirs = [one.join.coordinator["orders"] for one in others]
        return any(key in keys.line(one) or one in keys.line(key) for one in theirs)

    @staticmethod
    def _refuse(why: str) -> NoReturn:
        raise Refusal(Status.REFUSED_POLICY, why)
