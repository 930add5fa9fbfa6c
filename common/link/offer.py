"""An offer: what a coordinator shows a site before a run, and whether the site is ready.

It is no order: nothing is spent by it. The site keeps plan and roster, so that its operator
can look at them, and says in one word of the closed list where it stands.
"""

from __future__ import annotations

import json
from typing import Any

from privet.common.errors import InputError
from privet.common.order import Status

KIND = "offer"
READY = Status.PRESENT


def encode(run: str, plan: dict[str, Any], roster: dict[str, Any]) -> bytes:
    """Return an offer."""
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
    """Read a site's answer; what is malformed counts as ``failed``."""
    try:
        return Status(_object(records)["status"])
    except (InputError, KeyError, ValueError, TypeError):
        return Status.FAILED


def _object(records: bytes) -> dict[str, Any]:
    try:
        value = json.loads(records)
    except (ValueError, RecursionError):
        raise InputError("the offer is not JSON") from None
    if not isinstance(value, dict):
        raise InputError("the offer is not an object")
    return value
