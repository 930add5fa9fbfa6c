"""Reads a bundle from front to back, in batches of lines, and checks it.

The file is read twice. The first pass only collects the sizes of checkpoints, which come after the
entries: with them the second pass keeps no more of a tree than its right edge.

Each log is read as that of the member whom its first line names. Where a ledger is missing, or the
end of the file, that is one fault; what merely follows from it is not laid to others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from privet.privacy.audit.verify.formats import entries, lines
from privet.privacy.audit.verify.formats.roster import AuditedMember, read_roster
from privet.privacy.audit.verify.formats.source import END, HEADER, LOG, RECEIPT, Source, Unreadable
from privet.privacy.audit.verify.formats.strict import Malformed, obj, read, read_plan
from privet.privacy.audit.verify.pool import Workers
from privet.privacy.audit.verify.result import Findings, Unfinished, count, count_are, show
from privet.privacy.audit.verify.rules.journal import AuditedJournal
from privet.privacy.audit.verify.rules.log import AuditedLog
from privet.privacy.audit.verify.rules.site import AuditedLedger
from privet.privacy.audit.verify.rules.state import Kept, VerificationState
from privet.privacy.audit.verify.rules.unfinished import unfinished

_LEAF, _ORDER = b'{"payload":"', b'{"keyid":"'
_AFTER = (LOG, RECEIPT, END)
_MAX_PLANS = 10_000


def begin(source: Source, findings: Findings, kept: Kept) -> VerificationState:
    """Read the head and the roster (rules ``bundle`` and ``roster``).

    Args:
        source: the lines, from the first one on.
        findings: what is wrong goes there.
        kept: how much of the entries is kept for a report.

    Raises:
        Unreadable: if the roster cannot be read: then nothing can be checked.
    """
    if source.line != HEADER:
        raise Unreadable("line 1 is not the head of a privet/bundle/v1")
    source.advance()
    if not source.starts(b'{"kind":"roster",'):
        raise Unreadable("line 2 is not a roster")
    try:
        value = _part(source, "roster", "roster")["roster"]
        roster = read_roster(value)
    except (Malformed, RecursionError) as error:
        findings.fault("roster", str(error))
        raise Unreadable("without a roster nothing can be checked") from None
    if 2 * roster.quorum <= len(roster.sites):
        findings.note(
            f"weak quorum: {roster.quorum} of {len(roster.sites)} other witnesses;"
            " with half of them or fewer, two histories can both be witnessed"
        )
    return VerificationState(findings, roster, value, kept)


def _part(
    source: Source, kind: str, *fields: str, reader: Callable[[bytes], Any] = read
) -> dict[str, Any]:
    """Read the line as one of ``kind`` with ``fields``, and go to the next."""
    line = source.line or b""
    source.advance()
    return obj(reader(line), f"a {kind} line", "kind", *fields)


class BundleReader:
    """Reads what follows the roster, part by part; what is wrong goes to the findings.

    Args:
        source: the lines, from the first plan on.
        sizes: of the checkpoints of each log.
        workers: that read batches of lines.
        state: what was read so far.
    """

    def __init__(
        self, source: Source, sizes: list[set[int]], workers: Workers, state: VerificationState
    ) -> None:
        self.source, self.workers, self.state = source, workers, state
        self.findings = state.findings
        self.sizes = iter(sizes)
        self.ledgers: list[AuditedLedger] = []
        self.journal: AuditedJournal | None = None
        self.unfinished: list[Unfinished] = []

    @property
    def logs(self) -> list[AuditedLog]:
        """The logs that were read."""
        return [log for log in (*self.ledgers, self.journal) if log is not None]

    def read(self) -> None:
        """Read everything.

        Raises:
            Unreadable: if there is no way to continue.
        """
        self._plans()
        self._orders()
        self._logs()
        if self.source.ended_early:
            return
        self.state.check_plans()
        self._receipts()
        if self.source.ended_early:
            return
        self._surplus()
        if self.journal is not None:
            self.unfinished = unfinished(
                self.ledgers, self.journal, self.findings, self.state.compositions
            )
        self._end()

    def _fault(self, message: str) -> None:
        """Add a fault of the file (``bundle``) at the line that was read last."""
        self.findings.fault("bundle", f"line {self.source.number}: {message}")

    def _plans(self) -> None:
        """Read plans (``bundle``): they are sorted by digest."""
        last = ""
        while self.source.starts(b'{"kind":"plan",'):
            try:
                plan = _part(self.source, "plan", "plan", reader=read_plan)["plan"]
            except Malformed as error:
                self._fault(f"a plan: {error}")
                continue
            if len(self.state.plans) >= _MAX_PLANS:
                raise Unreadable("more plans than a verifier keeps")
            name = self.state.add_plan(plan)
            if name <= last:
                self._fault("plans must be sorted by digest, none twice")
            last = name

    def _orders(self) -> None:
        """Read orders (``bundle``): they are sorted by slot."""
        key, last = self.state.roster.coordinator.orders, ("", 0, "", 0, "")
        context = (b"", "") if key is None else (key.raw, self.state.roster.orders_keyid)
        batches = self.source.batches(_ORDER, lambda: context)
        for _, results in self.workers.run(lines.read_orders, batches):
            for order, problems in results:
                for problem in problems:
                    self.findings.fault(problem.rule, problem.message)
                if order is None:
                    continue
                if order[:5] <= last:
                    self.findings.fault("bundle", "orders must be sorted by slot, none twice")
                last = order[:5]
                self.state.add_order(order)

    def _logs(self) -> None:
        members = (*self.state.roster.sites, self.state.roster.coordinator)
        unread, place = {member.name: member for member in members}, -1
        self._skip(*_AFTER)
        while self.source.starts(LOG):
            head = self._head()
            member = self._owner(head, unread)
            if member is None or self.journal is not None:
                self._pass_over(head)
            else:
                del unread[member.name]
                if members.index(member) < place:
                    self._fault(f"the log of {member.name} is not in the roster's order")
                place = members.index(member)
                if member is self.state.roster.coordinator:
                    self._absent(unread)
                self._log(member, head)
            self._skip(*_AFTER)
        if self.journal is None and not self.source.ended_early:
            del unread[self.state.roster.coordinator.name]
            self._absent(unread)
            self._no_journal()

    def _absent(self, unread: dict[str, AuditedMember]) -> None:
        """Report ledgers that are not here (``bundle``), once each, and nothing else about them."""
        for name in unread:
            self.findings.fault("bundle", f"the ledger of {name} is not in this bundle")
            self.state.absent.add(name)

    def _no_journal(self) -> None:
        """Without a journal there are no orders and no receipts (``bundle``)."""
        if self.state.orders or self.source.starts(RECEIPT):
            name = self.state.roster.coordinator.name
            self.state.absent.add(name)
            self.findings.fault(
                "bundle", f"the journal of {name} is not in this bundle; its orders or receipts are"
            )
            return
        self.findings.note(
            "a bundle of sites, without a journal: the rules about orders, rounds and"
            " receipts are not checked"
        )

    def _skip(self, *wanted: bytes) -> None:
        """Go to the next line that begins like one of ``wanted``."""
        while self.source.line is not None and not self.source.line.startswith(wanted):
            self._fault("a line that does not belong here")
            self.source.advance()

    def _head(self) -> dict[str, Any]:
        """Return the line that begins a log, or as much of it as can be read."""
        try:
            value = read(self.source.line or b"")
        except (Malformed, RecursionError) as error:
            self._fault(f"a log: {error}")
            return {}
        try:
            return obj(value, "a log line", "kind", "log", "name", "role", "size")
        except Malformed as error:
            self._fault(f"a log: {error}")
        return value if isinstance(value, dict) else {}

    def _owner(
        self, head: dict[str, Any], unread: dict[str, AuditedMember]
    ) -> AuditedMember | None:
        """Return whose log begins here: by its origin, or else by its name."""
        if not head:
            return next(iter(unread.values()), None)
        texts = [text for text in (head.get("log"), head.get("name")) if isinstance(text, str)]
        names = [self.state.origins.get(text, text) for text in texts]
        return next((unread[name] for name in names if name in unread), None)

    def _pass_over(self, head: dict[str, Any]) -> None:
        """Pass over a log that is nobody's, or is not in its place."""
        name = head.get("name")
        if isinstance(name, str) and name in self.state.members:
            where = "after the journal" if name in self.state.absent else "twice"
            self._fault(f"the log of {name} stands here {where}")
        else:
            self._fault(f"a log of {show(name)}, whom the roster does not name")
        next(self.sizes, None)
        self.source.advance()
        while self.source.line is not None and not self.source.line.startswith(_AFTER):
            self.source.advance()

    def _log(self, member: AuditedMember, head: dict[str, Any]) -> None:
        """Read a log: its head (``bundle``), its entries, its checkpoints (``signature``).

        Args:
            member: whose log it is.
            head: the line that begins it.
        """
        kind = AuditedJournal if member is self.state.roster.coordinator else AuditedLedger
        log = kind(self.state, member, next(self.sizes, set()))
        if (head.get("log"), head.get("name"), head.get("role")) != (
            log.origin, log.name, log.called,
        ):  # fmt: skip
            self._fault(f"this should be the log of {log.name}, and its head says otherwise")
        size = head["size"] if type(head.get("size")) is int else -1
        self.source.advance()
        self._entries(log, size)
        batches = self.source.batches(b'{"kind":"checkpoint",', lambda: log.checkpoint_keys)
        for _, heads in self.workers.run(lines.read_checkpoints, batches):
            for checkpoint, text, problem in heads:
                if problem is not None:
                    self.findings.fault(problem.rule, problem.message, log.name)
                elif checkpoint is not None:
                    log.checkpoint(checkpoint, text)
        log.cut = self.source.ended_early
        if log.tree.size != size and not log.cut:
            entries_ = count(log.tree.size, "entry")
            log.fault("bundle", f"the log has {entries_}, not as many as its head says")
        log.close()
        if isinstance(log, AuditedJournal):
            self.journal = log
        elif isinstance(log, AuditedLedger):
            self.ledgers.append(log)

    def _entries(self, log: AuditedLog, size: int) -> None:
        batches = self.source.batches(_LEAF, lambda: log.context, max(size, 0))
        for batch, rows in self.workers.run(entries.read_leaves, batches):
            for line, row in zip(batch, rows, strict=True):
                if row.signer is None:  # a key may have come into force within the batch
                    row = entries.read_leaf(log.context, line)
                log.take(row)

    def _receipts(self) -> None:
        """Read receipts (``receipt``): one for each release that the journal names, in order."""
        journal, number = self.journal, 0
        batches = self.source.batches(RECEIPT, lambda: None)
        for _, results in self.workers.run(lines.read_receipts, batches):
            for found in results:
                if journal is not None:
                    journal.receipt(number, found)
                elif not self.findings.faults:  # a missing journal is reported already
                    self.findings.fault("receipt", "a receipt without a journal")
                number += 1
        if journal is not None and number < len(journal.receipts) and not self.source.ended_early:
            missing = count_are(len(journal.receipts) - number, "receipt")
            self.findings.fault("receipt", f"{missing} missing")

    def _surplus(self) -> None:
        """Rule 21 (``bundle``, ``witness``): no checkpoint is here that nothing needs.

        The last one of a log, if no journal names it, has as many cosignatures as a quorum.
        """
        if self.state.roster.coordinator.name in self.state.absent:
            return
        for origin, heads in self.state.heads.items():
            for size, head in heads.items():
                if not head.named:
                    message = f"checkpoint {size} is surplus: nothing here refers to it"
                    self.findings.fault("bundle", message, self.state.origins[origin])
                others = self.state.others(head.cosigners, self.state.origins[origin])
                exact = others == len(head.cosigners) == self.state.roster.quorum
                if not head.told and head.cosigners and not exact:
                    message = (
                        f"checkpoint {size}, which no journal names, must carry the cosignatures"
                        f" of exactly {self.state.roster.quorum} other witnesses, or none"
                    )
                    self.findings.fault("witness", message, self.state.origins[origin])

    def _end(self) -> None:
        """Read the last line (``bundle``): the digest of all before it."""
        self._skip(END)
        if self.source.line is None:
            if not self.source.ended_early:
                raise Unreadable("the bundle has no end line")
            return
        expected = self.source.digest()
        try:
            if _part(self.source, "end", "sha256")["sha256"] != expected:
                self.findings.fault("bundle", "the digest of the end line is not that of the file")
        except Malformed as error:
            self._fault(f"the end: {error}")
        if self.source.line is not None:
            self._fault("something follows the end")
