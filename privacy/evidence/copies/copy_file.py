"""The file by which a copy of a ledger goes back to its site: lines of JSON.

It holds what the keeper of the copy knows of the ledger: its pieces, the newest heads, and, from a
coordinator, the orders that may have been answered since. The format is that of
docs/reference/ledger-copy.md.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from privet.common.canonical import canonical_json, write_atomic
from privet.common.errors import InputError, NoteError, reason_of
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy.evidence.copies.ledger_copy import CopyPiece
from privet.privacy.evidence.order_keys import KeyHandover, is_signed
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Checkpoint, Key

FORMAT = "privet/ledger-copy/v1"


@dataclass(frozen=True)
class CopyFile:
    """What is known of one site's ledger elsewhere.

    Attributes:
        log: the ledger's origin.
        holder: name of the site or the coordinator that kept the copy.
        witness: the witness key of the ledger's site, where the holder knows it.
        orders_key: the coordinator's order key; None of another site's file.
        order_keys: handovers by which it follows earlier ones; an order may be of any of them.
        pieces: in the order in which they came.
        plans: of the orders.
        orders: that the coordinator signed and that the ledger may have answered since.
        heads: of the log, as the holder saw them.
        source: the file, for messages.
    """

    log: str
    holder: str
    witness: Key | None
    orders_key: Key | None
    pieces: tuple[CopyPiece, ...]
    heads: tuple[Checkpoint, ...]
    plans: tuple[Plan, ...] = ()
    orders: tuple[Order, ...] = ()
    source: str = field(default="", compare=False)
    order_keys: tuple[KeyHandover, ...] = ()

    @property
    def signers(self) -> list[Key]:
        """The keys that may have signed the orders: the coordinator's, and those it follows."""
        if self.orders_key is None:
            return []
        found = [self.orders_key]
        for one in reversed(self.order_keys):
            if one.new.public == found[-1].public:
                found.append(one.old)
        return found

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            InputError: if ``path`` exists.
        """
        if path.exists():
            raise InputError(f"{path} exists; name another --out")
        total = hashlib.sha256()
        lines = []
        for value in self._values():
            line = canonical_json(value) + b"\n"
            total.update(line)
            lines.append(line)
        lines.append(canonical_json({"kind": "end", "sha256": total.hexdigest()}) + b"\n")
        write_atomic(path, lines, mode=0o600)

    def _values(self) -> list[dict[str, Any]]:
        keys = {"witness": self.witness, "orders": self.orders_key}
        named = {name: None if key is None else str(key) for name, key in keys.items()}
        head: dict[str, Any] = {
            "kind": "copy", "format": FORMAT, "log": self.log, "holder": self.holder, **named,
        }  # fmt: skip
        if self.order_keys:
            head["order_keys"] = [one.to_json() for one in self.order_keys]
        return [
            head,
            *({"kind": "piece", **piece.to_json()} for piece in self.pieces),
            *({"kind": "plan", "plan": plan.to_dict()} for plan in self.plans),
            *(
                {"kind": "order", "order": o.to_dict(), "keyid": o.keyid, "sig": o.signature}
                for o in self.orders
            ),
            *({"kind": "checkpoint", "note": found.text} for found in self.heads),
        ]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file; the signatures of its orders are checked, its pieces are not opened.

        Raises:
            InputError: if it is no such file, was cut off, or an order in it was altered.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {reason_of(error)}") from error
        lines = data.splitlines(keepends=True)
        try:
            values = [json.loads(line) for line in lines]
            if values[0]["kind"] != "copy" or values[0]["format"] != FORMAT:
                raise InputError(f"{path}: not a copy of a ledger of format {FORMAT}")
            whole = hashlib.sha256(b"".join(lines[:-1])).hexdigest()
            if values[-1] != {"kind": "end", "sha256": whole} or not lines[-1].endswith(b"\n"):
                raise InputError(f"{path}: was cut off or altered: ask for it again")
            return cls._of(values, str(path))
        except (NoteError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise InputError(f"{path}: not a whole copy of a ledger: {reason_of(error)}") from error

    @classmethod
    def _of(cls, values: list[dict[str, Any]], source: str) -> Self:
        first, parts = values[0], values[1:-1]

        def of(kind: str) -> list[dict[str, Any]]:
            return [value for value in parts if value["kind"] == kind]

        witness, orders_key = first["witness"], first["orders"]
        found = cls(
            str(first["log"]),
            str(first["holder"]),
            None if witness is None else Key.parse(witness, type_=COSIGN),
            None if orders_key is None else Key.parse(orders_key, type_=SIGN),
            tuple(CopyPiece.from_json(value) for value in of("piece")),
            tuple(Checkpoint.parse(value["note"]) for value in of("checkpoint")),
            tuple(Plan.parse(value["plan"], where=source) for value in of("plan")),
            tuple(Order.decode(v["order"], str(v["keyid"]), str(v["sig"])) for v in of("order")),
            source,
            tuple(KeyHandover.from_json(value) for value in first.get("order_keys", ())),
        )
        for order in found.orders:
            if not any(is_signed(order, key) for key in found.signers):
                raise InputError(f"{source}: order {order.slot} is not signed by its coordinator")
        return found
