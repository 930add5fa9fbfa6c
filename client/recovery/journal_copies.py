"""Keep copies of coordinators' journals at a site, so that a coordinator can be restored.

::

    SITE/journals/RUN.db      entries and papers, as in the coordinator's own file
    SITE/coordinators/NAME/journals/    the same for each further coordinator

A copy grows by the messages of witnessing, before the head above it is cosigned. The sites of a run
may read all of it except the journal's key, which is encrypted to the coordinator.

The file of the growing copy stays open. To close it, SQLite would move its write-ahead file into it
and wait for the disk three times more. Entries that are reported as kept are on disk all the same.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Container, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from privet.common.canonical import digest_json
from privet.common.errors import EvidenceError, LedgerError, NoteError, PrivetError
from privet.common.files.private_files import FILE_MODE, private_folder
from privet.common.plan import Plan
from privet.privacy.evidence.copies.journal_copy import (
    JournalEntry,
    JournalKey,
    entries_of,
    first_of,
)
from privet.privacy.evidence.roster import Roster
from privet.privacy.evidence.signed_note import Key
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import Store

FOLDER = "journals"
"""In a coordinator's folder of state."""
MAX_COPY_BYTES = 256 << 20
"""Of one journal's copy."""
MAX_STORE_BYTES = 2 << 30
"""Of all copies of one coordinator."""
MAX_RUNS = 256
"""Most copies that are kept, and reported in one answer."""
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEY, _PLAN, _ROSTER = "key", "plan", "roster"

_OPEN: dict[Path, Store] = {}
"""Copies that grow now, by file; of each folder one, whichever object serves it."""
_OPENING = threading.Lock()

_LOG = logging.getLogger("privet.journals")


