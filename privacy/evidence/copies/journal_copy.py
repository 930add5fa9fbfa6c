"""The copy of a coordinator's journal that its sites keep, so that it can be restored.

Sites cosign the journal's heads, and keep what these cover: its entries, with the orders,
receipts and cosigned heads that belong to each. A coordinator that was restored from an older copy
of its folder takes them back and continues; nobody else could sign a further entry.

A run's journal has a key of its own, which lies in the run's folder. It travels encrypted to the
coordinator's order key, so that a run which was submitted after the copy was made comes back, too.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

from nacl.exceptions import CryptoError
from nacl.public import SealedBox
from nacl.signing import SigningKey, VerifyKey

from privet.common.canonical import canonical_json
from privet.common.errors import LedgerError, NoteError
from privet.privacy.evidence.log import CHECKPOINT
from privet.privacy.evidence.signed_note import Key, Signer, decode64
from privet.privacy.evidence.statement import Entry, pae
from privet.privacy.evidence.store import Store

KEY_TYPE = "application/vnd.privet.journal-key+json"
"""DSSE payload type of the signature on an encrypted journal key."""
ORDER, RECEIPT = "order", "receipt"
"""Kinds of the papers that a journal keeps beside its entries and :data:`CHECKPOINT`."""
PAPERS = (ORDER, RECEIPT, CHECKPOINT)
MAX_BYTES = 512 << 10
"""Of entries and papers in one message; one entry may be longer."""

Paper = tuple[str, str, str]
"""Kind, name and text."""


@dataclass(frozen=True)
class JournalEntry:
    """An entry of a journal, with the papers that belong to it."""

    leaf: bytes
    papers: tuple[Paper, ...] = ()

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.leaf) + sum(len(text) for _, _, text in self.papers)

    def to_json(self) -> list[Any]:
        """Return JSON values; :meth:`from_json` reads them back."""
        return [self.leaf.decode(), [list(paper) for paper in self.papers]]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what :meth:`to_json` wrote; the entry's signature is not checked.

        Raises:
            NoteError: if it is malformed.
        """
        try:
            leaf, papers = value
            found = tuple((str(kind), str(name), str(text)) for kind, name, text in papers)
            if any(kind not in PAPERS for kind, _, _ in found):
                raise ValueError("a paper of another kind")
            return cls(str(leaf).encode(), found)
        except (TypeError, ValueError) as error:
            raise NoteError(f"an entry of a journal's copy is malformed: {error!r}") from error


def entries_of(store: Store, start: int, end: int | None = None) -> Iterator[JournalEntry]:
    """Yield a journal's entries from number ``start`` on, with their papers.

    Args:
        store: of the journal, or of a copy of it.
        start: number of the first.
        end: the number after the last; None for all.
    """
    for number, leaf in enumerate(store.leaves(start), start):
        if number == end:
            return
        entry = Entry.read(leaf)
        papers = _papers(store, entry.predicate) if entry.kind == "round" else ()
        yield JournalEntry(leaf, tuple(papers))


def first_of(entries: Iterable[JournalEntry]) -> list[JournalEntry]:
    """Return as many of the first entries as one message may hold."""
    chosen: list[JournalEntry] = []
    total = 0
    for entry in entries:
        total += entry.size
        if chosen and total > MAX_BYTES:
            break
        chosen.append(entry)
    return chosen


def receipts_of(value: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield purpose, site and paper of each receipt that a journal's entry of a round names."""
    for part, purpose in (("joined", "train"), ("metrics", "evaluate")):
        for item in value[part]:
            name = f"{value['run']}/{value['round']:09d}/{purpose}/{item['site']}"
            yield purpose, item["site"], name


def _papers(store: Store, value: dict[str, Any]) -> Iterator[Paper]:
    names = [(ORDER, str(item["order"])) for item in value["orders"]]
    names += [(RECEIPT, name) for _, _, name in receipts_of(value)]
    names += [(CHECKPOINT, f"{item['log']}/{item['size']:012d}") for item in value["witnessed"]]
    for kind, name in names:
        if (text := store.paper(kind, name)) is not None:
            yield kind, name, text


@dataclass(frozen=True)
class JournalKey:
    """The private key of a run's journal, encrypted to the coordinator's order key.

    Attributes:
        run: identifier of the run.
        plan, roster: digests of the run's.
        journal: the public key (vkey).
        sealed: the private one.
        by: the researcher who submitted the run; "" for the coordinator's operator.
        signature: by the order key, over all of this; nobody else can make a run up.
    """

    run: str
    plan: str
    roster: str
    journal: str
    sealed: bytes
    by: str = ""
    signature: bytes = b""

    @classmethod
    def seal(
        cls, run: str, plan: str, roster: str, journal: Key, seed: bytes, orders: Signer, by: str
    ) -> Self:
        """Seal a key.

        Args:
            run: identifier of the run.
            plan: digest of its plan.
            roster: digest of its roster.
            journal: the journal's public key.
            seed: the private one, as raw bytes.
            orders: the coordinator's order key.
            by: the researcher who submitted the run, or "".
        """
        box = SealedBox(VerifyKey(orders.public).to_curve25519_public_key())
        unsigned = cls(run, plan, roster, str(journal), box.encrypt(seed), by)
        return replace(unsigned, signature=orders.sign(unsigned._signed()))

    def is_signed_by(self, orders: Key) -> bool:
        """Whether this order key signed it."""
        return orders.verifies(self.signature, self._signed())

    def open(self, orders_seed: bytes) -> bytes:
        """Return the journal's private key as raw bytes.

        Args:
            orders_seed: the same of the order key.

        Raises:
            LedgerError: if the order key does not open it.
        """
        try:
            return SealedBox(SigningKey(orders_seed).to_curve25519_private_key()).decrypt(
                self.sealed
            )
        except (CryptoError, ValueError):
            raise LedgerError(
                f"the journal key of run '{self.run}' is encrypted to another order key"
            ) from None

    def _signed(self) -> bytes:
        return pae(KEY_TYPE, canonical_json({**self._fields(), "sealed": _text(self.sealed)}))

    def _fields(self) -> dict[str, str]:
        names = ("run", "plan", "roster", "journal", "by")
        return {name: getattr(self, name) for name in names}

    def to_json(self) -> dict[str, str]:
        """Return JSON values; :meth:`from_json` reads them back."""
        return {**self._fields(), "sealed": _text(self.sealed), "sig": _text(self.signature)}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what :meth:`to_json` wrote; its signature is not checked.

        Raises:
            NoteError: if it is malformed.
        """
        try:
            return cls(
                str(value["run"]), str(value["plan"]), str(value["roster"]), str(value["journal"]),
                decode64(value["sealed"]), str(value["by"]), decode64(value["sig"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError, NoteError) as error:
            raise NoteError(f"a journal's encrypted key is malformed: {error!r}") from error


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
