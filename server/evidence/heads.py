"""Which heads of the logs are witnessed, and what their witnesses remember: decisions without I/O.

A log's newest head with a quorum of cosignatures is sent to its site with each order, so that an
older copy of a ledger is found. A witness that remembers a log at some size cosigns a longer one
only with a proof that it grew from there: :meth:`WitnessedHeads.since` says from which sizes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from privet.common.errors import EvidenceError, NoteError
from privet.privacy.evidence.log import Evidence
from privet.privacy.evidence.roster import Roster
from privet.privacy.evidence.signed_note import Checkpoint, Key, SignatureLine, parse_line
from privet.privacy.evidence.witness import keys_of

MAX_SENT_SIZES = 64
"""Sizes that are remembered of those sent to a witness that does not answer."""
COORDINATOR = ""
"""Stands for the coordinator's own witness, where sites stand by their names."""


class WitnessedHeads:
    """The newest cosigned head of each log, and the sizes that its witnesses may remember.

    Args:
        roster: names the logs and witnesses that count.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._origins = {site.name: site.ledger.name for site in roster.sites}
        coordinator = roster.coordinator
        # Nobody witnesses a log of its own.
        self._own_witness = {site.ledger.name: site.witness.name for site in roster.sites}
        self._own_witness[coordinator.journal.name] = coordinator.witness.name
        self._keys = {origin: [key.public] for origin, key in roster.logs.items()}
        self._newest: dict[str, Checkpoint] = {}
        self._sizes: dict[str, dict[str, RememberedSizes]] = {}
        self._read: dict[str, Checkpoint] = {}

    def newest(self, origin: str) -> Checkpoint | None:
        """Return the newest head of a log that any witness cosigned; None if none is known."""
        return self._newest.get(origin)

    def all(self) -> list[Checkpoint]:
        """Return the newest head of each log that has one."""
        return list(self._newest.values())

    def begin_round(self) -> None:
        """Forget which notes were read: a site sends each of them once more in the next round."""
        self._read = {}

    def know(self, head: Checkpoint) -> None:
        """Take a head that is longer than the known one, or has more cosignatures."""
        known = self._newest.get(head.origin)
        # Of two heads of one size, that with more cosignatures: it convinces more readers.
        if known is None or (head.size, len(head.lines)) > (known.size, len(known.lines)):
            self._newest[head.origin] = head

    def note_keys(self, origin: str, evidence: Evidence) -> None:
        """Note the keys by which a log is signed, by its own evidence.

        Args:
            origin: of the log.
            evidence: of that log; it proves each key by the one before, from the roster's on.

        Raises:
            EvidenceError: if it does not.
            NoteError: if it cannot be read.
        """
        self._keys[origin] = keys_of(evidence, self._roster.logs[origin])

    def note_size(self, origin: str, witness: str, size: int) -> None:
        """Note that a witness remembers a log at a size.

        Args:
            origin: of the log.
            witness: the site whose witness it is, or :data:`COORDINATOR`.
            size: in entries.
        """
        self._sizes_of(origin, witness).saw(size)

    def note_sent(self, sent: Mapping[str, Evidence], to: Mapping[str, Iterable[str]]) -> None:
        """Note the sizes that witnesses may remember by now, whether they answer or not.

        Args:
            sent: evidence of each log, by origin.
            to: the sites whose witnesses got it, by origin.
        """
        for origin, evidence in sent.items():
            size = Checkpoint.parse(evidence.note).size
            for site in to[origin]:
                # A site is no witness of its own log, and never says what it saw of it.
                if self._origins[site] != origin:
                    self._sizes_of(origin, site).may_have_seen(size)

    def note_remembered(self, site: str, seen: Iterable[Any], shown: Iterable[str]) -> None:
        """Note the heads that a site's witness remembers of the others' logs.

        Args:
            site: whose witness it is.
            seen: as the site sent it, of which what is malformed is passed over.
            shown: origins of the logs whose own evidence is known in this round.

        Raises:
            EvidenceError: if it has a head that the log, by its own evidence, never signed.
        """
        origins = set(shown)
        for one in seen:
            try:
                note = str(one["note"])
                # Every site remembers the same heads: each is read and checked once a round.
                if before := self._read.get(note):
                    self.note_size(before.origin, site, before.size)
                    continue
                head = Checkpoint.parse(note)
            except (NoteError, KeyError, TypeError):
                continue
            keys = [Key(head.origin, key) for key in self._keys.get(head.origin, ())]
            by = next((key for key in keys if head.is_signed_by(key)), None)
            if by is not None:
                self.know(head.trimmed(by))
                self._read[note] = head
                self.note_size(head.origin, site, head.size)
            elif head.origin in origins:
                raise EvidenceError(
                    f"{head.origin}: site '{site}' remembers a head of {head.size} entries, signed "
                    "by no key that this log shows; one of the two does not tell the truth: a "
                    "restored backup, or a forged head"
                )

    def since(self, origin: str, sites: Iterable[str] | None = None) -> list[int]:
        """Return the sizes of a log from which some witness needs a proof, in rising order.

        Args:
            origin: of the log.
            sites: whose witnesses count, beside the coordinator's; None: all.
        """
        known = self._sizes.get(origin, {})
        counted = known if sites is None else known.keys() & {COORDINATOR, *sites}
        return sorted({n for witness in counted for n in known[witness].all})

    def lacks_proof(self, origin: str, shown: Evidence, sites: Iterable[str] | None = None) -> bool:
        """Return whether evidence lacks a proof from a size that a witness reported only now.

        Args:
            origin: of the log.
            shown: its evidence.
            sites: as in :meth:`since`.
        """
        return any(
            old not in shown.proofs and old < Checkpoint.parse(shown.note).size
            for old in self.since(origin, sites)
        )

    def has_grown(self, origin: str, shown: Evidence | None) -> bool:
        """Return whether a log is longer than its head with a quorum of cosignatures.

        Args:
            origin: of the log.
            shown: its evidence; None if its site sent none.
        """
        if shown is None:
            return False
        known, size = self._newest.get(origin), Checkpoint.parse(shown.note).size
        # The first of a head's lines is the log's own signature, which is no cosignature.
        return known is None or known.size < size or len(known.lines) <= self._roster.quorum

    def cosignature(
        self, shown: Mapping[str, Evidence], origin: str, text: str
    ) -> SignatureLine | None:
        """Return a cosignature over the head that was sent; None if it is not one that counts.

        Args:
            shown: the evidence that was sent, by origin.
            origin: of the log that the line is for.
            text: the signature line.
        """
        try:
            line = parse_line(text)
            head = Checkpoint.parse(shown[origin].note).with_cosignatures([line])
        except (NoteError, KeyError):
            return None
        key = self._roster.witnesses.get(line.name)
        # A site's own witness counts for nothing: it would vouch for the log that it writes.
        if key is None or line.name == self._own_witness.get(origin):
            return None
        return line if head.is_cosigned_by(key) else None

    def cosigned(
        self, origin: str, shown: Evidence, lines: Iterable[SignatureLine]
    ) -> dict[str, Any]:
        """Take a head that a quorum cosigned; return it as the journal stores it.

        A log that did not grow keeps the cosignatures that it has: what the journal says of a head
        must stay true, also when others cosign it later.

        Args:
            origin: of the log.
            shown: its evidence, with the head.
            lines: the cosignatures, of which each counts.

        Raises:
            EvidenceError: if they are fewer than the quorum.
        """
        log = Key(origin, self._keys[origin][-1])
        head = Checkpoint.parse(shown.note).trimmed(log).with_cosignatures(lines)
        known = self._newest.get(origin)
        if known is not None and (known.size, known.root) == (head.size, head.root):
            ours = self._roster.witnesses.keys() - {self._own_witness.get(origin)}
            counted = [line for line in known.lines[1:] if line.name in ours]
            if len({line.name for line in counted}) >= self._roster.quorum > 0:
                head = head.alone().with_cosignatures(counted)
        cosigners = sorted({line.name for line in head.lines[1:]})
        if len(cosigners) < self._roster.quorum:
            raise EvidenceError(
                f"{origin}: {len(cosigners)} witnesses cosigned its head of {head.size} entries, "
                f"{self._roster.quorum} are needed"
            )
        self.know(head)
        root = "sha256:" + head.root.hex()
        return {"log": origin, "size": head.size, "root": root, "cosigners": cosigners}

    def _sizes_of(self, origin: str, witness: str) -> RememberedSizes:
        return self._sizes.setdefault(origin, {}).setdefault(witness, RememberedSizes())


@dataclass
class RememberedSizes:
    """Sizes of a log that a witness may remember.

    Attributes:
        told: the last one that it reported; 0 for none.
        sent: those that were sent to it since, which it may have cosigned.
    """

    told: int = 0
    sent: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_SENT_SIZES))

    @property
    def all(self) -> set[int]:
        """All of them, but for an empty log, from which everything grows."""
        return {self.told, *self.sent} - {0}

    def saw(self, size: int) -> None:
        """Note a size that the witness reported."""
        self.told = size
        self.sent.clear()

    def may_have_seen(self, size: int) -> None:
        """Note a size that was sent to the witness."""
        self.sent.append(size)
