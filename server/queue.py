"""The runs of a federation: submitted plans and their progress; without gRPC or Flower."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from privet.common.canonical import fsync_folder, write_json
from privet.common.errors import InputError, PrivetError, RunError, reason_of
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.common.printable import counted
from privet.common.run_files import figures_path
from privet.privacy.evidence.roster import Roster
from privet.server.membership.registry import MemberRegistry
from privet.server.snapshot import Snapshots

OPEN = ("queued", "waiting", "running")
CANCELLED = "cancelled by the coordinator's operator"
_CANCELLED, _DONE = b"cancelled", b"done"
NO_REPLY = "no-reply"
"""Replaces the status of a site that did not answer in time."""
PRESENT = "present.json"
"""File of the connected sites, which the coordinator writes every second."""
LOST = "lost-runs.json"
"""The runs of which sites keep the journal, and which are not here."""
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class _Status(BaseModel):
    """The content of ``status.json``; further keys are kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    run: str
    state: Literal["queued", "waiting", "running", "done", "failed"]
    submitted: float
    plan: str
    round: int = 0
    fault: str = ""
    sites: dict[str, str] = {}
    spent: dict[str, dict[str, Any]] = {}
    metrics: dict[str, float | None] = {}
    site_metrics: dict[str, dict[str, float | None]] = {}
    measured: int = 0
    rounds: int = 0
    released: dict[str, int] = {}
    failures: dict[str, dict[str, Any]] = {}
    began: float = 0.0
    round_ended: float = 0.0
    resumed: int = 0
    remarks: list[str] = []
    by: str = ""
    cancelled_by: str = ""


def _cancelled_by(status: Mapping[str, Any]) -> str:
    name = status.get("cancelled_by", "")
    return f"cancelled by researcher '{name}'" if name else CANCELLED


