"""Every field of a bundle's meaning, what it is called, who signs it, and how it can be changed."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from meaning import Original, Part, b64, copy, sha

Path = tuple[Any, ...]


class LeftOut:
    """Stands for a field that is left out."""

    def __repr__(self) -> str:
        return "left out"


LEFT_OUT = LeftOut()
_HUGE = 2**53 - 1
_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_DECIMAL = re.compile(r"-?\d+(\.\d+)?(e[+-]\d+)?")
_VKEY = re.compile(r"([^+]+)\+[0-9a-f]{8}\+([A-Za-z0-9+/]+=*)")
#: Fields whose text is one of a few.
_CHOICES: tuple[tuple[str, ...], ...] = (
    ("train", "evaluate"),
    ("record", "person", "account", "site"),
    ("add_or_remove_one", "replace_one"),
    ("listed", "manual", "simulation"),
    ("site", "simulation", "bundle"),
    ("site", "coordinator"),
    ("failed", "recovered", "does-not-fit"),
    ("rotation", "recovery"),
    ("done", "failed"),
    (
        "released",
        "failed",
        "no-reply",
        "not-now",
        "refused-signature",
        "refused-budget",
        "refused-rollback",
    ),
    ("refused-paused", "refused-budget", "refused-policy"),
    ("gaussian", "laplace", "poisson_sampled", "repeated", "non_private", "discrete_gaussian"),
    ("gate", "public", "off"),
    ("local", "central"),
)
#: Objects whose keys are names that somebody chose.
_NAMED = (
    "plan.task.numeric", "plan.task.categorical", "plan.attested", "plan.model.options",
    "plan.strategy.options", "plan.task.options", "ledger.policy.policy.attested",
    "ledger.policy.policy.populations", "ledger.policy.policy.data",
)  # fmt: skip
#: What a site copies from the order that it answers.
_COPIED = {
    f"ledger.{kind}.{field}"
    for kind in ("reserved", "refused")
    for field in ("run", "round", "attempt", "purpose", "order", "keyid", "plan", "model")
}
#: Parts of the tree that are not fields: the forger writes what stands for them.
_SHAPE = re.compile(
    r"(bundle|roster|plans|orders|logs|receipts|log|entry|order-line(\.order)?|entry\.(statement|predicate|"
    r"payloadType|signers)|log\.(entries|checkpoints)|checkpoint(\..*)?|receipt\.(index|checkpoint|path))"
)


def walk(value: Any, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every place below ``value`` with what stands there."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*at, key), item
        if isinstance(item, dict | list):
            yield from walk(item, (*at, key))


def get(tree: Any, path: Path) -> Any:
    """Return what stands at ``path``."""
    for key in path:
        tree = tree[key]
    return tree


def put(tree: Any, path: Path, value: Any) -> None:
    """Put ``value`` at ``path``, or take away what is there."""
    parent, key = get(tree, path[:-1]), path[-1]
    if value is LEFT_OUT:
        del parent[key]
    elif isinstance(parent, list) or key in parent:
        # An object stays the part that it was.
        if isinstance(value, dict) and isinstance(parent[key], Part):
            home, value = parent[key].home, Part(value)
            value.home = home
        parent[key] = value
    else:
        parent[key] = value


def _join(start: str, rest: Path) -> str:
    name = start
    for key in rest:
        if isinstance(key, int):
            name += "[]"
        elif name in _NAMED:
            name += ".*"
        else:
            name += f".{key}"
    return name


def name_of(tree: dict[str, Any], path: Path) -> str:
    """Return the name of the field at ``path``: the same for all entries of a kind."""
    top, rest = path[0], path[2:]
    if len(path) == 1 or top in ("bundle", "roster"):
        return _join(top, path[1:])
    if top == "plans":
        return _join("plan", rest)
    if top == "receipts":
        return _join("receipt", rest)
    if top == "orders":
        return _join("order", rest[1:]) if rest[:1] == ("order",) else _join("order-line", rest)
    if len(rest) < 2 or rest[0] not in ("entries", "checkpoints"):
        return _join("log", rest)
    if rest[0] == "checkpoints":
        return _join("checkpoint", rest[2:])
    return _entry_name(tree["logs"][path[1]]["entries"][rest[1]], rest[2:])


def _entry_name(entry: dict[str, Any], rest: Path) -> str:
    if rest[:2] != ("statement", "predicate"):
        return _join("entry", rest[1:] if rest[:1] == ("statement",) and rest[1:] else rest)
    if rest[2:3] in (("sequence",), ("time",), ("log",)):
        return _join("entry", rest[2:])
    _, _, role, _, kind = entry["statement"]["predicateType"].split(":")
    return _join(f"{role}.{kind}", rest[2:])


def owner_of(original: Original, path: Path) -> str | None:
    """Return who signs what stands at ``path``; None if nobody does."""
    if path[0] == "orders":
        return original.coordinator if len(path) > 2 else None
    if path[0] != "logs" or len(path) < 5:
        return None
    log = original.tree["logs"][path[1]]
    if path[2] == "checkpoints" and "signatures" in path and len(path) > 6:
        return original.owners[log["checkpoints"][path[3]]["signatures"][path[5]]["name"]]
    return original.owners[log["log"]]


def changes(original: Original, path: Path, peers: list[Any]) -> Iterator[tuple[str, Any]]:
    """Yield kinds of change of the field at ``path``, with its new value.

    Args:
        original: the bundle.
        path: the field.
        peers: what stands in fields of the same name elsewhere.
    """
    value, name = get(original.tree, path), name_of(original.tree, path)
    yield from _of_type(value)
    other = next((peer for peer in peers if peer != value), None)
    if other is not None and not isinstance(value, bool):
        yield "exchanged for another of the same name", copy(other)
    if _SHAPE.fullmatch(name) is None:
        if value is not None:
            yield "null", None
        if isinstance(path[-1], str):
            yield "left out", LEFT_OUT


def _of_type(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, bool):
        yield "turned round", not value
    elif isinstance(value, int | float):
        for what, new in (("up", value + 1), ("down", value - 1), ("zero", 0), ("huge", _HUGE)):
            if new != value:
                yield what, new
        if value:
            yield "half", value / 2 if isinstance(value, float) else value // 2
    elif isinstance(value, str):
        yield from _of_text(value)
    elif value is None:
        yield "text", "privet"
        yield "one", 1
    elif isinstance(value, list):
        yield from _of_list(value)
    else:
        yield "a key added", {**copy(value), "privet": 1}


def _of_list(value: list[Any]) -> Iterator[tuple[str, Any]]:
    if len(value) > 1:
        yield "first dropped", copy(value)[1:]
        yield "reversed", copy(value)[::-1]
    if value:
        yield "last dropped", copy(value)[:-1]
        yield "last doubled", [*copy(value), copy(value[-1])]
        yield "emptied", []
    if not value or isinstance(value[0], str):
        yield "one added", [*value, "privet"]


def _of_text(value: str) -> Iterator[tuple[str, Any]]:
    if _TIME.fullmatch(value):
        moment = datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        yield "2099", f"2099{value[4:]}"
        yield "2001", f"2001{value[4:]}"
        for what, seconds in (("a second later", 1), ("an hour later", 3600)):
            yield what, (moment + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    elif _DIGEST.fullmatch(value):
        prefix = "sha256:" if value.startswith("sha256:") else ""
        yield "another digest", prefix + sha(f"another than {value}".encode())
    elif _DECIMAL.fullmatch(value):
        number = float(value)
        for what, new in (("up", number + 1), ("half", number / 2), ("huge", 1e15)):
            yield what, repr(new)
        yield "zero", "0"
    elif _VKEY.fullmatch(value):
        yield "another key", _other_key(value)
    for choices in _CHOICES:
        if value in choices:
            for choice in choices:
                if choice != value:
                    yield f"'{choice}'", choice
    yield "other text", f"{value[:100]}x"
    yield "empty", ""
    yield "an escape code in it", f"{value[:100]}\x1b[2J"
    yield "written from right to left", f"{value[:100]}\u202e"


def _other_key(vkey: str) -> str:
    """Return a well-formed verifier key of the same name and type."""
    name, _, text = vkey.split("+", 2)
    kind = 4 if text.startswith("B") else 1
    seed = bytes.fromhex(sha(vkey.encode()))
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    raw = bytes([kind]) + public
    return f"{name}+{sha(name.encode() + bytes([10]) + raw)[:8]}+{b64(raw)}"


def places(original: Original) -> dict[str, list[Path]]:
    """Return all fields: the places of each name, in the bundle's order."""
    found: dict[str, list[Path]] = {}
    for path, _ in walk(original.tree):
        found.setdefault(name_of(original.tree, path), []).append(path)
    return found


