"""Values of single keys of a plan, as a command line gives them.

A key has dots, such as ``training.learning_rate``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from privet.common.errors import InputError
from privet.common.plan import Plan

EPSILON = "privacy.epsilon"
_NOISE = "privacy.noise_multiplier"
Values = dict[str, Any]


def values_of(texts: Sequence[str]) -> Values:
    """Read the words of ``--set``.

    Args:
        texts: such as ``training.steps=5``; a value is JSON, or else the text itself.

    Raises:
        InputError: if one has no value, or a key comes twice.
    """
    found: Values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not value.strip() or not re.fullmatch(r"\w[\w.-]*", key):
            raise InputError(
                f"--set {text}: write KEY=VALUE, with a key of the plan such as training.steps=5"
            )
        if key in found:
            raise InputError(f"--set {key}: the key comes twice")
        try:
            found[key] = json.loads(value)
        except (ValueError, RecursionError):
            found[key] = value.strip()
    return found


def value_of(text: str) -> Any:
    """Return a number, a truth value, null, or the text itself.

    Args:
        text: a single value, without structure.
    """
    try:
        value = json.loads(text)
    except ValueError:
        return text.strip()
    return text.strip() if isinstance(value, dict | list) else value


def changes_of(plan: Plan, chosen: Values) -> dict[str, Any]:
    """Return the sections that values change, whole.

    Args:
        plan: as its author wrote it.
        chosen: values by key.

    Raises:
        InputError: if a key has no place in the plan, or two of them do not fit together.
    """
    whole = plan.written()
    changed: dict[str, Any] = {}
    for key, value in sorted(chosen.items(), key=lambda item: item[0].count(".")):
        first, *rest = key.split(".")
        if first not in Plan.model_fields:
            raise InputError(f"'{key}': a plan has no key '{first}'")
        if not rest:
            changed[first] = value
            continue
        if first in changed and not isinstance(changed[first], dict):
            raise InputError(f"'{first}' and '{key}' cannot be set together")
        section = changed.setdefault(first, _mapping(whole.get(first), first))
        for part in rest[:-1]:
            section[part] = _mapping(section.get(part), key)
            section = section[part]
        section[rest[-1]] = value
    if EPSILON in chosen:
        if plan.privacy is None:
            raise InputError("the plan has no [privacy] section to set ε in")
        if _NOISE in chosen:
            raise InputError(f"{_NOISE} follows from {EPSILON}: set one of them")
        changed["privacy"]["noise_multiplier"] = None  # calibrated to it
    return changed


def _mapping(value: Any, key: str) -> Values:
    """Return a copy of what a key's part holds.

    Raises:
        InputError: if that has no parts, such as a number.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"'{key}' has no parts that could be set")
    return dict(value)


__all__ = ["EPSILON", "Values", "changes_of", "value_of", "values_of"]