class Run:
    """The folder of one run.

    Args:
        folder: ``runs/RUN`` in the federation's folder; its name is the run's identifier.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name

    @property
    def plan(self) -> Plan:
        """The plan, as it was submitted."""
        path = self.folder / "plan.json"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: the plan cannot be read: {reason_of(error)}") from error
        return Plan.parse(value, where=self.id)

    @property
    def status(self) -> dict[str, Any]:
        """The run's status; a run whose file is damaged has failed, with that reason.

        Raises:
            InputError: if the run no longer exists.
        """
        try:
            value = self._noted()
        except ValueError as error:
            fault = f"{error}; journal, model and ledgers are not in it"
            return {**self._blank(), "state": "failed", "fault": fault}
        if self._end == _CANCELLED and value["state"] in OPEN:
            value |= {"state": "failed", "fault": _cancelled_by(value)}
        return value

    @property
    def digest(self) -> str:
        """The plan's digest, even if the status is damaged; '' if it cannot be found."""
        try:
            return self.plan.digest
        except PrivetError:
            return ""

    def require_wanted(self) -> None:
        """Check that the run was not cancelled.

        Raises:
            RunError: if it was, or its folder is gone.
        """
        if self._end == _CANCELLED or not self.folder.exists():
            raise RunError(_cancelled_by(self.status if self.folder.exists() else {}))

    def settle(self, *, cancelled: bool = False) -> bool:
        """Decide how the run ends, with its model or cancelled; the first decision stands.

        Returns:
            Whether the run ends in this way.
        """
        word = _CANCELLED if cancelled else _DONE
        # Whole before it is there, and there for one of both only.
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".end") as file:
            file.write(word)
            file.flush()
            os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(file.name, self.folder / "end")
        fsync_folder(self.folder)
        return self._end == word

    def note(self, **facts: Any) -> None:
        """Update the status with ``facts``; a damaged file is replaced by a new one."""
        try:
            before = self._noted()
        except ValueError:
            before = self._blank()
        write_json(self.folder / "status.json", {**before, **facts})

    def note_round(
        self,
        number: int,
        statuses: Mapping[str, str],
        spent: Mapping[str, Any],
        remarks: list[str],
    ) -> None:
        """Note a round; a round that was noted before, as after a restart, counts once.

        Args:
            number: of the round, from 1.
            statuses: status that each site answered.
            spent: by site, the privacy loss that its ledger reports (as ``PrivacyLoss.to_dict``).
            remarks: faults that do not end the run.
        """
        before, plan = self.status, self.plan
        said = list(before.get("remarks", []))
        released = {site.name: 0 for site in plan.sites} | before.get("released", {})
        if number > before.get("round", 0):
            for name in released:
                released[name] += statuses.get(name) == Status.RELEASED
        self.note(
            round=number,
            rounds=plan.last_round,
            sites={name: str(status) for name, status in statuses.items()},
            spent=dict(spent),
            released=released,
            round_ended=time.time(),
            remarks=[*said, *(text for text in remarks if text not in said)],
        )

    def note_remark(self, text: str) -> None:
        """Add a line to the run's remarks, once."""
        said = list(self.status.get("remarks", []))
        if text not in said:
            self.note(remarks=[*said, text])

    def note_failure(self, order: Order, said: str) -> None:
        """Note that a site did not release for an order: the last time, and how often.

        Args:
            order: that the site was sent.
            said: status that it answered, or :data:`NO_REPLY`.
        """
        failures = dict(self.status.get("failures", {}))
        times = failures.get(order.site, {}).get("times", 0) + 1
        failures[order.site] = {
            "status": said,
            "purpose": order.purpose,
            "round": order.round,
            "attempt": order.attempt,
            "times": times,
            "time": time.time(),
        }
        self.note(failures=failures)

    def told(self) -> list[str]:
        """Sentences that say in how many rounds each site released, and which operator to ask.

        Empty before the run's first round is done.
        """
        return releases(self.status)

    def keep_figures(self, number: int, tables: Mapping[str, Any], kind: str | None = None) -> None:
        """Store the sites' noised metric tables of a round, and the metrics computed from them.

        Args:
            number: of the round, from 1.
            tables: by site, the noised table that it released.
            kind: of the plan's task; None reads a table by its shape.
        """
        from privet.common.tasks.measure import pooled

        overall, by_site = pooled(tables, kind)
        found = {
            "round": number,
            "metrics": overall,
            "sites": by_site,
            "tables": {site: table.tolist() for site, table in tables.items()},
        }
        write_json(figures_path(self.folder, number), found)
        self.note(metrics=overall, site_metrics=by_site, measured=number)

    @property
    def is_cancelled(self) -> bool:
        """Whether the run was cancelled."""
        return self._end == _CANCELLED

    @property
    def _end(self) -> bytes:
        with suppress(OSError):
            return (self.folder / "end").read_bytes()
        return b""

    def _blank(self) -> dict[str, Any]:
        return {"run": self.id, "state": "queued", "submitted": 0.0, "plan": self.digest}

    def _noted(self) -> dict[str, Any]:
        """Read the file.

        Raises:
            InputError: if the run is not there any more.
            ValueError: if the file is damaged.
        """
        path = self.folder / "status.json"
        try:
            return _Status.model_validate_json(path.read_bytes()).model_dump(exclude_unset=True)
        except FileNotFoundError as error:
            raise InputError(f"{self.folder}: there is no such run any more") from error
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged") from error

    @property
    def is_resumed(self) -> bool:
        """Whether the run failed once and was resumed."""
        return int(self.status.get("resumed", 0)) > 0

    @property
    def has_begun(self) -> bool:
        """Whether a round is done."""
        return self.snapshots.is_there

    def roster(self, federation: MemberRegistry) -> Roster:
        """Return the run's roster; once a round is done, the roster that its evidence names.

        Raises:
            InputError: if a site is not enrolled, or the stored roster cannot be read.
        """
        if self.has_begun:
            return Roster.load(self.folder / "roster.json")
        names = [site.name for site in self.plan.sites]
        roster = federation.roster(names, self.folder, self.plan.strategy.witnesses)
        roster.save(self.folder)
        return roster

    @property
    def snapshots(self) -> Snapshots:
        """The store of the model after each round."""
        return Snapshots(self.folder / "model")


