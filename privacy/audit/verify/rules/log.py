"""What both kinds of logs have in common: tree, order, clock, keys and checkpoints."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from typing import Any

from privet.privacy.audit.verify.formats import notes
from privet.privacy.audit.verify.formats.entries import Context
from privet.privacy.audit.verify.formats.notes import SIGNER, AuditedCheckpoint, AuditedKey
from privet.privacy.audit.verify.formats.roster import AuditedMember
from privet.privacy.audit.verify.formats.rows import EntryRow
from privet.privacy.audit.verify.formats.tree import Frontier
from privet.privacy.audit.verify.result import NEW_RULE, AuditedEntry, LogRecord, Witnessed
from privet.privacy.audit.verify.rules.brief import Brief
from privet.privacy.audit.verify.rules.state import Head, VerificationState

_MAX_CLOCK_STEP_BACK_S = 600
_DAY_S = 86_400


class AuditedLog:
    """One log, entry by entry. Subclasses hold the rules of a ledger and of a journal."""

    role = ""
    called = ""

    def __init__(self, state: VerificationState, member: AuditedMember, wanted: set[int]) -> None:
        self.state, self.member, self.name = state, member, member.name
        self.origin = member.log.name
        self.tree = Frontier()
        self.roots: dict[int, bytes] = {}
        #: The latest time of an entry under a checkpoint, by its size.
        self._latest: dict[int, int] = {}
        self.witnessed = Witnessed(0, 0, ())
        self.heads: dict[int, Head] = {}
        self.record = LogRecord(member.name, self.called, self.origin)
        #: The file ends within this log: what is missing at its end is not its fault.
        self.cut = False
        #: Entries that could not be read, and may say anything.
        self.unread = 0
        self._brief = Brief(self.record.entries) if state.kept == "brief" else None
        self._wanted = wanted
        self._clock: int | None = None
        self._recovery: AuditedKey | None = None
        #: Keys with the size from which they are in force.
        self._keys: list[tuple[int, AuditedKey]] = [(0, member.log)]
        self._used = {member.log.raw}
        self._here = -1
        self._covered = 0

    def fault(self, rule: str, message: str) -> None:
        """Add a fault at the entry that is being read.

        Args:
            rule: that is broken.
            message: how.
        """
        entry = self._here if self._here >= 0 else None
        self.state.findings.fault(rule, message, self.name, entry)

    @property
    def context(self) -> Context:
        """What workers must know to read entries from here on."""
        keys = {self._keys[-1][1].fingerprint: self._keys[-1][1].raw}
        if self._recovery is not None:
            keys[self._recovery.fingerprint] = self._recovery.raw
        return Context(self.role, self.origin, keys)

    @property
    def checkpoint_keys(self) -> dict[tuple[str, bytes], AuditedKey]:
        """The keys that may sign checkpoints of this log."""
        own = {(key.name, key.id): key for _, key in self._keys}
        return own | self.state.roster.witnesses

    def take(self, row: EntryRow) -> None:
        """Take in the next entry."""
        here = self._here = self.tree.size
        self.tree.append(row.leaf)
        if here + 1 in self._wanted:
            self.roots[here + 1] = self.tree.root()
            self._latest[here + 1] = max(row.seconds, self._clock or row.seconds)
        for rule, message in row.problems:
            self.fault(rule, message)
        if not row.kind:
            self.unread += 1
            return
        self._check_sequence(row, here)
        self._check_signer(row)
        if self.state.kept != "nothing":
            self._keep(row)
        if row.kind == "genesis" and here == 0:
            self._genesis(row.predicate)
        elif row.kind == "key-rotated":
            self._rotate(row.predicate)
        self.apply(row)

    def _keep(self, row: EntryRow) -> None:
        entry = row.predicate
        kept = AuditedEntry(entry["sequence"], entry["time"], row.kind, entry)
        if self._brief is None:
            self.record.entries.append(kept)
        else:
            self._brief.take(kept)

    def apply(self, row: EntryRow) -> None:
        """Apply the rules of this kind of log."""
        raise NotImplementedError

    def _check_sequence(self, row: EntryRow, here: int) -> None:
        """Rule 1 (``sequence``): places count up, a genesis is first, time does not go back."""
        if row.predicate["sequence"] != here:
            sequence = row.predicate["sequence"]
            self.fault("sequence", f"an entry of sequence {sequence} is at place {here}")
        if self._clock is not None and row.seconds < self._clock - _MAX_CLOCK_STEP_BACK_S:
            self.fault("sequence", "time goes back by more than 600 seconds")
        self._clock = row.seconds if self._clock is None else max(self._clock, row.seconds)
        if (row.kind == "genesis") != (here == 0):
            self.fault("sequence", "a genesis is entry 0, and entry 0 is a genesis")

    def _check_signer(self, row: EntryRow) -> None:
        """Rule 7 (``signature``): the key in force signs; the recovery key where that is why."""
        expected = self._keys[-1][1].fingerprint
        if row.kind == "key-rotated" and row.predicate["why"] == "recovery":
            if self._recovery is None:
                self.fault("signature", "the log has no recovery key")
                return
            expected = self._recovery.fingerprint
        if row.signer != expected:
            self.fault("signature", "the entry is not signed by the key in force")

    def _genesis(self, predicate: dict[str, Any]) -> None:
        """Rule 22 (``roster``): keys and name are the roster's. A recovery key is another one.

        That is of the rule ``signature``.
        """
        member = self.member
        if predicate[self.called] != member.name:
            self.fault("roster", f"the name of the {self.called} is not the roster's")
        pairs = [("key", SIGNER, member.log), ("witness", notes.COSIGNER, member.witness)]
        if member.orders is not None:
            pairs.append(("orders", SIGNER, member.orders))
        for field, signature_type, key in pairs:
            if notes.read_vkey(predicate[field], signature_type) != key:
                self.fault("roster", f"'{field}' of the genesis is not the roster's")
        if predicate["recovery"] is not None:
            self._recovery = notes.read_vkey(predicate["recovery"], SIGNER)
            if self._recovery.raw in self._used:
                self.fault("signature", "the recovery key is the log's own key")

    def _rotate(self, predicate: dict[str, Any]) -> None:
        """Rule 7 (``signature``): from here on another key signs, one that never did before."""
        key = notes.read_vkey(predicate["key"], SIGNER)
        if key.name != self.origin:
            self.fault("signature", "the new key must have the log's name")
        if key.raw in self._used:
            self.fault("signature", "the new key was in force before")
        self._used.add(key.raw)
        self._keys.append((self.tree.size, key))

    def in_force(self, size: int) -> AuditedKey:
        """Return the key in force once the log has ``size`` entries."""
        place = bisect_right(self._keys, size, key=lambda pair: pair[0])
        return self._keys[place - 1][1]

    def checkpoint(self, head: AuditedCheckpoint, text: bytes) -> None:
        """Take in a checkpoint whose signatures were verified.

        It is of this log and by its key in force (``signature``), sizes rise and each root is that
        of the entries (``consistency``, of the last one ``tree``), and no entry is dated after it
        was cosigned (``witness``, rule 31).

        Args:
            head: the checkpoint.
            text: SHA-256 of its text, by which receipts name it.
        """
        self._here = -1
        key = self.in_force(head.size)
        own = [signer for signer in head.signers if signer[0] == self.origin]
        if head.origin != self.origin:
            self.fault("signature", "a checkpoint of another log")
            return
        if own != [(key.name, key.id)]:
            self.fault("signature", f"checkpoint {head.size} is not signed by the key in force")
        if head.size <= self._covered:
            self.fault("consistency", "the sizes of checkpoints must rise from 1")
            return
        self._covered = head.size
        last = head.size == self.tree.size
        if head.size > self.tree.size:
            self.fault("tree", f"checkpoint {head.size} is beyond the entries")
        elif self.roots.get(head.size) != head.root:
            rule = "tree" if last else "consistency"
            self.fault(rule, f"the root of checkpoint {head.size} is not that of the entries")
        latest = self._latest.get(head.size, 0)
        # As many as a quorum must say so: one witness's clock may be wrong.
        before = sum(time + _DAY_S < latest for time in head.cosigned)
        if before >= max(1, self.state.roster.quorum):
            message = f"an entry under checkpoint {head.size} is dated after it was cosigned"
            self.fault("witness", message + NEW_RULE)
        cosigners = tuple(sorted(name for name, _ in head.signers if name != self.origin))
        self.heads[head.size] = Head(head.size, head.root, cosigners, text)
        if self.state.kept != "nothing":
            self.record.checkpoints.append((head.size, cosigners))

    def close(self) -> None:
        """Check what can be checked once entries and checkpoints are read.

        There is a genesis (``sequence``), and the last checkpoint covers all entries (``tree``).
        """
        self._here = -1
        if self._brief is not None:
            self.record = replace(self.record, passed=self._brief.close())
        self.state.heads[self.origin] = self.heads
        self.state.texts[self.origin] = {head.text: head for head in self.heads.values()}
        if self.cut:
            return
        if self.tree.size == 0:
            self.fault("sequence", "a log without a genesis")
        last = self.heads.get(self.tree.size)
        if last is None:
            self.fault("tree", "the last checkpoint does not cover all entries")
        self.witnessed = self._find_witnessed()
        for head in (self.heads.get(self.witnessed.upto), last):
            if head is not None:
                head.named = True
        if self.witnessed.upto < self.tree.size:
            tail = f"entries {self.witnessed.upto} to {self.tree.size - 1}"
            self.state.findings.note(f"{self.name}: unwitnessed tail, {tail}")

    def under_quorum(self) -> int:
        """Return how many entries are under a head with as many cosigners as the roster asks."""
        quorum = self.state.quorum
        held = [n for n, head in self.heads.items() if quorum(head.cosigners, self.name)]
        return max(held, default=0)

    def _find_witnessed(self) -> Witnessed:
        """Return how far a quorum of others cosigned; with a quorum of 0 nothing is witnessed."""
        upto = self.under_quorum() if self.state.roster.quorum else 0
        owners = self.state.roster.owners
        names = self.heads[upto].cosigners if upto else ()
        by = {owners[name] for name in names if name in owners} - {self.name}
        return Witnessed(upto, self.tree.size, tuple(sorted(by)))
