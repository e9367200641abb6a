"""The best tree over the words of a sentence."""

from collections.abc import Sequence

__all__ = ["cycle_in", "maximum_tree"]


def maximum_tree(scores: Sequence[Sequence[float]]) -> list[int]:
    """The heads of the tree with the highest sum of scores: Chu and Liu 1965, Edmonds 1967, as McDonald et al. 2005.

    Args:
        scores: ``scores[word][head]`` for n words, with n + 1 heads of which the first is the root; what stands for a
            word as its own head is not read.

    Returns:
        The head of each word: 0 is the root, of exactly one word, and k the k-th word.
    """
    values = [value for word, row in enumerate(scores, 1) for head, value in enumerate(row) if head != word]
    # So much below all others that as few words as possible have the root for a head: one.
    least = (max(values) - min(values) + 1) * (len(scores) + 1)
    rows = [[row[0] - least, *row[1:]] for row in scores]
    return _tree([[0.0] * (len(scores) + 1), *rows])[1:]


def cycle_in(heads: Sequence[int]) -> list[int]:
    """Nodes that are heads of each other in a circle; none in a tree. ``heads[0]`` is not read."""
    state = [0] * len(heads)  # 0 not seen, else the walk that came by first
    for start in range(1, len(heads)):
        node = start
        while node and not state[node]:
            state[node] = start
            node = heads[node]
        if node and state[node] == start:
            circle, other = [node], heads[node]
            while other != node:
                circle.append(other)
                other = heads[other]
            return circle
    return []


def _tree(scores: list[list[float]]) -> list[int]:
    """Heads of all nodes, where ``scores[node][head]`` has a row for the root too."""
    size = len(scores)
    heads = [0] + [max((h for h in range(size) if h != node), key=scores[node].__getitem__) for node in range(1, size)]
    circle = cycle_in(heads)
    if not circle:
        return heads
    # The circle becomes one node, the last; whoever is its head breaks it where that costs least.
    inside = set(circle)
    rest = [node for node in range(size) if node not in inside]
    broken = [max(circle, key=lambda node: scores[node][head] - scores[node][heads[node]]) for head in rest]
    best = [max(circle, key=scores[node].__getitem__) for node in rest]
    smaller = [[scores[node][head] for head in rest] + [scores[node][best[at]]] for at, node in enumerate(rest)]
    into = [scores[node][head] - scores[node][heads[node]] for head, node in zip(rest, broken, strict=True)]
    found = _tree([*smaller, [*into, 0.0]])
    for at, node in enumerate(rest):
        if at:
            heads[node] = rest[found[at]] if found[at] < len(rest) else best[at]
    heads[broken[found[-1]]] = rest[found[-1]]
    return heads
