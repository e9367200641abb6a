"""Rows of a memory-mapped table: lists of numbers are views of the file, and not made into Python's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

__all__ = ["Columns", "Sizes", "plain"]

NULL = -1  # stands for a null among whole numbers


class Columns:
    """The rows of a table by their numbers, column by column.

    A list of numbers is an array of numpy, a view of the file; a null in it is -1. All else is what Arrow makes of it.

    Args:
        rows: The table.
    """

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows
        self._columns: dict[str, _Column] = {}

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def __getitem__(self, numbers: Sequence[int]) -> dict[str, list[Any]]:
        """The values of some rows, by column."""
        if not self._columns:
            self._columns = {name: _Column(self.rows.data.column(name)) for name in self.rows.column_names}
        places = _places(self.rows, np.asarray(numbers, dtype=np.int64))
        return {name: column.values(places) for name, column in self._columns.items()}

    def __getstate__(self) -> Mapping[str, Any]:
        """The table, for a worker process: views cannot be sent."""
        return {"rows": self.rows, "_columns": {}}


class Sizes:
    """How many tokens rows have, read from where their lists end and not from the lists.

    Args:
        examples: The encoded rows; ``input_ids`` are a list of each, or lists of lists where a row is several inputs.
    """

    def __init__(self, examples: Dataset) -> None:
        self.examples = examples

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.examples)

    def __call__(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the rows from ``start`` to ``end`` the tokens of the longest input, and the number of inputs."""
        column = self.examples.data.column("input_ids")
        if self.examples._indices is None:
            return _sizes(column.slice(start, end - start))
        places = _places(self.examples, np.arange(start, end))
        first = int(places.min(initial=len(column)))
        longest, inputs = _sizes(column.slice(first, int(places.max(initial=first)) + 1 - first))
        return longest[places - first], inputs[places - first]


def plain(value: Any) -> Any:
    """Arrays as Python's lists, also inside of lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list) else value


class _Column:
    """A column in chunks, each read in the way that its type asks for."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.chunks = column.chunks
        self.starts = np.cumsum([0, *map(len, self.chunks)])
        self.readers: list[Callable[[int], Any] | None] = [None] * len(self.chunks)

    def values(self, places: np.ndarray) -> list[Any]:
        chunks = np.searchsorted(self.starts, places, side="right") - 1
        within = places - self.starts[chunks]
        return [self._reader(chunk)(row) for chunk, row in zip(chunks.tolist(), within.tolist(), strict=True)]

    def _reader(self, chunk: int) -> Callable[[int], Any]:
        reader = self.readers[chunk]
        if reader is None:
            reader = self.readers[chunk] = _reader(self.chunks[chunk])
        return reader


def _places(rows: Dataset, numbers: np.ndarray) -> np.ndarray:
    """Where rows stand in the table that some of were selected."""
    if rows._indices is None:
        return numbers
    column = rows._indices.column(0)
    chosen = column.chunk(0) if column.num_chunks == 1 else column.take(pa.array(numbers))
    places: np.ndarray = chosen.to_numpy()
    return (places[numbers] if column.num_chunks == 1 else places).astype(np.int64)


def _reader(array: pa.Array) -> Callable[[int], Any]:
    """What gives the value at a place of an array."""
    if array.null_count == 0:
        if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
            numbers = array.to_numpy()
            return lambda place: numbers[place].item()
        if _is_list(array.type):
            offsets, values = array.offsets.to_numpy(), array.values
            if pa.types.is_integer(values.type) or pa.types.is_float32(values.type) or pa.types.is_float64(values.type):
                if values.null_count:
                    return lambda place: _filled(values, offsets[place], offsets[place + 1])
                flat = values.to_numpy()
                return lambda place: flat[offsets[place] : offsets[place + 1]]
            if _is_list(values.type):
                inner = _reader(values)
                return lambda place: [inner(item) for item in range(offsets[place], offsets[place + 1])]
    return lambda place: array[place].as_py()


def _filled(values: pa.Array, start: int, end: int) -> np.ndarray:
    part = values.slice(start, end - start)
    numbers: np.ndarray = (pc.fill_null(part, NULL) if part.null_count else part).to_numpy(zero_copy_only=False)
    return numbers


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _sizes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The longest of the innermost lists of each row, and how many there are."""
    lengths = pc.list_value_length(column).to_numpy()
    if not _is_list(column.type.value_type):
        return lengths, np.ones_like(lengths)
    longest, inputs = _sizes(pc.list_flatten(column))
    starts = np.cumsum(lengths) - lengths
    found = np.zeros((2, len(lengths)), dtype=lengths.dtype)
    some = np.flatnonzero(lengths)  # reduceat has no empty parts
    if len(some):
        found[0, some] = np.maximum.reduceat(longest, starts[some])
        found[1, some] = np.add.reduceat(inputs, starts[some])
    return found[0], found[1]
