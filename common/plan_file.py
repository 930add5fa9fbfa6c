"""A plan as a file of TOML, with the reason beside each value that a rule chose."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from privet.common.plan import Plan

_NESTED = ("task.numeric", "task.categorical")
"""Sections of sections that have a heading of their own."""


def plan_toml(plan: Plan) -> str:
    """Return a plan's file; reading it gives the same plan.

    Args:
        plan: whose chosen values are written as if its author had.
    """
    value = plan.model_dump(mode="json")
    sites = value.pop("sites")
    if plan.privacy is None:
        value["privacy"] = "none"
    top = {key: one for key, one in value.items() if not isinstance(one, dict)}
    lines = [f"{toml_key(key)} = {toml_value(one)}" for key, one in top.items() if _is_said(one)]
    parts = ["\n".join(lines) + "\n"]
    for key, section in value.items():
        if isinstance(section, dict) and any(map(_is_said, section.values())):
            parts.append(toml_section(key, section, reasons=plan.chosen))
    parts += [
        "\n".join(
            ["[[sites]]", *(f"{toml_key(k)} = {toml_value(v)}" for k, v in site.items() if v)]
        )
        + "\n"
        for site in sites
    ]
    return "\n".join(parts)


def relocated(plan: Plan, base: Path, folder: Path) -> Plan:
    """Return a plan whose relative paths start from another folder.

    Args:
        plan: with paths that start from ``base``.
        base: folder of the plan's own file.
        folder: of the new one.
    """

    def moved(path: str | None) -> str | None:
        if path is None or Path(path).is_absolute():
            return path
        return os.path.relpath((base / path).resolve(), folder.resolve())

    data = plan.data.model_copy(update={"path": moved(plan.data.path)})
    sites = tuple(site.model_copy(update={"path": moved(site.path)}) for site in plan.sites)
    return plan.model_copy(update={"data": data, "sites": sites})


def toml_section(
    name: str, values: Mapping[str, Any], note: str = "", reasons: Mapping[str, str] | None = None
) -> str:
    """Return a section of TOML; what is nested twice has a section of its own.

    Args:
        name: of the section.
        values: as JSON; what is None or empty is left out.
        note: a comment beside the heading.
        reasons: comments beside values, by key with dots.
    """
    lines, below = [f"[{name}]" + (f"  # {note}" if note else "")], []
    for key, value in values.items():
        if not _is_said(value):
            continue
        if isinstance(value, dict) and f"{name}.{key}" in _NESTED:
            below.append(toml_section(f"{name}.{key}", value))
            continue
        why = [
            reason
            for place, reason in (reasons or {}).items()
            if place == f"{name}.{key}" or place.startswith(f"{name}.{key}.")
        ]
        comment = f"  # {'; '.join(why)}" if why else ""
        lines.append(f"{toml_key(key)} = {toml_value(value)}{comment}")
    return "\n".join([*lines, "", *below])


def toml_value(value: Any) -> str:
    """Return a value as TOML on one line, which the library does for single values alone.

    Args:
        value: as JSON.
    """
    if isinstance(value, dict):
        parts = (
            f"{toml_key(key)} = {toml_value(one)}" for key, one in value.items() if one is not None
        )
        return f"{{ {', '.join(parts)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


def _is_said(value: Any) -> bool:
    return value is not None and value not in ({}, [], "")


def toml_key(key: str) -> str:
    """Return a key as TOML, in quotes where it needs them.

    Args:
        key: such as a column's name.
    """
    return tomli_w.dumps({key: 0}).removesuffix(" = 0\n")
