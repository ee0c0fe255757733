"""The Merkle tree against RFC 6962's own values, and against an implementation that is not ours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from aics_tlog import MerkleTree, verify_inclusion
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.ledger.log.tree import (
    EMPTY,
    TILE,
    Growing,
    folded,
    inclusion,
    leaf_hash,
    node_hash,
    root,
    root_of_inclusion,
)

LEAVES = [bytes.fromhex(each) for each in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
LEAVES.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
"""The roots of the trees of the first leaves, one to eight, as the implementations of Certificate Transparency have."""


class InMemory:
    """All hashes of a tree, as a ledger stores them."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.levels = {0: [leaf_hash(each) for each in leaves]}
        self.reads: list[tuple[int, int, int]] = []
        level = 0
        while len(self.levels[level]) >= 1 << TILE:
            below = self.levels[level]
            whole = len(below) >> TILE
            self.levels[level + TILE] = [folded(below[each << TILE : each + 1 << TILE]) for each in range(whole)]
            level += TILE

    def read(self, level: int, start: int, stop: int) -> Sequence[bytes]:
        assert level % TILE == 0
        assert start >> TILE == stop - 1 >> TILE, "within one tile"
        self.reads.append((level, start, stop))
        found = self.levels[level][start:stop]
        assert len(found) == stop - start
        return found


def entries(number: int) -> list[bytes]:
    return [b"entry %d" % each for each in range(number)]


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    assert root(InMemory(LEAVES), size).hex() == ROOTS[size - 1]


def test_a_tree_without_leaves_has_the_hash_of_nothing() -> None:
    assert root(InMemory([]), 0) == EMPTY == hashlib.sha256(b"").digest() == Growing().root


sizes = st.integers(min_value=1, max_value=1100)


@given(sizes, st.data())
@example(256, None)
@example(257, None)
@example(1024, None)
def test_roots_and_paths_are_those_of_another_implementation(size: int, data: st.DataObject | None) -> None:
    theirs, ours = MerkleTree(entries(size)), InMemory(entries(size))
    prefix = data.draw(st.integers(min_value=1, max_value=size)) if data else size
    assert root(ours, prefix) == theirs.root(prefix)
    index = data.draw(st.integers(min_value=0, max_value=prefix - 1)) if data else size - 1
    path = inclusion(ours, index, prefix)
    assert list(path) == list(theirs.inclusion_proof(index, prefix))
    leaf = leaf_hash(entries(size)[index])
    assert verify_inclusion(leaf, index, prefix, list(path), theirs.root(prefix))
    assert root_of_inclusion(leaf, index, prefix, path) == theirs.root(prefix)


@given(sizes)
@example(65537)
def test_a_tree_that_grows_has_the_roots_and_stored_hashes_of_one_that_is_there(size: int) -> None:
    growing, whole = Growing(), InMemory(entries(size))
    stored = {level: [] for level in whole.levels}
    for number, each in enumerate(entries(size), 1):
        for level, position, found in growing.add(leaf_hash(each)):
            assert position == len(stored[level])
            stored[level].append(found)
        if number in (1, 2, 255, 256, 257, size):
            assert growing.root == root(whole, number)
    assert {level: found for level, found in stored.items() if level} == {
        level: found for level, found in whole.levels.items() if level and found
    }


@given(sizes, st.data())
def test_a_path_of_another_leaf_place_size_or_with_a_changed_hash_leads_elsewhere(
    size: int, data: st.DataObject
) -> None:
    tree = InMemory(entries(size))
    index = data.draw(st.integers(min_value=0, max_value=size - 1))
    path, leaf, right = list(inclusion(tree, index, size)), leaf_hash(entries(size)[index]), root(tree, size)
    assert root_of_inclusion(leaf_hash(b"another"), index, size, path) != right
    other = data.draw(st.integers(min_value=-2, max_value=size + 2).filter(lambda at: at != index))
    assert root_of_inclusion(leaf, other, size, path) != right
    assert root_of_inclusion(leaf, index, size, [*path, right]) != right
    if path:
        at = data.draw(st.integers(min_value=0, max_value=len(path) - 1))
        assert root_of_inclusion(leaf, index, size, [*path[:at], *path[at + 1 :]]) != right
        changed = bytes([path[at][0] ^ 1]) + path[at][1:]
        assert root_of_inclusion(leaf, index, size, [*path[:at], changed, *path[at + 1 :]]) != right


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3)])
def test_there_is_no_path_to_what_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="has none at"):
        inclusion(InMemory(entries(size)), index, size)
    assert root_of_inclusion(b"x" * 32, index, size, []) is None


def test_an_inner_node_is_never_taken_for_a_leaf() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert node_hash(left, right) != leaf_hash(left + right)


def test_a_proof_in_a_large_tree_takes_few_reads() -> None:
    tree = InMemory(entries(70_000))
    inclusion(tree, 12_345, 70_000)
    assert len({(level, start >> TILE) for level, start, _ in tree.reads}) <= 6
