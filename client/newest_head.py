"""Check that the ledger is the newest one, by the last head that each coordinator saw (H31).

An order brings the newest head that *its* coordinator saw. If a site has several coordinators, that
is not enough: an old copy of the ledger extends the head of one coordinator, while another one's
charges are missing. So the site reserves nothing until each coordinator has sent its newest head
since the client started, and nothing ever once one of them sent a head that the ledger does not
extend.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from privet.client.admission import RefusalError
from privet.client.operator.newer_ledger import note_newer
from privet.common.errors import HeadAwaitedError, NoteError, RolledBackError
from privet.common.order import Status
from privet.privacy.evidence.ledger import Ledger

MAX_NOTE = 64 << 10
"""Characters of a head that are read: more than any has, with the cosignatures of hundreds."""

_LOG = logging.getLogger("privet.client")


class NewestHeads:
    """The heads that the coordinators of one site have sent since its client started.

    Its users must serialise their calls (:attr:`privet.client.turns.Turns.ledger`).

    Args:
        awaited: names of the coordinators that must send a head.
    """

    def __init__(self, awaited: Iterable[str] = ()) -> None:
        self._awaited = dict.fromkeys(awaited, "it has not come, or is of an earlier version")
        self._rolled_back = ""

    @property
    def awaited(self) -> dict[str, str]:
        """Coordinators that have not sent a head, each with the reason."""
        return dict(self._awaited)

    def take(self, coordinator: str, ledger: Ledger, note: str) -> None:
        """Compare the newest head that a coordinator saw with the site's ledger.

        Args:
            coordinator: its name at this site.
            ledger: of the site.
            note: the head, signed by the site's key; "" if the coordinator never saw one.

        Raises:
            RolledBackError: if the log does not extend it.
            NoteError: if no key of this log signed it. The coordinator stays awaited: the head may
                be of a key that an older copy of the ledger does not have.
            LedgerError: if the log cannot be read now; the coordinator stays awaited.
        """
        try:
            if len(note) > MAX_NOTE:
                raise NoteError(f"it has {len(note):,} characters; a head has at most {MAX_NOTE:,}")
            if note:
                # Not kept: it has no cosignature, and a full disk must not hold the site up.
                ledger.log.require_extends(note, keep=False)
        except RolledBackError as error:
            note_newer(ledger, note)
            self._rolled_back = f"'{coordinator}' saw a newer ledger: {error}"
            raise
        except NoteError as error:
            if coordinator in self._awaited:
                self._awaited[coordinator] = f"what it saw is not of this ledger's keys: {error}"
            raise
        if self._awaited.pop(coordinator, None) is not None and not self._awaited:
            _LOG.info("every coordinator has sent what it saw of the ledger")

    def require(self, asking: str) -> None:
        """Check that no other coordinator may have seen a newer ledger.

        Args:
            asking: name of the coordinator whose order is answered; the order brings a head of its
                own.

        Raises:
            RefusalError: if one has seen a newer ledger.
            HeadAwaitedError: if one has not sent its head yet.
        """
        if self._rolled_back:
            raise RefusalError(Status.REFUSED_ROLLBACK, self._rolled_back)
        missing = {name: why for name, why in self._awaited.items() if name != asking}
        if missing:
            raise HeadAwaitedError(
                "waiting until each other coordinator has sent what it saw of this ledger, which "
                "may have been restored from an older copy: "
                + "; ".join(f"'{name}': {why}" for name, why in missing.items())
                + ". If it was not restored, start the client with --not-restored"
            )
