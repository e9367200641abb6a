"""Which rows of a table are set apart for validation."""

from collections.abc import Iterable

import numpy as np
from datasets import Dataset

from backbones.errors import HeadsetError
from headset.labels import LabelColumn

__all__ = ["row_groups", "stratified_cut"]


def row_groups(rows: Dataset, column: LabelColumn | None) -> np.ndarray:
    """The number of the class of each row of a table; 0 of all without a column with classes.

    Args:
        rows: The table.
        column: Where the classes stand.
    """
    if column is None:
        return np.zeros(len(rows), dtype=np.int32)
    numbers: dict[str, int] = {}
    parts = []
    for values, places in column.distinct_values(rows):
        own = np.array([numbers.setdefault(str(value), len(numbers)) for value in values], dtype=np.int32)
        parts.append(own[places])
    return np.concatenate(parts)


def stratified_cut(groups: Iterable[int], share: float, seed: int) -> np.ndarray:
    """Set a share of rows apart, the same share of each group.

    Args:
        groups: The number of the group of each row; groups are numbered from 0 without a gap.
        share: The share to set apart, between 0 and 1.
        seed: Where the choice comes from.

    Returns:
        For each row whether it is set apart. Every group keeps at least one row.

    Raises:
        HeadsetError: Nothing can be set apart.
    """
    groups = np.asarray(groups)
    order = np.random.default_rng(seed).permutation(len(groups))
    drawn = groups[order]
    sizes = np.bincount(drawn)
    wanted = share * sizes
    count = np.minimum(wanted.astype(int), sizes - 1)
    # What rounding down left over goes to the groups that lost most by it, and of those to the ones drawn first.
    lost = np.flatnonzero(count < np.minimum(wanted, sizes - 1))
    first = np.unique(drawn, return_index=True)[1]
    left = max(1, round(share * len(groups))) - int(count.sum())
    count[lost[np.lexsort((first[lost], (count - wanted)[lost]))][: max(left, 0)]] += 1
    if not count.any():
        raise HeadsetError(
            f"No rows of {len(groups)} can be set apart for validation: each is the only one of its class."
        )
    by_group = np.argsort(drawn, kind="stable")
    place = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    apart = np.zeros(len(groups), dtype=bool)
    apart[order[by_group[place < np.repeat(count, sizes)]]] = True
    return apart
