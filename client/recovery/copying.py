"""Give others a copy of a site's ledger, encrypted to its recovery key, and keep theirs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from privet.common.errors import PrivetError
from privet.privacy.evidence.copies.copy_store import CopyStore
from privet.privacy.evidence.copies.ledger_copy import (
    MAX_PIECE_LEAVES,
    CopyPiece,
    PieceContent,
    seal,
)
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.roster import Roster
from privet.privacy.evidence.signed_note import Checkpoint, Key
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.witness import Witness

Held = tuple[int, str]
"""Up to which size of a log a copy goes, and the root there (hex)."""


class LedgerCopier:
    """Make the pieces of a copy of one site's ledger.

    Args:
        ledger: the site's.
        witness: the site's; it signs the pieces, and its private key is in the first one.
        is_allowed: returns whether the site's policy lets others keep a copy.
    """

    def __init__(self, ledger: Ledger, witness: Witness, is_allowed: Callable[[], bool]) -> None:
        self._ledger = ledger
        self._witness = witness
        self._is_allowed = is_allowed
        self._recovery = _recovery_key(ledger)
        self._first: dict[str, int] = {}
        """By plan: the entry of its first reservation, which its paper travels with."""
        self._read = 0

    def answer(self, held: Held, head: str) -> dict[str, Any] | None:
        """Return the next piece for a copy that reaches ``held``, and the log's size.

        Args:
            held: size and root of the copy; a root that is not of this log counts as an empty copy.
            head: the log's head, signed; no piece goes beyond it.

        Returns:
            JSON values; None if no copy may be kept or none of it is missing.
        """
        recovery = self._recovery
        if recovery is None or not self._is_allowed():
            return None
        log = self._ledger.log
        # The log may have grown since the head was signed: a trainer works beside this.
        size, (start, root) = Checkpoint.parse(head).size, held
        if start >= size:
            return None
        if start < 0 or log.root(start).hex() != root:
            start = 0
        leaves = self._leaves(start, size)
        end = start + len(leaves)
        content = PieceContent(
            leaves, self._papers(start, end), head if end == size else "", self._seed(start)
        )
        roots = log.root(start), log.root(end)
        piece = seal(content, log.origin, start, roots, recovery, self._witness.signer)
        return {"piece": piece.to_json(), "size": size}

    def _leaves(self, start: int, size: int) -> tuple[bytes, ...]:
        chosen: list[bytes] = []
        total = 0
        for leaf in self._ledger.log.store.leaves(start):
            total += len(leaf)
            if chosen and (total > MAX_PIECE_LEAVES or start + len(chosen) == size):
                break
            chosen.append(leaf)
        return tuple(chosen)

    def _papers(self, start: int, end: int) -> tuple[tuple[str, str, str], ...]:
        """Return the plans whose first reservation is among these entries."""
        store = self._ledger.log.store
        for leaf in store.leaves(self._read):
            entry = Entry.read(leaf)
            if entry.kind == "reserved":
                self._first.setdefault(str(entry.predicate["plan"]), self._read)
            self._read += 1
        plans = [plan for plan, number in self._first.items() if start <= number < end]
        texts = [(plan, store.paper("plan", plan)) for plan in plans]
        return tuple(("plan", plan, text) for plan, text in texts if text is not None)

    def _seed(self, start: int) -> bytes:
        # Once, at the start: a recovered site must cosign under the key that others know.
        signer = self._witness.signer
        return signer.seed if start == 0 and isinstance(signer, FileSigner) else b""


def _recovery_key(ledger: Ledger) -> Key | None:
    """Return the recovery key; None for simulations, and if the genesis names none."""
    if ledger.state.setting != "site":
        return None
    named = Entry.read(ledger.log.store.leaf(0)).predicate["recovery"]
    return Key.parse(str(named)) if named else None


class SiteCopies:
    """Answer questions about copies: of the site's own ledger, and of the others'.

    Args:
        copier: makes pieces of its own ledger.
        store: holds the others' copies.
        roster: names the sites whose ledgers it keeps.
        own: origin of its own ledger.
        log: the operator's log.
    """

    def __init__(
        self,
        copier: LedgerCopier,
        store: CopyStore,
        roster: Roster,
        own: str,
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self._copier = copier
        self._store = store
        self._witnesses = {
            site.ledger.name: site.witness.public
            for site in roster.sites
            if site.ledger.name != own
        }
        self._log = log

    def answer(
        self, held: Held | None, brought: Mapping[str, Iterable[Any]], head: str
    ) -> dict[str, Any]:
        """Return the copies' part of an answer to witnesses; a fault is logged and ends nothing.

        Args:
            held: size and root up to which the coordinator's copy of this ledger reaches; None if
                it keeps none.
            brought: by log, pieces of others' ledgers to keep (JSON values); may be empty.
            head: this ledger's head now, signed.

        Returns:
            ``copy``: a piece, and the log's size. ``kept``: by log, size and root of its copy.
        """
        answer: dict[str, Any] = {}
        try:
            if held is not None and (made := self._copier.answer(held, head)) is not None:
                answer["copy"] = made
            if brought:
                answer["kept"] = self._keep(brought)
        except (PrivetError, OSError, ValueError) as error:
            self._log.error("copies of ledgers: %s", error)
        return answer

    def _keep(self, brought: Mapping[str, Iterable[Any]]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for log, pieces in brought.items():
            if log not in self._witnesses:
                continue
            for value in pieces:
                piece = CopyPiece.from_json(value)
                if piece.log != log or not self._store.add(piece, self._witnesses[log]):
                    break
            kept[log] = list(self._store.held(log))
        return kept
