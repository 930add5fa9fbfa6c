"""All orders of a bundle in flat arrays, with what became of each.

A bundle may hold as many orders as a ledger has entries, so they are not kept as objects: texts
are numbered, digests stand one after the other, and a hash table of integers finds them.
"""

from __future__ import annotations

from array import array

from privet.privacy.audit.verify.lines import AuditedOrder

RESERVED, RELEASED, REFUSED, LISTED, USED = 1, 2, 4, 8, 16
#: Stands for an order that was not found.
NONE = 0xFFFFFFFF


class Texts:
    """Numbers texts."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}
        self.text: list[str] = []

    def add(self, text: str) -> int:
        """Return the number of ``text``."""
        found = self.number.get(text)
        if found is None:
            found = self.number[text] = len(self.text)
            self.text.append(text)
        return found


class Orders:
    """The orders by their place in the bundle.

    ``state`` holds what became of an order (flags above); ``entry``, ``release`` and ``leaf`` the
    sequence, digest and leaf hash of its release; ``status`` the text of its refusal.
    """

    def __init__(self) -> None:
        self.texts = Texts()
        self._columns = [array("I") for _ in range(7)]
        self.digests = bytearray()
        self.state = bytearray()
        self.entry = array("q")
        self.release = bytearray()
        self.leaf = bytearray()
        self.status = array("I")
        self._table = array("I", [NONE]) * 64
        self.runs: set[str] = set()

    def __len__(self) -> int:
        return len(self.state)

    def add(self, order: AuditedOrder) -> bool:
        """Add an order; return False if it is there already."""
        if self.find(order.digest) != NONE:
            return False
        place, number = len(self), self.texts.add
        row = (
            number(order.run), order.round, number(order.purpose), order.attempt,
            number(order.site), number(order.plan), number(order.model),
        )  # fmt: skip
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        self.runs.add(order.run)
        self.digests += order.digest
        self.state.append(0)
        self.entry.append(-1)
        self.release += bytes(32)
        self.leaf += bytes(32)
        self.status.append(NONE)
        if 2 * len(self) > len(self._table):
            self._grow()
        else:
            self._put(order.digest, place)
        return True

    def get(self, place: int) -> AuditedOrder:
        """Return the order at ``place``."""
        run, round_, purpose, attempt, site, plan, model = (c[place] for c in self._columns)
        text = self.texts.text
        return AuditedOrder(
            text[run], round_, text[purpose], attempt, text[site], text[plan], text[model],
            bytes(self.digests[32 * place : 32 * place + 32]),
        )  # fmt: skip

    def find(self, digest: bytes) -> int:
        """Return the place of the order with this digest, or :data:`NONE`."""
        table, digests = self._table, self.digests
        mask = len(table) - 1
        slot = hash(digest) & mask
        while (place := table[slot]) != NONE:
            if digests[32 * place : 32 * place + 32] == digest:
                return place
            slot = (slot + 1) & mask
        return NONE

    def find_text(self, digest: str) -> int:
        """Return the place of the order with this digest (``sha256:…``)."""
        return self.find(bytes.fromhex(digest[7:]))

    def released(self, place: int, entry: int, digest: str, leaf: bytes) -> None:
        """Note the release of an order."""
        self.state[place] |= RELEASED
        self.entry[place] = entry
        self.release[32 * place : 32 * place + 32] = bytes.fromhex(digest[7:])
        self.leaf[32 * place : 32 * place + 32] = leaf

    def _put(self, digest: bytes, place: int) -> None:
        mask = len(self._table) - 1
        slot = hash(digest) & mask
        while self._table[slot] != NONE:
            slot = (slot + 1) & mask
        self._table[slot] = place

    def _grow(self) -> None:
        self._table = array("I", [NONE]) * (2 * len(self._table))
        for place in range(len(self)):
            self._put(bytes(self.digests[32 * place : 32 * place + 32]), place)
