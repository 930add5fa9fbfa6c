"""RFC 6962 against the vectors of the certificate-transparency reference, and by definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from merkle_vectors import LEAVES, ROOTS
from verify_kit import tree_path, tree_root

from privet.privacy.audit.verify.formats.strict import Malformed
from privet.privacy.audit.verify.formats.tree import Frontier, inclusion_root, leaf_hash

INCLUSION = {
    (0, 8): ["96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
             "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
             "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"],
    (5, 8): ["bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
             "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
             "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): ["6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
             "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
             "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"],
}  # fmt: skip


def unhex(texts: list[str]) -> list[bytes]:
    return [bytes.fromhex(text) for text in texts]


def root_of(leaves: list[bytes]) -> bytes:
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf_hash(leaf))
    return frontier.root()


def test_the_published_roots() -> None:
    for size, root in enumerate(ROOTS):
        assert root_of(LEAVES[:size]).hex() == root == tree_root(LEAVES[:size]).hex()


@pytest.mark.parametrize(("place", "path"), INCLUSION.items())
def test_the_published_inclusion_proofs(place: tuple[int, int], path: list[str]) -> None:
    index, size = place
    found = inclusion_root(index, size, leaf_hash(LEAVES[index]), unhex(path))
    assert found.hex() == ROOTS[size]


trees = st.lists(st.binary(max_size=3), min_size=1, max_size=70)


@given(trees)
def test_the_frontier_is_the_definition_at_every_prefix(leaves: list[bytes]) -> None:
    frontier = Frontier()
    for size, leaf in enumerate(leaves):
        frontier.append(leaf_hash(leaf))
        assert frontier.root() == tree_root(leaves[: size + 1])


@given(trees, st.data())
def test_inclusion_holds_for_the_leaf_at_its_place_only(
    leaves: list[bytes], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    path, root, size = tree_path(index, leaves), tree_root(leaves), len(leaves)
    leaf = leaf_hash(leaves[index])
    assert inclusion_root(index, size, leaf, path) == root
    assert inclusion_root(index, size, leaf_hash(leaves[index] + b"x"), path) != root
    for wrong in (path[:-1], [*path, bytes(32)]):
        if len(wrong) != len(path):
            with pytest.raises(Malformed):
                inclusion_root(index, size, leaf, wrong)
    with pytest.raises(Malformed):
        inclusion_root(size, size, leaf, path)
    if path:
        place = data.draw(st.integers(0, len(path) - 1))
        changed = [*path[:place], bytes(32), *path[place + 1 :]]
        assert inclusion_root(index, size, leaf, changed) != root
