"""The order keys of a site's coordinator: their handovers, and which of them the site follows.

A handover is accepted only from a key that the policy lets ask. It is noted in the ledger, where a
verifier finds it (:mod:`privet.privacy.evidence.order_keys`).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from privet.common.errors import InputError, PrivetError
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.order_keys import KeyHandover
from privet.privacy.policy import Policy

HANDOVERS = "order-keys.json"
"""File of the handovers that the coordinator sent last, in the folder for the link."""
_LOG = logging.getLogger("privet.notices")


def kept_handovers(folder: Path) -> list[KeyHandover]:
    """Return the stored handovers, which the coordinator sent last."""
    try:
        return [KeyHandover.from_json(one) for one in read_json(folder / HANDOVERS) or ()]
    except InputError:
        return []


def follow_handovers(policy: Policy, ledger: Ledger, shown: list[KeyHandover]) -> None:
    """Note in the ledger each handover from a key that the policy lets ask.

    Args:
        policy: the site's, as it is now.
        ledger: its own.
        shown: handovers that the coordinator sent, the oldest first.
    """
    ledger.log.refresh()
    for one in shown:
        keys, old, new = ledger.state.order_keys, one.old.fingerprint, one.new.fingerprint
        if keys.has(one) or not policy.may_ask(old, keys):
            continue
        if policy.allow.key_rotation == "listed" and new not in policy.allow.coordinators:
            continue
        try:
            if ledger.follow(one):
                _LOG.warning(
                    "the coordinator's order key was replaced, and the old one signed that",
                    extra={"old": old, "new": new},
                )
        except (PrivetError, OSError) as error:
            _LOG.error("a new order key is not taken", extra={"new": new, "why": error})


def order_keys_shown(folder: Path, policy: Policy, ledger: Ledger) -> list[dict[str, Any]]:
    """Return the coordinator's handovers of order keys, for people to read.

    Args:
        folder: the site's folder for the link.
        policy: the site's, as it is now.
        ledger: its own.

    Returns:
        For each handover, the fingerprints of the old and the new key, and whether the new one may
        ask.
    """
    keys = ledger.state.order_keys
    return [
        {
            "old": one.old.fingerprint,
            "new": one.new.fingerprint,
            "may_ask": policy.may_ask(one.new.fingerprint, keys),
        }
        for one in kept_handovers(folder)
    ]


def read_json(path: Path) -> Any:
    """Return the JSON value of a file, or None if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
