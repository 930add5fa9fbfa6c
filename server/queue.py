"""The runs of a federation: what was submitted, and how far it is; without gRPC or Flower."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from privet.common.canonical import write_atomic, write_json
from privet.common.errors import InputError, RunError, reason_of
from privet.common.plan import Plan
from privet.server.federation import Federation
from privet.server.snapshot import Snapshots

OPEN = ("queued", "waiting", "running")
CANCELLED = "cancelled by the coordinator's operator"
PRESENT = "present.json"
"""Who is connected, written by the coordinator every second."""
_ALWAYS = {"run", "state", "submitted", "plan"}
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Run:
    """One run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name

    @property
    def plan(self) -> Plan:
        """The plan, as it was submitted."""
        path = self.folder / "plan.json"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: the plan cannot be read: {reason_of(error)}") from error
        return Plan.parse(value, where=self.id)

    @property
    def status(self) -> dict[str, Any]:
        """What is known of the run; one whose file is damaged has failed, and says so.

        Raises:
            InputError: if the run is not there any more.
        """
        path = self.folder / "status.json"
        try:
            value: dict[str, Any] = json.loads(path.read_text())
            if not isinstance(value, dict) or not value.keys() >= _ALWAYS:
                raise ValueError("it is not a run's status")
        except FileNotFoundError as error:
            raise InputError(f"{self.folder}: there is no such run any more") from error
        except (OSError, ValueError, TypeError) as error:
            fault = f"{path} is damaged ({reason_of(error)}); journal and ledgers are not in it"
            return {"run": self.id, "state": "failed", "submitted": 0.0, "plan": "", "fault": fault}
        if self.is_cancelled and value.get("state") in OPEN:
            value |= {"state": "failed", "fault": CANCELLED}
        return value

    @property
    def is_cancelled(self) -> bool:
        """Whether the operator has ended it: a file of its own, which no other note overwrites."""
        return (self.folder / "cancelled").exists()

    def require_wanted(self) -> None:
        """Stop here if the run was cancelled.

        Raises:
            RunError: if it was, or its folder is gone.
        """
        if self.is_cancelled or not self.folder.exists():
            raise RunError(CANCELLED)

    def note(self, **facts: Any) -> None:
        """Change the status."""
        write_json(self.folder / "status.json", {**self.status, **facts})

    @property
    def snapshots(self) -> Snapshots:
        """Where the model is kept after each round."""
        return Snapshots(self.folder / "model")


def submit(federation: Federation, plan: Plan, run_id: str) -> Run:
    """Queue a plan whose noise is calibrated.

    Raises:
        InputError: if it cannot run here: a site is not enrolled, or it wants figures on a test
            split, which a coordinator does not have.
    """
    if plan.metrics.source == "public":
        raise InputError(
            f"plan '{plan.name}': metrics.source 'public' needs a test split at the coordinator; "
            "use 'gate' (noised and paid for at the sites) or 'off'"
        )
    if not _RUN.fullmatch(run_id):
        raise InputError(
            f"'{run_id}' cannot name a run: it begins with a letter or digit and holds at most 128 "
            "letters, digits, dots, underscores and hyphens"
        )
    federation.require_enrolled([site.name for site in plan.sites])
    folder = federation.folder / "runs" / run_id
    if folder.exists():
        raise InputError(f"run '{run_id}' is there already")
    write_json(folder / "plan.json", plan.to_dict())
    facts = {"run": run_id, "state": "queued", "submitted": time.time(), "plan": plan.digest}
    write_json(folder / "status.json", facts)
    return Run(folder)


def cancel(federation: Federation, run_id: str) -> None:
    """End a run, whether it waits or trains; a round that is under way is finished first.

    Raises:
        InputError: if there is no such run, or it has ended.
    """
    found = {run.id: run for run in runs(federation)}
    if run_id not in found:
        raise InputError(f"there is no run '{run_id}': there are {', '.join(found) or 'none'}")
    state = found[run_id].status["state"]
    if state not in OPEN:
        raise InputError(f"run '{run_id}' has ended already: {state}")
    write_atomic(found[run_id].folder / "cancelled", b"")


def runs(federation: Federation) -> list[Run]:
    """Return all runs, oldest first; one whose folder is being removed is left out."""
    found = []
    for path in (federation.folder / "runs").glob("*/status.json"):
        run = Run(path.parent)
        with suppress(InputError):
            found.append((float(run.status["submitted"]), run))
    return [run for _, run in sorted(found, key=lambda one: one[0])]


def connected(federation: Federation) -> list[str]:
    """Return who was connected when a coordinator last ran."""
    try:
        found: list[str] = json.loads((federation.folder / PRESENT).read_text())["connected"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return found
