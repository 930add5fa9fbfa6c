"""Reads a bundle from front to back, in batches of lines, and checks it.

The file is read twice. The first pass only looks for the sizes of checkpoints, which stand after
the entries: with them the second pass keeps no more of a tree than its right edge.

Each log is read as that of the member whom its first line names. Where a ledger is missing, or the
end of the file, that is one fault; what merely follows from it is not laid to others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from privet.privacy.audit.verify import entries, lines
from privet.privacy.audit.verify.journal import AuditedJournal
from privet.privacy.audit.verify.log import AuditedLog
from privet.privacy.audit.verify.pool import Workers
from privet.privacy.audit.verify.result import Findings, Unfinished, count, show
from privet.privacy.audit.verify.roster import AuditedMember, read_roster
from privet.privacy.audit.verify.site import AuditedLedger
from privet.privacy.audit.verify.source import END, HEADER, LOG, RECEIPT, Source, Unreadable
from privet.privacy.audit.verify.state import VerificationState
from privet.privacy.audit.verify.strict import Malformed, obj, read, read_plan
from privet.privacy.audit.verify.unfinished import unfinished

_LEAF, _ORDER = b'{"payload":"', b'{"keyid":"'
_AFTER = (LOG, RECEIPT, END)
_MOST_PLANS = 10_000


class BundleReader:
    """One reading of one bundle."""

    def __init__(
        self, source: Source, sizes: list[set[int]], workers: Workers, findings: Findings,
        keep: bool, brief: bool = False,
    ) -> None:  # fmt: skip
        self.source, self.workers, self.findings = source, workers, findings
        self.keep, self.brief = keep, brief
        self.sizes = iter(sizes)
        self.roster_value: dict[str, Any] = {}
        self.state: VerificationState | None = None
        self.logs: list[AuditedLog] = []
        self.unfinished: list[Unfinished] = []
        self._journal: AuditedJournal | None = None

    def read(self) -> None:
        """Read everything; what is wrong goes to the findings.

        Raises:
            Unreadable: if there is no way to go on.
        """
        if self.source.line != HEADER:
            raise Unreadable("line 1 is not the head of a privet/bundle/v1")
        self.source.advance()
        state = self.state = self._roster()
        if 2 * state.roster.quorum <= len(state.roster.sites):
            self.findings.note(
                f"weak quorum: {state.roster.quorum} of {len(state.roster.sites)} other witnesses;"
                " with half of them or fewer, two histories can both be witnessed"
            )
        self._plans(state)
        self._orders(state)
        self._logs(state)
        if self.source.ended_early:
            return
        state.check_plans()
        self._receipts()
        if self.source.ended_early:
            return
        self._surplus(state)
        if self._journal is not None:
            ledgers = [log for log in self.logs if isinstance(log, AuditedLedger)]
            self.unfinished = unfinished(ledgers, self._journal, self.findings, state.compositions)
        self._end()

    def _one(
        self, kind: str, *fields: str, reader: Callable[[bytes], Any] | None = None
    ) -> dict[str, Any]:
        """Read the line as one of ``kind``, and go to the next."""
        line = self.source.line or b""
        self.source.advance()
        return obj((reader or read)(line), f"a {kind} line", "kind", *fields)

    def _fault(self, message: str) -> None:
        self.findings.fault("bundle", f"line {self.source.number}: {message}")

    def _roster(self) -> VerificationState:
        if not self.source.starts(b'{"kind":"roster",'):
            raise Unreadable("line 2 is not a roster")
        try:
            self.roster_value = self._one("roster", "roster")["roster"]
            return VerificationState(
                self.findings, read_roster(self.roster_value), self.keep, self.brief
            )
        except (Malformed, RecursionError) as error:
            self.findings.fault("roster", str(error))
            raise Unreadable("without a roster nothing can be checked") from None

    def _plans(self, state: VerificationState) -> None:
        last = ""
        while self.source.starts(b'{"kind":"plan",'):
            try:
                plan = self._one("plan", "plan", reader=read_plan)["plan"]
            except Malformed as error:
                self._fault(f"a plan: {error}")
                continue
            if len(state.plans) >= _MOST_PLANS:
                raise Unreadable("more plans than a verifier keeps")
            name = state.add_plan(plan)
            if name <= last:
                self._fault("plans must be sorted by digest, none twice")
            last = name

    def _orders(self, state: VerificationState) -> None:
        key, last = state.roster.coordinator.orders, ("", 0, "", 0, "")
        context = (b"", "") if key is None else (key.raw, state.roster.orders_keyid)
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
                state.add_order(order)

    def _logs(self, state: VerificationState) -> None:
        members = (*state.roster.sites, state.roster.coordinator)
        unread, place = {member.name: member for member in members}, -1
        self._skip()
        while self.source.starts(LOG):
            head = self._head()
            member = self._owner(state, head, unread)
            if member is None or self._journal is not None:
                self._pass_over(state, head)
            else:
                del unread[member.name]
                if members.index(member) < place:
                    self._fault(f"the log of {member.name} is not in the roster's order")
                place = members.index(member)
                if member is state.roster.coordinator:
                    self._absent(state, unread)
                self._log(state, member, head)
            self._skip()
        if self._journal is None and not self.source.ended_early:
            del unread[state.roster.coordinator.name]
            self._absent(state, unread)
            self._no_journal(state)

    def _absent(self, state: VerificationState, unread: dict[str, AuditedMember]) -> None:
        """Name the ledgers that are not here, once each; nothing else is said about them."""
        for name in unread:
            self.findings.fault("bundle", f"the ledger of {name} is not in this bundle")
            state.absent.add(name)

    def _no_journal(self, state: VerificationState) -> None:
        if state.orders or self.source.starts(RECEIPT):
            name = state.roster.coordinator.name
            state.absent.add(name)
            self.findings.fault(
                "bundle", f"the journal of {name} is not in this bundle; its orders or receipts are"
            )
            return
        self.findings.note(
            "a bundle of sites, without a journal: the rules about orders, rounds and"
            " receipts are not checked"
        )

    def _skip(self) -> None:
        """Go to the next log, receipt or end."""
        while self.source.line is not None and not self.source.line.startswith(_AFTER):
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
        self, state: VerificationState, head: dict[str, Any], unread: dict[str, AuditedMember]
    ) -> AuditedMember | None:
        """Return whose log begins here: by its origin, or else by its name."""
        if not head:
            return next(iter(unread.values()), None)
        texts = [text for text in (head.get("log"), head.get("name")) if isinstance(text, str)]
        names = [state.origins.get(text, text) for text in texts]
        return next((unread[name] for name in names if name in unread), None)

    def _pass_over(self, state: VerificationState, head: dict[str, Any]) -> None:
        """Pass over a log that is nobody's, or is not in its place."""
        name = head.get("name")
        if isinstance(name, str) and name in state.members:
            where = "after the journal" if name in state.absent else "twice"
            self._fault(f"the log of {name} stands here {where}")
        else:
            self._fault(f"a log of {show(name)}, whom the roster does not name")
        next(self.sizes, None)
        self.source.advance()
        while self.source.line is not None and not self.source.line.startswith(_AFTER):
            self.source.advance()

    def _log(self, state: VerificationState, member: AuditedMember, head: dict[str, Any]) -> None:
        own = member is state.roster.coordinator
        log = (AuditedJournal if own else AuditedLedger)(state, member, next(self.sizes, set()))
        if isinstance(log, AuditedJournal):
            self._journal = log
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
        self.logs.append(log)

    def _entries(self, log: AuditedLog, size: int) -> None:
        batches = self.source.batches(_LEAF, lambda: log.context, max(size, 0))
        for batch, rows in self.workers.run(entries.read_leaves, batches):
            for line, row in zip(batch, rows, strict=True):
                # A key may have come into force within the batch.
                log.take(row if row.signer is not None else entries.read_leaf(log.context, line))

    def _receipts(self) -> None:
        journal, number = self._journal, 0
        batches = self.source.batches(RECEIPT, lambda: None)
        for _, results in self.workers.run(lines.read_receipts, batches):
            for found in results:
                if journal is not None:
                    journal.receipt(number, found)
                elif not self.findings.faults:  # where the journal is missing that was said
                    self.findings.fault("receipt", "a receipt without a journal")
                number += 1
        if journal is not None and number < len(journal.receipts) and not self.source.ended_early:
            missing = len(journal.receipts) - number
            verb = "is" if missing == 1 else "are"
            self.findings.fault("receipt", f"{count(missing, 'receipt')} {verb} missing")

    def _surplus(self, state: VerificationState) -> None:
        """Fault checkpoints that neither a journal, a receipt nor the end of a log needs."""
        if state.roster.coordinator.name in state.absent:
            return
        for origin, heads in state.heads.items():
            for size, head in heads.items():
                if not head.named:
                    message = f"checkpoint {size} is surplus: nothing here refers to it"
                    self.findings.fault("bundle", message, state.origins[origin])
                others = state.others(head.cosigners, state.origins[origin])
                exact = others == len(head.cosigners) == state.roster.quorum
                if not head.told and head.cosigners and not exact:
                    message = (
                        f"checkpoint {size}, which no journal names, must carry the cosignatures"
                        f" of exactly {state.roster.quorum} other witnesses, or none"
                    )
                    self.findings.fault("witness", message, state.origins[origin])

    def _end(self) -> None:
        while self.source.line is not None and not self.source.starts(END):
            self._fault("a line that does not belong here")
            self.source.advance()
        if self.source.line is None:
            if not self.source.ended_early:
                raise Unreadable("the bundle has no end line")
            return
        expected = self.source.digest()
        try:
            if self._one("end", "sha256")["sha256"] != expected:
                self.findings.fault("bundle", "the digest of the end line is not that of the file")
        except Malformed as error:
            self._fault(f"the end: {error}")
        if self.source.line is not None:
            self._fault("something follows the end")
