"""Fill in what a plan leaves out of its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from privet.common.settings.rules import Choice, choose, choose_model

Mapped = dict[str, Any]
_DEEP_KEYS = ("model.options",)
"""Sections of sections, whose keys are chosen one by one."""


def said_by(value: Mapping[str, Any]) -> frozenset[str]:
    """Return the keys that a mapping has, with dots.

    Args:
        value: as a file gives it.
    """
    found = set()
    for name, section in value.items():
        if not isinstance(section, Mapping):
            found.add(name)
            continue
        for key, inner in section.items():
            found.add(f"{name}.{key}")
            if f"{name}.{key}" in _DEEP_KEYS and isinstance(inner, Mapping):
                found |= {f"{name}.{key}.{one}" for one in inner}
    return frozenset(found)


def with_choices(value: Mapping[str, Any], choices: Mapping[str, Choice]) -> Mapped:
    """Return a mapping with chosen values in their places.

    Args:
        value: as a file gives it.
        choices: by key.
    """
    found = dict(value)
    for key, choice in choices.items():
        *path, last = key.split(".")
        section = found
        for part in path:
            section[part] = dict(section.get(part) or {})
            section = section[part]
        section[last] = choice.value
    return found


__all__ = ["choose", "choose_model", "said_by", "with_choices"]
