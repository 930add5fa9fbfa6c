"""The plans that were offered to a site, kept as JSON for its operator to read."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from privet.common.canonical import canonical_json, write_atomic, write_json
from privet.common.errors import InputError, PlanError, reason_of
from privet.common.plan import Plan

if TYPE_CHECKING:
    from privet.client.link.coordinators import Membership

_MAX_OFFERS, _MAX_TOTAL_BYTES = 64, 64 << 20
"""Plans that are kept, the newest ones: a coordinator may offer any number."""
_MAX_INDENTED_BYTES = 64 << 10
"""Bytes of a plan up to which it is written with a line for each value."""


@dataclass(frozen=True)
class Offer:
    """A plan that was offered.

    Attributes:
        digest: of the plan.
        plan: the stored plan; None if the file cannot be read or holds another plan.
        fault: why ``plan`` is None.
        coordinator: name of the first coordinator that offered it, or "" if unknown.
        offered: time of the last offer, in seconds since 1970.
        also: the other coordinators that offered the same plan.
    """

    digest: str
    plan: Plan | None
    fault: str
    coordinator: str
    offered: float
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offers:
    """The folder ``offers`` of a site, and the run that a coordinator continues.

    Each plan is in ``DIGEST.json``; the coordinators that offered it are in ``DIGEST.from``.

    Args:
        home: folder of the site.
        run_file: file of the run; None takes that of the first coordinator.
    """

    home: Path
    run_file: Path | None = None

    @classmethod
    def of(cls, membership: Membership) -> Offers:
        """Return the offers of a site, with the run of one of its coordinators."""
        return cls(membership.home, None if membership.is_first else membership.state / "run.json")

    def keep(self, plan: Plan, coordinator: str = "") -> None:
        """Store a plan; beyond the newest 64, and 64 MB, older ones are removed.

        Args:
            plan: that was offered.
            coordinator: name at this site of the coordinator that offered it.
        """
        path = self._of(plan.digest)
        if path.exists():
            os.utime(path)  # offers are repeated every second
            self._note_also(path.with_suffix(".from"), coordinator)
            return
        text = canonical_json(plan.to_dict())
        if len(text) <= _MAX_INDENTED_BYTES:
            write_json(path, plan.to_dict())
        else:
            write_atomic(path, text)
        who = {"coordinator": coordinator, "first_offered": int(time.time())}
        write_json(path.with_suffix(".from"), who)
        kept = self._plans()
        states = {path: path.stat() for path in kept}
        kept.sort(key=lambda path: -states[path].st_mtime_ns)
        total = 0
        for place, path in enumerate(kept):
            total += states[path].st_size
            if place >= _MAX_OFFERS or (place and total > _MAX_TOTAL_BYTES):
                path.unlink(missing_ok=True)
                path.with_suffix(".from").unlink(missing_ok=True)

    def _note_also(self, path: Path, coordinator: str) -> None:
        """Note that one more coordinator offers a plan that is kept."""
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            also = [str(one) for one in value.get("also", ())]
            known = [str(value["coordinator"]), *also]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        if coordinator and coordinator not in known:
            write_json(path, {**value, "also": [*also, coordinator]})

    def _plans(self) -> list[Path]:
        """Return the files of the plans."""
        return [path for path in self._folder.glob("*.json") if _is_digest(path.stem)]

    def has(self, digest: str) -> bool:
        """Whether the plan of this digest is stored."""
        return self._of(digest).exists()

    def path_of(self, digest: str) -> Path:
        """Return the path of the plan of this digest; the file need not exist."""
        return self._of(digest)

    def all(self) -> list[Offer]:
        """Return the stored offers, the newest first."""
        found = [self._read(path) for path in self._plans()]
        return sorted(found, key=lambda one: -one.offered)

    def plan(self, digest: str) -> Plan | None:
        """Return the plan of a digest, or None if it is not stored.

        Raises:
            PlanError: if the file cannot be read, or holds another plan.
        """
        if not self.has(digest):
            return None
        found = self._read(self._of(digest))
        if found.plan is None:
            raise PlanError(found.fault)
        return found.plan

    def _read(self, path: Path) -> Offer:
        digest, fault = f"sha256:{path.stem}", ""
        plan: Plan | None = None
        try:
            found = Plan.parse(json.loads(path.read_text(encoding="utf-8")), where=str(path))
            if found.digest == digest:
                plan = found
            else:
                fault = f"{path}: the file holds another plan, {found.digest}"
        except InputError as error:
            fault = str(error)
        except (OSError, ValueError, RecursionError) as error:
            fault = f"{path}: cannot be read: {reason_of(error)}"
        coordinator, offered = "", 0.0
        also: tuple[str, ...] = ()
        try:
            offered = path.stat().st_mtime
            value = json.loads(path.with_suffix(".from").read_text(encoding="utf-8"))
            coordinator = str(value["coordinator"])
            also = tuple(str(one) for one in value.get("also", ()))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # kept by an earlier version, or being replaced
        return Offer(digest, plan, fault, coordinator, offered, also)

    @property
    def newest(self) -> Path | None:
        """File of the plan that was offered last, or None."""
        return max(self._plans(), key=lambda path: path.stat().st_mtime_ns, default=None)

    @property
    def run(self) -> bytes | None:
        """The last offer for which the site was ready."""
        return self._run.read_bytes() if self._run.exists() else None

    def keep_run(self, offered: bytes) -> None:
        """Store an offer, so that a restarted site continues its run."""
        write_atomic(self._run, offered)

    @property
    def _folder(self) -> Path:
        return self.home / "offers"

    @property
    def _run(self) -> Path:
        return self.run_file or self._folder / "run.json"

    def _of(self, digest: str) -> Path:
        return self._folder / f"{digest.removeprefix('sha256:')}.json"


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
