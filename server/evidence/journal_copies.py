"""The coordinator has its sites keep its journal, and fetches it from them after a restore.

::

    EvidenceCollector ── JournalSharer ── each site: the entries it lacks, in witnesses' questions
                              └────────── restore: entries that sites cosigned and this file lacks
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from privet.common.errors import InputError, LedgerError, NoteError, RunError
from privet.common.order import ORDER_TYPE, Order
from privet.common.plan import Plan
from privet.privacy.evidence.copies.journal_copy import (
    JournalEntry,
    JournalKey,
    entries_of,
    first_of,
)
from privet.privacy.evidence.roster import Roster
from privet.privacy.evidence.signed_note import Checkpoint, Key, decode64, parse_proof
from privet.privacy.evidence.statement import Entry, pae
from privet.server.evidence.journal import CHECKPOINT, ORDER, RECEIPT, Journal

Show = Callable[[dict[str, dict[str, Any]]], dict[str, dict[str, Any]]]
_NO_ROUND: dict[str, Any] = {"orders": [], "witnessed": [], "joined": [], "metrics": []}
MAX_PIECES = 4096
"""Answers of one site that a restored journal may take."""
MAX_RESTORED_BYTES = 512 << 20
"""Of entries and papers from one site; a site keeps half as many."""
MAX_AHEAD = 64
"""Entries beyond the newest head that a site may return: it got them without cosigning them."""

_LOG = logging.getLogger("privet.journals")


class JournalSharer:
    """Send a run's journal to its sites, and fetch it back from them.

    Args:
        journal: of the run.
        key: the journal's private key, encrypted; it names the run.
        roster: of the run.
    """

    def __init__(self, journal: Journal, key: JournalKey, roster: Roster) -> None:
        self._journal = journal
        self._key = key
        self._roster = roster
        self._held: dict[str, int] = {}
        """By site, the number of entries that it reported to keep; -1 for none."""

    @classmethod
    def of(cls, journal: Journal, run: Path, roster: Roster) -> Self:
        """Return the sharer of the run in a folder.

        Args:
            journal: of the run.
            run: the run's folder, with ``plan.json`` and ``status.json``.
            roster: of the run.

        Raises:
            InputError: if the run's plan cannot be read.
        """
        by = ""
        plan = Plan.parse(json.loads((run / "plan.json").read_text(encoding="utf-8"))).digest
        with suppress(OSError, ValueError, AttributeError):  # the run's own folder says so, too
            by = str(json.loads((run / "status.json").read_text(encoding="utf-8")).get("by", ""))
        return cls(journal, journal.sealed_key(run.name, plan, roster, by), roster)

    def asking(self, show: Show) -> Show:
        """Return ``show`` extended by the journal's entries that each site lacks."""

        def ask(questions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
            answers = show({s: {**q, "journal": self._brought(s)} for s, q in questions.items()})
            self._take(answers)
            return answers

        return ask

    def _brought(self, site: str) -> dict[str, Any]:
        question: dict[str, Any] = {"run": self._key.run}
        held = self._held.get(site)
        if held is None:
            return question
        if held < 0:
            question["key"] = self._key.to_json()
        start = max(held, 0)
        if entries := first_of(entries_of(self._journal.log.store, start)):
            question |= {"from": start, "entries": [entry.to_json() for entry in entries]}
        return question

    def _take(self, answers: Mapping[str, dict[str, Any]]) -> None:
        for site, answer in answers.items():
            held = part_of(answer, "journal").get("held")
            if type(held) is int:
                self._held[site] = held
            else:
                self._held.pop(site, None)

    def restore(self, sites: list[str], show: Show, question: Callable[[str], Any]) -> int:
        """Fetch the entries that sites cosigned and this journal lacks.

        Args:
            sites: that are connected.
            show: sends questions to sites, and returns their answers.
            question: returns the question to a site about its own log.

        Returns:
            The number of entries that were fetched.

        Raises:
            RunError: if this journal is older than what sites cosigned and no site keeps the rest,
                or if it was continued in another way. Nothing is written then.
        """
        log = self._journal.log
        asked = {site: {**question(site), "journal": {"run": self._key.run}} for site in sites}
        answers = show(asked)
        self._take(answers)
        newest = self._newest(answers)
        before, held = len(log), self._held
        # No site cosigned the entries beyond that, so this file may have other ones now.
        cosigned = 0 if newest is None else newest.size
        self._held = {site: min(number, cosigned) for site, number in held.items()}
        if newest is None:
            return 0
        if newest.size <= before:
            if log.root(newest.size) != newest.root:
                raise RunError(_forked(self._key.run, newest.size))
            return 0
        for site in sorted(held, key=lambda site: -held[site]):
            if held[site] >= newest.size and self._fetch(site, newest, show, question):
                return len(log) - before
        raise RunError(_lost(self._key.run, before, newest.size))

    def _newest(self, answers: Mapping[str, dict[str, Any]]) -> Checkpoint | None:
        """Return the newest head of this journal that a site remembers, if this key signed it."""
        log, found = self._journal.log, None
        for answer in answers.values():
            try:
                seen = Checkpoint.parse(str(answer["seen"][log.origin]["note"]))
            except (NoteError, KeyError, TypeError):
                continue
            if seen.origin != log.origin or not seen.is_signed_by(log.key):
                continue
            if found is None or seen.size > found.size:
                found = seen
        return found

    def _fetch(
        self, site: str, newest: Checkpoint, show: Show, question: Callable[[str], Any]
    ) -> bool:
        """Fetch the missing entries from one site; False if they do not lead to the newest head."""
        log = self._journal.log
        fetched: list[JournalEntry] = []
        room = MAX_RESTORED_BYTES
        try:
            for _ in range(MAX_PIECES):
                want = len(log) + len(fetched)
                journal = {"run": self._key.run, "want": want}
                answers = show({site: {**question(site), "journal": journal}})
                copied = part_of(answers.get(site, {}), "journal")
                came = [JournalEntry.from_json(value) for value in copied["entries"]]
                if not came:
                    break
                fetched += came
                room -= sum(entry.size for entry in came)
                if room < 0 or len(fetched) > MAX_AHEAD + newest.size - len(log):
                    raise LedgerError("it hands out more than it was asked for")
            with log.writing():
                log.adopt([entry.leaf for entry in fetched], newest)
                for entry in fetched:
                    require_papers(entry, self._journal.order_key, self._roster)
                self._journal.keep(paper for entry in fetched for paper in entry.papers)
        except (LedgerError, NoteError, InputError, KeyError, TypeError) as error:
            about = {"site": site, "run": self._key.run, "why": error}
            _LOG.warning("a site's copy of the journal is of no use", extra=about)
            return False
        return True


def require_papers(entry: JournalEntry, orders: Key, roster: Roster) -> None:
    """Check that a copied entry comes with the papers that a verifier needs, and that they match.

    Args:
        entry: of the journal; its own signature was checked.
        orders: the key that signed its orders.
        roster: of the run.

    Raises:
        LedgerError: if one is missing, or contradicts the entry.
        NoteError: if one cannot be read.
    """
    found = Entry.read(entry.leaf)
    value = found.predicate if found.kind == "round" else _NO_ROUND
    papers = {(kind, name): text for kind, name, text in entry.papers}
    witnessed = {item["log"]: item for item in value["witnessed"]}
    wanted = 0
    for item in value["orders"]:
        _require_order(papers.get((ORDER, item["order"])), item["order"], orders)
        wanted += 1
    for item in witnessed.values():
        head = Checkpoint.parse(papers.get((CHECKPOINT, f"{item['log']}/{item['size']:012d}"), ""))
        signers = [roster.witnesses.get(name) for name in item["cosigners"]]
        if (head.origin, head.size, f"sha256:{head.root.hex()}") != (
            item["log"], item["size"], item["root"]
        ) or not all(key is not None and head.is_cosigned_by(key) for key in signers):  # fmt: skip
            raise LedgerError("a cosigned head is not the one that the journal names")
        wanted += 1
    for part, purpose in (("joined", "train"), ("metrics", "evaluate")):
        for item in value[part]:
            name = f"{value['run']}/{value['round']:09d}/{purpose}/{item['site']}"
            number, _, head = parse_proof(papers.get((RECEIPT, name), ""))
            root = f"sha256:{head.root.hex()}"
            if (number, root) != (item["entry"], witnessed.get(item["log"], {}).get("root")):
                raise LedgerError("a receipt is not of the release that the journal names")
            wanted += 1
    if len(papers) != wanted:
        raise LedgerError("an entry comes with papers that it does not name")


def _require_order(text: str | None, digest: str, orders: Key) -> None:
    try:
        value = json.loads(text or "")
        order = Order.decode(value["order"])
        signature = decode64(value["sig"])
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"an order cannot be read: {error!r}") from error
    if order.digest != digest or not orders.verifies(signature, pae(ORDER_TYPE, order.encode())):
        raise LedgerError("an order is not the one that the journal names")


def part_of(answer: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a part of a site's answer; an empty one if it is malformed."""
    part = answer.get(name)
    return part if isinstance(part, dict) else {}


def _lost(run: str, before: int, newest: int) -> str:
    return (
        f"this coordinator was restored from an older copy: its journal of run '{run}' has "
        f"{before} entries, sites cosigned {newest}, and no site that is there keeps entries "
        f"{before} to {newest - 1}. They are lost to it; nothing was ordered and nothing was "
        "written. Resume the run once a site that keeps them is there, or submit the plan again "
        "as another run, which is paid for again"
    )


def _forked(run: str, size: int) -> str:
    return (
        f"this coordinator was restored from an older copy, and its journal of run '{run}' was "
        f"written on since: it does not extend the head of {size} entries that sites cosigned. "
        "Nothing was ordered. Restore the newer file, or submit the plan again as another run, "
        "which is paid for again"
    )
