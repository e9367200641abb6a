"""The contract of a target: how the labels in a table become the tensor that a head learns from.

A head names its target; the data side calls it. A target knows nothing of files: an error about a value is
raised as ``HeadsetError`` and gets its file and row from the reader that holds them.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from backbones.errors import HeadsetError, did_you_mean

__all__ = ["IGNORE", "Target", "in_order", "label_index", "label_name", "number_in", "pad_rows", "shown"]

IGNORE = -100  # the index that torch's cross entropy skips


class Target(ABC):
    """How one column of labels becomes one tensor.

    Targets are small frozen dataclasses: they are pickled to worker processes and hashed for the cache.
    """

    # One label for each word of a row: the table then holds words and labels in lists of equal length.
    per_word: ClassVar[bool] = False

    # Labels of words, though not one for each: the text is then read as a list of words as well.
    by_words: ClassVar[bool] = False

    @property
    def column_needed(self) -> bool:
        """Whether the table must have a column for it."""
        return True

    @abstractmethod
    def find_labels(self, values: Iterable[Any]) -> tuple[str, ...] | None:
        """The label set of a column, in a stable order, or None where the target has no label set.

        Values that are no labels are passed over: ``encode`` complains of them, where the row is known.
        """

    @abstractmethod
    def encode(self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None) -> Any:
        """One row's value as a number or a list of numbers.

        Args:
            value: What the table holds: a string, a number, or a list.
            labels: The label set of the run.
            example: The row's encoded input. Of a text that is split into words it has ``word_ids``: for each token the
                index of its word, None for special tokens.

        Raises:
            HeadsetError: The value is missing, of the wrong kind, or a label that the run does not know.
        """

    def collate(self, encoded: list[Any], length: int, padding_side: str = "right") -> Tensor:
        """The encoded values of a batch as one tensor; ``length`` is T, the padded number of tokens."""
        return torch.tensor(encoded)

    def join(self, values: Mapping[str, Any]) -> Any:
        """One row's values in several columns as the one value that ``encode`` takes.

        Raises:
            HeadsetError: The target takes one column.
        """
        raise HeadsetError(f"{type(self).__name__} takes one column of labels, and {len(values)} are named.")


def pad_rows(rows: Iterable[Any], value: int, length: int, padding_side: str) -> Tensor:
    """Rows of whole numbers, lists or arrays, as int64 ``(B, length)``, filled up with ``value``."""
    rows = list(rows)
    filled = torch.full((len(rows), length), value)
    cells = filled.numpy()  # the same memory; a slice of an array is set many times faster than one of a tensor
    for place, row in enumerate(rows):
        start = length - len(row) if padding_side == "left" else 0
        cells[place, start : start + len(row)] = row
    return filled


def shown(value: Any) -> str:
    """A value for a message; a missing one is called so."""
    text = repr(value)
    return "nothing (null)" if value is None else text if len(text) <= 60 else f"{text[:60]}..."


def label_name(value: Any) -> str | None:
    """The label that a value is, or None if it is none: whole numbers and truth values are labels as well."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | int) and str(value).strip():
        return str(value)
    return None


def label_index(value: Any, labels: tuple[str, ...] | None) -> int:
    """The index of a label in the label set.

    Raises:
        HeadsetError: The value is no label, or one that the run does not know.
    """
    name = label_name(value)
    labels = labels or ()
    if name is None:
        raise HeadsetError(f"expected a label, got {shown(value)}.")
    if name not in labels:
        listed = ", ".join(labels[:30]) + ", ..." * (len(labels) > 30)
        raise HeadsetError(f"unknown label {name!r}.{did_you_mean(name, labels)} Known labels: {listed or 'none'}.")
    return labels.index(name)


def in_order(names: set[str]) -> tuple[str, ...]:
    """Labels sorted; in the order of the numbers where all of them are whole numbers."""
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def number_in(value: Any) -> float:
    """The finite number that a value is, or is written as.

    Raises:
        HeadsetError: It is none.
    """
    try:
        number = float("nan") if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise HeadsetError(f"expected a number, got {shown(value)}.")
    return number
