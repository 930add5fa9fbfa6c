"""The plans that a site was offered, kept as JSON for its operator to look at."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from privet.common.canonical import canonical_json, write_atomic, write_json
from privet.common.plan import Plan

_MOST, _MOST_BYTES = 64, 64 << 20
"""Plans that are kept, the newest ones: a coordinator may offer any number."""
_READABLE = 64 << 10
"""Bytes of a plan up to which it is written with a line for each value."""


@dataclass(frozen=True)
class Offers:
    """Folder ``offers`` of a site: ``DIGEST.json`` of each plan, and the run that goes on.

    Args:
        home: folder of the site.
    """

    home: Path

    def keep(self, plan: Plan) -> None:
        """Keep a plan; beyond the newest 64, and 64 MB, older ones go."""
        path = self._of(plan.digest)
        if path.exists():
            os.utime(path)  # offers are repeated every second
            return
        text = canonical_json(plan.to_dict())
        if len(text) <= _READABLE:
            write_json(path, plan.to_dict())
        else:
            write_atomic(path, text)
        kept = [path for path in self._folder.glob("*.json") if path != self._run]
        states = {path: path.stat() for path in kept}
        kept.sort(key=lambda path: -states[path].st_mtime_ns)
        total = 0
        for place, path in enumerate(kept):
            total += states[path].st_size
            if place >= _MOST or (place and total > _MOST_BYTES):
                path.unlink(missing_ok=True)

    def has(self, digest: str) -> bool:
        """Whether the plan of this digest was offered lately."""
        return self._of(digest).exists()

    def path_of(self, digest: str) -> Path:
        """Return where the plan of this digest is kept, if it is."""
        return self._of(digest)

    @property
    def newest(self) -> Path | None:
        """Where the plan is kept that was offered last; None if none was."""
        kept = [path for path in self._folder.glob("*.json") if path != self._run]
        return max(kept, key=lambda path: path.stat().st_mtime_ns, default=None)

    @property
    def run(self) -> bytes | None:
        """The offer that the site was ready for last."""
        return self._run.read_bytes() if self._run.exists() else None

    def keep_run(self, offered: bytes) -> None:
        """Keep an offer, so that a site that is started again goes on with it."""
        write_atomic(self._run, offered)

    @property
    def _folder(self) -> Path:
        return self.home / "offers"

    @property
    def _run(self) -> Path:
        return self._folder / "run.json"

    def _of(self, digest: str) -> Path:
        return self._folder / f"{digest.removeprefix('sha256:')}.json"
