"""Strict, frozen parts of what people write, and messages that name every wrong key.

Plan and policy are built from these. Unknown keys are errors with a suggestion, types are
not converted, and no number is infinite or missing.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Iterable, Iterator
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from privet.common.errors import InputError
from privet.common.printable import HIDDEN, printable, shortened
from privet.common.site_name import trimmed

NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$"
KEY = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
DIGEST = r"^sha256:[0-9a-f]{64}$"
ABSOLUTE = r"^/"
SSH_KEY = r"^ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43}( [^\n]*)?$"
ONE_LINE = rf"^[^{HIDDEN}]*$"
_SHAPES = {
    NAME: "must be at most 64 letters, digits, spaces and . _ -, the first a letter or digit",
    KEY: "must be at most 64 letters, digits and . _ -, the first a letter or digit",
    DIGEST: "must be sha256: and 64 digits of 0-9 and a-f",
    ABSOLUTE: "must be an absolute path",
    SSH_KEY: "must be an Ed25519 public key as OpenSSH writes it: ssh-ed25519 AAAA…",
    ONE_LINE: "must be one line, without control characters and marks of text direction",
}
"""The message for a text that does not match a pattern."""


def _trimmed(value: object) -> object:
    return trimmed(value) if isinstance(value, str) else value


Name = Annotated[str, Field(pattern=NAME)]
_SpacedName = Annotated[str, Field(pattern=r"^\s*" + NAME[1:-1] + r"\s*$")]
SiteName = Annotated[
    str, BeforeValidator(_trimmed, json_schema_input_type=_SpacedName), Field(pattern=NAME)
]
"""Blanks around it are no part of it."""
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=ONE_LINE)]
"""A short text that others read."""
Count = Annotated[int, Field(ge=1, le=10**9)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

OWN = "module:object"
"""What stands for the kinds of a user's own."""
OwnKind = Annotated[str, Field(pattern=":")]
MAX_NAMED = 8
"""Kinds that a message names, at most."""
UNSAID: Any = {}
"""Options, where none is written."""


class Part(BaseModel):
    """A section of a file that a person writes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Options(Part):
    """Options of one kind. Canonical form has those that were written, and no defaults."""

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        value: dict[str, Any] = dump(self)
        return {key: value[key] for key in value if key in self.model_fields_set}


class Variant(Part):
    """A section of one kind, in whose canonical form the keys of other kinds are, too.

    Attributes:
        blanks: what canonical form says for them, and a file may; it never changes.
    """

    blanks: ClassVar[dict[str, Any]] = {}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        found = handler(schema)
        # As patterns: an editor completes properties, and nobody writes these.
        handler.resolve_ref_schema(found)["patternProperties"] = {
            f"^{key}$": {"const": value} for key, value in cls.others().items()
        }
        return found

    @classmethod
    def others(cls) -> dict[str, Any]:
        """Return the blanks that are for keys of other kinds."""
        return {key: value for key, value in cls.blanks.items() if key not in cls.model_fields}


class ByKind:
    """Annotates a union of parts, of which a key chooses one.

    Args:
        default: what is chosen where the key is left out.
        key: each part lists its values as a ``Literal``; one that does not is a user's own, whose
            values hold a colon.
    """

    def __init__(self, default: str, *, key: str = "kind") -> None:
        self._default, self.key = default, key

    def parts(self, union: Any) -> dict[str, Any]:
        """Return the parts of a union by their kinds."""
        found: dict[str, Any] = {}
        for part in get_args(union):
            kind = part.model_fields[self.key].annotation
            found |= dict.fromkeys(get_args(kind) or [OWN], part)  # a literal, or any text
        return found

    def kind_of(self, value: Any) -> str | None:
        """Return the kind that is named, or meant; None if what is named is no text."""
        kind = self._default
        if isinstance(value, Part):
            value = vars(value)
        if isinstance(value, dict):
            kind = value.get(self.key, kind)
        if not isinstance(kind, str):
            return None
        return OWN if ":" in kind else kind

    def __get_pydantic_core_schema__(
        self, union: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        parts = {kind: handler.generate_schema(part) for kind, part in self.parts(union).items()}
        return core_schema.tagged_union_schema(parts, self.kind_of)


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


def json_schema(kind: type[Part], title: str, *, optional: Collection[str] = ()) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a file that a person writes, for editors.

    It holds keys, types, ranges and choices. A rule about several keys (a test split that
    leaves nothing to train on) is not in it: :func:`parse` has the last word.

    Args:
        kind: of the file.
        title: what an editor calls it.
        optional: keys that a file may leave out, and a mapping in a program may not.
    """
    value = kind.model_json_schema(schema_generator=_FileSchema)
    value["required"] = [key for key in value.get("required", ()) if key not in optional]
    dialect = GenerateJsonSchema.schema_dialect
    return {"$schema": dialect, **value, "title": title}


