"""The plans that a site was offered, kept as JSON for its operator to look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from privet.common.canonical import write_atomic, write_json
from privet.common.plan import Plan

_MOST = 64
"""Plans that are kept, the newest ones: a coordinator may offer any number."""


@dataclass(frozen=True)
class Offers:
    """Folder ``offers`` of a site: ``DIGEST.json`` of each plan, and the run that goes on.

    Args:
        home: folder of the site.
    """

    home: Path

    def keep(self, plan: Plan) -> None:
        """Keep a plan; beyond the newest 64, older ones go."""
        write_json(self._of(plan.digest), plan.to_dict())
        kept = [path for path in self._folder.glob("*.json") if path != self._run]
        kept.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in kept[:-_MOST]:
            path.unlink(missing_ok=True)

    def has(self, digest: str) -> bool:
        """Whether the plan of this digest was offered lately."""
        return self._of(digest).exists()

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
