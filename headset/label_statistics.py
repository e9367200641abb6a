"""How often the rows that heads learn from have each label."""

from collections.abc import Iterable, Sequence

import numpy as np
from datasets import Dataset

from heads.label_counts import LabelCounts
from headset.batches import LABEL

__all__ = ["count_labels"]

PART = 10_000  # rows in memory at a time


def count_labels(examples: Iterable[Dataset], head: str, labels: Sequence[str]) -> LabelCounts:
    """Count the labels of a head.

    Args:
        examples: Tables of encoded rows; those without labels for the head do not count.
        head: The name of the head.
        labels: Its label set.

    Returns:
        Counts over rows, or over words where each has a label.
    """
    counts, total, column = np.zeros(len(labels), dtype=np.int64), 0, LABEL + head
    for table in examples:
        if column not in table.column_names:
            continue
        for part in table.select_columns([column]).iter(PART):
            values = [value for value in part[column] if value is not None]
            if values and isinstance(values[0], list) and isinstance(next(iter(values[0]), None), float):  # 0.0, 1.0
                counts += np.sum(values, axis=0, dtype=np.int64)
                total += len(values)
            elif values:
                indices = np.concatenate([np.atleast_1d(value) for value in values])
                indices = indices[indices >= 0]
                counts += np.bincount(indices, minlength=len(labels))
                total += len(indices)
    return LabelCounts(tuple(labels), tuple(counts.tolist()), total)
