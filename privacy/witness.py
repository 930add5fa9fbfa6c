"""Witnesses: those who watch other people's logs grow, and cosign what they saw.

:func:`extend` is the rule, pure: what was seen, what is shown, and what may be signed.
:class:`Witness` keeps what it saw on disk, so that a history which was rewritten, forked
or rolled back is noticed also after a restart (c2sp.org/tlog-witness, without HTTP).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from privet.common.canonical import write_atomic
from privet.common.errors import EvidenceFault, LedgerError, NoteError
from privet.privacy.log import Evidence
from privet.privacy.merkle import is_consistent, root_from_inclusion
from privet.privacy.signed_note import COSIGN, Checkpoint, Key, Line, Signer, key_name
from privet.privacy.statement import Entry


@dataclass(frozen=True)
class Seen:
    """The newest head of a log that was cosigned: size, root (hex), and the note itself."""

    size: int
    root: str
    note: str


def extend(shown: Evidence, first: Key, seen: Seen | None) -> tuple[Checkpoint, Seen]:
    """Return the head that ``shown`` proves, and what is to be remembered of it.

    Args:
        shown: a log's head with its proofs.
        first: the log's first key, as the roster has it.
        seen: what was cosigned of this log before, or None.

    Raises:
        EvidenceFault: naming the log and what is wrong.
    """
    name = first.name
    try:
        head = Checkpoint.parse(shown.note)
    except NoteError as error:
        raise EvidenceFault(f"{name}: its head cannot be read: {error}") from error
    if head.origin != name:
        raise EvidenceFault(f"{name}: the head shown is of another log, '{head.origin}'")
    key = _key_in_force(shown, head, first)
    if not head.is_signed_by(Key(name, key)):
        raise EvidenceFault(f"{name}: its head is not signed by the key in force")
    if seen is not None:
        _require_growth(name, shown, head, seen)
    return head, Seen(head.size, head.root.hex(), shown.note)


def _require_growth(name: str, shown: Evidence, head: Checkpoint, seen: Seen) -> None:
    root = bytes.fromhex(seen.root)
    if head.size < seen.size:
        raise EvidenceFault(
            f"{name}: rolled back: it shows {head.size} entries, and had {seen.size} before (H31)"
        )
    proof = shown.proofs.get(seen.size, [])
    if not is_consistent(seen.size, root, head.size, head.root, proof):
        raise EvidenceFault(
            f"{name}: forked: its head of {head.size} entries does not extend the one of "
            f"{seen.size} entries that was witnessed; history was rewritten"
        )


def _key_in_force(shown: Evidence, head: Checkpoint, first: Key) -> bytes:
    """Follow the key rotations from the roster's key, each signed by the key before it."""
    key, recovery = first.public, b""
    for sequence, leaf, path in sorted(shown.rotations):
        if root_from_inclusion(leaf, sequence, head.size, path) != head.root:
            raise EvidenceFault(f"{first.name}: entry {sequence} is not in the log it shows")
        try:
            entry = Entry.read(leaf)
            new = Key.parse(str(entry.predicate["key"])).public
            if entry.kind == "genesis":
                Entry.read(leaf, (key,))
                other = entry.predicate["recovery"]
                recovery = Key.parse(other).public if other else b""
                continue
            by = recovery if entry.predicate["why"] == "recovery" and recovery else key
            Entry.read(leaf, (by, new))
        except (LedgerError, NoteError, KeyError, AttributeError) as error:
            raise EvidenceFault(
                f"{first.name}: entry {sequence} does not hand the key over: {error}"
            ) from error
        key = new
    return key


class Witness:
    """A witness with its key and its memory.

    Args:
        path: file that remembers what was seen.
        signer: the witness's own key, apart from any log's.
        owner: name of the site or the coordinator it belongs to.
    """

    def __init__(self, path: Path, signer: Signer, owner: str) -> None:
        self._path = path
        self._signer = signer
        self.key = Key(key_name("witness", owner, signer.public), signer.public, COSIGN)
        self._seen: dict[str, Seen] = {}
        if path.exists():
            try:
                stored = json.loads(path.read_text())
                self._seen = {origin: Seen(**value) for origin, value in stored.items()}
            except (OSError, ValueError, TypeError) as error:
                raise LedgerError(
                    f"{path}: what this witness saw cannot be read ({error}); restore it, or "
                    "remove it if you accept that earlier heads are forgotten"
                ) from error

    @property
    def seen(self) -> dict[str, Seen]:
        """What was seen of each log, by origin."""
        return dict(self._seen)

    def cosign(
        self, shown: Mapping[str, Evidence], keys: Mapping[str, Key]
    ) -> tuple[dict[str, Line], dict[str, str]]:
        """Check every head shown; cosign those that extend what was seen.

        Args:
            shown: by origin.
            keys: the first key of each log that this witness watches, by origin.

        Returns:
            Cosignature lines by origin, and what is wrong with the others.
        """
        lines: dict[str, Line] = {}
        faults: dict[str, str] = {}
        news: dict[str, Seen] = {}
        moment = int(time.time())
        for origin, evidence in shown.items():
            if origin not in keys:
                faults[origin] = f"{origin}: not a log that this witness watches"
                continue
            try:
                head, seen = extend(evidence, keys[origin], self._seen.get(origin))
            except EvidenceFault as fault:
                faults[origin] = str(fault)
                continue
            news[origin] = seen
            lines[origin] = head.cosignature(self.key, self._signer, moment)
        if any(self._seen.get(origin) != seen for origin, seen in news.items()):
            # Remembered durably before a signature leaves.
            self._seen |= news
            stored = {origin: asdict(seen) for origin, seen in sorted(self._seen.items())}
            write_atomic(self._path, json.dumps(stored).encode())
        return lines, faults
