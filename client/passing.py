"""States of a site that pass: a pause, a full disk, a database, trainer or key that is not there.

They are absence, not failure: answered with ``not-now``, not noted in the ledger, and free. All
that is done here happens before the reservation and reads no record. Whatever goes wrong after
it is ``failed``, with its charge kept (H30): time, memory and files depend on records by then.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import IO

from privet.client.outbox import Outbox
from privet.common.errors import (
    HeadAwaitedError,
    KeyFault,
    LedgerFullError,
    NoRoom,
    PrivetError,
    SiteClosed,
    SitePaused,
    SourceUnavailable,
    TrainerLost,
    TrainerUnconfined,
    reason_of,
)
from privet.common.files.disk_space import allocate
from privet.common.flat import Arrays, size_of
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy.evidence.ledger import Ledger

LEDGER_ROOM = 1 << 18
"""Bytes that must be free where the ledger is: its entries and papers of one order, many times."""
_HEADER_ROOM, _ROOM_PER_ARRAY, _TABLE_ROOM = 1 << 16, 512, 1 << 20


def is_passing(error: Exception) -> bool:
    """Return whether an error that came before the reservation says only "not now"."""
    if isinstance(error, SiteClosed | TrainerUnconfined):
        return False
    passing = SitePaused | KeyFault | SourceUnavailable | TrainerLost | NoRoom | HeadAwaitedError
    return isinstance(error, passing)


def passing_cause(
    error: Exception, ledger: Ledger, order: Order, probe: Callable[[], None]
) -> Exception | None:
    """Return what passes by itself and is why an order came to nothing; None if nothing does.

    Args:
        error: that came before the reservation, or of it.
        ledger: of the site.
        order: that asks. One that was ever reserved has an entry, and may not be answered as if
            it had none.
        probe: raises NoRoom where the disk is full: a ledger that cannot be written does
            not say why.
    """
    try:
        ledger.log.refresh()
        if ledger.book.is_answered(order):
            return None
        if is_passing(error):
            return error
        probe()
    except NoRoom as full:
        return full
    except (OSError, PrivetError):
        return None
    return None


def make_room(
    outbox: Outbox, ledger: Ledger, plan: Plan, order: Order, model: Arrays
) -> LedgerRoom:
    """Take the room that an order may need on the disk, before anything is paid for.

    Args:
        outbox: where the release will be.
        ledger: where its entries will be.
        plan: of the order.
        order: to train or to evaluate.
        model: that came with it.

    Returns:
        The ledger's; that of the release is the outbox's.

    Raises:
        NoRoom: if the disk, a quota or a limit of this process does not have it.
    """
    room = LedgerRoom(ledger)
    size = room_of_release(plan, order, model)
    try:
        outbox.make_room(order.slot, size)
    except OSError as error:
        room.give_back()
        raise NoRoom(
            f"{outbox.folder}: no room for a release of {size:,} bytes: {reason_of(error)}"
        ) from error
    return room


def room_of_release(plan: Plan, order: Order, model: Arrays) -> int:
    """Return how many bytes a release may take at most, whatever the records are."""
    numbers = _TABLE_ROOM
    if order.purpose == "train":
        # A top-k update of share 1 has a place beside each number.
        numbers = size_of(model) * (1 if plan.compression is None else 2)
    return _HEADER_ROOM + _ROOM_PER_ARRAY * len(model) + numbers


def require_ledger_room(ledger: Ledger) -> None:
    """Check that the ledger's file system takes more.

    Raises:
        NoRoom: if it does not.
    """
    LedgerRoom(ledger).give_back()


class LedgerRoom:
    """Room on the ledger's disk that is taken before an order is paid for.

    Somebody else may fill the disk between the charge and the entry that names its release. The
    room is given back then, and the entry written into it.

    Args:
        ledger: whose disk it is.

    Raises:
        NoRoom: if the disk, a quota or a limit of this process does not have it.
    """

    def __init__(self, ledger: Ledger) -> None:
        folder = ledger.log.store.path.parent
        self._taken: IO[bytes] | None = None
        try:
            # It has no name: where the process dies, the system takes it back.
            self._taken = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            allocate(self._taken.fileno(), LEDGER_ROOM)
        except OSError as error:
            self.give_back()
            raise NoRoom(
                f"{folder}: no room for the ledger's entries: {reason_of(error)}"
            ) from error

    def give_back(self) -> None:
        """Let the room go; again is no matter."""
        if self._taken is not None:
            self._taken.close()
        self._taken = None

    def write(self, entry: Callable[[], object]) -> None:
        """Have an entry written, in the room that was taken if there is no other.

        Args:
            entry: writes it, or nothing of it.

        Raises:
            LedgerError: as ``entry``.
        """
        try:
            entry()
        except LedgerFullError:
            if self._taken is None:
                raise
            self.give_back()
            entry()
