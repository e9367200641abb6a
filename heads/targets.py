"""Targets: how the labels in a table become the tensor that a head learns from.

A head names its target; the data side calls it. A target knows nothing of files: an error about a value is
raised as ``HeadsetError`` and gets its file and row from the reader that holds them.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from backbones.errors import HeadsetError, did_you_mean, invalid_choice

__all__ = ["ClassTarget", "MultiLabelTarget", "NumberTarget", "PairTarget", "TagTarget", "Target", "pad_rows"]

IGNORE = -100  # the index that torch's cross entropy skips


class Target(ABC):
    """How one column of labels becomes one tensor.

    Targets are small frozen dataclasses: they are pickled to worker processes and hashed for the cache.
    """

    # One label for each word of a row: the table then holds words and labels in lists of equal length.
    per_word: ClassVar[bool] = False

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


@dataclass(frozen=True)
class ClassTarget(Target):
    """One label a row: int64 ``(B,)``."""

    def find_labels(self, values: Iterable[Any]) -> tuple[str, ...]:
        """The distinct labels, sorted; in the order of the numbers where all of them are whole numbers."""
        return _sorted({name for value in values if (name := _name(value)) is not None})

    def encode(self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None) -> int:
        """The index of the label.

        Raises:
            HeadsetError: There is no label, more than one, or one that the run does not know.
        """
        return _index(value, labels)


@dataclass(frozen=True)
class MultiLabelTarget(Target):
    """Any number of labels a row: float32 ``(B, L)`` of zeros and ones.

    A value is a list of labels, or one string with ``|`` between them; an empty list or string is none of them.
    """

    def find_labels(self, values: Iterable[Any]) -> tuple[str, ...]:
        """The distinct labels, sorted; in the order of the numbers where all of them are whole numbers.

        Raises:
            HeadsetError: The values are rows of a table of zeros and ones, which has no names.
        """
        names: set[str | None] = set()
        sizes: set[int] = set()
        for value in values:
            parts = _parts(value)
            if parts is not None:
                names.update(map(_name, parts))
                sizes.add(len(parts) if isinstance(value, list) else 0)
        found = {name for name in names if name is not None}
        if found and found <= _FLAGS.keys() and len(sizes) == 1 and min(sizes) > 1:
            raise HeadsetError(
                f"each row is a list of {min(sizes)} zeros and ones, which does not say what the labels are called. "
                "Give lists of names, such as ['sport', 'news'], or a column of zeros and ones for each label."
            )
        return _sorted(found)

    def encode(
        self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None
    ) -> list[float]:
        """A one for each of the row's labels, a zero for the rest.

        Raises:
            HeadsetError: The value is neither a list nor a string, or holds a label that the run does not know.
        """
        parts = _parts(value)
        if parts is None:
            raise HeadsetError(
                f"expected a list of labels or a string with '|' between them, got {_shown(value)}. "
                "A row with none of the labels has an empty list or an empty string."
            )
        row = [0.0] * len(labels or ())
        for part in parts:
            row[_index(part, labels)] = 1.0
        return row

    def join(self, values: Mapping[str, Any]) -> list[str]:
        """The names of the columns that hold a one.

        Raises:
            HeadsetError: A value is neither 0 nor 1.
        """
        for column, value in values.items():
            if str(value) not in _FLAGS:
                raise HeadsetError(f"expected 0 or 1 in column {column!r}, got {_shown(value)}.")
        return [column for column, value in values.items() if _FLAGS[str(value)]]


@dataclass(frozen=True)
class NumberTarget(Target):
    """One number a row, float32 ``(B,)``, or a list of ``size`` numbers, float32 ``(B, size)``."""

    size: int = 1

    def find_labels(self, values: Iterable[Any]) -> None:
        """Numbers have no label set."""

    def encode(
        self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None
    ) -> float | list[float]:
        """The number, or the list of numbers.

        Raises:
            HeadsetError: A value is not a finite number, or there are not ``size`` of them.
        """
        if self.size == 1 and not isinstance(value, list):
            return _number(value)
        if not isinstance(value, list) or len(value) != self.size:
            raise HeadsetError(f"expected {self.size} number{'s' * (self.size > 1)}, got {_shown(value)}.")
        numbers = [_number(item) for item in value]
        return numbers if self.size > 1 else numbers[0]

    def join(self, values: Mapping[str, Any]) -> list[Any]:
        """The values in the order of the columns."""
        return list(values.values())


@dataclass(frozen=True)
class TagTarget(Target):
    """One tag a word: int64 ``(B, T)``, -100 at every token that is not scored.

    Args:
        subwords: ``first`` scores the first token of a word; ``all`` scores the later ones too, with the word's tag,
            where ``B-X`` goes on as ``I-X`` if the label set has it.
    """

    per_word: ClassVar[bool] = True

    subwords: Literal["first", "all"] = "first"

    def __post_init__(self) -> None:
        """Check the setting."""
        if self.subwords not in ("first", "all"):
            raise invalid_choice("value of subwords", self.subwords, ("first", "all"))

    def find_labels(self, values: Iterable[Any]) -> tuple[str, ...]:
        """The distinct tags, sorted, ``O`` first."""
        names = (_name(tag) for value in values if isinstance(value, list) for tag in value)
        tags = _sorted({name for name in names if name is not None})
        return tuple(sorted(tags, key=lambda tag: tag != "O"))

    def encode(self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None) -> list[int]:
        """The index of a tag for each token.

        Raises:
            HeadsetError: The value is not a list, the text is not split into words, or a tag is unknown.
        """
        if not isinstance(value, list):
            raise HeadsetError(f"expected a list with one tag for each word, got {_shown(value)}.")
        word_ids = (example or {}).get("word_ids")
        if word_ids is None:
            raise HeadsetError(
                "tags belong to words, and the text is one string. Give a column that holds lists of words."
            )
        indices = [_index(tag, labels) for tag in value]
        encoded, previous = [], None
        for word in word_ids:
            if word is None:
                encoded.append(IGNORE)
            elif word != previous:
                encoded.append(indices[word])
            else:
                encoded.append(self._later(indices[word], labels or ()))
            previous = word
        return encoded

    def _later(self, index: int, labels: tuple[str, ...]) -> int:
        """The tag of a word's tokens after the first."""
        if self.subwords == "first":
            return IGNORE
        inside = re.sub("^B-", "I-", labels[index])
        return labels.index(inside) if inside in labels else index

    def collate(self, encoded: list[Any], length: int, padding_side: str = "right") -> Tensor:
        """The tags as int64 ``(B, T)``, padded with -100 on the side where the tokens are padded."""
        return pad_rows(encoded, IGNORE, length, padding_side)


