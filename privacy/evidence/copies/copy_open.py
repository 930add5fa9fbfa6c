"""What the owner of the recovery key finds in copies of its ledger, checked to the last entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privet.common.errors import LedgerError, NoteError, PrivateKeyError, WrongLedgerError
from privet.privacy.evidence.copies.copy_file import CopyFile
from privet.privacy.evidence.copies.ledger_copy import CopyPiece, PieceContent, chains
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.merkle import Tree
from privet.privacy.evidence.signed_note import Checkpoint, Key, fingerprint
from privet.privacy.evidence.statement import Entry


@dataclass(frozen=True)
class OpenedLedger:
    """A ledger as its copies have it.

    Attributes:
        site: its name.
        log: origin.
        leaves: all entries.
        papers: what is kept beside them.
        head: the log's signed head over all entries.
        witness: raw public bytes of the site's witness key.
        witness_seed: its private bytes, or b"".
        source: the copy that reaches farthest.
    """

    site: str
    log: str
    leaves: tuple[bytes, ...]
    papers: tuple[tuple[str, str, str], ...]
    head: str
    witness: bytes
    witness_seed: bytes
    source: str


def open_copies(files: Sequence[CopyFile], recovery: FileSigner, first_key: str) -> OpenedLedger:
    """Open copies of one ledger and return what the longest one has.

    Args:
        files: of one site's ledger, one at least.
        recovery: the key that its genesis names.
        first_key: fingerprint of the ledger's first key, as the site knows it.

    Raises:
        WrongLedgerError: if one is of another ledger.
        PrivateKeyError: if ``recovery`` does not open them.
        LedgerError: if a piece was altered, a signature or the tree does not hold, two of them
            contradict each other, or entries under a head that the log signed are missing.
    """
    if others := {file.log for file in files[1:]} - {files[0].log}:
        raise WrongLedgerError(f"the copies are of several ledgers: {files[0].log}, {min(others)}")
    opened = [_opened(file, recovery, first_key) for file in files]
    longest = max(opened, key=lambda one: len(one.leaves))
    for one in opened:
        if one.leaves != longest.leaves[: len(one.leaves)]:
            raise LedgerError(
                f"{one.source} and {longest.source} contradict each other: the log had two "
                "histories. Nothing was written"
            )
    keys = _checked(longest)
    tree = Tree(longest.leaves)
    _require_head(longest, Checkpoint.parse(longest.head), keys[-1:], tree)
    for file in files:
        for head in file.heads:
            if head.origin == longest.log and (head.size > len(tree) or _is_signed(head, keys)):
                _require_reached(longest, head, file.source, tree, known=_is_signed(head, keys))
    return longest


def _opened(file: CopyFile, recovery: FileSigner, first_key: str) -> OpenedLedger:
    """Open the longest chain of a file, up to the last head in it."""
    where = file.source
    begins = next((piece for piece in file.pieces if piece.start == 0), None)
    if begins is None:
        raise LedgerError(f"{where}: holds no entry of the ledger")
    if file.witness is not None:
        _require_signed(file, file.witness.public)
    genesis = _genesis(file, begins, recovery)
    key, witness = (Key.parse(str(genesis.predicate[name])) for name in ("key", "witness"))
    if key.fingerprint != first_key or file.log != key.name:
        raise WrongLedgerError(
            f"{where}: is of a ledger that began with key {key.fingerprint}, not {first_key}; ask "
            "for the copy of your own"
        )
    _require_signed(file, witness.public)
    best: tuple[list[PieceContent], int] = ([], 0)
    for chain in chains(file.pieces):
        contents = [_open(piece, recovery, where) for piece in chain]
        while contents and not contents[-1].head:
            contents.pop()
        size = sum(len(content.leaves) for content in contents)
        if size > best[1]:
            best = contents, size
    if not best[0]:
        raise LedgerError(f"{where}: holds the beginning of the ledger only, and no head")
    return OpenedLedger(
        str(genesis.predicate["site"]),
        file.log,
        tuple(leaf for content in best[0] for leaf in content.leaves),
        tuple(paper for content in best[0] for paper in content.papers),
        best[0][-1].head,
        witness.public,
        _own_seed(best[0][0].witness_seed, witness.public),
        where,
    )


def _open(piece: CopyPiece, recovery: FileSigner, where: str) -> PieceContent:
    try:
        return piece.open(recovery.seed)
    except LedgerError as error:
        raise LedgerError(f"{where}: {error}. Nothing was written") from None


def _genesis(file: CopyFile, piece: CopyPiece, recovery: FileSigner) -> Entry:
    """Return entry 0, opened with the key that it names."""
    try:
        entry = Entry.read(piece.open(recovery.seed).leaves[0])
        named = entry.predicate["recovery"]
        if entry.kind == "genesis" and Key.parse(str(named)).public == recovery.public:
            return entry
    except (LedgerError, NoteError, KeyError):
        pass
    altered = "" if file.witness is not None else ", or the copy was altered"
    raise PrivateKeyError(
        f"{file.source}: is not encrypted to the recovery key that was given, "
        f"{fingerprint(recovery.public)}{altered}. Nothing was written"
    )


def _require_signed(file: CopyFile, witness: bytes) -> None:
    for piece in file.pieces:
        if piece.log != file.log or not piece.is_signed_by(witness):
            raise LedgerError(
                f"{file.source}: the piece of entries {piece.start} to {piece.end - 1} was "
                "altered: the site did not sign it. Take another copy; nothing was written"
            )


def _own_seed(seed: bytes, public: bytes) -> bytes:
    fits = len(seed) == 32 and FileSigner.from_seed(seed).public == public
    return seed if fits else b""


def _checked(found: OpenedLedger) -> list[bytes]:
    """Check the signature of every entry; return the keys of the log in turn."""
    keys: list[bytes] = []
    recovery = b""
    for number, leaf in enumerate(found.leaves):
        try:
            entry = Entry.read(leaf)
            value = entry.predicate
            if entry.sequence != number or value["log"] != found.log:
                raise LedgerError(f"entry {number} is out of place")
            if number == 0:
                keys.append(Key.parse(str(value["key"])).public)
                recovery = Key.parse(str(value["recovery"])).public
                signers = [keys[0]]
            elif entry.kind == "key-rotated":
                new = Key.parse(str(value["key"])).public
                signers = [recovery if value["why"] == "recovery" else keys[-1], new]
                keys.append(new)
            else:
                signers = [keys[-1]]
            Entry.read(leaf, signers)
        except (LedgerError, NoteError, KeyError) as error:
            raise LedgerError(f"{found.source}: {error}. Nothing was written") from error
    return keys


def _is_signed(head: Checkpoint, keys: Sequence[bytes]) -> bool:
    return any(head.is_signed_by(Key(head.origin, key)) for key in keys)


def _require_head(found: OpenedLedger, head: Checkpoint, keys: Sequence[bytes], tree: Tree) -> None:
    """Check that the head in the copy is that of its entries, by the key in force."""
    whole = (head.origin, head.size, head.root) == (found.log, len(tree), tree.root())
    if not whole or not _is_signed(head, keys):
        raise LedgerError(
            f"{found.source}: its entries do not lead to the ledger's signed head. Nothing was "
            "written"
        )


def _require_reached(
    found: OpenedLedger, head: Checkpoint, source: str, tree: Tree, *, known: bool
) -> None:
    """Check that a head is one of the history that was found; ``known``: by a key in it."""
    if head.size > len(tree):
        missing = head.size - len(tree)
        by = "" if known else ", by a key that no copy knows (a missing rotation, or a lie)"
        raise LedgerError(
            f"{source} shows a head of {head.size} entries that others saw{by}, and the longest "
            f"copy ({found.source}) has {len(tree)}: {missing} entries are missing. "
            "Ask the coordinators and the other sites for their copies and name all of them; "
            "without the missing entries the ledger cannot continue. Nothing was written"
        )
    if tree.root(head.size) != head.root:
        raise LedgerError(
            f"{source} shows a head of {head.size} entries that is not one of {found.source}: the "
            "log had two histories. Nothing was written"
        )
