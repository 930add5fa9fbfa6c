"""A forger: writes a bundle from its meaning, and signs with the keys that a coalition owns.

Everything that follows from a change is made anew: digests, subjects, places in a log, roots,
checkpoints, cosignatures, proofs, the digest at the end, and the references to all of these in
other logs. What somebody outside the coalition signed is repeated as it was; if the change would
need such a signature, the forgery keeps the old bytes. A cosignature that no longer holds is left
out, and all of them where too few are left, as in a history that nobody witnessed.

Nothing of the verifier is used. A value that differs from the original's is taken to be the change
and is left alone; all others follow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from formats import pae, path, root, subject
from meaning import Home, Keys, Original, Part, b64, canonical, canonical_plan, sha

ORDER_TYPE = "application/vnd.privet.order+json"
_SLOT = ("run", "round", "purpose", "attempt", "site")


class Forger:
    """Writes one forged bundle.

    Args:
        original: the bundle that was taken apart.
        tree: its meaning, changed.
        coalition: the members whose keys are at hand.
        keys: private keys; only those of the coalition are used, but in time.
        in_time: the lie was told while the run went on. Then the others signed what followed from
            it, as honest programs do: a witness cosigns any head that extends the last one, and
            the coordinator writes down what it was sent.
    """

    def __init__(
        self, original: Original, tree: dict[str, Any], coalition: frozenset[str], keys: Keys,
        in_time: bool = False,
    ) -> None:  # fmt: skip
        self.original, self.tree, self.coalition, self.keys = original, tree, coalition, keys
        self._in_time = in_time
        self._new: dict[str, str] = {}
        self._places: dict[str, dict[int, int]] = {}
        self._sizes: dict[str, dict[int, int]] = {}
        self._cosigners: dict[tuple[str, int], tuple[list[str], list[str]]] = {}
        self._notes: dict[tuple[str, int], bytes] = {}
        self._leaves: dict[str, list[bytes]] = {}
        self._texts: dict[int, bytes] = {}
        #: Whether anything that others refer to has changed so far.
        self._moved = False

    def lines(self) -> list[bytes]:
        """Return the lines of the forged bundle, the end line among them."""
        head = [
            canonical(self.tree["bundle"]),
            canonical({"kind": "roster", "roster": self.tree["roster"]}),
        ]
        head += self._plans() + self._orders()
        written: dict[int, list[bytes]] = {}
        # The journal speaks of the ledgers, and they of nobody's log.
        for number, log in sorted(enumerate(self.tree["logs"]), key=lambda n: self._speaks(n[1])):
            written[number] = self._log(log)
        for number in sorted(written):
            head += written[number]
        head += [line for receipt in self.tree["receipts"] for line in self._receipt(receipt)]
        end = sha(b"".join(line + b"\n" for line in head))
        return [*head, canonical({"kind": "end", "sha256": end})]

    def owns(self, name: str | None) -> bool:
        """Return whether what follows from the change is signed with the keys of a member."""
        return name in self.coalition or self._in_time

    # plans and orders

    def _plans(self) -> list[bytes]:
        made = []
        for plan in self.tree["plans"]:
            text = canonical_plan(plan)
            if isinstance(plan, Part) and plan.home is not None:
                old = canonical_plan(self.original.part(plan.home))
                self._note("sha256:" + sha(old), "sha256:" + sha(text))
            made.append((sha(text), canonical_plan({"kind": "plan", "plan": plan})))
        return [line for _, line in self._sorted(made, self.tree["plans"])]

    def _orders(self) -> list[bytes]:
        made = []
        for item in self.tree["orders"]:
            home = getattr(item, "home", None)
            line = None if home is None else self.original.signed[home]
            order = item.get("order") if isinstance(item, dict) else None
            is_same = home is not None and item == self.original.part(home) and not self._moved
            if self.owns(self.original.coordinator) and order is not None and not is_same:
                order = self._follow(order)
                payload = canonical(order)
                sig = b64(self.keys.sign(self.original.orders, pae(ORDER_TYPE, payload)))
                if home is not None:
                    old = canonical(self.original.part(home)["order"])
                    self._note("sha256:" + sha(old), "sha256:" + sha(payload))
                line = canonical({**item, "kind": "order", "order": order, "sig": sig})
            if line is not None:
                made.append((_slot(json.loads(line)["order"]), line))
        return [line for _, line in self._sorted(made, self.tree["orders"])]

    def _sorted(self, made: list[tuple[Any, bytes]], parts: list[Any]) -> list[tuple[Any, bytes]]:
        """Put lines in their order, unless the change is that they are not."""
        homes = [getattr(part, "home", None) for part in parts]
        kept = [home for home in homes if home is not None]
        if kept != sorted(set(kept)) or any(key is None for key, _ in made):
            return made
        try:
            return sorted(made)
        except TypeError:  # a slot whose fields have other types now
            return made

    # logs

    def _speaks(self, log: dict[str, Any]) -> bool:
        """Whether a log is the journal, which is written last."""
        home = getattr(log, "home", None)
        return home is not None and self.original.part(home)["role"] == "coordinator"

    def _log(self, log: dict[str, Any]) -> list[bytes]:
        old = self.original.part(log.home) if isinstance(log, Part) and log.home else log
        origin, entries = old["log"], log["entries"]
        owner = self.original.owners.get(origin)
        self._count(origin, entries, old)
        waiting = list(log["checkpoints"])
        leaves: list[bytes] = []
        hashes = self._leaves[origin] = []
        for place, entry in enumerate(entries):
            leaf = self._entry(entry, place, origin, owner)
            leaves.append(leaf)
            hashes.append(hashlib.sha256(b"\x00" + leaf).digest())
            for checkpoint in list(waiting):
                if self._size(checkpoint, origin) == len(leaves):
                    waiting.remove(checkpoint)
                    self._checkpoint(checkpoint, origin, owner, hashes)
        for checkpoint in waiting:
            self._checkpoint(checkpoint, origin, owner, hashes)
        head = {key: value for key, value in log.items() if key not in ("entries", "checkpoints")}
        if head.get("size") == old["size"]:
            head["size"] = len(leaves)
        notes = [
            canonical({"kind": "checkpoint", "note": self._texts[id(checkpoint)].decode()})
            for checkpoint in log["checkpoints"]
        ]
        return [canonical({"kind": "log", **head}), *leaves, *notes]

    def _count(self, origin: str, entries: list[Any], old: dict[str, Any]) -> None:
        """Note where every entry stands now, and what has become of every size."""
        places: dict[int, int] = {}
        for place, entry in enumerate(entries):
            home = getattr(entry, "home", None)
            if home is not None:
                places.setdefault(home[2], place)
        size = len(old["entries"])
        self._places[origin] = places
        self._moved = self._moved or list(places.items()) != [
            (n, n) for n in range(len(old["entries"]))
        ]
        self._sizes[origin] = {
            n: min((new for was, new in places.items() if was >= n), default=len(entries))
            for n in range(size + 1)
        }
        if sorted(places.values()) != list(range(len(entries))) or len(places) != size:
            return
        if all(was == new for was, new in places.items()):
            return
        self._sizes[origin] = {n: n for n in range(size + 1)}  # only put in another order

    def _entry(self, entry: Any, place: int, origin: str, owner: str | None) -> bytes:
        home: Home | None = getattr(entry, "home", None)
        if not self.owns(owner) or not isinstance(entry, dict):
            return self.original.signed[home] if home is not None else canonical(entry)
        old = self.original.part(home) if home is not None else None
        if home is not None and home[2] == place and entry == old and not self._moved:
            return self.original.signed[home]
        statement = self._follow(entry["statement"])
        predicate = statement.get("predicate") if isinstance(statement, dict) else None
        if isinstance(predicate, dict):
            moved = old is None or (
                predicate.get("sequence") == old["statement"]["predicate"]["sequence"]
            )
            if moved and "sequence" in predicate:
                predicate["sequence"] = place
            self._refer(predicate, origin)
            self._released(predicate, old)
            if old is None or statement.get("subject") == old["statement"]["subject"]:
                self._set_subject(statement)
        payload = canonical(statement)
        kind = entry["payloadType"]
        real = old["signers"] if old is not None else entry["signers"]
        signatures = [
            {
                "keyid": keyid,
                "sig": b64(self.keys.sign(real[min(n, len(real) - 1)], pae(str(kind), payload))),
            }
            for n, keyid in enumerate(entry["signers"])
        ]
        more = {k: v for k, v in entry.items() if k not in ("payloadType", "statement", "signers")}
        return canonical(
            {"payload": b64(payload), "payloadType": kind, "signatures": signatures, **more}
        )

    def _set_subject(self, statement: dict[str, Any]) -> None:
        kind = str(statement.get("predicateType")).rpartition(":")[2]
        try:
            statement["subject"] = subject(kind, statement["predicate"])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return  # the fields have become impossible; the old subject stays

    def _released(self, predicate: dict[str, Any], old: dict[str, Any] | None) -> None:
        """Let the journal name the digest that a release has now."""
        was = old["statement"]["predicate"].get("digest") if old is not None else None
        if isinstance(was, str) and isinstance(predicate.get("digest"), str):
            self._note(was, predicate["digest"])

    def _refer(self, predicate: dict[str, Any], origin: str) -> None:
        """Let what names a place, a size or cosigners follow."""
        places = self._places[origin]
        if type(predicate.get("reservation")) is int:
            predicate["reservation"] = places.get(
                predicate["reservation"], predicate["reservation"]
            )
        for item in _objects(predicate.get("joined")) + _objects(predicate.get("metrics")):
            there, entry = self._places.get(str(item.get("log")), {}), item.get("entry")
            if type(entry) is int:
                item["entry"] = there.get(entry, entry)
        for item in _objects(predicate.get("witnessed")):
            log, size = str(item.get("log")), item.get("size")
            if type(size) is not int:
                continue
            was, now = self._cosigners.get((log, size), (None, None))
            if item.get("cosigners") == was:
                item["cosigners"] = now
            item["size"] = self._sizes.get(log, {}).get(size, size)

    # checkpoints

    def _size(self, checkpoint: Part, origin: str) -> int:
        old = self.original.part(checkpoint.home) if checkpoint.home else None
        size: Any = checkpoint.get("size")
        if old is not None and size == old["size"]:
            size = self._sizes[origin].get(size, size)
        return int(size) if type(size) is int else -1

    def _checkpoint(
        self, checkpoint: Part, origin: str, owner: str | None, leaves: list[bytes]
    ) -> None:
        home = checkpoint.home
        assert home is not None, "a checkpoint is made from one that was there"
        old = self.original.part(home)
        was, size = self.original.signed[home], self._size(checkpoint, origin)
        top = checkpoint.get("root")
        if top == old["root"] and 0 <= size <= len(leaves):
            top = "sha256:" + root(leaves[:size]).hex()
        written = size if checkpoint.get("size") == old["size"] else checkpoint.get("size")
        try:
            text = b64(bytes.fromhex(str(top).removeprefix("sha256:")))
        except ValueError:
            text = str(top)
        body = f"{checkpoint.get('origin')}\n{written}\n{text}\n"
        note, names = self._signed(checkpoint, body, was, owner)
        self._texts[id(checkpoint)] = note
        if note != was:
            self._moved = True
            self._new.setdefault(old["root"], str(top))
        cosigners = [s["name"] for s in old["signatures"] if s["time"] is not None]
        self._cosigners.setdefault((origin, old["size"]), (sorted(cosigners), sorted(names)))
        self._notes.setdefault((origin, old["size"]), note)

    def _signed(
        self, checkpoint: Part, body: str, was: bytes, owner: str | None
    ) -> tuple[bytes, list[str]]:
        """Return the note with all signatures that can be made, and who cosigned."""
        same = was.startswith(body.encode() + b"\n")
        listed = checkpoint.get("signatures")
        found: list[tuple[str, bytes]] = []
        left_out = False
        for item in listed if isinstance(listed, list) else []:
            home = getattr(item, "home", None)
            if home is None:
                continue
            line, old = self.original.signed[home], self.original.part(home)
            if same and item == old:
                pass
            elif self.owns(self.original.owners.get(old["name"])):
                line = self._line(item, old, self.original.signers[home], body)
            elif not same and old["time"] is None:
                return was, [s["name"] for s in listed or [] if s.get("time") is not None]
            elif not same and dict(item) == dict(old):
                left_out = True
                continue
            found.append((str(item.get("name")) if old["time"] is not None else "", line))
        names = [name for name, _ in found if name]
        quorum = self.original.tree["roster"]["quorum"]
        if left_out and len(names) < quorum:
            found, names = [pair for pair in found if not pair[0]], []
        return (body + "\n").encode() + b"".join(line for _, line in found), names

    def _line(self, item: Part, old: dict[str, Any], signer: str, body: str) -> bytes:
        name, time = str(item.get("name")), item.get("time")
        public = self.keys.private[signer].public_key().public_bytes_raw()
        kind = 1 if old["time"] is None else 4
        if type(time) is int:
            message = f"cosignature/v1\ntime {time}\n{body}".encode()
            data = (time % 2**64).to_bytes(8, "big") + self.keys.sign(signer, message)
        else:
            data = self.keys.sign(signer, body.encode())
        identity = hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]
        return f"— {name} {b64(identity + data)}\n".encode()

    # receipts

    def _receipt(self, receipt: Any) -> Iterable[bytes]:
        home = getattr(receipt, "home", None)
        if home is None:
            return []
        old = self.original.part(home)
        origin = next(
            log["log"] for log in self.original.tree["logs"] if log["name"] == old["site"]
        )
        index, size = receipt.get("index"), receipt.get("checkpoint")
        note = self._notes.get((origin, size), self.original.signed[home]).decode()
        if index == old["index"]:
            index = self._places.get(origin, {}).get(index, index)
        hashes = receipt.get("path")
        if hashes == old["path"]:
            cut = self._sizes.get(origin, {}).get(size, size)
            leaves = self._leaves.get(origin, [])[:cut]
            hashes = [b64(h) for h in path(index, leaves)] if type(index) is int else hashes
        steps = "".join(f"{text}\n" for text in hashes) if isinstance(hashes, list) else "\n"
        proof = f"c2sp.org/tlog-proof@v1\nindex {index}\n{steps}\n{note}"
        slot = {k: v for k, v in receipt.items() if k not in ("index", "checkpoint", "path")}
        return [canonical({**slot, "kind": "receipt", "proof": proof})]

    def _note(self, old: str, new: str) -> None:
        """Let references to a digest follow."""
        if new != old:
            self._new[old], self._moved = new, True

    def _follow(self, value: Any) -> Any:
        """Return a copy in which every digest of a thing that was made anew is the new one."""
        if isinstance(value, str):
            return self._new.get(value, value)
        if isinstance(value, dict):
            return {key: self._follow(item) for key, item in value.items()}
        return [self._follow(item) for item in value] if isinstance(value, list) else value


def _slot(order: Any) -> Any:
    try:
        return tuple(order[key] for key in _SLOT)
    except (KeyError, TypeError):
        return None


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
