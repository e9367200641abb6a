"""Writing predictions beside their inputs, batch by batch: JSON lines, CSV or Parquet."""

import csv
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from backbones.errors import HeadsetError, invalid_choice
from headset.environment import environment

__all__ = ["PredictionWriter"]

ROWS_AT_ONCE = 1000
FILE = {"bytes", "path"}  # the fields of an image or a sound, as datasets has it


class PredictionWriter(BasePredictionWriter):
    """Writes what ``predict_step`` returns, one record a row, beside the row's own columns.

    A record has ``row`` (the number of the row, counted from 1), the columns of the data, and for each head what it
    predicts: nested under the head's name in JSON lines and Parquet, flat in CSV (``topic.label``, ``topic.score``).
    A column with the name of a head, or called ``row``, is written as ``input.<column>``.

    The file appears under its name when it is complete. Several processes write one part each:
    ``predictions-00000-of-00002.jsonl``.

    Args:
        output: The file to write; its suffix tells the format: ``.jsonl``, ``.csv`` or ``.parquet``.
        overwrite: Replace an earlier result.

    Raises:
        HeadsetError: The suffix is another one, or there is an earlier result.
    """

    def __init__(self, output: str | Path, overwrite: bool = False) -> None:
        super().__init__(write_interval="batch")
        self.output = Path(output)
        if self.output.suffix not in FORMATS:
            raise invalid_choice("suffix of --output", self.output.suffix, FORMATS)
        if self.output.is_dir():
            raise HeadsetError(f"{self.output} is a folder. Give --output the name of a file.")
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.output.parent).close()
        except OSError as error:
            raise HeadsetError(f"{self.output} cannot be written: {error.strerror}.") from error
        earlier = self._results()
        if earlier and not overwrite:
            raise HeadsetError(
                f"{earlier[0]} is there already, and nothing was computed. Choose another --output, or replace it with "
                "--overwrite true."
            )
        self._format: _Format | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file of this process, under a temporary name.

        Raises:
            HeadsetError: The result would replace the rows that it is made from.
        """
        source = trainer.datamodule.hparams.get("predict")  # type: ignore[attr-defined]
        if isinstance(source, str) and Path(source).resolve() == self.output.resolve():
            raise HeadsetError(f"{self.output} holds the rows to predict. Choose another --output.")
        path = self.parts(trainer.world_size)[trainer.global_rank]
        rows = trainer.datamodule.raw("predict")  # type: ignore[attr-defined]
        with self._writing():
            self._format = FORMATS[self.output.suffix](path, rows)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the predictions of a batch, ``{head: [one dictionary a row]}``."""
        rows = batch["meta"]["rows"]
        by_row = zip(*prediction.values(), strict=True)
        assert self._format is not None
        with self._writing():
            self._format.write(rows, [dict(zip(prediction, heads, strict=True)) for heads in by_row])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the complete file its name; earlier results of other numbers of processes go."""
        if self._format is None:
            return
        with self._writing():
            self._format.finish()
        if trainer.is_global_zero:
            for path in set(self._results()) - set(self.parts(trainer.world_size)):
                path.unlink()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing half-made."""
        if self._format is not None:
            self._format.discard()

    def parts(self, world: int) -> list[Path]:
        """The files of a prediction by so many processes."""
        stem, suffix = self.output.stem, self.output.suffix
        names = [f"{stem}-{rank:05d}-of-{world:05d}{suffix}" for rank in range(world)]
        return [self.output.with_name(name) for name in names] if world > 1 else [self.output]

    def _writing(self) -> AbstractContextManager[None]:
        return environment(f"writing predictions to {self.output}")

    def _results(self) -> list[Path]:
        digits = "[0-9]" * 5
        parts = self.output.parent.glob(f"{self.output.stem}-{digits}-of-{digits}{self.output.suffix}")
        return [path for path in (self.output, *sorted(parts)) if path.exists()]


class _Format(ABC):
    """A file in the making, under a temporary name until it is finished."""

    def __init__(self, path: Path, raw: Dataset) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        self.raw = raw
        self.file = self.partial.open("w", encoding="utf-8", newline="")

    @abstractmethod
    def write(self, rows: list[int], predictions: list[dict[str, Any]]) -> None:
        """Add the predictions of these rows, each ``{head: {...}}``."""

    def finish(self) -> None:
        self.file.close()
        self.partial.replace(self.path)

    def discard(self) -> None:
        with suppress(OSError):  # it writes what is left, and the disk may be full
            self.file.close()
        self.partial.unlink(missing_ok=True)

    def records(self, rows: list[int], predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        inputs = self.inputs(rows, self.input_names(predictions[0])).to_pylist()
        return [
            {"row": row + 1, **values, **heads} for row, values, heads in zip(rows, inputs, predictions, strict=True)
        ]

    def inputs(self, rows: list[int], names: dict[str, str]) -> pa.Table:
        """The columns of the data under their names in the result."""
        table: pa.Table = self.raw.with_format("arrow")[rows]
        return pa.table({name: _readable(table[key], self.raw.features[key]) for key, name in names.items()})

    def input_names(self, prediction: dict[str, Any]) -> dict[str, str]:
        """What each column of the data is called in the result."""
        flat = {f"{head}.{key}" for head, values in prediction.items() for key in values}
        taken = {"row", *prediction, *flat}
        names: dict[str, str] = {}
        for name in self.raw.column_names:
            free = name
            while free in taken or free in names.values() or (free != name and free in self.raw.column_names):
                free = f"input.{free}"
            names[name] = free
        return names


class _JsonLines(_Format):
    def write(self, rows: list[int], predictions: list[dict[str, Any]]) -> None:
        self.file.writelines(_json(record) + "\n" for record in self.records(rows, predictions))


class _Csv(_Format):
    def write(self, rows: list[int], predictions: list[dict[str, Any]]) -> None:
        records = self.records(rows, predictions)
        for record in records:
            heads = {head: record.pop(head) for head in predictions[0]}
            record |= {f"{head}.{key}": value for head, values in heads.items() for key, value in values.items()}
        writer = csv.DictWriter(self.file, list(records[0]))
        if self.file.tell() == 0:
            writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in record.items()} for record in records)


class _Parquet(_Format):
    """Predictions are kept as JSON lines until all have come: only then are the types of all columns known.

    A first batch may hold nothing but empty lists, and a Parquet file has one schema from its start.
    """

    def write(self, rows: list[int], predictions: list[dict[str, Any]]) -> None:
        lines = ({"row": row, **heads} for row, heads in zip(rows, predictions, strict=True))
        self.file.writelines(_json(line) + "\n" for line in lines)

    def finish(self) -> None:
        self.file.close()
        columnar = self.partial.with_suffix(".parquet")
        schema = pa.schema([])
        for table in self._tables():
            schema = pa.unify_schemas([schema, table.schema], promote_options="permissive")
        with pq.ParquetWriter(columnar, schema) as writer:
            for table in self._tables(schema):
                writer.write_table(table)
        self.partial.unlink()
        columnar.replace(self.path)

    def discard(self) -> None:
        super().discard()
        self.partial.with_suffix(".parquet").unlink(missing_ok=True)

    def _tables(self, schema: pa.Schema | None = None) -> Iterator[pa.Table]:
        with self.partial.open(encoding="utf-8") as lines:
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


FORMATS: dict[str, type[_Format]] = {".jsonl": _JsonLines, ".csv": _Csv, ".parquet": _Parquet}


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


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, list | dict) else value
