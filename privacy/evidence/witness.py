"""Witnesses: those who watch other people's logs grow, and cosign what they saw.

:func:`extend` is the rule, pure: what was seen, what is presented, and what may be signed.
:class:`Witness` keeps what it saw on disk, so that a history which was rewritten, forked
or rolled back is noticed also after a restart (c2sp.org/tlog-witness, without HTTP).
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privet.common.canonical import write_atomic
from privet.common.errors import EvidenceError, LedgerError, NoteError
from privet.privacy.evidence.log import Evidence
from privet.privacy.evidence.merkle import is_consistent, root_from_inclusion
from privet.privacy.evidence.signed_note import (
    COSIGN,
    Checkpoint,
    Key,
    SignatureLine,
    Signer,
    key_name,
)
from privet.privacy.evidence.statement import Entry


@dataclass(frozen=True)
class Seen:
    """The newest head of a log that was cosigned: size, root (hex), and the note itself."""

    size: int
    root: str
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"size": self.size, "root": self.root, "note": self.note}


def extend(shown: Evidence, first: Key, seen: Seen | None) -> tuple[Checkpoint, Seen]:
    """Return the head that ``shown`` proves, and what is to be remembered of it.

    Args:
        shown: a log's head with its proofs.
        first: the log's first key, as the roster has it.
        seen: what was cosigned of this log before, or None.

    Raises:
        EvidenceError: naming the log and what is wrong.
    """
    name = first.name
    try:
        head = Checkpoint.parse(shown.note)
    except NoteError as error:
        raise EvidenceError(f"{name}: its head cannot be read: {error}") from error
    if head.origin != name:
        raise EvidenceError(f"{name}: the presented head is of another log, '{head.origin}'")
    keys = _keys(shown, head, first)
    try:
        head = head.trimmed(Key(name, keys[-1]))
    except NoteError as error:
        raise EvidenceError(f"{name}: its head is not signed by the key in force") from error
    if seen is not None:
        _require_growth(name, shown, head, seen)
        if not is_signed_by_one(Checkpoint.parse(seen.note), keys):
            # The old key, which may be stolen, signs nothing after it was replaced.
            raise EvidenceError(
                f"{name}: it leaves out a rotation of its key that was witnessed before"
            )
    return head, Seen(head.size, head.root.hex(), head.text)


def keys_of(shown: Evidence, first: Key) -> list[bytes]:
    """Return the keys that a log had in turn, as it shows them, the first one first.

    Raises:
        EvidenceError: if one was not handed over by the one before it.
    """
    try:
        return _keys(shown, Checkpoint.parse(shown.note), first)
    except NoteError as error:
        raise EvidenceError(f"{first.name}: its head cannot be read: {error}") from error


def is_signed_by_one(head: Checkpoint, keys: Iterable[bytes]) -> bool:
    """Whether one of a log's ``keys`` signed its ``head``."""
    return any(head.is_signed_by(Key(head.origin, key)) for key in keys)


def _require_growth(name: str, shown: Evidence, head: Checkpoint, seen: Seen) -> None:
    root = bytes.fromhex(seen.root)
    if head.size < seen.size:
        raise EvidenceError(
            f"{name}: rolled back: it shows {head.size} entries, and had {seen.size} before (H31)"
        )
    proof = shown.proofs.get(seen.size, [])
    if not is_consistent(seen.size, root, head.size, head.root, proof):
        raise EvidenceError(
            f"{name}: forked: its head of {head.size} entries does not extend the one of "
            f"{seen.size} entries that was witnessed; history was rewritten"
        )


