"""The label set of each head: given, or found in the tables of all sources that label it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from datasets import Dataset

from backbones.errors import HeadsetError
from headset.labels import LabelColumn, check_label_set, check_order, other_labels
from headset.sources import DataSource

__all__ = ["LabelSets"]

Names = tuple[str, ...] | None


class LabelSets:
    """The label sets of a run, and where each comes from.

    Args:
        known: Those that are fixed already, by head.
        loaded: The heads that came with weights, and so with labels, which the settings do not confirm.
    """

    def __init__(self, known: Mapping[str, Names], loaded: Iterable[str]) -> None:
        self.known = known
        self.loaded = set(loaded)
        self.found: dict[str, Names] = dict(known)
        self.origins: dict[str, str] = {}

    def settle(self, head: str, sources: Sequence[DataSource], fits: bool) -> None:
        """Find the label set of a head, or note where it came from, for errors about other labels.

        Args:
            head: The name of the head.
            sources: The sources that label it.
            fits: Whether the run trains, so that ``train`` is read in any case.

        Raises:
            HeadsetError: A table cannot be read, or lacks a column; or the labels are not those of a loaded head.
        """
        columns = [column for source in sources if (column := source.columns[head])]
        # A target that has no label set says so of no values as well.
        if head in self.origins or not columns or columns[0].target.find_labels([]) is None:
            return
        known = self.known[head]
        place = " and ".join(source.place("train") for source in sources) if fits or not known else ""
        self.origins[head] = "the run." if known else f"{place}."
        if known and not fits:
            return
        found = _found(head, sources)
        if not (found or known) and sources[0].streams("train"):
            raise HeadsetError(
                f"The labels of the head {head!r} are not known before the stream of {place} is read. Name them: "
                f"model.labels: {{{head}: [...]}}."
            )
        if not known:
            self.found[head] = found
        elif found and head in self.loaded and set(found) != set(known):
            raise other_labels(head, known, found)
        elif found and not set(found) <= set(known):
            self.origins[head] = (
                f"the run, and {place} has: {', '.join(found)}. Give the run these labels, or, "
                f"if the head is a trained one, start it anew: --model.new_heads '[{head}]'"
            )

    def check(self, head: str, sources: Sequence[DataSource]) -> None:
        """Check that there is something to tell apart.

        Raises:
            HeadsetError: There is not.
        """
        column = sources[0].complete(head, self.found[head], "")
        if column is not None and column.labels is not None:
            place = "" if self.known[head] else " and ".join(source.place("train") for source in sources)
            check_label_set(head, column, place)
            check_order(head, sources[0].heads[head].ordered and not self.known[head], column.labels)


def _found(head: str, sources: Sequence[DataSource]) -> Names:
    """The labels in the whole tables of train, also where validation is a share of one.

    Where a column fixes its own names and their order, they are taken source by source.
    """
    tables = [(source, source.raw("train"), source.columns[head]) for source in sources]
    fixed: list[Names] = []
    columns: list[LabelColumn] = []
    for source, rows, column in tables:
        assert column is not None
        source.check_columns("train", column.names)
        columns.append(column)
        fixed.append(column.fixed_labels(rows.features))
    target = columns[0].target
    if any(source.streams("train") for source in sources):
        return fixed[0]
    try:
        values = [_distinct(column, rows) for column, (_, rows, _) in zip(columns, tables, strict=True)]
        if not any(fixed):
            return target.find_labels(chain.from_iterable(values))
        sets = [names or target.find_labels(its) or () for names, its in zip(fixed, values, strict=True)]
        return tuple(dict.fromkeys(chain.from_iterable(sets)))
    except HeadsetError as error:
        place = " and ".join(source.place("train") for source in sources)
        raise HeadsetError(f"{place}: {columns[0]}: {error}") from error


def _distinct(column: LabelColumn, rows: Dataset) -> Iterator[Any]:
    return chain.from_iterable(values for values, _ in column.distinct_values(rows))
