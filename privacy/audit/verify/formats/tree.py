"""Merkle trees of RFC 6962: a streaming frontier, and inclusion proofs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from privet.privacy.audit.verify.formats.strict import Malformed

_sha256 = hashlib.sha256


def leaf_hash(leaf: bytes) -> bytes:
    """Return SHA-256(0x00 ‖ leaf)."""
    return _sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA-256(0x01 ‖ left ‖ right)."""
    return _sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: one hash for each complete subtree (log n)."""

    def __init__(self) -> None:
        self.size = 0
        self._edge: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add a leaf's hash."""
        rest = self.size
        while rest & 1:
            leaf = _sha256(b"\x01" + self._edge.pop() + leaf).digest()
            rest >>= 1
        self._edge.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Return the root of all leaves so far."""
        if not self._edge:
            return _sha256(b"").digest()
        result = self._edge[-1]
        for left in reversed(self._edge[:-1]):
            result = node_hash(left, result)
        return result


def inclusion_root(index: int, size: int, leaf: bytes, path: Sequence[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to (RFC 9162, section 2.1.3.2).

    Args:
        index: of the leaf, from 0.
        size: of the tree.
        leaf: hash of the leaf.
        path: the proof, from the leaf up.

    Raises:
        Malformed: if the proof is longer or shorter than index and size ask for.
    """
    if not 0 <= index < size:
        raise Malformed("the index is outside the tree")
    node, last, result = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise Malformed("the proof is too long")
        if node & 1 or node == last:
            result = node_hash(sibling, result)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            result = node_hash(result, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise Malformed("the proof is too short")
    return result
