"""The Merkle tree of RFC 6962: roots, inclusion proofs, consistency proofs.

Pure and without I/O. :class:`Tree` keeps the complete subtrees of a growing log, so that
an append costs two hashes on average and a proof costs a logarithm of the size. The
functions below it check proofs and know no tree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

HASH = 32


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf's bytes (RFC 6962, 2.1)."""
    return hashlib.sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node (RFC 6962, 2.1).

    Args:
        left: hash of the left child, 32 bytes.
        right: hash of the right child, 32 bytes.
    """
    return hashlib.sha256(b"\1" + left + right).digest()


EMPTY = hashlib.sha256(b"").digest()


class Tree:
    """The complete subtrees of a log: ``levels[k]`` holds the hashes over 2^k leaves."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self._levels: list[bytearray] = [bytearray()]
        for leaf in leaves:
            self.append(leaf)

    def __len__(self) -> int:
        return len(self._levels[0]) // HASH

    def append(self, leaf: bytes) -> None:
        """Add one leaf (its bytes, not its hash)."""
        new, level, place = leaf_hash(leaf), 0, len(self)
        while True:
            self._levels[level] += new
            if place % 2 == 0:
                return
            new = node_hash(self._node(level, place - 1), new)
            level, place = level + 1, place // 2
            if level == len(self._levels):
                self._levels.append(bytearray())

    def root(self, size: int | None = None) -> bytes:
        """Return the root over the first ``size`` leaves (all of them by default).

        Raises:
            ValueError: if the tree is smaller.
        """
        size = self._size(size)
        return self._range(0, size) if size else EMPTY

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """Return the audit path of a leaf (RFC 6962, 2.1.1), from the leaf upwards.

        Args:
            index: of the leaf, from 0.
            size: leaves of the tree that the path is for; default all.

        Raises:
            ValueError: if that tree does not have the leaf.
        """
        size = self._size(size)
        if not 0 <= index < size:
            raise ValueError(f"there is no leaf {index} in a tree of {size}")
        return self._path(index, 0, size)

    def consistency(self, old: int, size: int | None = None) -> list[bytes]:
        """Return the proof that a tree extends an older one (RFC 6962, 2.1.2).

        Args:
            old: leaves of the older tree.
            size: leaves of the newer tree; default all.

        Raises:
            ValueError: if the newer tree is smaller, or this log is.
        """
        size = self._size(size)
        if not 0 <= old <= size:
            raise ValueError(f"a tree of {size} does not extend one of {old}")
        return self._subproof(old, 0, size, True) if 0 < old < size else []

    def _size(self, size: int | None) -> int:
        if size is None:
            return len(self)
        if not 0 <= size <= len(self):
            raise ValueError(f"the tree has {len(self)} leaves, not {size}")
        return size

    def _node(self, level: int, place: int) -> bytes:
        return bytes(self._levels[level][place * HASH : (place + 1) * HASH])

    def _range(self, start: int, end: int) -> bytes:
        """Return the hash over leaves [start, end), where start is a multiple of its span."""
        count = end - start
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            return self._node(level, start >> level)
        middle = start + _split(count)
        return node_hash(self._range(start, middle), self._range(middle, end))

    def _path(self, index: int, start: int, end: int) -> list[bytes]:
        if end - start == 1:
            return []
        middle = start + _split(end - start)
        if index < middle:
            return [*self._path(index, start, middle), self._range(middle, end)]
        return [*self._path(index, middle, end), self._range(start, middle)]

    def _subproof(self, old: int, start: int, end: int, whole: bool) -> list[bytes]:
        if old == end - start:  # the whole older tree, whose root is known
            return [] if whole else [self._range(start, end)]
        middle = _split(end - start)
        if old <= middle:
            left = self._subproof(old, start, start + middle, whole)
            return [*left, self._range(start + middle, end)]
        right = self._subproof(old - middle, start + middle, end, False)
        return [*right, self._range(start, start + middle)]


def _split(count: int) -> int:
    """Return the largest power of two below ``count``."""
    return 1 << ((count - 1).bit_length() - 1)


def root_from_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """Return the root to which an inclusion proof leads; None if the proof has the wrong length.

    The algorithm of RFC 9162, 2.1.3.2.

    Args:
        leaf: the leaf's bytes, not its hash.
        index: of the leaf, from 0.
        size: leaves of the tree.
        proof: the audit path.
    """
    if not 0 <= index < size:
        return None
    place, last, found = index, size - 1, leaf_hash(leaf)
    for sibling in proof:
        if last == 0:
            return None
        if place % 2 or place == last:
            found = node_hash(sibling, found)
            # The last node of an odd level rises unchanged: the path has nothing for that level.
            while place % 2 == 0 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        place, last = place >> 1, last >> 1
    return found if last == 0 else None


def is_consistent(
    old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]
) -> bool:
    """Return whether a proof shows that a tree extends an older one.

    The algorithm of RFC 9162, 2.1.4.2.

    Args:
        old: leaves of the older tree.
        old_root: its root.
        size: leaves of the newer tree.
        root: its root.
        proof: as :meth:`Tree.consistency` returns it.
    """
    if old > size or old < 0:
        return False
    if old == size:
        return not proof and old_root == root
    if old == 0:
        return not proof and old_root == EMPTY
    path = list(proof)
    # The older tree is then one whole subtree, and its root is known: the proof leaves it out.
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    place, last = old - 1, size - 1
    # Below the first subtree that the proof names, both trees are the same.
    while place % 2:
        place, last = place >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if place % 2 or place == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while place % 2 == 0 and place:
                place, last = place >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and first == old_root and second == root
