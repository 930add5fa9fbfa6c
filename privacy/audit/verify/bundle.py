"""Reads a bundle from front to back, in batches of lines, and checks it.

The file is read twice. The first pass only looks for the sizes of checkpoints, which stand after
the entries: with them the second pass keeps no more of a tree than its right edge.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from privet.privacy.audit.verify import entries, lines
from privet.privacy.audit.verify.case import Case
from privet.privacy.audit.verify.journal import Journal
from privet.privacy.audit.verify.log import Log
from privet.privacy.audit.verify.pool import Workers
from privet.privacy.audit.verify.result import Findings, show
from privet.privacy.audit.verify.roster import Member, read_roster
from privet.privacy.audit.verify.site import Ledger
from privet.privacy.audit.verify.strict import MAX_LINE, Malformed, obj, read, read_plan

Progress = Callable[[int, int], None]
_HEADER = b'{"format":"privet/bundle/v1","kind":"bundle"}'
_LEAF = b'{"payload":"'
_LOG, _RECEIPT, _END = b'{"kind":"log",', b'{"kind":"receipt",', b'{"kind":"end",'
_AFTER = (_LOG, _RECEIPT, _END)
_ORDER = b'{"keyid":"'
_BATCH, _BATCH_BYTES = 256, 1 << 20
_SIZE = re.compile(rb'\{"kind":"checkpoint","note":"[^"\\]*\\n([0-9]{1,16})\\n')
_MOST_PLANS = 10_000


class Unreadable(Exception):
    """The bundle cannot be read on from here."""


def scan(stream: BinaryIO) -> tuple[int, list[set[int]]]:
    """Return the number of lines and, for each log, the sizes of its checkpoints."""
    count, sizes = 0, []
    while line := stream.readline(MAX_LINE + 1):
        count += 1
        if len(line) > MAX_LINE:
            break
        if line.startswith(_LOG):
            sizes.append(set[int]())
        elif sizes and (match := _SIZE.match(line)):
            sizes[-1].add(int(match[1]))
    return count, sizes


class Source:
    """The lines of a bundle, one ahead, without their newlines; keeps the running digest."""

    def __init__(self, stream: BinaryIO, total: int, progress: Progress | None) -> None:
        self._stream, self._total, self._progress = stream, total, progress
        self._hash = hashlib.sha256()
        self._done = self._told = 0
        self.number = 0
        self.line: bytes | None = None
        self.advance()

    def advance(self) -> None:
        """Go to the next line; ``line`` is None at the end of the file."""
        if self.line is not None:
            self._hash.update(self.line + b"\n")
        raw = self._stream.readline(MAX_LINE + 1)
        self.number += 1
        self._done += len(raw)
        if raw and not raw.endswith(b"\n"):
            what = "is too long" if len(raw) > MAX_LINE else "does not end in a newline"
            raise Unreadable(f"line {self.number} {what}")
        self.line = raw[:-1] if raw else None
        if self._progress is not None and (self._done - self._told > 1 << 20 or not raw):
            self._told = self._done
            self._progress(self._done, self._total)

    def starts(self, prefix: bytes) -> bool:
        """Return whether the line begins with ``prefix``."""
        return self.line is not None and self.line.startswith(prefix)

    def digest(self) -> str:
        """Return the SHA-256 of all lines before this one, in hex."""
        return self._hash.hexdigest()

    def batches(self, prefix: bytes, context: Callable[[], Any], most: int | None = None,
                ) -> Iterator[tuple[Any, list[bytes]]]:  # fmt: skip
        """Yield batches of the next lines that begin with ``prefix``, at most ``most``."""
        left = most
        while self.starts(prefix) and left != 0:
            batch: list[bytes] = []
            weight = 0
            while (
                self.line is not None and self.line.startswith(prefix) and left != 0
                and len(batch) < _BATCH and weight < _BATCH_BYTES
            ):  # fmt: skip
                batch.append(self.line)
                weight += len(self.line)
                left = None if left is None else left - 1
                self.advance()
            yield context(), batch


class BundleReader:
    """One reading of one bundle."""

    def __init__(
        self, source: Source, sizes: list[set[int]], workers: Workers, findings: Findings,
        keep: bool,
    ) -> None:  # fmt: skip
        self.source, self.workers, self.findings, self.keep = source, workers, findings, keep
        self.sizes = iter(sizes)
        self.roster_value: dict[str, Any] = {}
        self.case: Case | None = None
        self.logs: list[Log] = []

    def read(self) -> None:
        """Read everything; what is wrong goes to the findings.

        Raises:
            Unreadable: if there is no way to go on.
        """
        if self.source.line != _HEADER:
            raise Unreadable("line 1 is not the head of a privet/bundle/v1")
        self.source.advance()
        case = self.case = self._roster()
        if 2 * case.roster.quorum <= len(case.roster.sites):
            self.findings.note(
                f"weak quorum: {case.roster.quorum} of {len(case.roster.sites)} other witnesses;"
                " with half of them or fewer, two histories can both be witnessed"
            )
        self._plans(case)
        self._orders(case)
        self._logs(case)
        case.check_plans()
        self._receipts()
        self._surplus(case)
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

    def _roster(self) -> Case:
        if not self.source.starts(b'{"kind":"roster",'):
            raise Unreadable("line 2 is not a roster")
        try:
            self.roster_value = self._one("roster", "roster")["roster"]
            return Case(self.findings, read_roster(self.roster_value), self.keep)
        except (Malformed, RecursionError) as error:
            self.findings.fault("roster", str(error))
            raise Unreadable("without a roster nothing can be checked") from None

    def _plans(self, case: Case) -> None:
        last = ""
        while self.source.starts(b'{"kind":"plan",'):
            try:
                plan = self._one("plan", "plan", reader=read_plan)["plan"]
            except Malformed as error:
                self._fault(f"a plan: {error}")
                continue
            if len(case.plans) >= _MOST_PLANS:
                raise Unreadable("more plans than a verifier keeps")
            name = case.add_plan(plan)
            if name <= last:
                self._fault("plans must be sorted by digest, none twice")
            last = name

    def _orders(self, case: Case) -> None:
        key, last = case.roster.coordinator.orders, ("", 0, "", 0, "")
        context = (b"", "") if key is None else (key.raw, case.roster.orders_keyid)
        batches = self.source.batches(_ORDER, lambda: context)
        for _, results in self.workers.run(lines.read_orders, batches):
            for order, problems in results:
                for problem in problems:
                    self.findings.fault(problem.rule, problem.message)
                if order is None:
                    continue
                case.needed.add(order.plan)
                if order[:5] <= last:
                    self.findings.fault("bundle", "orders must be sorted by slot, none twice")
                last = order[:5]
                if not case.orders.add(order):
                    self.findings.fault("order", "an order stands in the bundle twice")

    def _logs(self, case: Case) -> None:
        makers: list[tuple[type[Log], Member]] = [(Ledger, m) for m in case.roster.sites]
        makers.append((Journal, case.roster.coordinator))
        for kind, member in makers:
            self._skip()
            if self.source.starts(_LOG):
                self._log(case, kind, member)
            elif kind is Journal:
                self.findings.note(
                    "a bundle of sites, without a journal: the rules about orders, rounds and"
                    " receipts are not checked"
                )
                if len(case.orders):
                    self.findings.fault("order", "orders without a journal")
            else:
                self._fault(f"the ledger of {show(member.name)} is not here")

    def _skip(self) -> None:
        """Go to the next log, receipt or end."""
        while self.source.line is not None and not self.source.line.startswith(_AFTER):
            self._fault("a line that does not belong here")
            self.source.advance()

    def _log(self, case: Case, kind: type[Log], member: Member) -> None:
        log = kind(case, member, next(self.sizes, set()))
        size = 0
        try:
            head = self._one("log", "log", "name", "role", "size")
            expected = (log.origin, log.name, log.called)
            if (head["log"], head["name"], head["role"]) != expected:
                self._fault(f"this should be the log of {show(log.name)}, the roster's next")
            size = head["size"] if type(head["size"]) is int else -1
        except Malformed as error:
            self._fault(f"a log: {error}")
        batches = self.source.batches(_LEAF, lambda: log.context, max(size, 0))
        for batch, (events, rows) in self.workers.run(entries.read_leaves, batches):
            for place, row in enumerate(rows):
                if row[1] is None:  # a key that was not in force when the batch was read
                    seen: dict[str, int] = {}
                    again = entries.read_leaf(log.context, batch[place], seen)
                    log.take(again, list(seen))
                else:
                    log.take(row, events)
        if log.tree.size != size:
            log.fault(
                "bundle", f"the log has {log.tree.size} entries, not as many as its head says"
            )
        batches = self.source.batches(b'{"kind":"checkpoint",', lambda: log.checkpoint_keys)
        for _, heads in self.workers.run(lines.read_checkpoints, batches):
            for checkpoint, text, problem in heads:
                if problem is not None:
                    self.findings.fault(problem.rule, problem.message, log.name)
                elif checkpoint is not None:
                    log.checkpoint(checkpoint, text)
        log.close()
        self.logs.append(log)

    def _receipts(self) -> None:
        journal = self.logs[-1] if self.logs and isinstance(self.logs[-1], Journal) else None
        number = 0
        batches = self.source.batches(_RECEIPT, lambda: None)
        for _, results in self.workers.run(lines.read_receipts, batches):
            for found in results:
                if journal is None:
                    self.findings.fault("receipt", "a receipt without a journal")
                else:
                    journal.receipt(number, found)
                number += 1
        if journal is not None and number < len(journal.receipts):
            missing = len(journal.receipts) - number
            self.findings.fault("receipt", f"{missing} receipts are missing")

    def _surplus(self, case: Case) -> None:
        """Fault checkpoints that neither a journal, a receipt nor the end of a log needs."""
        for origin, heads in case.heads.items():
            for size, head in heads.items():
                if not head.named:
                    message = f"checkpoint {size} is surplus: nothing here refers to it"
                    self.findings.fault("bundle", message, case.origins[origin])
                others = case.others(head.cosigners, case.origins[origin])
                exact = others == len(head.cosigners) == case.roster.quorum
                if not head.told and head.cosigners and not exact:
                    message = (
                        f"checkpoint {size}, which no journal names, must carry the cosignatures"
                        f" of exactly {case.roster.quorum} other witnesses, or none"
                    )
                    self.findings.fault("witness", message, case.origins[origin])

    def _end(self) -> None:
        while self.source.line is not None and not self.source.starts(_END):
            self._fault("a line that does not belong here")
            self.source.advance()
        if self.source.line is None:
            raise Unreadable("the bundle has no end line")
        expected = self.source.digest()
        try:
            if self._one("end", "sha256")["sha256"] != expected:
                self.findings.fault("bundle", "the digest of the end line is not that of the file")
        except Malformed as error:
            self._fault(f"the end: {error}")
        if self.source.line is not None:
            self._fault("something follows the end")