class JournalCopies:
    """The folder ``journals`` of a site, for one coordinator.

    Args:
        folder: created with the first copy, for its owner only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def answer(
        self, asked: Mapping[str, Any], plan: Plan, roster: Roster, cosigned: int = 0
    ) -> dict[str, Any]:
        """Store a coordinator's new journal entries, and return those that it requests.

        Args:
            asked: ``run``; optionally ``key`` (the journal's, encrypted), ``from`` and ``entries``
                to keep, and ``want``: the number of the first entry to return.
            plan: of the run.
            roster: of the run.
            cosigned: number of entries under a head that this site cosigned. Entries beyond them
                are replaced by different ones: a coordinator that was restored in between lacks
                them, and continues without them.

        Returns:
            ``held``: the number of entries that are kept, -1 if there is no copy; and ``entries``.
            Empty after a fault, which is logged and ends nothing.
        """
        try:
            return self._answer(asked, plan, roster, cosigned)
        except (PrivetError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _LOG.warning("no copy of a coordinator's journal is kept", extra={"why": error})
            return {}

    def _answer(
        self, asked: Mapping[str, Any], plan: Plan, roster: Roster, cosigned: int
    ) -> dict[str, Any]:
        run = str(asked["run"])
        path = self._path(run)
        if not path.exists():
            if "key" not in asked:
                return {"held": -1}
            self._begin(JournalKey.from_json(asked["key"]), run, plan, roster)
        if _key_of(_opened(path)).journal != str(roster.coordinator.journal):
            raise LedgerError(f"{path}: the copy is of another journal of run '{run}'")
        if brought := asked.get("entries"):
            entries, start = (
                [JournalEntry.from_json(value) for value in brought],
                int(asked["from"]),
            )
            _give_way(path, start, entries, cosigned)
            self._keep(_opened(path), roster.coordinator.journal, start, entries)
        store = _opened(path)
        answer: dict[str, Any] = {"held": store.size()}
        if (want := asked.get("want")) is not None:
            found = first_of(entries_of(store, int(want)))
            answer["entries"] = [entry.to_json() for entry in found]
        return answer

    def _begin(self, key: JournalKey, run: str, plan: Plan, roster: Roster) -> None:
        wanted = (run, plan.digest, digest_json(roster.to_dict()), str(roster.coordinator.journal))
        if (key.run, key.plan, key.roster, key.journal) != wanted:
            raise LedgerError(f"the encrypted journal key is not that of run '{run}'")
        if not key.is_signed_by(roster.coordinator.orders):
            raise LedgerError("an encrypted journal key is not signed by the coordinator")
        private_folder(self.folder)
        half = self.folder / f".{run}.part"
        _remove(half)
        with closing(Store(half, create=True)) as store:
            half.chmod(FILE_MODE)
            with store.transaction():
                store.put(_KEY, json.dumps(key.to_json()))
                store.put(_PLAN, json.dumps(plan.to_dict()))
                store.put(_ROSTER, json.dumps(roster.to_dict()))
        _close(self._path(run))  # of a file that somebody removed while it was open
        half.replace(self._path(run))
        self._forget_oldest()

    def _keep(self, store: Store, journal: Key, start: int, entries: list[JournalEntry]) -> None:
        more = sum(entry.size for entry in entries)
        total = sum(_size_of(path) for path in self._newest())
        if _size_of(store.path) + more > MAX_COPY_BYTES or total + more > MAX_STORE_BYTES:
            raise LedgerError(f"{store.path}: the copies are as long as they may be")
        with store.transaction():
            size = store.size()
            for number, entry in enumerate(entries, start):
                if number < size:
                    continue  # it came before
                found = Entry.read(entry.leaf, (journal.public,))
                if (found.sequence, found.predicate.get("log")) != (size, journal.name):
                    raise LedgerError(f"entry {found.sequence} does not continue the copy")
                store.add(size, entry.leaf)
                for paper in entry.papers:
                    store.file(*paper)
                size += 1

    def require_same(self, run: str, roster: Roster) -> None:
        """Check that a run has one journal: the one of which this site keeps a copy, if it does.

        Args:
            run: identifier of the run.
            roster: of the run; it names the journal's key.

        Raises:
            EvidenceError: if the run has another journal now.
        """
        if _RUN.fullmatch(run) is None or not (path := self._path(run)).exists():
            return
        try:
            with closing(Store(path)) as store:
                known = _key_of(store)
        except (PrivetError, OSError) as error:
            _LOG.warning("a copy of a journal cannot be read", extra={"why": error})
            return
        if known.journal != str(roster.coordinator.journal):
            raise EvidenceError(
                f"run '{run}' was begun with another journal of this coordinator, which was "
                "cosigned here: it was restored from a copy that is older than the run. Have its "
                f"operator run `privet server resume FOLDER {run}`, or give the run another name"
            )

    def all(self, orders: Container[str]) -> list[dict[str, Any]]:
        """Return, for each run, the facts with which its coordinator can start it after a loss.

        Args:
            orders: fingerprints of the coordinator's order keys; it does not get other
                coordinators' runs.

        Returns:
            JSON values: the encrypted ``key``, ``plan``, ``roster``, the ``genesis`` of the journal
            and how many entries are ``held``, the newest run first.
        """
        found = []
        for path in self._newest():
            try:
                with closing(Store(path)) as store:
                    names = (_KEY, _PLAN, _ROSTER)
                    value = {name: json.loads(store.fact(name) or "") for name in names}
                    ours = Roster.parse(value[_ROSTER]).coordinator.orders.fingerprint in orders
                    if ours and (held := store.size()):
                        genesis = store.leaf(0).decode()
                        found.append({**value, "held": held, "genesis": genesis})
            except (PrivetError, OSError, ValueError) as error:
                _LOG.warning("a copy of a journal cannot be read", extra={"why": error})
        return found

    def forget_older(self, seconds: float, *runs: str) -> None:
        """Remove copies that did not grow for ``seconds``, except those of ``runs``.

        Args:
            seconds: age from which a copy is removed.
            runs: identifiers of runs whose copies stay.
        """
        before = time.time() - seconds
        for path in self._newest():
            if _grew_ns(path) < before * 1e9 and path.stem not in runs:
                _remove(path)

    def _forget_oldest(self) -> None:
        for path in self._newest()[MAX_RUNS:]:
            _remove(path)

    def _newest(self) -> list[Path]:
        paths = [path for path in self.folder.glob("*.db") if _RUN.fullmatch(path.stem)]
        return sorted(paths, key=lambda path: -_grew_ns(path))

    def _path(self, run: str) -> Path:
        if _RUN.fullmatch(run) is None:
            raise NoteError("the name of a run is none")
        return self.folder / f"{run}.db"


def _key_of(store: Store) -> JournalKey:
    return JournalKey.from_json(json.loads(store.fact(_KEY) or "null"))


def _give_way(path: Path, start: int, entries: list[JournalEntry], cosigned: int) -> None:
    """Remove a copy's entries from the first one that differs from the new ones."""
    store = _opened(path)
    pairs = enumerate(zip(store.leaves(start), entries, strict=False), start)
    size = next((number for number, (leaf, one) in pairs if leaf != one.leaf), None)
    if size is None or size < max(cosigned, 1):
        return
    half = path.with_name(f".{path.stem}.part")
    _remove(half)
    with closing(Store(half, create=True)) as shorter:
        half.chmod(FILE_MODE)
        with shorter.transaction():
            for name in (_KEY, _PLAN, _ROSTER):
                shorter.put(name, store.fact(name) or "")
            for number, entry in enumerate(entries_of(store, 0, size)):
                shorter.add(number, entry.leaf)
                for paper in entry.papers:
                    shorter.file(*paper)
    _remove(path)
    half.replace(path)


def _opened(path: Path) -> Store:
    """Return a copy's store, which stays open until another one of its folder is.

    Raises:
        LedgerError: if it cannot be opened.
    """
    with _OPENING:
        store = _OPEN.get(path)
        if store is not None and store.is_current:
            return store
        for other in [one for one in _OPEN if one.parent == path.parent]:
            _OPEN.pop(other).close()
        return _OPEN.setdefault(path, Store(path))


def _close(path: Path) -> None:
    with _OPENING:
        if (store := _OPEN.pop(path, None)) is not None:
            store.close()


def _size_of(path: Path) -> int:
    """Return the bytes of a copy, with those that are in its write-ahead file."""
    return sum(found.stat().st_size for found in _files_of(path))


def _grew_ns(path: Path) -> int:
    """Return when a copy was written to last: one that is open grows in the file beside it."""
    return max((found.stat().st_mtime_ns for found in _files_of(path)), default=0)


def _files_of(path: Path) -> list[Path]:
    ahead = path.with_name(f"{path.name}-wal")
    return [found for found in (path, ahead) if found.exists()]


def _remove(path: Path) -> None:
    _close(path)
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
