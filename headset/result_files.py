"""The formats that predictions are written in: JSON lines, CSV and Parquet."""

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset

from headset.partial import PartialFile

__all__ = ["FORMATS", "ResultFile"]

ROWS_AT_ONCE = 1000
FILE = {"bytes", "path"}  # the fields of an image or a sound, as datasets has it

_json = json.JSONEncoder(ensure_ascii=False, default=str).encode


class ResultFile(ABC):
    """Predictions beside their rows.

    Args:
        file: Where they are written.
        raw: The rows.
    """

    def __init__(self, file: PartialFile, raw: Dataset) -> None:
        self.file = file
        self.raw = raw.with_format("arrow")
        self.features = raw.features

    @abstractmethod
    def write(self, rows: list[int], predictions: list[dict[str, Any]]) -> None:
        """Add the predictions of these rows, which are in order, each ``{head: {...}}``."""

    def finish(self) -> None:
        """Give the file its name."""
        self.file.finish()

    def records(self, rows: list[int], predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What is written of each row."""
        inputs = self.inputs(rows, self.input_names(predictions[0])).to_pylist()
        return [
            {"row": row + 1, **values, **heads} for row, values, heads in zip(rows, inputs, predictions, strict=True)
        ]

    def inputs(self, rows: list[int], names: dict[str, str]) -> pa.Table:
        """The columns of the data under their names in the result."""
        first = rows[0]
        table: pa.Table = self.raw[first : rows[-1] + 1]
        if len(table) > len(rows):
            table = table.take([row - first for row in rows])
        return pa.table({name: _readable(table[key], self.features[key]) for key, name in names.items()})

    def input_names(self, prediction: dict[str, Any]) -> dict[str, str]:
        """What each column of the data is called in the result."""
        flat = {f"{head}.{key}" for head, values in prediction.items() for key in values}
        taken = {"row", *prediction, *flat}
        names: dict[str, str] = {}
        for name in self.features:
            free = name
            while free in taken or free in names.values() or (free != name and free in self.features):
                free = f"input.{free}"
            names[name] = free
        return names


class JsonLines(ResultFile):
    """A line of JSON for each row."""

    def write(self, rows: list[int], predictions: list[dict[str, Any]]) -> None:
        """Add lines."""
        self.file.write("".join(f"{_json(record)}\n" for record in self.records(rows, predictions)))


class Csv(ResultFile):
    """A line for each row, below a line with the names of the columns."""

    def write(self, rows: list[int], predictions: list[dict[str, Any]]) -> None:
        """Add lines; the first ones below those names."""
        records = self.records(rows, predictions)
        for record in records:
            heads = {head: record.pop(head) for head in predictions[0]}
            record |= {f"{head}.{key}": value for head, values in heads.items() for key, value in values.items()}
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(records[0]))
        if self.file.size == 0:
            writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in record.items()} for record in records)
        self.file.write(text.getvalue())


class Parquet(ResultFile):
    """Predictions are kept as JSON lines until all have come: only then are the types of all columns known.

    A first batch may hold nothing but empty lists, and a Parquet file has one schema from its start.
    """

    def write(self, rows: list[int], predictions: list[dict[str, Any]]) -> None:
        """Add predictions."""
        lines = ({"row": row, **heads} for row, heads in zip(rows, predictions, strict=True))
        self.file.write("".join(f"{_json(line)}\n" for line in lines))

    def finish(self) -> None:
        """Make the Parquet file of all that was kept."""
        self.file.close()
        columnar = self.file.partial.with_suffix(".parquet")
        schema = pa.schema([])
        for table in self._tables():
            schema = pa.unify_schemas([schema, table.schema], promote_options="permissive")
        with pq.ParquetWriter(columnar, schema) as writer:
            for table in self._tables(schema):
                writer.write_table(table)
        self.file.finish(columnar)

    def _tables(self, schema: pa.Schema | None = None) -> Iterator[pa.Table]:
        with self.file.partial.open(encoding="utf-8") as lines:
            while chunk := [json.loads(line) for line in islice(lines, ROWS_AT_ONCE)]:
                rows = [line.pop("row") for line in chunk]
                inputs = self.inputs(rows, self.input_names(chunk[0]))
                fields = [schema.field(head) for head in chunk[0]] if schema else None
                heads = pa.Table.from_pylist(chunk, pa.schema(fields) if fields else None)
                yield pa.table(
                    {
                        "row": pa.array([row + 1 for row in rows]),
                        **{name: inputs[name] for name in inputs.column_names},
                        **{head: heads[head] for head in heads.column_names},
                    }
                )


FORMATS: dict[str, type[ResultFile]] = {".jsonl": JsonLines, ".csv": Csv, ".parquet": Parquet}


def _readable(column: pa.ChunkedArray, feature: Any) -> pa.ChunkedArray | pa.Array:
    """A column of the data; of images and sounds their paths, of other bytes nothing, of classes their names."""
    if pa.types.is_struct(column.type) and {field.name for field in column.type} == FILE:
        return pc.struct_field(column, "path")
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return pa.nulls(len(column), pa.string())  # the content of a file is no text
    if isinstance(feature, ClassLabel):
        names = dict(enumerate(feature.names))  # datasets on the hub have -1 where there is no label
        return pa.array([names.get(number) for number in column.to_pylist()], pa.string())
    return column


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, list | dict) else value
