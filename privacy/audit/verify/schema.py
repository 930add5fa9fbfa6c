"""The kinds of entries, their fields and the types of these, and what their subject is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from privet.privacy.audit.verify import notes
from privet.privacy.audit.verify.accounting import RELATIONS
from privet.privacy.audit.verify.strict import Malformed, canonical, decimal, is_digest, is_visible

Check = Callable[[Any], bool]
PURPOSES = ("train", "evaluate")
UNITS = ("record", "person", "account", "site")
MOST_ROUNDS = 10**9
_MAX_TEXT = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", re.ASCII)
#: The rows of the honesty list for which a test at the start of a run exists.
TESTED_ROWS = ("H6", "H7", "H16", "H17")
_STATUS = re.compile(r"refused-[a-z]+(-[a-z]+)*", re.ASCII)
#: Answers that leave no entry in the site's ledger.
TRACELESS = ("refused-signature", "refused-rollback")


def is_name(value: Any) -> bool:
    """Return whether ``value`` may name a site or a coordinator."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def is_text(value: Any) -> bool:
    """Return whether ``value`` is a text that says something, and shows all that it says."""
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT and is_visible(value)


def is_answer(value: Any) -> bool:
    """Return whether a journal may name ``value`` as a site's answer."""
    return value in ("released", "failed", "no-reply") or (
        isinstance(value, str) and _STATUS.fullmatch(value) is not None
    )


def _any_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _natural(value: Any) -> bool:
    return type(value) is int and value >= 0


def is_count(value: Any) -> bool:
    """Return whether ``value`` is an integer from 1, as rounds and attempts are."""
    return type(value) is int and 1 <= value <= MOST_ROUNDS


def _keyid(value: Any) -> bool:
    return isinstance(value, str) and is_digest(f"sha256:{value}")


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _by(value: Any) -> bool:
    return is_text(value) or (_texts(value) and bool(value))


def _rows(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(row in TESTED_ROWS for row in value)
        and len(set(value)) == len(value)
    )


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _software(value: Any) -> bool:
    return is_text(value) or isinstance(value, dict)


def _one_of(*choices: str) -> Check:
    return lambda value: isinstance(value, str) and value in choices


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _number(low: float, high: float) -> Check:
    def check(value: Any) -> bool:
        try:
            return low < decimal(value) < high
        except Malformed:
            return False

    return check


def _vkey(signature_type: int) -> Check:
    def check(value: Any) -> bool:
        try:
            notes.read_vkey(value, signature_type)
        except Malformed:
            return False
        return True

    return check


def _items(**fields: Check) -> Check:
    def check(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(item, dict)
            and item.keys() == fields.keys()
            and all(test(item[name]) for name, test in fields.items())
            for item in value
        )

    return check


def _sorted_names(value: Any) -> bool:
    return _texts(value) and value == sorted(set(value))


_positive = _number(0.0, float("inf"))
_purpose, _signer = _one_of(*PURPOSES), _vkey(notes.SIGNER)
_keys: dict[str, Check] = {
    "key": _signer, "recovery": _or_null(_signer), "witness": _vkey(notes.COSIGNER),
    "setting": _one_of("site", "simulation", "bundle"), "software": _software,
}  # fmt: skip
_slot: dict[str, Check] = {
    "run": is_text, "round": is_count, "attempt": is_count, "purpose": _purpose,
    "order": is_digest, "keyid": _keyid, "plan": is_digest, "model": is_digest,
}  # fmt: skip
_decision: dict[str, Check] = {
    "plan": is_digest, "by": _texts, "how": _one_of("listed", "manual", "simulation"),
}  # fmt: skip
_release: dict[str, Check] = {
    "reservation": _natural, "order": is_digest, "digest": is_digest, "event": _object,
    "reproducible": _flag,
}  # fmt: skip
_rotated: dict[str, Check] = {"key": _signer, "why": _one_of("rotation", "recovery")}
_joined = _items(site=is_text, log=is_text, entry=_natural, digest=is_digest)

#: role → kind → field → test.
FIELDS: dict[str, dict[str, dict[str, Check]]] = {
    "ledger": {
        "genesis": {"site": is_name, **_keys},
        "population": {
            "population": is_text, "unit": _one_of(*UNITS), "relation": _one_of(*RELATIONS),
            "epsilon": _or_null(_positive), "delta": _number(0.0, 1.0), "max_records": is_count,
        },
        "data-set": {"data_set": is_text, "population": is_text, "disjoint": _any_text},
        "policy": {"policy": _object},
        "plan-approved": _decision,
        "plan-refused": _decision,
        "reserved": {
            "population": is_text, "data_set": is_text, **_slot, "code": is_digest,
            "event": _object, "self_tests": _rows,
        },
        "refused": {
            **_slot,
            "status": lambda value: (
                isinstance(value, str) and _STATUS.fullmatch(value) is not None
                and value not in TRACELESS
            ),
        },
        "released": _release,
        "metric-released": _release,
        "aborted": {
            "reservation": _natural, "data_opened": _flag,
            "reason": _one_of("failed", "recovered", "does-not-fit"),
        },
        "key-rotated": _rotated,
        "budget-closed": {"population": is_text},
        "paused": {"by": _by},
        "resumed": {"by": _by},
        "withdrawn": {"by": _by},
    },
    "journal": {
        "genesis": {"coordinator": is_name, "orders": _signer, **_keys},
        "run-opened": {"run": is_text, "plan": is_digest, "model": is_digest, "sites": _texts},
        "round": {
            "run": is_text, "round": is_count, "model": is_digest, "next": is_digest,
            "shown": is_digest, "joined": _joined, "metrics": _joined,
            "orders": _items(
                site=is_text, order=is_digest, purpose=_purpose, attempt=is_count,
                answer=is_answer,
            ),
            "witnessed": _items(
                log=is_text, size=_natural, root=is_digest, cosigners=_sorted_names
            ),
        },
        "run-closed": {
            "run": is_text, "rounds": _natural, "model": is_digest,
            "how": _one_of("done", "failed"), "fault": _or_null(_any_text),
        },
        "key-rotated": _rotated,
    },
}  # fmt: skip
for _kinds in FIELDS.values():
    for _kind in _kinds:
        _kinds[_kind] = {"sequence": _natural, "time": is_text, "log": is_text, **_kinds[_kind]}


def _of_key(predicate: dict[str, Any]) -> str:
    return notes.read_vkey(predicate["key"], notes.SIGNER).fingerprint


def _of_log(predicate: dict[str, Any]) -> str:
    return hashlib.sha256(predicate["log"].encode()).hexdigest()


def _of_policy(predicate: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(predicate["policy"])).hexdigest()


def _field(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda predicate: str(predicate[name])[7:]


#: kind → name of its subject, and how the subject's digest follows from the predicate.
SUBJECTS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    **dict.fromkeys(("genesis", "key-rotated"), ("key", _of_key)),
    **dict.fromkeys(
        ("population", "data-set", "aborted", "budget-closed", "paused", "resumed", "withdrawn"),
        ("ledger", _of_log),
    ),
    "policy": ("policy", _of_policy),
    **dict.fromkeys(("plan-approved", "plan-refused", "run-opened"), ("plan", _field("plan"))),
    **dict.fromkeys(("reserved", "refused"), ("order", _field("order"))),
    **dict.fromkeys(("released", "metric-released"), ("release", _field("digest"))),
    "round": ("model", _field("next")),
    "run-closed": ("model", _field("model")),
}
