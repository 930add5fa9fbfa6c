"""Keep encrypted copies of the sites' ledgers, and have other sites keep them as well.

::

    EvidenceCollector ── CopyKeeper ─┬─ CopyStore   FOLDER/copies, a file for each ledger
                                     └─ keepers     two sites after a ledger's own in the roster

Missing pieces travel in the questions and answers of witnesses, one at a time. The answer that
sends a head also sends the entries that lead to it, so a head is copied before it is witnessed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from privet.common.errors import NoteError
from privet.privacy.evidence.copies.copy_store import EMPTY, CopyStore
from privet.privacy.evidence.copies.ledger_copy import CopyPiece
from privet.privacy.evidence.roster import Roster

KEEPERS = 2
"""Other sites that keep a ledger's copy."""
MAX_CATCH_UP = 256
"""Pieces that are fetched of a site before a run; the rest comes during it."""

Show = Callable[[dict[str, dict[str, Any]]], dict[str, dict[str, Any]]]

_LOG = logging.getLogger("privet.copies")


class CopyKeeper:
    """Add copies of ledgers to the questions and answers of witnesses.

    Args:
        store: the coordinator's copies.
        roster: names the sites whose ledgers are copied.
    """

    def __init__(self, store: CopyStore, roster: Roster) -> None:
        self._store = store
        self._sites = {site.name: site for site in roster.sites}
        names = [site.name for site in roster.sites]
        ring = range(1, min(KEEPERS, len(names) - 1) + 1)
        self._kept_at = {
            name: {self._sites[names[n - step]].ledger.name: EMPTY for step in ring}
            for n, name in enumerate(names)
        }
        """By site, the logs whose copies it keeps, and how far each goes there."""
        self._known: set[tuple[str, str]] = set()
        """Site and log of each copy whose size the site has reported."""
        self._behind: set[str] = set()
        self._said: set[str] = set()

    def asking(self, show: Show) -> Show:
        """Return ``show`` extended by questions and answers about copies."""

        def ask(questions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
            answers = show({site: q | self._question(site) for site, q in questions.items()})
            for site, answer in answers.items():
                self._take(site, answer)
            return answers

        return ask

    def catch_up(self, ask: Callable[[list[str]], object]) -> None:
        """Fetch the entries that the copies lack.

        Args:
            ask: asks these sites again, through :meth:`asking`.
        """
        for _ in range(MAX_CATCH_UP):
            if not self._behind:
                return
            ask(sorted(self._behind))

    def _question(self, site: str) -> dict[str, Any]:
        keep: dict[str, list[Any]] = {}
        for log, held in self._kept_at[site].items():
            keep[log] = []
            if (site, log) in self._known:
                keep[log] = [piece.to_json() for piece in self._store.pieces(log, held)]
        self._behind.discard(site)
        return {"copy": list(self._store.held(self._sites[site].ledger.name)), "keep": keep}

    def _take(self, site: str, answer: Mapping[str, Any]) -> None:
        """Store the pieces in a site's answer. A fault leaves the copy as it is."""
        try:
            if "copy" in answer:
                self._take_piece(site, answer["copy"])
            kept = answer.get("kept", {})
            for log in self._kept_at[site].keys() & kept.keys():
                end, root = kept[log]
                self._kept_at[site][log] = (int(end), str(root))
                self._known.add((site, log))
        except (NoteError, KeyError, TypeError, ValueError, AttributeError) as error:
            self._say(site, f"not understood: {error!r}")
        except OSError as error:
            self._say(site, f"cannot be written: {error}")

    def _take_piece(self, site: str, value: Mapping[str, Any]) -> None:
        member = self._sites[site]
        piece = CopyPiece.from_json(value["piece"])
        if piece.log != member.ledger.name or not self._store.add(piece, member.witness.public):
            self._say(site, "a piece is not its own, does not continue the copy, or is too much")
        elif piece.end < int(value["size"]):
            self._behind.add(site)

    def _say(self, site: str, why: str) -> None:
        """Log a fault of a site's copy, once: the copy is requested in each round."""
        if why not in self._said:
            self._said.add(why)
            _LOG.warning("no copy of a ledger is kept", extra={"site": site, "why": why})
