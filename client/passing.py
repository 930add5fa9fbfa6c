"""Temporary states of a site: a pause, a full disk, an absent database, trainer or key.

They count as absence, not as failure: the answer is ``not-now``, the ledger notes nothing, and
nothing is spent. All checks here happen before the reservation and read no record. Any fault after
it is ``failed``, with its charge kept (H30): time, memory and files depend on records by then.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import IO

from privet.client.outbox import ReleaseStore
from privet.common.errors import (
    DiskFullError,
    HeadAwaitedError,
    LedgerFullError,
    PrivateKeyError,
    PrivetError,
    SiteClosedError,
    SitePausedError,
    SourceUnavailableError,
    TrainerLostError,
    TrainerUnconfinedError,
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
    """Return whether an error before the reservation means only "not now"."""
    if isinstance(error, SiteClosedError | TrainerUnconfinedError):
        return False
    passing = (
        SitePausedError
        | PrivateKeyError
        | SourceUnavailableError
        | TrainerLostError
        | DiskFullError
        | HeadAwaitedError
    )
    return isinstance(error, passing)


def passing_cause(
    error: Exception, ledger: Ledger, order: Order, probe: Callable[[], None]
) -> Exception | None:
    """Return the temporary cause for which an order came to nothing; None if there is none.

    Args:
        error: raised before the reservation, or by it.
        ledger: of the site.
        order: to answer. An order that was ever reserved has an entry, and may not be answered as
            if it had none.
        probe: raises DiskFullError if the disk is full: a ledger that cannot be written does not
            say why.
    """
    try:
        ledger.log.refresh()
        if ledger.state.is_answered(order):
            return None
        if is_passing(error):
            return error
        probe()
    except DiskFullError as full:
        return full
    except (OSError, PrivetError):
        return None
    return None


def make_room(
    outbox: ReleaseStore, ledger: Ledger, plan: Plan, order: Order, model: Arrays
) -> LedgerRoom | None:
    """Reserve the disk space that an order may need, before its charge.

    Args:
        outbox: in which the release will be.
        ledger: in which its entries will be.
        plan: of the order.
        order: to train or to evaluate; its slot names the release.
        model: that came with the order.

    Returns:
        The space of the ledger's entries; the outbox holds that of the release. None if the outbox
        is not in files.

    Raises:
        DiskFullError: if the disk, a quota or a limit of this process does not have the space.
    """
    if not outbox.in_files:
        return None
    room = LedgerRoom(ledger)
    size = room_of_release(plan, order, model)
    try:
        outbox.make_room(order.slot, size)
    except OSError as error:
        room.give_back()
        raise DiskFullError(
            f"no room for the release of {order.slot}, {size:,} bytes: {reason_of(error)}"
        ) from error
    return room


def room_of_release(plan: Plan, order: Order, model: Arrays) -> int:
    """Return how many bytes a release may take at most, whatever the records are.

    The size must not depend on records: a full disk would otherwise tell about them.

    Args:
        plan: of the order.
        order: to train or to evaluate.
        model: that came with the order.
    """
    numbers = _TABLE_ROOM
    if order.purpose == "train":
        numbers = size_of(model)
        if plan.compression is not None:  # a top-k update of share 1 has a place beside each number
            numbers *= 2
    return _HEADER_ROOM + _ROOM_PER_ARRAY * len(model) + numbers


def require_ledger_room(ledger: Ledger) -> None:
    """Check that the ledger's file system has space for an order's entries.

    Raises:
        DiskFullError: if it has not.
    """
    LedgerRoom(ledger).give_back()


class LedgerRoom:
    """Space on the ledger's disk, reserved before an order's charge.

    Another process may fill the disk between the charge and the entry that names its release. Then
    the space is freed, and the entry written into it.

    Args:
        ledger: of the site.

    Raises:
        DiskFullError: if the disk, a quota or a limit of this process does not have the space.
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
            raise DiskFullError(
                f"{folder}: no room for the ledger's entries: {reason_of(error)}"
            ) from error

    def give_back(self) -> None:
        """Free the space; a second call does nothing."""
        if self._taken is not None:
            self._taken.close()
        self._taken = None

    def write(self, entry: Callable[[], object]) -> None:
        """Write an entry, into the reserved space if the disk is full.

        Args:
            entry: writes the entry, or nothing of it.

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
