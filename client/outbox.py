"""Releases that were paid for, kept so that a repeated order gets the same bytes again."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from privet.common.canonical import write_atomic
from privet.common.errors import LedgerError
from privet.common.release import Release


class Outbox:
    """A folder of releases, one safetensors file for each slot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, slot: str, release: Release) -> None:
        """Store durably; all or nothing."""
        names = list(release.arrays)
        header = {
            "order": release.order,
            "facts": json.dumps(release.facts),
            "names": json.dumps(names),
        }
        write_atomic(self._path(slot), save(release.arrays, metadata=header))

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
        """Drop the release of ``slot``, if there is one."""
        self._path(slot).unlink(missing_ok=True)

    def forget_before(self, run: str, keep: int) -> None:
        """Keep the ``keep`` newest releases of ``run``, by round and attempt."""
        name = re.compile(re.escape(run.replace("/", "-")) + r"-[a-z]+-(\d+)-(\d+)\.safetensors")
        mine = [
            (int(found[1]), int(found[2]), path)
            for path in self.folder.glob("*.safetensors")
            if (found := name.fullmatch(path.name))
        ]
        for _, _, path in sorted(mine)[: max(0, len(mine) - keep)]:
            path.unlink(missing_ok=True)

    def _path(self, slot: str) -> Path:
        return self.folder / f"{slot.replace('/', '-')}.safetensors"
