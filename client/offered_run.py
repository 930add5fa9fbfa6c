"""The state of the run that a coordinator offered last to a site: decisions without I/O.

::

                 offer, all fits                       order, question
    NOTHING ──────────────────────▶ OPEN ─────────────────────────────▶ OPEN, begun
       ▲                             │  ▲                                   │
       │  rolled back, closed        │  │ another roster: the trainer stays │
       └─────────────────────────────┴──┴──────────── another plan, policy ─┘
                                                      or code: a new trainer

An offer is repeated every second and decided again each time; an open run continues while another
is refused. The endpoint (:mod:`privet.client.endpoint`) does what is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from privet.common.order import Status
from privet.privacy.evidence.roster import Roster


@dataclass(frozen=True)
class OpeningSteps:
    """What has to be done before an offered run may continue.

    Attributes:
        check_data: check that the data set is there, reading no record.
        make_trainer: end the trainer that is there and make another.
        make_site: make the site's side of the run, with the trainer that is there.
    """

    check_data: bool
    make_trainer: bool
    make_site: bool


@dataclass(frozen=True)
class OfferedRun:
    """The state; each method returns the next one, or decides something from it.

    Attributes:
        trainer: digest of plan, policy and code that the open trainer was made for; "" without one.
        roster: of the open run; None if none is.
        begun: whether anything was asked of it since its trainer was made. From then on its data
            set is not checked again for a repeated offer.
        standing: what the newest offer was answered with.
    """

    trainer: str = ""
    roster: Roster | None = None
    begun: bool = False
    standing: Status = Status.FAILED

    def steps(self, trainer: str, roster: Roster) -> OpeningSteps:
        """Decide what an offer that is allowed needs.

        Args:
            trainer: digest of its plan, of the policy and of the code, as they are now. A module
                that was changed needs a trainer that has not loaded it yet.
            roster: of the offered run. It says nothing of data or model, so that a new one leaves
                the trainer.
        """
        is_new = trainer != self.trainer
        return OpeningSteps(
            check_data=is_new or not self.begun,
            make_trainer=is_new,
            make_site=is_new or roster != self.roster,
        )

    def with_trainer(self, trainer: str) -> OfferedRun:
        """Return the state after a trainer was made."""
        return replace(self, trainer=trainer, roster=None, begun=False)

    def opened(self, roster: Roster) -> OfferedRun:
        """Return the state after the site's side of a run was made, with the trainer there is."""
        if not self.trainer:
            raise ValueError("a run is opened with a trainer")
        return replace(self, roster=roster)

    def closed(self) -> OfferedRun:
        """Return the state after the trainer was ended, and its run with it."""
        return replace(self, trainer="", roster=None)

    def asked(self) -> OfferedRun:
        """Return the state after anything but an offer was asked."""
        return replace(self, begun=True)

    def answered(self, standing: Status) -> OfferedRun:
        """Return the state after an offer was answered."""
        return replace(self, standing=standing)

    @property
    def is_open(self) -> bool:
        """Whether a run is open here."""
        return self.roster is not None

    @property
    def is_rolled_back(self) -> bool:
        """Whether the ledger is too old for the run. The site answers to its name all the same,
        so that it may come back in the same run.
        """
        return self.standing is Status.REFUSED_ROLLBACK

    @property
    def is_tried_again(self) -> bool:
        """Whether an order makes the site try the kept offer again.

        What kept it back may have passed: a pause, a database, a head that was awaited. Nobody
        offers an open run again.
        """
        return not self.is_open and self.standing is Status.NOT_NOW

    def status_of_unopened(self, *, is_answered: bool) -> Status:
        """Return how an order is answered while its run is not open here.

        Args:
            is_answered: whether the ledger has an entry of the order: one that was reserved or
                refused may not be answered as if it had none.
        """
        if self.standing in (Status.NOT_NOW, Status.REFUSED_ROLLBACK) and not is_answered:
            return self.standing
        return Status.FAILED
