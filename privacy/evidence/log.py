"""A signed, append-only log: a store, its Merkle tree, and the key that signs its head.

The ledger of a site and the journal of a coordinator are both logs. What an entry means
is theirs; that it is signed, numbered, hashed and on disk before anything is promised is
done here.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from privet.common.errors import LedgerError, NoteError, PrivateKeyError, RolledBackError
from privet.privacy.evidence.merkle import Tree
from privet.privacy.evidence.signed_note import (
    Checkpoint,
    Key,
    Signer,
    fingerprint,
    key_name,
    proof_text,
)
from privet.privacy.evidence.statement import JOURNAL, LEDGER, Entry, now
from privet.privacy.evidence.store import Store

_HEAD, _COSIGNED = "head", "cosigned"
CHECKPOINT = "checkpoint"
"""Kind of the papers that hold cosigned checkpoints, named by size."""


@dataclass(frozen=True)
class Evidence:
    """What a log shows of itself to those who witness it.

    Attributes:
        note: its head, a signed checkpoint.
        proofs: by an older size, the proof that the head extends it.
        inclusion: by sequence, an entry's leaf and its audit path in the head.
        rotations: each key rotation's sequence, leaf and audit path.
    """

    note: str
    proofs: dict[int, list[bytes]]
    inclusion: dict[int, tuple[bytes, list[bytes]]]
    rotations: list[tuple[int, bytes, list[bytes]]]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; :meth:`from_json` reads them back."""
        return {
            "note": self.note,
            "proofs": {str(size): _texts(path) for size, path in self.proofs.items()},
            "inclusion": {
                str(n): [leaf.decode(), _texts(path)] for n, (leaf, path) in self.inclusion.items()
            },
            "rotations": [[n, leaf.decode(), _texts(path)] for n, leaf, path in self.rotations],
        }

    @classmethod
    def from_json(cls, value: Any) -> Evidence:
        """Read what :meth:`to_json` wrote.

        Raises:
            NoteError: if it is malformed.
        """
        try:
            return cls(
                str(value["note"]),
                {int(size): _hashes(path) for size, path in value["proofs"].items()},
                {
                    int(n): (str(leaf).encode(), _hashes(path))
                    for n, (leaf, path) in value["inclusion"].items()
                },
                [
                    (int(n), str(leaf).encode(), _hashes(path))
                    for n, leaf, path in value["rotations"]
                ],
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise NoteError(f"the evidence of a log is malformed: {error!r}") from error


class LogState(Protocol):
    """What a log's entries add up to. Pure: it receives entries and does nothing else."""

    def apply(self, entry: Entry) -> None:
        """Take in the next entry, or raise LedgerError if the rules forbid it."""
        ...


BookT = TypeVar("BookT", bound=LogState)


class Log(Generic[BookT]):
    """A log in a file, whose head is signed by ``signer``.

    Args:
        path: the store's file.
        signer: the key in force.
        vocabulary: :data:`LEDGER` or :data:`JOURNAL`.
        owner: name of the site or the coordinator.
        state: makes an empty state; it receives each entry, old and new, in order.
        create: make the file where there is none.
        patience: seconds to wait for another process's transaction.
        key_now: finds the key in force once another process has replaced ``signer``, so that
            a running process need not be started again.

    Raises:
        LedgerError: if the stored entries do not lead to the stored head.
        PrivateKeyError: if ``signer`` is not the key in force.
    """

    def __init__(
        self,
        path: Path,
        signer: Signer,
        vocabulary: str,
        owner: str,
        state: Callable[[], BookT],
        *,
        create: bool,
        patience: float = 30.0,
        key_now: Callable[[], Signer] | None = None,
    ) -> None:
        self._key_now = key_now
        self.store = Store(path, create=create, patience=patience)
        self.signer = signer
        self._vocabulary = vocabulary
        kind = {LEDGER: "ledger", JOURNAL: "journal"}[vocabulary]
        self._own_name = key_name(kind, owner, signer.public)
        self._make_book = state
        self._dirty = False
        self._depth = 0
        self._shown: dict[str, Checkpoint] = {}
        self._unkept: Checkpoint | None = None
        self._version: tuple[int, int] | None = None
        self._head: tuple[tuple[int, bytes], Checkpoint] | None = None
        self._reset()
        with self.store.reading():
            self.refresh()
            self.require_key()
            self._check_head()

    def __len__(self) -> int:
        return len(self._tree)

    @property
    def origin(self) -> str:
        """The log's name: that of its first key."""
        return self._origin or self._own_name

    @property
    def key(self) -> Key:
        """The key in force, as others verify it."""
        return Key(self.origin, self._keys[-1][1] if self._keys else self.signer.public)

    @property
    def keys(self) -> list[Key]:
        """All keys of the log in their order, the one in force last."""
        return self._own_keys

    @property
    def first_key(self) -> Key:
        """The key the log began with, which a roster names."""
        return Key(self.origin, self._keys[0][1])

    @property
    def _own_keys(self) -> list[Key]:
        return [Key(self.origin, public) for _, public in self._keys]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the right to write, with everything taken in that other processes wrote.

        After a failure, this log in memory is again what is on disk.
        """
        signer = self.signer
        try:
            with self.store.transaction():
                self.refresh()
                self.require_key()
                signer = self.signer
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
            if self._dirty and not self._depth:
                self._unkept = None  # it went with the first entry
        except BaseException:
            self.signer = signer
            if self._dirty:
                # What was added in memory is not on disk.
                self._reset()
                with suppress(LedgerError):
                    self.refresh()
            raise
        finally:
            # Within another `writing` it is that one's to say what is on disk.
            self._dirty = self._dirty and bool(self._depth)

    def append(
        self,
        kind: str,
        subject: str,
        digest_: str,
        /,
        *,
        signers: Sequence[Signer] = (),
        **fields: Any,
    ) -> Entry:
        """Add one entry and sign the new head; on disk when ``writing`` ends.

        Args:
            kind: of the vocabulary.
            subject: name of what the entry is about.
            digest_: its digest.
            signers: instead of the key in force; the last one is in force from then on.
            fields: of the predicate.
        """
        self._dirty = True
        self._put_shown()
        # A clock that was set back must not make a log that nobody would verify.
        time = max(now(), self._time)
        common = {"sequence": len(self._tree), "time": time, "log": self.origin}
        entry = Entry(self._vocabulary, kind, {**common, **fields}, subject, digest_)
        leaf = entry.leaf(signers or (self.signer,))
        self._take(leaf, entry)
        self.store.add(entry.sequence, leaf)
        if signers:
            self.signer = signers[-1]
        self.store.put(_HEAD, self.head().text)
        return entry

    def adopt(self, leaves: Iterable[bytes], upto: Checkpoint | None = None) -> None:
        """Take back entries that this log had before, from a copy that others kept.

        Args:
            leaves: that follow the last entry here.
            upto: a head that this log signed before; the entries must lead to it.

        Raises:
            LedgerError: if one is not signed by this log's key, is out of place, or they do not
                lead to the head. Nothing was taken then.
        """
        with self.writing():
            self._dirty = True
            for leaf in leaves:
                entry = Entry.read(leaf, (self.signer.public,))
                self._take(leaf, entry)
                self.store.add(entry.sequence, leaf)
            if upto is not None and (
                len(self._tree) < upto.size or self._tree.root(upto.size) != upto.root
            ):
                raise LedgerError(
                    f"{self.store.path}: the copy does not lead to the head of {upto.size} entries"
                )
            self.store.put(_HEAD, self.head().text)

    def head(self) -> Checkpoint:
        """Return the signed checkpoint over all entries."""
        signed_by = len(self._tree), self.signer.public
        if self._head is None or self._head[0] != signed_by:
            unsigned = Checkpoint(self.origin, len(self._tree), self._tree.root())
            self._head = signed_by, unsigned.signed(self.key, self.signer)
        return self._head[1]

    def root(self, size: int) -> bytes:
        """Return the root of the tree over the first ``size`` entries."""
        return self._tree.root(size)

    def evidence(self, since: Iterable[int] = (), entries: Iterable[int] = ()) -> Evidence:
        """Return the head, with proofs from the sizes ``since`` and for ``entries``.

        Raises:
            PrivateKeyError: if another process replaced the key: this one can sign no head.
        """
        self.refresh()
        self.require_key()
        size, tree = len(self._tree), self._tree
        # With the genesis, which names the key that may recover.
        rotations = [number for number, _ in self._keys] if len(self._keys) > 1 else []
        return Evidence(
            self.head().text,
            {old: tree.consistency(old) for old in set(since) if 0 < old <= size},
            {n: (self.store.leaf(n), tree.inclusion(n)) for n in set(entries) if 0 <= n < size},
            [(n, self.store.leaf(n), tree.inclusion(n)) for n in rotations],
        )

    def proof(self, number: int, checkpoint: Checkpoint) -> str:
        """Return the offline proof (tlog-proof) that entry ``number`` is under ``checkpoint``."""
        return proof_text(number, self._tree.inclusion(number, checkpoint.size), checkpoint)

    def require_extends(
        self, text: str, witnesses: Iterable[Key] = (), *, keep: bool = True, later: bool = False
    ) -> Checkpoint:
        """Check that this log extends a head it signed before, and keep that head.

        Args:
            text: the head.
            witnesses: whose cosignatures on it are kept. What others wrote on it is not.
            keep: whether it is kept; else nothing is written.
            later: keep it with the next entry, or by :meth:`keep_shown`, whichever comes first:
                both wait for the disk once. Until then it is not kept; it comes with each message.

        Raises:
            RolledBackError: if it does not: the file is older than what it signed.
            NoteError: if the note is not a head of this log.
        """
        self.refresh()
        # The same head comes with every order of a round: its signatures are checked once.
        known = self._shown.get(text)
        seen = known or self._own_head(text, witnesses)
        if seen.size > len(self._tree) or self._tree.root(seen.size) != seen.root:
            raise RolledBackError(
                f"{self.store.path}: has {len(self._tree)} entries and does not extend the head of "
                f"{seen.size} entries that it signed before and witnesses hold: a restored "
                "backup? Nothing may be spent. Restore the newer file; if it is lost, the "
                "population's budget is to be counted as spent"
            )
        if known is not None or not keep:
            return seen
        self._shown = {text: seen}
        kept = self.cosigned()
        if kept is None or (seen.size, len(seen.lines)) > (kept.size, len(kept.lines)):
            self._unkept = seen
            if not later:
                self.keep_shown()
        return seen

    def keep_shown(self) -> None:
        """Keep the newest head that was presented, if it is not kept yet.

        Raises:
            LedgerError: if it cannot be written.
        """
        if self._unkept is None:
            return
        try:
            with self.store.transaction():
                self._put_shown()
            self._unkept = None
        except LedgerError:
            self._shown.clear()  # so that the same head is kept when it comes again
            raise

    def _put_shown(self) -> None:
        if (seen := self._unkept) is not None:
            self.store.put(_COSIGNED, seen.text)
            self.store.file(CHECKPOINT, f"{seen.size:012d}", seen.text)

    def _own_head(self, text: str, witnesses: Iterable[Key]) -> Checkpoint:
        """Read a head of this log, with the signatures that count and no others."""
        seen = Checkpoint.parse(text)
        by = next((key for key in self._own_keys if seen.is_signed_by(key)), None)
        if seen.origin != self.origin or by is None:
            raise NoteError("the presented head is not one of this log")
        return seen.trimmed(by, witnesses)

    def cosigned(self) -> Checkpoint | None:
        """Return the newest head that witnesses sent back, or None."""
        text = self.store.fact(_COSIGNED)
        return Checkpoint.parse(text) if text else None

    def refresh(self) -> None:
        """Take in what another process wrote meanwhile, if the signed head stands for it.

        Raises:
            LedgerError: if a stored entry breaks the rules, or is not under the head.
        """
        if self._version == self.store.version():
            return
        with self.store.reading():
            before = len(self._tree)
            version = self.store.version()
            try:
                for leaf in self.store.leaves(before):
                    self._take(leaf, Entry.read(leaf))
                if self.store.size() != len(self._tree):
                    raise LedgerError(
                        f"{self.store.path}: entries that were here are gone: was the file "
                        "replaced while it was open? Start again with the newer file"
                    )
                if len(self._tree) > before:
                    self._check_head()
            except LedgerError:
                self._reset()
                raise
        self._version = version

    def _reset(self) -> None:
        self.state = self._make_book()
        self._tree = Tree()
        self._version = None
        self._head = None
        self._origin = self._time = ""
        self._keys: list[tuple[int, bytes]] = []
        self._shown.clear()
        self._unkept = None

    def _take(self, leaf: bytes, entry: Entry) -> None:
        """Take in the next entry, from the file or about to be written to it."""
        where = f"{self.store.path}: entry {len(self._tree)}"
        if entry.sequence != len(self._tree) or entry.vocabulary != self._vocabulary:
            raise LedgerError(f"{where} is out of place")
        if entry.predicate.get("log") != (self._origin or entry.predicate.get("log")):
            raise LedgerError(f"{where} is of another log")
        if (entry.sequence == 0) != (entry.kind == "genesis"):
            raise LedgerError(f"{where}: a log begins with its genesis, and has one")
        self.state.apply(entry)
        if entry.kind in ("genesis", "key-rotated"):
            key = _key_of(entry, where)
            if any(key.public == public for _, public in self._keys):
                raise LedgerError(f"{where}: its key was in force before; make a new one")
            self._origin = self._origin or key.name
            self._keys.append((entry.sequence, key.public))
        self._time = max(self._time, str(entry.predicate.get("time", "")))
        self._tree.append(leaf)

    def require_key(self) -> None:
        """Check that this process has the key in force, as of the last :meth:`refresh`.

        Raises:
            PrivateKeyError: if another process replaced it, and the new one is not found.
        """
        if not self._keys or self._keys[-1][1] == self.signer.public:
            return
        if self._key_now is not None:
            found = self._key_now()
            if found.public == self._keys[-1][1]:
                self.signer = found
                return
        raise PrivateKeyError(
            f"{self.store.path}: the key given is not the key in force, "
            f"{fingerprint(self._keys[-1][1])}"
        )

    def _check_head(self) -> None:
        text = self.store.fact(_HEAD)
        if text is None and len(self._tree) == 0:
            return
        try:
            head = Checkpoint.parse(text or "")
        except NoteError as error:
            raise LedgerError(f"{self.store.path}: its signed head is damaged: {error}") from error
        if head.size != len(self._tree) or head.root != self._tree.root():
            raise LedgerError(
                f"{self.store.path}: the entries do not lead to the signed head: an entry was "
                "changed or removed. Restore the file together with everything released since"
            )
        if not head.is_signed_by(self.key):
            raise LedgerError(f"{self.store.path}: the head is not signed by the key in force")


def _key_of(entry: Entry, where: str) -> Key:
    try:
        return Key.parse(str(entry.predicate["key"]))
    except (KeyError, NoteError) as error:
        raise LedgerError(f"{where} names no key: {error}") from error


def _texts(path: Iterable[bytes]) -> list[str]:
    return [base64.b64encode(item).decode() for item in path]


def _hashes(path: Any) -> list[bytes]:
    if not isinstance(path, list) or len(path) > 64:
        raise ValueError("a proof is a short list of hashes")
    hashes = [base64.b64decode(item, validate=True) for item in path]
    if any(len(item) != 32 for item in hashes):
        raise ValueError("a hash has 32 bytes")
    return hashes
