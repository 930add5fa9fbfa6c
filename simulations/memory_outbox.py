"""Charged releases of a simulated site, in memory: nobody asks for them after the process."""

from __future__ import annotations

from privet.common.release import Release


class MemoryOutbox:
    """As :class:`privet.client.outbox.Outbox`, without files."""

    in_files = False

    def __init__(self) -> None:
        self._kept: dict[str, Release] = {}

    def make_room(self, slot: str, size: int) -> None:
        """Do nothing: no disk is needed.

        Args:
            slot: of the release.
            size: in bytes.
        """

    def give_up_room(self, slot: str) -> None:
        """Do nothing: no space was reserved.

        Args:
            slot: of the release.
        """

    def put(self, slot: str, release: Release) -> None:
        """Store a release.

        Args:
            slot: of the order that it answers.
            release: with its order, facts and arrays.
        """
        self._kept[slot] = release

    def get(self, slot: str) -> Release | None:
        """Return the release of ``slot``, or None."""
        return self._kept.get(slot)

    def remove(self, slot: str) -> None:
        """Remove the release of ``slot``, if there is one."""
        self._kept.pop(slot, None)

    def forget_before(self, run: str, keep: int, keep_bytes: int = 0) -> None:
        """Remove all releases of ``run`` but the newest one.

        Args:
            run: whose releases.
            keep: of no effect: memory is for the round that is under way.
            keep_bytes: of no effect.
        """
        of_run = [slot for slot in self._kept if slot.partition("/")[0] == run]
        for slot in of_run[:-1]:
            del self._kept[slot]
