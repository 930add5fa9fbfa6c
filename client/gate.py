"""The gate of a site: what comes in over the link is answered here.

::

    Dialer ── Gate ─┬─ offer: is it our coordinator, our key in its roster, a plan of our
                    │         policy that was approved, and within the budget?
                    └─ all else ── Flower's ClientApp ── Site (admit, reserve, train, commit)

A site has one run at a time. Its policy is read anew at each offer, so what its operator
changed holds from the next run on, or from when the coordinator was started again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from privet.client.app import context_of, create_app, serve
from privet.client.data.loader import probe_database
from privet.client.data.source import require_source
from privet.client.dial import Asked, Told
from privet.client.guard import Guard, Refusal
from privet.client.join import Join
from privet.client.offers import Offers
from privet.client.site import Site
from privet.client.training import Training
from privet.common.canonical import digest_json
from privet.common.code import code_digest
from privet.common.errors import DataError, InputError, PolicyError, PrivetError
from privet.common.link import offer
from privet.common.order import Status
from privet.common.plan import Plan
from privet.privacy.ledger import Ledger
from privet.privacy.policy import Policy
from privet.privacy.roster import Roster
from privet.privacy.witness import Witness

_LOG = logging.getLogger("privet.gate")

PROBE_INTERVAL_S = 30.0
"""Seconds between two looks at a database while a run is offered."""

TrainingFor = Callable[[Plan, Policy, str], Training]
"""Makes the trainer of a plan for a data set of the policy."""


@dataclass
class Gate:
    """Answers what comes over the link.

    Args:
        policy: reads the site's policy as it is now.
        ledger: the site's own.
        witness: the site's own.
        join: as the site came in.
        home: folder for offers, outbox and the operator's log.
        training_for: makes the trainer of a plan that is allowed.
    """

    policy: Callable[[], Policy]
    ledger: Ledger
    witness: Witness
    join: Join
    home: Path
    training_for: TrainingFor
    _site: Site | None = None
    _training: Training | None = None
    _of: str = ""
    _roster: Roster | None = None
    _ordered: bool = False
    _said: str = ""
    _probed: tuple[str, float, str] = ("", 0.0, "")

    def __post_init__(self) -> None:
        self._app = create_app(lambda context: self._current())
        self._context = context_of(self.join.site)
        self._offers = Offers(self.home)
        # A site that was restarted in the middle of a run goes on with it.
        if (offered := self._offers.run) is not None:
            self._offered(offered)

    def __call__(self, asked: Asked) -> Told:
        """Answer one parcel; what is wrong with it is a status, and a line in the log."""
        if asked.kind == offer.KIND:
            return Told(offer.encode_answer(self._offered(asked.records)), {})
        self._ordered = True
        return Told(*serve(self._app, self._context, asked.kind, asked.records, asked.arrays))

    def close(self) -> None:
        """Let go of the run: end its trainer."""
        if self._training is not None:
            self._training.close()
        self._site, self._training, self._of, self._roster = None, None, "", None

    def _current(self) -> Site:
        if self._site is None:
            raise Refusal(Status.REFUSED_PLAN, "no run was offered")
        return self._site

    def _offered(self, records: bytes) -> Status:
        try:
            run, plan_value, roster_value = offer.decode(records)
            plan, roster = Plan.parse(plan_value, where="offer"), Roster.parse(roster_value)
            policy = self.policy()
            self._check_roster(roster)
            self._offers.keep(plan)
            # A run keeps to the data set that it began with, whatever the policy says since.
            data_set = self.ledger.book.data_set_of(run) or policy.data_set_for(plan)
            guard = Guard(policy, self.ledger, roster, data_set)
            # Only a plan that is allowed makes a site of it, which registers populations for life.
            guard.require_allowed(plan)
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
                    self.join.site, plan, self.home, guard, self.witness, roster, self._training,
                    live=True,
                )  # fmt: skip
                self._roster = roster
            guard.look(plan, run)
            self._offers.keep_run(records)
        except Refusal as no:
            self._tell(str(no.status), str(no))
            return no.status
        except PolicyError as error:
            self._tell(str(Status.REFUSED_POLICY), str(error))  # it holds no record
            return Status.REFUSED_POLICY
        except (PrivetError, OSError) as error:
            self._tell(str(Status.REFUSED_POLICY), error)
            return Status.REFUSED_POLICY
        self._tell(str(offer.READY), None)
        return offer.READY

    def _require_database(self, policy: Policy, data_set: str, of: str) -> None:
        """Check a database, but not each second: to connect is an event in its own log.

        Raises:
            DataError: what was found, also where that was a while ago.
        """
        if policy.data_set(data_set)[1].sql is None:
            return
        asked, when, fault = self._probed
        if asked != of or time.monotonic() - when > PROBE_INTERVAL_S:
            fault = ""
            try:
                probe_database(policy, data_set)
            except InputError as error:
                fault = str(error)
            self._probed = of, time.monotonic(), fault
        if fault:
            raise DataError(fault)

    def _tell(self, status: str, why: Exception | str | None) -> None:
        """Log what an offer was answered with, once: it is repeated every second."""
        if (said := f"{status} {why}") == self._said:
            return
        self._said = said
        if why is None:
            _LOG.info("ready for the run that was offered")
        else:
            _LOG.warning("not ready", extra={"status": status, "why": why})

    def _check_roster(self, roster: Roster) -> None:
        """Check that the roster is of our coordinator, and has this site as it is."""
        chief, said = roster.coordinator, self.join.coordinator
        keys = {"orders": chief.orders, "witness": chief.witness}
        for name, key in keys.items():
            if key.fingerprint != said[name]:
                raise Refusal(
                    Status.REFUSED_POLICY, f"the coordinator's {name} key is not the join file's"
                )
        own = roster.site(self.join.site)
        if (own.ledger, own.witness) != (self.ledger.log.first_key, self.witness.key):
            raise Refusal(Status.REFUSED_POLICY, "the roster has other keys of this site")
