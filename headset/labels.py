"""Which columns hold a head's labels, and what values they give."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import ClassLabel, Dataset, Features, LargeList, List, Value

from backbones.errors import HeadsetError, invalid_choice
from heads.base import Head
from heads.dependency_target import DependencyTarget
from heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, SoftTarget, TagTarget, Target

__all__ = ["LabelColumn", "Labels", "check_label_set", "check_order", "label_columns", "other_labels"]

Labels = dict[str, str | list[str]] | list[str] | str

PART = 10_000  # rows in memory at a time


@dataclass(frozen=True)
class LabelColumn:
    """Where a head's labels stand, and how they are read.

    Args:
        target: How a value becomes a number.
        columns: The name of a column, or the names of several that are read together.
        labels: The label set of the head, in its order; None where it has none.
        origin: Where the label set comes from, for messages.
    """

    target: Target
    columns: str | tuple[str, ...]
    labels: tuple[str, ...] | None = None
    origin: str = field(default="", repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns as a tuple."""
        return (self.columns,) if isinstance(self.columns, str) else self.columns

    def __str__(self) -> str:
        """The columns, for a message."""
        return f"column {', '.join(map(repr, self.names))}"

    def values(self, rows: Mapping[str, Any], features: Features) -> Iterator[Any]:
        """Row by row the value that ``target.encode`` takes.

        Raises:
            HeadsetError: The target cannot join the values of several columns.
        """
        columns = {name: _readable(rows[name], features[name], self.target) for name in self.names}
        if isinstance(self.columns, str):
            yield from columns[self.columns]
            return
        for values in zip(*columns.values(), strict=True):
            yield self.target.join(dict(zip(self.names, values, strict=True)))

    def all_values(self, rows: Dataset) -> Iterator[Any]:
        """The values of a whole table, read in parts."""
        for part in rows.select_columns(list(self.names)).iter(PART):
            yield from self.values(part, rows.features)

    def find_labels(self, rows: Dataset) -> tuple[str, ...] | None:
        """The label set of a table: its values, or what the columns fix by their names or as ``ClassLabel``."""
        if isinstance(self.columns, str):
            return _class_names(rows.features[self.columns]) or self.target.find_labels(self.all_values(rows))
        if isinstance(self.target, MultiLabelTarget | SoftTarget):
            return self.names
        return self.target.find_labels(self.all_values(rows))


def label_columns(labels: Labels, heads: Mapping[str, Head]) -> dict[str, LabelColumn]:
    """Where the labels of each head are that needs a column, without their label sets.

    Raises:
        HeadsetError: A head is named that does not exist, one that needs labels is not, or columns do not suit a head.
    """
    found = {name: head.target() for name, head in heads.items()}
    needed = {name: target for name, target in found.items() if target is not None and target.column_needed}
    if not isinstance(labels, dict):
        if len(needed) > 1:
            example = ", ".join(f"{name}: COLUMN" for name in needed)
            raise HeadsetError(f"{len(needed)} heads need labels, and data.labels is {labels!r}. Give {{{example}}}.")
        labels = dict.fromkeys(needed, labels)
    for name in labels:
        if name not in heads:
            raise invalid_choice("head in data.labels", name, heads)
    for name in needed:
        if name not in labels:
            raise HeadsetError(f"The head {name!r} needs labels. Add it to data.labels: {{{name}: COLUMN}}.")
    return {name: LabelColumn(target, _columns(name, labels[name], target)) for name, target in needed.items()}


def check_label_set(head: str, column: LabelColumn, place: str) -> None:
    """Check that there is something to tell apart.

    Args:
        head: The name of the head.
        column: Where its labels are, and its label set.
        place: The file in which the label set was found; empty where the run gave it.

    Raises:
        HeadsetError: There are fewer than two labels, and the head learns to tell labels apart.
    """
    labels = column.labels or ()
    if not isinstance(column.target, ClassTarget | SoftTarget | MultiLabelTarget | TagTarget) or len(labels) > 1:
        return
    has = f"has one label, {labels[0]!r}" if labels else "has no labels"
    where = f"{column} of {place}" if place else f"the run's label set for the head {head!r}"
    raise HeadsetError(f"{where} {has}; at least two are needed.")


def check_order(head: str, ordered: bool, labels: Sequence[str] | None) -> None:
    """Check that the order of labels that were found in data says something, where that matters.

    Args:
        head: The name of the head.
        ordered: Whether the order matters to it.
        labels: Its label set.

    Raises:
        HeadsetError: It matters, and is only that of the alphabet.
    """
    if ordered and labels and list(labels) == sorted(labels) and not all(re.fullmatch(r"-?\d+", it) for it in labels):
        raise HeadsetError(
            f"The head {head!r} learns ranks, and the data has its labels in no other order than that of the alphabet: "
            f"{', '.join(labels)}. Give the labels from the lowest to the highest: model.labels: {{{head}: [...]}}."
        )


def _columns(head: str, setting: str | list[str], target: Target) -> str | tuple[str, ...]:
    if isinstance(target, DependencyTarget):
        if isinstance(setting, str) or len(setting) != 2:
            raise HeadsetError(
                f"The head {head!r} takes two columns, the heads of words and their relations, and data.labels names "
                f"{setting!r}. Give {{{head}: [head, deprel]}}."
            )
        return tuple(setting)
    if isinstance(setting, str):
        return setting
    if not isinstance(target, MultiLabelTarget | NumberTarget | SoftTarget):
        raise HeadsetError(
            f"The head {head!r} takes one column of labels, and data.labels names a list: {setting}. Lists of columns "
            "are for several labels a row (columns of 0 and 1), for probabilities of labels, and for several numbers."
        )
    if isinstance(target, NumberTarget) and target.size != len(setting):
        raise HeadsetError(
            f"The head {head!r} gives {target.size} numbers, and data.labels names {len(setting)} columns."
        )
    return tuple(setting)


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of the classes of a ``ClassLabel`` column, or of one with lists of them."""
    inner = feature.feature if isinstance(feature, List | LargeList) else feature
    return tuple(inner.names) if isinstance(inner, ClassLabel) else None


def _readable(values: list[Any], feature: Any, target: Target) -> list[Any]:
    """A column's values, class numbers as names."""
    names = _class_names(feature)
    if names is not None:
        return [_named(value, names) for value in values]
    if isinstance(target, MultiLabelTarget) and feature == Value("string"):
        # A cell of a CSV file cannot be empty otherwise than by being null.
        return ["" if value is None else value for value in values]
    return values


def _named(value: Any, names: tuple[str, ...]) -> Any:
    """The name of a class; datasets on the hub have -1 where there is no label."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return None if value is None or value < 0 else names[value]


def other_labels(name: str, loaded: Sequence[str], wanted: Sequence[str]) -> HeadsetError:
    """The error for a head that was loaded with other labels than the settings or the data have."""
    return HeadsetError(
        f"The head '{name}' in the checkpoint has {len(loaded)} labels: {', '.join(loaded)}. The settings "
        f"or the data have {len(wanted)}: {', '.join(wanted)}. To start this head anew: --model.new_heads '[{name}]', "
        "without --model.stored_head keep."
    )
