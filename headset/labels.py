"""Which columns hold a head's labels, and what values they give."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value

from backbones.errors import HeadsetError, invalid_choice
from heads.base import Head
from heads.dependency_target import DependencyTarget
from heads.hierarchy import PathTarget
from heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, SoftTarget, TagTarget, Target

__all__ = ["LabelColumn", "Labels", "check_label_set", "check_order", "label_columns", "other_labels"]

Labels = dict[str, str | list[str] | None] | list[str] | str

PART = 10_000  # rows in memory at a time


@dataclass(frozen=True)
class LabelColumn:
    """Where a head's labels stand, and how they are read.

    Args:
        target: How a value becomes a number.
        columns: The name of a column, or the names of several that are read together.
        missing: Whether rows may have no label: null, in all of several columns.
        labels: The label set of the head, in its order; None where it has none.
        origin: Where the label set comes from, for messages.
    """

    target: Target
    columns: str | tuple[str, ...]
    missing: bool = False
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
        """Row by row the value that ``target.encode`` takes; None where the label is missing.

        Raises:
            HeadsetError: The target cannot join the values of several columns.
        """
        columns = {name: self._readable(rows[name], features[name]) for name in self.names}
        if isinstance(self.columns, str):
            yield from columns[self.columns]
            return
        for values in zip(*columns.values(), strict=True):
            missing = self.missing and all(value is None for value in values)
            yield None if missing else self.target.join(dict(zip(self.names, values, strict=True)))

    def all_values(self, rows: Dataset) -> Iterator[Any]:
        """The values of a whole table, read in parts."""
        for part in rows.select_columns(list(self.names)).iter(PART):
            yield from self.values(part, rows.features)

    def distinct_values(self, rows: Dataset) -> Iterator[tuple[list[Any], np.ndarray]]:
        """The values of a whole table in parts: the different values of a part, and which of them each row has.

        Of a single column with plain values this is quick, and keeps no object a row.
        """
        plain = isinstance(self.columns, str) and isinstance(rows.features[self.columns], Value | ClassLabel)
        table = rows.select_columns(list(self.names))
        for part in (table.with_format("arrow") if plain else table).iter(PART):
            if plain:
                column = part.column(0).combine_chunks().dictionary_encode(null_encoding="encode")
                different = {self.names[0]: column.dictionary.to_pylist()}
                yield list(self.values(different, rows.features)), column.indices.to_numpy()
            else:
                values = list(self.values(part, rows.features))
                yield values, np.arange(len(values))

    def first_labelled(self, rows: Dataset) -> int | None:
        """The first row of a table with a label; None if there is none."""
        return next((row for row, value in enumerate(self.all_values(rows)) if value is not None), None)

    def fixed_labels(self, features: Features) -> tuple[str, ...] | None:
        """The label set that the columns fix by their names or as ``ClassLabel``; None where the values do."""
        if isinstance(self.columns, str):
            return _class_names(features[self.columns])
        return self.names if isinstance(self.target, MultiLabelTarget | SoftTarget) else None

    def _readable(self, values: list[Any], feature: Any) -> list[Any]:
        """A column's values, class numbers as names."""
        names = _class_names(feature)
        if names is not None:
            return [_named(value, names) for value in values]
        if isinstance(self.target, MultiLabelTarget) and feature == Value("string") and not self.missing:
            # A cell of a CSV file cannot be empty otherwise than by being null.
            return ["" if value is None else value for value in values]
        return values


def label_columns(
    labels: Mapping[str, Labels], heads: Mapping[str, Head], idle: Collection[str] = ()
) -> dict[str, dict[str, LabelColumn | None]]:
    """Which heads each source is for, and where their labels are, without their label sets.

    One column without the name of a head is that of the head which is called as the source is, or else of the only one
    that needs labels. A head that needs none belongs to the only source, or to those that name it.

    Args:
        labels: ``data.labels`` of each source, by the name of the source; that of the only one may be empty.
        heads: The heads of the run.
        idle: Those that need no rows, since they are not trained.

    Returns:
        By source and head the column; None for a head that needs none.

    Raises:
        HeadsetError: A head is named that does not exist, one is left without rows, or columns do not suit a head.
    """
    targets = {name: its for name, head in heads.items() if (its := head.target()) is not None and its.column_needed}
    found = {}
    for source, setting in labels.items():
        place = f"data.sources.{source}.labels" if source else "data.labels"
        found[source] = _named_columns(place, source, setting, heads, targets, idle)
        if len(labels) == 1:
            found[source] |= {name: None for name in heads if name not in targets and name not in idle}
        elif not found[source]:
            raise HeadsetError(f"The source {source!r} is for no head. Name one: {place}: {{HEAD: COLUMN}}.")
    for name in heads:
        if name not in idle and not any(name in columns for columns in found.values()):
            example = f"{{{name}: {'COLUMN' if name in targets else 'null'}}}"
            place = "data.labels" if "" in labels else f"a source: data.sources.{next(iter(labels))}.labels"
            raise HeadsetError(
                f"The head {name!r} needs {'labels' if name in targets else 'rows'}. Add it to {place}: {example}. "
                f"A head that shall stay as it is needs none: --model.frozen_heads '[{name}]'."
            )
    return {source: {name: columns[name] for name in heads if name in columns} for source, columns in found.items()}


def _named_columns(
    place: str,
    source: str,
    setting: Labels,
    heads: Mapping[str, Head],
    targets: Mapping[str, Target],
    idle: Collection[str],
) -> dict[str, LabelColumn | None]:
    """The columns that a source names, by head."""
    if not isinstance(setting, dict):
        chosen = [source] if source in heads else [name for name in targets if name not in idle]
        if len(chosen) > 1:
            example = ", ".join(f"{name}: COLUMN" for name in chosen)
            raise HeadsetError(f"{len(chosen)} heads need labels, and {place} is {setting!r}. Give {{{example}}}.")
        setting = dict.fromkeys(chosen, setting)
    for name, columns in setting.items():
        if name not in heads:
            raise invalid_choice(f"head in {place}", name, heads)
        if columns is None and name in targets:
            raise HeadsetError(f"The head {name!r} needs labels, and {place} names no column. Give {{{name}: COLUMN}}.")
    return {
        name: LabelColumn(targets[name], _columns(name, columns, targets[name])) if name in targets else None
        for name, columns in setting.items()
    }


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


def _columns(head: str, setting: Any, target: Target) -> str | tuple[str, ...]:
    if isinstance(target, DependencyTarget):
        if isinstance(setting, str) or len(setting) != 2:
            raise HeadsetError(
                f"The head {head!r} takes two columns, the heads of words and their relations, and data.labels names "
                f"{setting!r}. Give {{{head}: [head, deprel]}}."
            )
        return tuple(setting)
    if isinstance(setting, str):
        return setting
    if not isinstance(target, MultiLabelTarget | NumberTarget | SoftTarget | PathTarget):
        raise HeadsetError(
            f"The head {head!r} takes one column of labels, and data.labels names a list: {setting}. Lists of columns "
            "are for several labels a row (columns of 0 and 1), for probabilities of labels, for several numbers, "
            "and for the levels of a hierarchy."
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
