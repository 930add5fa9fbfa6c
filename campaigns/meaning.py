"""A bundle taken apart into what it says: one tree of JSON values, with nothing signed in it.

Written from docs/reference/evidence-format.md, without the verifier's code. The tree is::

    {"bundle": {...}, "roster": {...}, "plans": [plan...], "orders": [{"order", "keyid"}...],
     "logs": [{"log", "name", "role", "size",
               "entries": [{"payloadType", "statement", "signers": [key id...]}...],
               "checkpoints": [{"origin", "size", "root", "signatures": [{"name", "time"}...]}...]
              }...],
     "receipts": [{"run", "round", "purpose", "site", "index", "path", "checkpoint"}...]}

A receipt names its checkpoint by size.

What was signed, once signed, is kept beside the tree by :attr:`Part.home`, so that whoever lacks a
key can only repeat it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Home = tuple[Any, ...]


class Part(dict[str, Any]):
    """An object of the tree that knows which part of the original bundle it is."""

    home: Home | None = None

    @classmethod
    def of(cls, home: Home, **values: Any) -> Part:
        """Return a part with ``values``."""
        part = cls(values)
        part.home = home
        return part


def copy(value: Any) -> Any:
    """Return a deep copy in which parts stay parts."""
    if isinstance(value, Part):
        made = Part({key: copy(item) for key, item in value.items()})
        made.home = value.home
        return made
    if isinstance(value, dict):
        return {key: copy(item) for key, item in value.items()}
    return [copy(item) for item in value] if isinstance(value, list) else value


def sha(data: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def b64(data: bytes) -> str:
    """Return base64 with padding."""
    return base64.b64encode(data).decode()


def raw_of(vkey: str) -> bytes:
    """Return the 32 bytes of a verifier key."""
    return base64.b64decode(vkey.split("+", 2)[2])[1:]


@dataclass(frozen=True)
class Keys:
    """Private keys by the fingerprint (hex) of their public half."""

    private: dict[str, Ed25519PrivateKey] = field(default_factory=dict)

    def add(self, key: Ed25519PrivateKey) -> None:
        """Keep a key."""
        self.private[sha(key.public_key().public_bytes_raw())] = key

    def sign(self, fingerprint: str, message: bytes) -> bytes:
        """Sign ``message``; a KeyError if the key is not here."""
        return self.private[fingerprint].sign(message)


@dataclass
class Original:
    """A bundle, its meaning, and the signed bytes in it.

    Attributes:
        tree: the meaning.
        signed: by home, the line of an order, the leaf of an entry, the note of a checkpoint, the
            line of a signature, the proof of a receipt.
        signers: by home of a signature line, the fingerprint of its key.
        owners: the members' names by the names of their keys.
        coordinator: the coordinator's name.
        orders: the fingerprint of the key that signs orders.
        all: every place of the tree with what stands there, once somebody has looked.
    """

    tree: dict[str, Any]
    signed: dict[Home, bytes] = field(default_factory=dict)
    signers: dict[Home, str] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    coordinator: str = ""
    orders: str = ""
    all: list[tuple[Home, Any]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The sites' names, in the roster's order."""
        return [site["name"] for site in self.tree["roster"]["sites"]]

    def part(self, home: Home) -> Any:
        """Return the part of the original tree at ``home``."""
        kind, *at = home
        tree = self.tree
        if kind in ("plan", "order", "receipt", "log"):
            return tree[f"{kind}s"][at[0]]
        log = tree["logs"][at[0]]
        if kind == "entry":
            return log["entries"][at[1]]
        checkpoint = log["checkpoints"][at[1]]
        return checkpoint if kind == "checkpoint" else checkpoint["signatures"][at[2]]