@dataclass(frozen=True)
class PairTarget(Target):
    """Two texts that belong together, with how similar they are as float32 ``(B,)`` or with no label at all.

    Args:
        scored: Whether a column holds the similarity of the two texts.
    """

    scored: bool

    @property
    def column_needed(self) -> bool:
        """Only scores stand in a column."""
        return self.scored

    def find_labels(self, values: Iterable[Any]) -> None:
        """Pairs have no label set."""

    def encode(self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None) -> float:
        """The similarity.

        Raises:
            HeadsetError: The value is not a finite number.
        """
        return _number(value)


def pad_rows(rows: Iterable[Sequence[int]], value: int, length: int, padding_side: str) -> Tensor:
    """Rows of whole numbers as int64 ``(B, length)``, filled up with ``value``."""
    filled = []
    for row in rows:
        rest = [value] * (length - len(row))
        filled.append([*rest, *row] if padding_side == "left" else [*row, *rest])
    return torch.tensor(filled)


_FLAGS = {"0": False, "0.0": False, "False": False, "1": True, "1.0": True, "True": True}


def _shown(value: Any) -> str:
    """A value for a message; a missing one is called so."""
    text = repr(value)
    return "nothing (null)" if value is None else text if len(text) <= 60 else f"{text[:60]}..."


def _name(value: Any) -> str | None:
    """The label that a value is, or None if it is none: whole numbers and truth values are labels as well."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | int) and str(value).strip():
        return str(value)
    return None


def _index(value: Any, labels: tuple[str, ...] | None) -> int:
    name = _name(value)
    labels = labels or ()
    if name is None:
        raise HeadsetError(f"expected a label, got {_shown(value)}.")
    if name not in labels:
        listed = ", ".join(labels[:30]) + ", ..." * (len(labels) > 30)
        raise HeadsetError(f"unknown label {name!r}.{did_you_mean(name, labels)} Known labels: {listed or 'none'}.")
    return labels.index(name)


def _parts(value: Any) -> list[Any] | None:
    """The labels of a multi-label value, or None if it is not one."""
    if isinstance(value, str):
        return [part.strip() for part in value.split("|")] if value.strip() else []
    return value if isinstance(value, list) else None


def _sorted(names: set[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _number(value: Any) -> float:
    try:
        number = float("nan") if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise HeadsetError(f"expected a number, got {_shown(value)}.")
    return number
