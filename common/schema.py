"""Strict, frozen parts of what people write, and messages that name every wrong key.

Plan and policy are built from these. Unknown keys are errors with a suggestion, types are
not converted, and no number is infinite or missing.
"""

from __future__ import annotations

import difflib
import json
import math
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from privet.common.errors import InputError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]
Count = Annotated[int, Field(ge=1, le=10**9)]


class Part(BaseModel):
    """A section of a file that a person writes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_P = TypeVar("_P", bound=Part)


def parse(kind: type[_P], value: Any, *, where: str, error: type[InputError]) -> _P:
    """Build a ``kind`` from a mapping, as TOML or JSON gives it.

    Args:
        kind: what to build.
        value: the mapping.
        where: the file or the name, for messages.
        error: the class that is raised.

    Raises:
        error: naming every wrong key and what was expected.
    """
    if place := _not_finite(value):
        raise error(f"{where}: {place}: must be a finite number")
    try:
        return kind.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as fault:
        raise error(_explain(fault, where, kind)) from None
    except (TypeError, ValueError) as fault:
        raise error(f"{where}: {fault}") from fault


def _explain(error: ValidationError, where: str, kind: type[Part]) -> str:
    lines = []
    items = error.errors(include_url=False)
    for item in items:
        place = item["loc"]
        if item["type"] == "too_short" and any(
            other["loc"][: len(place)] == place and other is not item for other in items
        ):
            continue  # pydantic counts the wrong entries of a list as absent, too
        path = ".".join(str(part) for part in item["loc"]) or kind.__name__.lower()
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key" + _did_you_mean(item["loc"], kind)
        elif item["type"] == "missing":
            message = "missing" + _what_to_write(item["loc"], kind)
        lines.append(f"{where}: {path}: {message}")
    return "\n".join(lines)


def _what_to_write(place: tuple[str | int, ...], kind: type[Part]) -> str:
    """Return the hint of a top-level key that must be written, or ''."""
    found = kind.model_fields.get(str(place[0])) if len(place) == 1 else None
    return f"; {found.description}" if found is not None and found.description else ""


def _not_finite(value: Any, place: str = "") -> str:
    """Return the place of a number that is not finite, which JSON cannot hold, or ''."""
    if isinstance(value, float):
        return place if not math.isfinite(value) else ""
    parts: Any = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    for key, part in parts:
        if found := _not_finite(part, f"{place}.{key}" if place else str(key)):
            return found
    return ""


def _did_you_mean(location: tuple[int | str, ...], kind: type[Part]) -> str:
    part: Any = kind
    for key in location[:-1]:
        if part is None:
            return ""
        field = part.model_fields.get(str(key))
        # An index or a feature's name, below a section that was found already.
        part = _section(field.annotation) if field else part
    if part is None:
        return ""
    close = difflib.get_close_matches(str(location[-1]), part.model_fields, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _section(annotation: Any) -> Any:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
