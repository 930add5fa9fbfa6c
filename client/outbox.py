"""Store charged releases, so that a repeated order gets the same bytes again."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.numpy import load, save

from privet.common.canonical import fsync_folder, write_atomic
from privet.common.errors import LedgerError
from privet.common.files.disk_space import allocate
from privet.common.files.private_files import FILE_MODE, private_folder
from privet.common.release import Release


class ReleaseStore(Protocol):
    """Keeps charged releases; :class:`Outbox` does so in files.

    Attributes:
        in_files: whether a release, and the ledger's entries of its order, need disk space that is
            to be reserved before the charge.
    """

    in_files: bool

    def make_room(self, slot: str, size: int) -> None:
        """Reserve a release's space, as :meth:`Outbox.make_room`."""

    def give_up_room(self, slot: str) -> None:
        """Free the space of a release that will not come."""

    def put(self, slot: str, release: Release) -> None:
        """Store a release, all or nothing."""

    def get(self, slot: str) -> Release | None:
        """Return the release of ``slot``, or None."""

    def remove(self, slot: str) -> None:
        """Remove the release of ``slot``, if there is one."""

    def forget_before(self, run: str, keep: int, keep_bytes: int = 0) -> None:
        """Remove all but the newest releases of ``run``, as :meth:`Outbox.forget_before`."""


class Outbox:
    """A folder of releases, one safetensors file for each slot.

    Args:
        folder: created when it is first needed, for its owner only.
    """

    in_files = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sizes: dict[str, dict[Path, int]] = {}
        """By run, the releases that are kept and their bytes; a long run has thousands."""

    def make_room(self, slot: str, size: int) -> None:
        """Reserve a release's disk space before its charge; :meth:`put` writes into it.

        Args:
            slot: of the release.
            size: in bytes, at most.

        Raises:
            OSError: if the disk does not have the space, or the folder cannot be written.
        """
        private_folder(self.folder)
        for left in self.folder.glob(".*.part"):
            left.unlink(missing_ok=True)
        room = self._room(slot)
        try:
            with open(room, "xb", opener=_for_owner) as stream:
                allocate(stream.fileno(), size)
        except BaseException:
            room.unlink(missing_ok=True)
            raise

    def give_up_room(self, slot: str) -> None:
        """Free the reserved space of a release that will not come."""
        with suppress(OSError):
            self._room(slot).unlink(missing_ok=True)

    def put(self, slot: str, release: Release) -> None:
        """Store a release durably, in its reserved space if there is some; all or nothing.

        Args:
            slot: of the order that it answers.
            release: with its order, facts and arrays.

        Raises:
            OSError: if it cannot be written.
        """
        names = list(release.arrays)
        header = {
            "order": release.order,
            "facts": json.dumps(release.facts),
            "names": json.dumps(names),
        }
        private_folder(self.folder)
        data, room = save(release.arrays, metadata=header), self._room(slot)
        path = self._path(slot)
        if not room.exists():
            write_atomic(path, data, mode=FILE_MODE)
            self._note(path, len(data))
            return
        with room.open("r+b") as stream:
            stream.write(data)
            stream.truncate()  # the space was reserved for the largest possible release
            stream.flush()
            os.fsync(stream.fileno())
        room.replace(path)
        fsync_folder(self.folder)
        self._note(path, len(data))

    def get(self, slot: str) -> Release | None:
        """Return the release of ``slot``, or None.

        Raises:
            LedgerError: if the stored file cannot be read.
        """
        path = self._path(slot)
        if not path.exists():
            return None
        try:
            raw = path.read_bytes()
            size = int.from_bytes(raw[:8], "little")
            header = json.loads(raw[8 : 8 + size])["__metadata__"]
            stored = load(raw)
            arrays = {name: stored[name] for name in json.loads(header["names"])}
            return Release(header["order"], json.loads(header["facts"]), arrays)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise LedgerError(f"{path}: the stored release cannot be read: {error}") from error

    def remove(self, slot: str) -> None:
        """Remove the release of ``slot``, if there is one."""
        path = self._path(slot)
        path.unlink(missing_ok=True)
        for known in self._sizes.values():
            known.pop(path, None)

    def forget_before(self, run: str, keep: int, keep_bytes: int = 0) -> None:
        """Remove all but the newest releases of ``run``, by round and attempt.

        Args:
            run: whose releases.
            keep: number of releases that stay in any case.
            keep_bytes: further releases stay while all that stay have at most this many bytes.
        """
        known = self._known(run)
        if len(known) <= keep or sum(known.values()) <= keep_bytes:
            return
        total = 0
        for place, path in enumerate(sorted(known, key=_turn_of, reverse=True)):
            total += known[path]
            if place >= keep and total > keep_bytes:
                path.unlink(missing_ok=True)
                del known[path]

    def _known(self, run: str) -> dict[Path, int]:
        """Return the releases of a run; the folder is read once."""
        if (known := self._sizes.get(run)) is None:
            known = self._sizes[run] = {}
            for path in self.folder.glob("*.safetensors"):
                with suppress(FileNotFoundError):
                    if _is_of(run, path):
                        known[path] = path.stat().st_size
        return known

    def _note(self, path: Path, size: int) -> None:
        for run, known in self._sizes.items():
            if _is_of(run, path):
                known[path] = size

    def _room(self, slot: str) -> Path:
        return self.folder / f".{self._path(slot).name}.part"

    def forget_older(self, seconds: float, *runs: str) -> int:
        """Remove releases that were stored more than ``seconds`` ago, except those of ``runs``.

        Args:
            seconds: age from which a release is removed.
            runs: identifiers of runs whose releases stay.

        Returns:
            The number of releases that were removed.
        """
        before = time.time() - seconds
        own = tuple(f"{run.replace('/', '-')}-" for run in runs if run)
        old = [
            path
            for path in self.folder.glob("*.safetensors")
            if path.stat().st_mtime < before and not path.name.startswith(own)
        ]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def _path(self, slot: str) -> Path:
        return self.folder / f"{slot.replace('/', '-')}.safetensors"


_TURN = re.compile(r"-[a-z]+-(\d+)-(\d+)\.safetensors\Z")


def _is_of(run: str, path: Path) -> bool:
    own = run.replace("/", "-")
    return path.name.startswith(own) and _TURN.fullmatch(path.name, len(own)) is not None


def _turn_of(path: Path) -> tuple[int, int, Path]:
    """Return round and attempt of a release, by its file's name."""
    found = _TURN.search(path.name)
    assert found is not None  # _is_of
    return int(found[1]), int(found[2]), path


def _for_owner(path: str, flags: int) -> int:
    return os.open(path, flags, FILE_MODE)
