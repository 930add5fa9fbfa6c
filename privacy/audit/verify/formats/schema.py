"""The kinds of entries, their fields and the types of these, and what their subject is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from privet.privacy.audit.verify.formats import notes, officers, order_keys
from privet.privacy.audit.verify.formats.events import RELATIONS
from privet.privacy.audit.verify.formats.strict import (
    Malformed,
    canonical,
    decimal,
    is_digest,
    is_visible,
)

Check = Callable[[Any], bool]
PURPOSES = ("train", "evaluate")
UNITS = ("record", "person", "account", "site")
MAX_ROUNDS = 10**9
_MAX_TEXT = 4096
#: Fields whose texts are quoted wherever they are printed, or have rules of their own.
_QUOTED = ("disjoint", "fault", "policy", "event")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", re.ASCII)
#: The rows of the assumption register for which a test at the start of a run exists.
TESTED_ROWS = ("H6", "H7", "H16", "H17")
_STATUS = re.compile(r"refused-[a-z]+(-[a-z]+)*", re.ASCII)
#: Answers that leave no entry in the site's ledger.
NOT_NOW = "not-now"
TRACELESS = ("refused-signature", "refused-rollback", NOT_NOW)


def is_name(value: Any) -> bool:
    """Return whether ``value`` may name a site or a coordinator."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def is_text(value: Any) -> bool:
    """Return whether ``value`` is a text that says something, and shows all that it says."""
    return _is_said(value) and is_visible(value)


def _is_said(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT


def hides(predicate: dict[str, Any]) -> str | None:
    """Return the first field of an entry with a text that does not show all that it says."""
    return next((name for name, value in predicate.items() if _hides(name, value)), None)


def _hides(name: str, value: Any) -> bool:
    if name in _QUOTED:
        return False
    if isinstance(value, str):
        return not is_visible(value)
    if isinstance(value, dict):
        return any(_hides(key, part) for key, part in value.items())
    if isinstance(value, list):
        return any(_hides(name, part) for part in value)
    return False


def untested(predicate: dict[str, Any]) -> bool:
    """Return whether an entry names a row for which no test at the start of a run exists."""
    return any(row not in TESTED_ROWS for row in predicate.get("self_tests", ()))


def is_answer(value: Any) -> bool:
    """Return whether a journal may name ``value`` as a site's answer."""
    return value in ("released", "failed", "no-reply", NOT_NOW) or (
        isinstance(value, str) and _STATUS.fullmatch(value) is not None
    )


def _any_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _natural(value: Any) -> bool:
    return type(value) is int and value >= 0


def is_count(value: Any) -> bool:
    """Return whether ``value`` is an integer from 1, as rounds and attempts are."""
    return type(value) is int and 1 <= value <= MAX_ROUNDS


def _keyid(value: Any) -> bool:
    return isinstance(value, str) and is_digest(f"sha256:{value}")


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_said, value))


def _by(value: Any) -> bool:
    return _is_said(value) or (_texts(value) and bool(value))


def _rows(value: Any) -> bool:
    return _texts(value) and len(set(value)) == len(value)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _software(value: Any) -> bool:
    return _is_said(value) or isinstance(value, dict)


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


def _sorted_digests(value: Any) -> bool:
    return _sorted_names(value) and all(map(is_digest, value))


_positive = _number(0.0, float("inf"))
_purpose, _signer = _one_of(*PURPOSES), _vkey(notes.SIGNER)
_keys: dict[str, Check] = {
    "key": _signer, "recovery": _or_null(_signer), "witness": _vkey(notes.COSIGNER),
    "setting": _one_of("site", "simulation", "bundle"), "software": _software,
}  # fmt: skip
_slot: dict[str, Check] = {
    "run": _is_said, "round": is_count, "attempt": is_count, "purpose": _purpose,
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
_joined = _items(site=_is_said, log=_is_said, entry=_natural, digest=is_digest)

#: role → kind → field → test.
FIELDS: dict[str, dict[str, dict[str, Check]]] = {
    "ledger": {
        "genesis": {"site": is_name, **_keys},
        "population": {
            "population": _is_said, "unit": _one_of(*UNITS), "relation": _one_of(*RELATIONS),
            "epsilon": _or_null(_positive), "delta": _number(0.0, 1.0), "max_records": is_count,
        },
        "data-set": {"data_set": _is_said, "population": _is_said, "disjoint": _any_text},
        "policy": {"policy": _object},
        "plan-approved": _decision,
        "plan-refused": _decision,
        "reserved": {
            "population": _is_said, "data_set": _is_said, **_slot, "code": is_digest,
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
        "order-key": {
            "coordinator": is_name, "old": _signer, "key": _signer, "sig": order_keys.is_signature,
            "key_sig": order_keys.is_signature,
        },
        "budget-closed": {"population": _is_said},
        "paused": {"by": _by},
        "resumed": {"by": _by},
        "withdrawn": {"by": _by},
    },
    "journal": {
        "genesis": {"coordinator": is_name, "orders": _signer, **_keys},
        "run-opened": {"run": _is_said, "plan": is_digest, "model": is_digest, "sites": _texts},
        "round": {
            "run": _is_said, "round": is_count, "model": is_digest, "next": is_digest,
            "shown": is_digest, "joined": _joined, "metrics": _joined,
            "orders": _items(
                site=_is_said, order=is_digest, purpose=_purpose, attempt=is_count,
                answer=is_answer,
            ),
            "witnessed": _items(
                log=_is_said, size=_natural, root=is_digest, cosigners=_sorted_names
            ),
        },
        "run-closed": {
            "run": _is_said, "rounds": _natural, "model": is_digest,
            "how": _one_of("done", "failed"), "fault": _or_null(_any_text),
        },
        "run-resumed": {"run": is_text, "rounds": _natural, "model": is_digest},
        "key-rotated": _rotated,
    },
}  # fmt: skip
#: role → kind → fields that an entry may have beside those of :data:`FIELDS`.
OPTIONAL: dict[str, dict[str, dict[str, Check]]] = {
    "ledger": {"genesis": {"other_ledgers": _sorted_digests},
               "policy": {"signatures": officers.are_signatures},
               "plan-approved": {"signature": officers.is_signature}},
    "journal": {},
}  # fmt: skip
for _kinds in FIELDS.values():
    for _kind in _kinds:
        _kinds[_kind] = {"sequence": _natural, "time": _is_said, "log": _is_said, **_kinds[_kind]}


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
    **dict.fromkeys(("genesis", "key-rotated", "order-key"), ("key", _of_key)),
    **dict.fromkeys(
        ("population", "data-set", "aborted", "budget-closed", "paused", "resumed", "withdrawn"),
        ("ledger", _of_log),
    ),
    "policy": ("policy", _of_policy),
    **dict.fromkeys(("plan-approved", "plan-refused", "run-opened"), ("plan", _field("plan"))),
    **dict.fromkeys(("reserved", "refused"), ("order", _field("order"))),
    **dict.fromkeys(("released", "metric-released"), ("release", _field("digest"))),
    "round": ("model", _field("next")),
    **dict.fromkeys(("run-closed", "run-resumed"), ("model", _field("model"))),
}