def changed(
    original: Original, path: Path, new: Any, *, everywhere: bool,
    by: frozenset[str] | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """Return the meaning with one field changed, or with all that say the same.

    Args:
        original: the bundle.
        path: the field.
        new: its new value.
        everywhere: also where the same text stands, or the same value under the same key; None
            is returned if there is no such place.
        by: only where these members decide what stands there; None for everywhere.
    """
    tree: dict[str, Any] = copy(original.tree)
    if not everywhere:
        put(tree, path, new)
        return tree
    old, key = get(original.tree, path), _key(path)
    if not original.all:
        original.all += walk(original.tree)
    others = [
        at
        for at, value in original.all
        if type(value) is type(old)
        and value == old
        and (isinstance(old, str) or _key(at) == key)
        and (by is None or _decides(original, at, by))
    ]
    if len(others) < 2:
        return None
    for at in sorted(others, key=len, reverse=True):
        put(tree, at, copy(new))
    if isinstance(old, str) and isinstance(new, str):
        _rename(tree, old, new)
    return tree


def _decides(original: Original, path: Path, members: frozenset[str]) -> bool:
    """Whether members decide what stands at ``path``, which others may only have copied."""
    owner = owner_of(original, path)
    if path[0] == "roster":  # there is another copy
        return False
    asked = original.coordinator in members
    if owner is None or (asked and name_of(original.tree, path) in _COPIED):
        return asked
    return owner in members


def _key(path: Path) -> str:
    return next((key for key in reversed(path) if isinstance(key, str)), "")


def _rename(tree: Any, old: str, new: str) -> None:
    """Let objects whose keys are names follow."""
    for path, value in list(walk(tree)):
        if (
            path
            and path[-1] in ("populations", "data")
            and isinstance(value, dict)
            and old in value
        ):
            value[new] = value.pop(old)


def some(rng: random.Random, tree: Any, at: list[Path], most: int) -> list[Path]:
    """Return the first and the last of some places, and others by chance, at most so many.

    Where values of several types stand, such as null and a text, there is one of each, and one
    that is empty where others are not.
    """
    types = {}
    for path in reversed(at):
        value = get(tree, path)
        types[type(value), bool(value)] = path
    ends = list(dict.fromkeys([*types.values(), at[-1]]))[: max(most, len(types))]
    rest = [path for path in at if path not in ends]
    return ends + rng.sample(rest, min(len(rest), max(0, most - len(ends))))
