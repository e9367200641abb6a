"""Targets with a label set, for heads with one answer a row: one label, or several."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from backbones.errors import HeadsetError
from heads.target import Target, in_order, label_index, label_name, number_in, shown

__all__ = ["ClassTarget", "MultiLabelTarget", "SoftTarget"]

TOLERANCE = 1e-3  # of sums of probabilities that were rounded
_FLAGS = {"0": False, "0.0": False, "False": False, "1": True, "1.0": True, "True": True}


@dataclass(frozen=True)
class ClassTarget(Target):
    """One label a row: int64 ``(B,)``."""

    def find_labels(self, values: Iterable[Any]) -> tuple[str, ...]:
        """The distinct labels, sorted; in the order of the numbers where all of them are whole numbers."""
        return in_order({name for value in values if (name := label_name(value)) is not None})

    def encode(self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None) -> int:
        """The index of the label.

        Raises:
            HeadsetError: There is no label, more than one, or one that the run does not know.
        """
        return label_index(value, labels)


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
                names.update(map(label_name, parts))
                sizes.add(len(parts) if isinstance(value, list) else 0)
        found = {name for name in names if name is not None}
        if found and found <= _FLAGS.keys() and len(sizes) == 1 and min(sizes) > 1:
            raise HeadsetError(
                f"each row is a list of {min(sizes)} zeros and ones, which does not say what the labels are called. "
                "Give lists of names, such as ['sport', 'news'], or a column of zeros and ones for each label."
            )
        return in_order(found)

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
                f"expected a list of labels or a string with '|' between them, got {shown(value)}. "
                "A row with none of the labels has an empty list or an empty string."
            )
        row = [0.0] * len(labels or ())
        for part in parts:
            row[label_index(part, labels)] = 1.0
        return row

    def join(self, values: Mapping[str, Any]) -> list[str]:
        """The names of the columns that hold a one.

        Raises:
            HeadsetError: A value is neither 0 nor 1.
        """
        for column, value in values.items():
            if str(value) not in _FLAGS:
                raise HeadsetError(f"expected 0 or 1 in column {column!r}, got {shown(value)}.")
        return [column for column, value in values.items() if _FLAGS[str(value)]]


@dataclass(frozen=True)
class SoftTarget(Target):
    """The probability of each label: float32 ``(B, C)``.

    A value has the probabilities by label, or is a list of them in the order of the label set.
    """

    def find_labels(self, values: Iterable[Any]) -> tuple[str, ...]:
        """The labels that have probabilities, sorted; in the order of the numbers where all are whole numbers.

        Raises:
            HeadsetError: The values are lists, which do not say what the labels are called.
        """
        found: set[str] = set()
        for value in values:
            if isinstance(value, list):
                raise HeadsetError(
                    f"each row is a list of {len(value)} probabilities, which does not say what the labels are called. "
                    "Give the label set in its order, model.labels: {HEAD: [...]}, or a column for each label."
                )
            found.update(map(str, value if isinstance(value, Mapping) else ()))
        return in_order(found)

    def encode(
        self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None
    ) -> list[float]:
        """The probabilities in the order of the label set; labels that are not named have none.

        Raises:
            HeadsetError: They are no probabilities with the sum 1, or of a label that the run does not know.
        """
        labels = labels or ()
        if isinstance(value, list) and len(value) == len(labels):
            value = dict(zip(labels, value, strict=True))
        if not isinstance(value, Mapping):
            raise HeadsetError(f"expected the probabilities of {len(labels)} labels, got {shown(value)}.")
        row = [0.0] * len(labels)
        for name, share in value.items():
            if share is not None:  # tables have every label in every row
                row[label_index(name, labels)] = number_in(share)
        if min(row, default=0.0) < 0 or abs(sum(row) - 1) > TOLERANCE:
            raise HeadsetError(f"expected probabilities with the sum 1, got {shown(value)}, whose sum is {sum(row):g}.")
        return row

    def join(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The probabilities by the names of the columns."""
        return dict(values)


def _parts(value: Any) -> list[Any] | None:
    """The labels of a multi-label value, or None if it is not one."""
    if isinstance(value, str):
        return [part.strip() for part in value.split("|")] if value.strip() else []
    return value if isinstance(value, list) else None
