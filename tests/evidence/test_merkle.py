"""The Merkle tree of RFC 6962, against its reference vectors, its definition, and liars."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from merkle_vectors import LEAVES, ROOTS
from verify_kit import tree_consistency, tree_path, tree_root

from privet.privacy.audit.verify.formats import tree as theirs
from privet.privacy.evidence.merkle import (
    EMPTY,
    Tree,
    is_consistent,
    leaf_hash,
    node_hash,
    root_from_inclusion,
)

A = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
B = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
C = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
D = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
F = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
G = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"

leaves_of = st.lists(st.binary(max_size=6), min_size=1, max_size=40)
few = settings(max_examples=60, deadline=None, derandomize=True)


def hexes(path: list[bytes]) -> list[str]:
    return [item.hex() for item in path]


def test_the_reference_roots() -> None:
    tree = Tree(LEAVES)
    assert [tree.root(size).hex() for size in range(9)] == ROOTS
    assert tree.root() == bytes.fromhex(ROOTS[-1])
    assert tree.root(0) == EMPTY == hashlib.sha256(b"").digest()


@pytest.mark.parametrize(
    ("index", "size", "path"),
    [(0, 1, []), (0, 8, [A, B, C]), (5, 8, [D, F, ROOTS[4]]), (2, 3, [ROOTS[2]])],
)
def test_the_reference_audit_paths(index: int, size: int, path: list[str]) -> None:
    found = Tree(LEAVES).inclusion(index, size)
    assert hexes(found) == path
    assert root_from_inclusion(LEAVES[index], index, size, found) == bytes.fromhex(ROOTS[size])


@pytest.mark.parametrize(
    ("old", "size", "proof"),
    [(1, 1, []), (1, 8, [A, B, C]), (6, 8, [G, F, ROOTS[4]]), (2, 5, [B, D])],
)
def test_the_reference_consistency_proofs(old: int, size: int, proof: list[str]) -> None:
    found = Tree(LEAVES).consistency(old, size)
    assert hexes(found) == proof
    roots = [bytes.fromhex(ROOTS[n]) for n in (old, size)]
    assert is_consistent(old, roots[0], size, roots[1], found)


def test_leaves_and_nodes_cannot_be_taken_for_each_other() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert node_hash(left, right) != leaf_hash(left + right)
    assert Tree([b"a", b"b"]).root() != Tree([left + right]).root()


@few
@given(leaves_of)
def test_roots_and_proofs_are_those_of_the_definition(leaves: list[bytes]) -> None:
    tree = Tree(leaves)
    for size in range(1, len(leaves) + 1):
        assert tree.root(size) == tree_root(leaves[:size])
        for old in (1, size // 2, size):
            if 0 < old <= size:
                assert tree.consistency(old, size) == tree_consistency(old, leaves[:size])
        assert tree.inclusion(size - 1, size) == tree_path(size - 1, leaves[:size])


@few
@given(leaves_of, st.data())
def test_every_proof_verifies_also_by_the_verifiers_own_code(
    leaves: list[bytes], data: st.DataObject
) -> None:
    tree, size = Tree(leaves), len(leaves)
    index = data.draw(st.integers(0, size - 1))
    path = tree.inclusion(index)
    assert root_from_inclusion(leaves[index], index, size, path) == tree.root()
    assert theirs.inclusion_root(index, size, leaf_hash(leaves[index]), path) == tree.root()
    frontier = theirs.Frontier()
    for leaf in leaves:
        frontier.append(leaf_hash(leaf))
    assert frontier.root() == tree.root()
    old = data.draw(st.integers(0, size))
    proof = tree.consistency(old)
    assert is_consistent(old, tree.root(old), size, tree.root(), proof)


def altered(path: list[bytes], data: st.DataObject) -> list[bytes] | None:
    """A proof with one thing changed, or None where nothing can be."""
    how = data.draw(st.sampled_from(["flip", "drop", "add", "swap", "shorten"]))
    place = data.draw(st.integers(0, max(0, len(path) - 1)))
    if how == "add":
        return [*path[:place], data.draw(st.binary(min_size=32, max_size=32)), *path[place:]]
    if not path:
        return None
    if how == "flip":
        bit = data.draw(st.integers(0, 255))
        wrong = (int.from_bytes(path[place], "big") ^ (1 << bit)).to_bytes(32, "big")
        return [*path[:place], wrong, *path[place + 1 :]]
    if how == "drop":
        return [*path[:place], *path[place + 1 :]]
    if how == "shorten":
        return [*path[:place], path[place][:-1], *path[place + 1 :]]
    other = (place + 1) % len(path)
    swapped = list(path)
    swapped[place], swapped[other] = swapped[other], swapped[place]
    return None if swapped == path else swapped


@settings(max_examples=300, deadline=None, derandomize=True)
@given(leaves_of, st.data())
def test_no_altered_inclusion_proof_verifies(leaves: list[bytes], data: st.DataObject) -> None:
    tree, size = Tree(leaves), len(leaves)
    index = data.draw(st.integers(0, size - 1))
    path = tree.inclusion(index)
    changed = altered(path, data)
    if changed is not None and changed != path:
        assert root_from_inclusion(leaves[index], index, size, changed) != tree.root()
    assert root_from_inclusion(leaves[index] + b"!", index, size, path) != tree.root()
    for other in {index - 1, index + 1, index ^ 1, size, -1} - {index}:
        if not 0 <= other < size or leaves[other] != leaves[index]:
            assert root_from_inclusion(leaves[index], other, size, path) != tree.root()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(leaves_of, st.data())
def test_no_altered_consistency_proof_verifies(leaves: list[bytes], data: st.DataObject) -> None:
    tree, size = Tree(leaves), len(leaves)
    old = data.draw(st.integers(1, size))
    proof, before, after = tree.consistency(old), tree.root(old), tree.root()
    changed = altered(proof, data)
    if changed is not None and changed != proof:
        assert not is_consistent(old, before, size, after, changed)
    wrong = leaf_hash(b"wrong")
    assert not is_consistent(old, wrong, size, after, proof)
    assert not is_consistent(old, before, size, wrong, proof)
    assert not is_consistent(size + 1, before, size, after, proof)
    assert not is_consistent(-1, before, size, after, proof)


@few
@given(leaves_of, st.data())
def test_a_rewritten_history_is_not_consistent(leaves: list[bytes], data: st.DataObject) -> None:
    """Whatever proof the forked log makes of its own tree."""
    place = data.draw(st.integers(0, len(leaves) - 1))
    forked = [*leaves[:place], leaves[place] + b"!", *leaves[place + 1 :], b"more"]
    honest, liar = Tree(leaves), Tree(forked)
    for old in range(place + 1, len(leaves) + 1):
        proof = liar.consistency(old)
        assert not is_consistent(old, honest.root(old), len(liar), liar.root(), proof)
    for old in range(1, place + 1):
        proof = liar.consistency(old)
        assert is_consistent(old, honest.root(old), len(liar), liar.root(), proof)


def test_the_empty_tree_is_extended_by_all() -> None:
    tree = Tree(LEAVES)
    assert is_consistent(0, EMPTY, 8, tree.root(), [])
    assert not is_consistent(0, tree.root(1), 8, tree.root(), [])
    assert not is_consistent(0, EMPTY, 8, tree.root(), [tree.root()])


def test_what_is_not_there_cannot_be_proved() -> None:
    tree = Tree(LEAVES)
    for wish in (
        lambda: tree.root(9), lambda: tree.root(-1), lambda: tree.inclusion(8),
        lambda: tree.inclusion(-1), lambda: tree.inclusion(3, 3), lambda: tree.consistency(9),
        lambda: tree.consistency(5, 4), lambda: Tree().inclusion(0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="tree"):
            wish()


def test_an_audit_path_is_short() -> None:
    tree = Tree(n.to_bytes(2, "big") for n in range(1000))
    assert len(tree.inclusion(0)) == 10
    assert len(tree.consistency(999)) <= 11
