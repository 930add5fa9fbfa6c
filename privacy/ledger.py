"""What a site spent: reserve before data is read, commit what ran, never forget.

:class:`Ledger` is the interface. :class:`RunHistory` implements it for one simulation: a
file of its own in the run folder, empty at the start, one JSON line an entry, each line
on disk before the promise is given. A reservation that was neither committed nor aborted
counts in full, so a crash over-counts and never forgets.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from privet.common.canonical import canonical_json, fsync_folder
from privet.common.errors import BudgetExceeded, InputError, LedgerError
from privet.privacy import events as ev
from privet.privacy.accounting import privacy_loss
from privet.privacy.units import PrivacyLoss, Relation, Unit

# A history is a multiset of events; an event planned and then run twice differs by no
# more than this from itself, so the cap is compared with a hair of tolerance.
_SLACK = 1e-9


@dataclass(frozen=True)
class Budget:
    """The life-time budget of a population, with its unit and relation."""

    epsilon: float
    delta: float
    unit: Unit
    relation: Relation


@dataclass(frozen=True)
class Reservation:
    """Leave to spend ``event``, given before data is opened."""

    number: int
    slot: str
    event: ev.Event


class Ledger(Protocol):
    """What a site needs of its ledger."""

    def reserve(self, slot: str, event: ev.Event) -> Reservation:
        """Debit ``event`` durably, or raise BudgetExceeded and leave everything as it was."""
        ...

    def commit(self, reservation: Reservation, event: ev.Event, digest: str) -> None:
        """Say that ``event`` ran and which release came of it; it must fit the reservation."""
        ...

    def abort(self, reservation: Reservation, *, data_opened: bool) -> None:
        """End a reservation without a release; the charge stays once data was opened."""
        ...

    def committed(self, slot: str) -> str | None:
        """Return the digest of the release committed for ``slot``, or None."""
        ...

    def pending(self, slot: str) -> Reservation | None:
        """Return the newest reservation of ``slot`` that was neither committed nor aborted."""
        ...

    def history(self) -> list[ev.Event]:
        """Return every event that counts, in order."""
        ...

    def spent(self) -> PrivacyLoss:
        """Return what the history costs."""
        ...


class RunHistory:
    """The ledger of one site in one run, kept in ``path``.

    Args:
        path: a file; missing means an empty history.
        budget: the cap; None accepts non-private events (a run without privacy).

    Raises:
        LedgerError: if the file is damaged.
    """

    def __init__(self, path: Path, budget: Budget | None) -> None:
        self.path = path
        self.budget = budget
        self._entries: list[dict[str, Any]] = []
        self._refresh()

    def reserve(self, slot: str, event: ev.Event) -> Reservation:
        """See :class:`Ledger`.

        Raises:
            BudgetExceeded: if history and ``event`` together cost more than the cap.
        """
        with self._writing():
            if self.budget is not None:
                after = self._loss([*self.history(), event])
                if not after.epsilon <= self.budget.epsilon + _SLACK:
                    raise BudgetExceeded(
                        f"{slot}: would take the population to {after}, above its cap of "
                        f"ε {self.budget.epsilon:g} ({after.terms}); {self.spent()} is spent"
                    )
            number = len(self._entries)
            self._append({"kind": "reserved", "slot": slot, "event": ev.to_json(event)})
        return Reservation(number, slot, event)

    def commit(self, reservation: Reservation, event: ev.Event, digest: str) -> None:
        """See :class:`Ledger`.

        Raises:
            LedgerError: if the reservation is not open, or what ran does not fit it. The
                charge then stays.
        """
        with self._writing():
            reserved = self._require_open(reservation)
            if not fits(event, reserved):
                raise LedgerError(
                    f"{reservation.slot}: what ran ({ev.to_json(event)}) does not fit what was "
                    f"reserved ({ev.to_json(reserved)}); the charge is kept"
                )
            self._append(
                {
                    "kind": "released",
                    "reservation": reservation.number,
                    "slot": reservation.slot,
                    "event": ev.to_json(event),
                    "digest": digest,
                }
            )

    def abort(self, reservation: Reservation, *, data_opened: bool) -> None:
        """See :class:`Ledger`."""
        with self._writing():
            self._require_open(reservation)
            self._append(
                {
                    "kind": "aborted",
                    "reservation": reservation.number,
                    "slot": reservation.slot,
                    "data_opened": data_opened,
                }
            )

    def committed(self, slot: str) -> str | None:
        """See :class:`Ledger`."""
        self._refresh()
        for entry in reversed(self._entries):
            if entry["kind"] == "released" and entry["slot"] == slot:
                return str(entry["digest"])
        return None

    def pending(self, slot: str) -> Reservation | None:
        """See :class:`Ledger`."""
        self._refresh()
        closed = {entry.get("reservation") for entry in self._entries}
        for number, entry in reversed(list(enumerate(self._entries))):
            if entry["kind"] == "reserved" and entry["slot"] == slot and number not in closed:
                return Reservation(number, slot, ev.from_json(entry["event"]))
        return None

    def history(self) -> list[ev.Event]:
        """See :class:`Ledger`: all reserved events but those aborted before data was opened."""
        free = {
            entry["reservation"]
            for entry in self._entries
            if entry["kind"] == "aborted" and not entry["data_opened"]
        }
        return [
            ev.from_json(entry["event"])
            for number, entry in enumerate(self._entries)
            if entry["kind"] == "reserved" and number not in free
        ]

    def spent(self) -> PrivacyLoss:
        """See :class:`Ledger`."""
        return self._loss(self.history())

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries so far, oldest first."""
        return list(self._entries)

    def _loss(self, events: list[ev.Event]) -> PrivacyLoss:
        budget = self.budget or Budget(0, 1e-5, Unit.RECORD, Relation.ADD_OR_REMOVE_ONE)
        return privacy_loss(events, budget.delta, budget.unit, budget.relation)

    def _require_open(self, reservation: Reservation) -> ev.Event:
        """Return the event that was reserved, as the file has it."""
        number = reservation.number
        known = 0 <= number < len(self._entries) and self._entries[number]["kind"] == "reserved"
        closed = any(entry.get("reservation") == number for entry in self._entries)
        if not known or closed:
            raise LedgerError(f"{reservation.slot}: reservation {number} is not open")
        reserved = ev.from_json(self._entries[number]["event"])
        if reserved != reservation.event:
            raise LedgerError(f"{reservation.slot}: reservation {number} is for another event")
        return reserved

    def _refresh(self) -> None:
        """Take in what another process wrote meanwhile."""
        if self.path.exists():
            with self._writing():
                pass

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the file's lock; take in what another process wrote meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._entries = _read(self.path)
            yield

    def _append(self, entry: dict[str, Any]) -> None:
        line = canonical_json({"number": len(self._entries), **entry}) + b"\n"
        new = not self.path.exists()
        # Without a buffer: what cannot be written must not be written again on closing.
        with open(self.path, "ab", buffering=0) as stream:
            before = stream.tell()
            try:
                written = stream.write(line)
                if written != len(line):
                    raise OSError(f"only {written} of {len(line)} bytes fit")
                os.fsync(stream.fileno())
            except OSError as error:
                stream.truncate(before)
                raise LedgerError(f"{self.path}: the entry could not be stored: {error}") from error
        if new:
            fsync_folder(self.path.parent)
        self._entries.append(json.loads(line))


def fits(ran: ev.Event, reserved: ev.Event) -> bool:
    """Whether ``ran`` is the reserved mechanism, run as often as reserved or less."""
    actual, planned = ev.group([ran]), dict(ev.group([reserved]))
    return all(planned.get(event, 0) >= count for event, count in actual)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    raw = path.read_bytes()
    lines = raw.split(b"\n")
    if lines and lines[-1]:
        # The last line was cut by a crash before its fsync: its promise was never given.
        with open(path, "r+b") as stream:
            stream.truncate(len(raw) - len(lines[-1]))
    entries = []
    for number, line in enumerate(lines[:-1]):
        try:
            entry = json.loads(line)
            if entry["number"] != number or entry["kind"] not in _KINDS:
                raise ValueError("out of sequence")
            if entry["kind"] == "reserved":
                ev.from_json(entry["event"])
            elif entry["kind"] == "aborted":
                _ = entry["reservation"], entry["data_opened"]
        except (ValueError, KeyError, TypeError, InputError) as error:
            raise LedgerError(
                f"{path}: entry {number} is damaged ({error}); restore the file from a backup "
                "only together with everything that was released since"
            ) from error
        entries.append(entry)
    return entries


_KINDS = ("reserved", "released", "aborted")
