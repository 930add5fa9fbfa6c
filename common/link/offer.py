"""An offer of a run: its plan and roster before it starts, and the site's readiness.

An offer is no order: it spends nothing. The site stores plan and roster, so that its operator can
read them, and answers with a status of the closed list.
"""

from __future__ import annotations

import json
from typing import Any

from privet.common.errors import InputError
from privet.common.order import Status

KIND = "offer"
RUNS = "query.runs"
"""Asks a site of which runs it keeps the journal: a restored coordinator may lack some."""
MAX_RUNS_BYTES = 2 << 20
READY = Status.PRESENT


def encode(run: str, plan: dict[str, Any], roster: dict[str, Any]) -> bytes:
    """Return an offer.

    Args:
        run: identifier of the run.
        plan: as ``Plan.to_dict``, with its noise calibrated.
        roster: as ``Roster.to_dict``.
    """
    return json.dumps({"run": run, "plan": plan, "roster": roster}).encode()


def decode(records: bytes) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Read an offer: run, plan and roster, both unchecked.

    Raises:
        InputError: if it is malformed.
    """
    value = _object(records)
    run, plan, roster = (value.get(name) for name in ("run", "plan", "roster"))
    if not isinstance(run, str) or not isinstance(plan, dict) or not isinstance(roster, dict):
        raise InputError("the offer names no run, plan and roster")
    return run, plan, roster


def encode_answer(status: Status) -> bytes:
    """Return a site's answer to an offer."""
    return json.dumps({"status": str(status)}).encode()


def decode_answer(records: bytes) -> Status:
    """Read a site's answer; a malformed one counts as ``failed``."""
    try:
        return Status(_object(records)["status"])
    except (InputError, KeyError, ValueError, TypeError):
        return Status.FAILED


def encode_runs(runs: list[dict[str, Any]]) -> bytes:
    """Return a site's answer to :data:`RUNS`: the newest runs that fit into a message."""
    chosen: list[str] = []
    total = 0
    for run in runs:
        text = json.dumps(run)
        total += len(text)
        if total > MAX_RUNS_BYTES:
            break
        chosen.append(text)
    return f'{{"runs": [{", ".join(chosen)}]}}'.encode()


def decode_runs(records: bytes) -> list[dict[str, Any]]:
    """Read a site's answer to :data:`RUNS`; a malformed one counts as empty."""
    try:
        runs = _object(records).get("runs")
    except InputError:
        return []
    if not isinstance(runs, list):
        return []
    return [run for run in runs if isinstance(run, dict)]


def _object(records: bytes) -> dict[str, Any]:
    try:
        value = json.loads(records)
    except (ValueError, RecursionError):
        raise InputError("the offer is not JSON") from None
    if not isinstance(value, dict):
        raise InputError("the offer is not an object")
    return value