class _FileSchema(GenerateJsonSchema):
    """Without titles, which repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _explain(error: ValidationError, where: str, kind: type[Part]) -> str:
    lines = []
    items = error.errors(include_url=False)
    for item in items:
        place = item["loc"]
        if item["type"] == "too_short" and any(
            other["loc"][: len(place)] == place and other is not item for other in items
        ):
            continue  # pydantic counts the wrong entries of a list as absent, too
        found = _Place(place, kind)
        # pydantic reports a wrong name of an entry under that entry.
        named = place[-1:] == ("[key]",)
        message = _in_words(item)
        if item["type"] == "extra_forbidden":
            message = found.unknown_key()
        elif item["type"] == "missing":
            message = "missing" + _what_to_write(item["loc"], kind)
        elif item["type"].startswith("union_tag"):
            message = found.wrong_kind(item)
        elif named:
            message = f"this name {message.partition(', not ')[0]}"
        path = printable(".".join(found.path[:-1] if named else found.path))
        lines.append(f"{where}: {path or kind.__name__.lower()}: {message}")
    return "\n".join(lines)


class _Place:
    """Where a fault is: its path as the author knows it, and the part that contains it.

    Args:
        place: as pydantic says it, with the kinds that were chosen, which are no keys.
        kind: of the file.
    """

    def __init__(self, place: tuple[str | int, ...], kind: type[Part]) -> None:
        self.path: list[str] = []
        self._fields: Any = kind.model_fields
        self._union: tuple[ByKind, dict[str, Any]] | None = None
        self._is = ""
        self._others: list[tuple[str, str, Any]] = []
        for key in map(str, place):
            self._step(key)

    def _step(self, key: str) -> None:
        if self._union is not None:
            by, parts = self._union
            self._fields, self._is, self._union = parts[key].model_fields, key, None
            self._others = [(by.key, k, p) for k, p in parts.items() if p is not parts[key]]
            return
        self.path.append(key)
        field = self._fields.get(key)
        if field is None:
            return  # an index or a feature's name, below a section that was found already
        for by in field.metadata:
            if isinstance(by, ByKind):
                self._union = by, by.parts(field.annotation)
        self._others = [
            (name, kind, section)
            for name, kind, part in self._others
            if key in part.model_fields
            for section in _sections(part.model_fields[key].annotation)
        ]
        self._fields = getattr(next(_sections(field.annotation), None), "model_fields", {})

    def unknown_key(self) -> str:
        """Return whose key it is, if another kind has it, or which one may be meant."""
        *_, key = self.path
        whose: dict[str, list[str]] = {}
        for name, kind, part in self._others:
            if key in part.model_fields:
                whose.setdefault(name, []).append(f"'{kind}'")
        for name, kinds in whose.items():
            few = list(dict.fromkeys(kinds))
            if len(few) > MAX_NAMED:
                few = [*few[: MAX_NAMED - 1], "others"]
            return f"belongs to {name} = {_either(few)}, not to '{self._is}'"
        return "unknown key" + did_you_mean(key, self._fields)

    def wrong_kind(self, item: Any) -> str:
        """Return which kinds there are."""
        assert self._union is not None
        by, parts = self._union
        self.path.append(by.key)
        given = item["input"][by.key]
        if not isinstance(given, str):
            return f"must be {_KINDS['string_type']}, not {_shown(given)}"
        known = _either(f"'{kind}'" for kind in parts)
        return f"must be {known}, not {_shown(given)}{did_you_mean(given, parts)}"


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _in_words(item: Any) -> str:
    """Return a fault as pydantic found it in plain words."""
    context, given = item.get("ctx", {}), item["input"]
    match item["type"]:
        case "value_error":
            return str(item["msg"]).removeprefix("Value error, ")
        case "string_pattern_mismatch" if context["pattern"] in _SHAPES:
            return f"{_SHAPES[context['pattern']]}, not {_shown(given)}"
        case "literal_error":
            return f"must be {context['expected']}, not {_shown(given)}"
        case kind if kind in _BOUNDS:
            word, key = _BOUNDS[kind]
            return f"must be {word} {_shown(context[key])}, not {_shown(given)}"
        case "too_short" | "string_too_short" if context["min_length"] == 1:
            return "must not be empty"
        case "too_short":
            return f"must have at least {context['min_length']} entries"
        case "too_long":
            return f"may have at most {context['max_length']} entries"
        case "string_too_long":
            return f"may have at most {context['max_length']} characters"
        case kind if kind in _KINDS:
            return f"must be {_KINDS[kind]}, not {_shown(given)}"
    return str(item["msg"]).replace("Input should be", "must be")


_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_KINDS = {
    "string_type": "a text in quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}


def _shown(value: Any) -> str:
    """Return a wrong value as its author wrote it, if that is short."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return printable(shortened(f"'{value}'"))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return printable(shortened(json.dumps(value)))


def _what_to_write(place: tuple[str | int, ...], kind: type[Part]) -> str:
    """Return the hint of a top-level key that must be written, or ''."""
    found = kind.model_fields.get(".".join(map(str, place)))  # below the top there is none
    return f"; {found.description}" if found is not None and found.description else ""


def _not_finite(value: Any, place: str = "") -> str:
    """Return the place of a number that is not finite, which JSON cannot hold, or ''."""
    if isinstance(value, float) and not math.isfinite(value):
        return place
    parts: Any = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    for key, part in parts:
        if found := _not_finite(part, f"{place}.{key}" if place else str(key)):
            return found
    return ""


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Return the text after a fault that names the closest known key, or ''.

    Args:
        key: as it was written, in capitals or not.
        known: the keys that there are.
    """
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(key.lower(), by_lower, n=1)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


def _sections(annotation: Any) -> Iterator[type[Part]]:
    """Yield the sections that a key may hold."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, Part):
            yield one
