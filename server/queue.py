"""The runs of a federation: what was submitted, and how far it is; without gRPC or Flower."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from privet.common.canonical import write_json
from privet.common.errors import InputError, reason_of
from privet.common.plan import Plan
from privet.server.federation import Federation
from privet.server.snapshot import Snapshots

OPEN = ("queued", "waiting", "running")
PRESENT = "present.json"
"""Who is connected, written by the coordinator every second."""
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
        """What is known of the run."""
        try:
            value: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder}: the status cannot be read: {error}") from error
        return value

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


def runs(federation: Federation) -> list[Run]:
    """Return all runs, oldest first."""
    paths = (federation.folder / "runs").glob("*/status.json")
    found = [Run(path.parent) for path in paths]
    return sorted(found, key=lambda run: run.status["submitted"])


def connected(federation: Federation) -> list[str]:
    """Return who was connected when a coordinator last ran."""
    try:
        found: list[str] = json.loads((federation.folder / PRESENT).read_text())["connected"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return found