def require_new(
    federation: MemberRegistry, plan: Plan, *, told: Container[str] | None = None
) -> None:
    """Check that this plan was not submitted before: a second run of it costs its budget again.

    Args:
        federation: whose runs are checked.
        plan: to be submitted.
        told: names of the runs that the submitter may know of; None is all.

    Raises:
        InputError: if it was, naming the run; or if a run's plan cannot be read.
    """
    same = (plan.digest, "")  # where it cannot be read, it may be the same
    before = [one.id for one in runs(federation) if one.digest in same]
    before += [name for name, one in lost(federation).items() if one["key"]["plan"] in same]
    if before:
        as_ = f"as {before[-1]}" if told is None or before[-1] in told else "before"
        raise InputError(
            f"this plan was submitted {as_}. Another run of it is paid for again, and its "
            "approvals hold for that, too: say --again, or give the plan another name"
        )


def submit(federation: MemberRegistry, plan: Plan, run_id: str, *, by: str = "") -> Run:
    """Queue a plan whose noise is calibrated.

    Args:
        federation: whose sites take part.
        plan: of the run.
        run_id: its name.
        by: the researcher who submits it; "" for the coordinator's operator.

    Raises:
        InputError: if it cannot run here: a site is not enrolled, or the plan asks for metrics on a
            public test split, which a coordinator does not have, or for central noise.
    """
    if plan.privacy is not None and plan.privacy.is_central:
        raise InputError(
            f"plan '{plan.name}': privacy.trust 'central' is for simulations: a coordinator would "
            "see every site's update without noise"
        )
    if plan.metrics.source == "public":
        raise InputError(
            f"plan '{plan.name}': metrics.source 'public' needs a test split at the coordinator; "
            "use 'gate' (noised and paid for at the sites) or 'off'"
        )
    if not RUN_NAME.fullmatch(run_id):
        raise InputError(
            f"'{run_id}' cannot name a run: it begins with a letter or digit and holds at most 128 "
            "letters, digits, dots, underscores and hyphens"
        )
    federation.require_enrolled([site.name for site in plan.sites])
    folder = federation.folder / "runs" / run_id
    if folder.exists():
        raise InputError(f"run '{run_id}' is there already")
    if run_id in lost(federation):
        raise InputError(
            f"sites know a run '{run_id}' that this coordinator does not have any more: bring it "
            f"back with `privet server resume {federation.folder} {run_id}`, or name another --run"
        )
    facts = {"run": run_id, "state": "queued", "submitted": time.time(), "plan": plan.digest}
    if by:
        facts["by"] = by
    # Whole before it is there: a run without a status would hold its name permanently.
    half = folder.with_name(f".{run_id}")
    write_json(half / "plan.json", plan.to_dict())
    write_json(half / "status.json", facts)
    half.rename(folder)
    fsync_folder(folder.parent)
    return Run(folder)


def cancel(federation: MemberRegistry, run_id: str, *, by: str = "") -> None:
    """Cancel a waiting or training run; a round in progress is finished first.

    Args:
        federation: to which the run belongs.
        run_id: its name.
        by: the researcher who cancels it; "" for the coordinator's operator.

    Raises:
        InputError: if there is no such run, it has ended, or it is past its last round.
    """
    found = {run.id: run for run in runs(federation)}
    if run_id not in found:
        raise InputError(f"there is no run '{run_id}': there are {', '.join(found) or 'none'}")
    state = found[run_id].status["state"]
    if state not in OPEN:
        raise InputError(f"run '{run_id}' has ended already: {state}")
    if not found[run_id].settle(cancelled=True):
        raise InputError(f"run '{run_id}' is past its last round: it ends with its model")
    if by:
        found[run_id].note(cancelled_by=by)


