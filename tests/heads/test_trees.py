"""Maximum trees against all trees, one by one."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from heads.trees import cycle_in, maximum_tree


def is_tree(heads):
    """Whether every word comes to the root, which has one word below it."""
    for node in range(1, len(heads) + 1):
        steps = 0
        while node and steps <= len(heads):
            node, steps = heads[node - 1], steps + 1
        if node:
            return False
    return heads.count(0) == 1


def all_trees(size):
    return [heads for heads in itertools.product(range(size + 1), repeat=size) if is_tree(heads)]


TREES = {size: all_trees(size) for size in range(1, 6)}
scores = st.integers(1, 5).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(-9, 9, width=16), min_size=size + 1, max_size=size + 1), min_size=size, max_size=size
    )
)


def test_the_trees_are_as_many_as_there_are():
    assert [len(TREES[size]) for size in range(1, 6)] == [size ** (size - 1) for size in range(1, 6)]  # Cayley


@given(scores)
def test_no_tree_is_better(scores):
    def total(heads):
        return sum(row[head] for row, head in zip(scores, heads, strict=True))

    found = maximum_tree(scores)
    assert is_tree(tuple(found))
    assert abs(total(found) - max(map(total, TREES[len(scores)]))) < 1e-9


@given(st.integers(1, 6).flatmap(lambda size: st.lists(st.integers(0, size), min_size=size, max_size=size)))
def test_circles_are_found(heads):
    circle = cycle_in([0, *heads])
    trees = all(reaches(heads, node) for node in range(1, len(heads) + 1))
    assert bool(circle) is not trees
    for node, other in zip(circle, [*circle[1:], *circle[:1]], strict=True):
        assert heads[node - 1] == other


def reaches(heads, node):
    for _ in heads:
        node = heads[node - 1] if node else 0
    return node == 0