def _keys(shown: Evidence, head: Checkpoint, first: Key) -> list[bytes]:
    """Follow the key rotations from the roster's key, each signed by the key before it."""
    keys, recovery = [first.public], b""
    for sequence, leaf, path in sorted(shown.rotations):
        if root_from_inclusion(leaf, sequence, head.size, path) != head.root:
            raise EvidenceError(f"{first.name}: entry {sequence} is not in the log it shows")
        try:
            entry = Entry.read(leaf)
            if entry.kind != ("key-rotated" if sequence else "genesis"):
                raise LedgerError(f"it is '{entry.kind}'")
            new = Key.parse(str(entry.predicate["key"])).public
            if not sequence:
                Entry.read(leaf, (keys[-1],))
                other = entry.predicate["recovery"]
                recovery = Key.parse(str(other)).public if other else b""
                continue
            lost = entry.predicate["why"] == "recovery"
            if (lost and not recovery) or new in keys:
                raise LedgerError("no recovery key was named, or the key was in force before")
            Entry.read(leaf, (recovery if lost else keys[-1], new))
        except (LedgerError, NoteError, KeyError) as error:
            raise EvidenceError(
                f"{first.name}: entry {sequence} does not hand the key over: {error}"
            ) from error
        keys.append(new)
    return keys


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
        self._read()

    @property
    def signer(self) -> Signer:
        """The witness's private key."""
        return self._signer

    @property
    def seen(self) -> dict[str, Seen]:
        """What was seen of each log, by origin, also by other processes of its owner."""
        return self._read()

    def _read(self) -> dict[str, Seen]:
        """Return what is on disk; what this process saw, if the file was removed meanwhile."""
        if self._path.exists():
            self._seen = read_seen(self._path)
        return dict(self._seen)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes of this witness from cosigning at the same time."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def cosign(
        self, shown: Mapping[str, Evidence], keys: Mapping[str, Key]
    ) -> tuple[dict[str, SignatureLine], dict[str, str]]:
        """Check every head in ``shown``; cosign those that extend what was seen.

        Args:
            shown: by origin.
            keys: the first key of each log that this witness watches, by origin.

        Returns:
            Cosignature lines by origin, and what is wrong with the others.
        """
        with self._alone():
            return self._cosign(shown, keys, self._read())

    def _cosign(
        self, shown: Mapping[str, Evidence], keys: Mapping[str, Key], known: dict[str, Seen]
    ) -> tuple[dict[str, SignatureLine], dict[str, str]]:
        lines: dict[str, SignatureLine] = {}
        faults: dict[str, str] = {}
        news: dict[str, Seen] = {}
        moment = int(time.time())
        for origin, evidence in shown.items():
            if origin not in keys:
                faults[origin] = f"{origin}: not a log that this witness watches"
                continue
            try:
                head, seen = extend(evidence, keys[origin], known.get(origin))
            except EvidenceError as fault:
                faults[origin] = str(fault)
                continue
            news[origin] = seen
            lines[origin] = head.cosignature(self.key, self._signer, moment)
        if any(known.get(origin) != seen for origin, seen in news.items()):
            # Remembered durably before a signature leaves.
            stored = {origin: seen.to_dict() for origin, seen in sorted((known | news).items())}
            write_atomic(self._path, json.dumps(stored).encode())
            self._seen = known | news
        return lines, faults


def read_seen(path: Path) -> dict[str, Seen]:
    """Read what a witness saw of each log, by origin; nothing if there is no file.

    Raises:
        LedgerError: if it cannot be read.
    """
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text())
        return {str(origin): _seen(value) for origin, value in stored.items()}
    except (OSError, ValueError, TypeError, KeyError, NoteError, AttributeError) as error:
        raise LedgerError(
            f"{path}: what this witness saw cannot be read ({error}); restore it, or "
            "remove it if you accept that earlier heads are forgotten"
        ) from error


def newest_seen(path: Path, origin: str) -> Seen | None:
    """Read what a witness saw of one log; None if nothing. It checks no other log's heads.

    Raises:
        LedgerError: if it cannot be read.
    """
    try:
        value = json.loads(path.read_text()).get(origin)
        return None if value is None else _seen(value)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, NoteError, AttributeError) as error:
        raise LedgerError(f"{path}: what this witness saw cannot be read ({error})") from error


def _seen(value: dict[str, Any]) -> Seen:
    """Read one head from a witness's file, and check it against its own note."""
    seen = Seen(int(value["size"]), str(value["root"]), str(value["note"]))
    head = Checkpoint.parse(seen.note)
    if (head.size, head.root.hex()) != (seen.size, seen.root):
        raise ValueError("a head is not the one of its note")
    return seen