def parse(lines: list[bytes]) -> Original:
    """Take a bundle apart; ``lines`` are without newlines, the end line may be missing."""
    tree: dict[str, Any] = {
        "bundle": {}, "roster": {}, "plans": [], "orders": [], "logs": [], "receipts": [],
    }  # fmt: skip
    found = Original(tree)
    for line in lines:
        value = json.loads(line)
        kind = value.get("kind", "entry")
        if kind == "bundle":
            tree["bundle"] = value
        elif kind == "roster":
            tree["roster"] = value["roster"]
            _own(found)
        elif kind == "plan":
            tree["plans"].append(Part(value["plan"]))
            tree["plans"][-1].home = ("plan", len(tree["plans"]) - 1)
        elif kind == "order":
            home = ("order", len(tree["orders"]))
            tree["orders"].append(Part.of(home, order=value["order"], keyid=value["keyid"]))
            found.signed[home] = line
        elif kind == "log":
            head = {key: value[key] for key in ("log", "name", "role", "size")}
            home = ("log", len(tree["logs"]))
            tree["logs"].append(Part.of(home, **head, entries=[], checkpoints=[]))
        elif kind == "entry":
            _entry(found, line, value)
        elif kind == "checkpoint":
            _checkpoint(found, value["note"])
        elif kind == "receipt":
            _receipt(found, value)
    return found


def _own(found: Original) -> None:
    roster = found.tree["roster"]
    head = roster["coordinator"]
    found.coordinator, found.orders = head["name"], sha(raw_of(head["orders"]))
    for member, room in ((head, "journal"), *((site, "ledger") for site in roster["sites"])):
        for key in (member[room], member["witness"]):
            found.owners[key.split("+")[0]] = member["name"]


def _entry(found: Original, line: bytes, value: dict[str, Any]) -> None:
    number, log = len(found.tree["logs"]) - 1, found.tree["logs"][-1]
    home = ("entry", number, len(log["entries"]))
    statement = json.loads(base64.b64decode(value["payload"]))
    signers = [signature["keyid"] for signature in value["signatures"]]
    entry = Part.of(home, payloadType=value["payloadType"], statement=statement, signers=signers)
    log["entries"].append(entry)
    found.signed[home] = line


def _checkpoint(found: Original, note: str) -> None:
    number, log = len(found.tree["logs"]) - 1, found.tree["logs"][-1]
    place = len(log["checkpoints"])
    body, _, tail = note.rpartition("\n\n")
    origin, size, root = body.split("\n")
    keys = _key_ids(found, log)
    signatures = []
    for n, line in enumerate(tail.split("\n")[:-1]):
        _, name, text = line.split(" ")
        data, home = base64.b64decode(text), ("signature", number, place, n)
        time = int.from_bytes(data[4:12], "big") if len(data) == 76 else None
        signatures.append(Part.of(home, name=name, time=time))
        found.signed[home] = (line + "\n").encode()
        found.signers[home] = keys[name, data[:4]]
    log["checkpoints"].append(
        Part.of(
            ("checkpoint", number, place), origin=origin, size=int(size),
            root="sha256:" + base64.b64decode(root).hex(), signatures=signatures,
        )
    )  # fmt: skip
    found.signed["checkpoint", number, place] = note.encode()


def _key_ids(found: Original, log: dict[str, Any]) -> dict[tuple[str, bytes], str]:
    """Return fingerprints by name and id of the keys that may sign checkpoints of ``log``."""
    roster = found.tree["roster"]
    vkeys = [member["witness"] for member in (roster["coordinator"], *roster["sites"])]
    for entry in log["entries"]:
        predicate = entry["statement"]["predicate"]
        if entry["statement"]["predicateType"].endswith((":genesis", ":key-rotated")):
            vkeys.append(predicate["key"])
    return {
        (key.split("+")[0], bytes.fromhex(key.split("+")[1])): sha(raw_of(key)) for key in vkeys
    }


def _receipt(found: Original, value: dict[str, Any]) -> None:
    home = ("receipt", len(found.tree["receipts"]))
    head, _, note = value["proof"].partition("\n\n")
    _, index, *path = head.split("\n")
    slot = {key: value[key] for key in ("run", "round", "purpose", "site")}
    found.tree["receipts"].append(
        Part.of(home, **slot, index=int(index.split(" ")[1]), path=path,
                checkpoint=int(note.split("\n")[1]))
    )  # fmt: skip
    found.signed[home] = note.encode()


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def canonical(value: Any) -> bytes:
    """Return RFC 8785 JSON of a value whose numbers are integers; several times as fast."""
    return _encode(value).encode()


def canonical_plan(value: Any) -> bytes:
    """Return RFC 8785 JSON of a value whose numbers may have fractions, as those of plans."""
    return rfc8785.dumps(value)