def resume(federation: MemberRegistry, run_id: str) -> Run:
    """Queue a failed run again: it continues after its last round, with its ledgers.

    Args:
        federation: to which the run belongs.
        run_id: its name.

    Raises:
        InputError: if there is no such run, it has not failed, or it was cancelled.
    """
    found = {run.id: run for run in runs(federation)}
    if run_id not in found:
        raise InputError(f"there is no run '{run_id}': there are {', '.join(found) or 'none'}")
    run = found[run_id]
    if (state := run.status["state"]) != "failed":
        raise InputError(f"run '{run_id}' has not failed, it is {state}: nothing to resume")
    if run.is_cancelled:
        raise InputError(f"run '{run_id}' was cancelled; it cannot resume: submit its plan again")
    run.note(state="queued", fault="", resumed=run.status.get("resumed", 0) + 1)
    return run


def runs(federation: MemberRegistry) -> list[Run]:
    """Return all runs, oldest first; a run whose folder is being removed is left out."""
    found = []
    for path in (federation.folder / "runs").glob("*/status.json"):
        run = Run(path.parent)
        with suppress(InputError):
            if RUN_NAME.fullmatch(run.id):
                found.append((run.status["submitted"], run))
    return [run for _, run in sorted(found, key=lambda one: one[0])]


def releases(status: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each site of a run: in how many rounds it released.

    A site that did not release is named with its last status. A coordinator never learns the
    reason, which is in the site's own log.

    Args:
        status: of the run (:attr:`Run.status`).
    """
    found, done = [], status.get("round", 0)
    released, failures = status.get("released", {}), failed_sites(status)
    for site, count in released.items():
        text = f"{site} released in {count} of {counted(done, 'round')}"
        last = f", {failures.pop(site)}" if site in failures else ""
        if count < done or last:
            text += f"{last}; ask the operator of {site}: operator.log in the site's folder"
        found.append(text)
    return [*found, *(f"{site} {text}" for site, text in failures.items())]


def in_words(status: dict[str, Any]) -> dict[str, Any]:
    """Return a run's status with its sentences of :func:`releases` under ``told``."""
    told = releases(status)
    return {**status, "told": told} if told else status


def failed_sites(status: Mapping[str, Any]) -> dict[str, str]:
    """Return a phrase for each site that did not release, from its last answer or silence.

    Args:
        status: of the run (:attr:`Run.status`).
    """
    found = {}
    for site, last in status.get("failures", {}).items():
        said = f"answered '{last['status']}'"
        if last["status"] == NO_REPLY:
            said = "did not answer in time"
        times = "" if last["times"] == 1 else f", {last['times']} times in this run"
        found[site] = f"{said} in round {last['round']}, attempt {last['attempt']}{times}"
    return found


def connected(federation: MemberRegistry) -> list[str]:
    """Return the sites that were connected when a coordinator last ran."""
    found: list[str] = _last_seen(federation).get("connected", [])
    return found


def lost(federation: MemberRegistry) -> dict[str, dict[str, Any]]:
    """Return the runs whose journal a site keeps and which are missing here, by name."""
    try:
        found: dict[str, dict[str, Any]] = json.loads((federation.folder / LOST).read_text())
        return {
            run: value
            for run, value in found.items()
            if not (federation.folder / "runs" / run).exists()
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def doubled(federation: MemberRegistry) -> dict[str, list[str]]:
    """Return the sites as which two processes connected when a coordinator last ran.

    Each comes with the processes' addresses.
    """
    found: dict[str, list[str]] = _last_seen(federation).get("doubled", {})
    return found


def told_of(federation: MemberRegistry) -> list[str]:
    """Return the sites that had the coordinator's present address and keys when it last ran."""
    told = _last_seen(federation).get("told", {})
    if told.get("address") != federation.address:
        return []
    found: list[str] = told["sites"]
    return found


def _last_seen(federation: MemberRegistry) -> dict[str, Any]:
    """Return what a coordinator noted of its sites when it last ran."""
    try:
        found = json.loads((federation.folder / PRESENT).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def why_no_quorum(status: Mapping[str, Any]) -> str:
    """Return the text after the fault of a run without a quorum: the sites, and whom to ask."""
    named = "; ".join(f"{site} {text}" for site, text in failed_sites(status).items())
    told = "Why, the sites' operators know: operator.log in the folder of each site"
    return f". {named}. {told}" if named else f". {told}"
