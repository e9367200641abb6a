"""A table written to an Arrow file part by part, so that it is never in memory as a whole."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

__all__ = ["write_table"]


def write_table(parts: Iterable[pa.Table], target: Path) -> bool:
    """Write a table to a file that appears under its name when it is complete.

    What a column holds may show late: nulls first and then lists, whole numbers first and then others. What was written
    before is then read again from disk, and cast.

    Args:
        parts: The table in parts.
        target: The file, in the stream format of Arrow IPC.

    Returns:
        Whether there were parts; if not, no file is written.

    Raises:
        pyarrow.ArrowException: The parts have columns of one name and of different kinds.
    """
    with tempfile.TemporaryDirectory(prefix=f"{target.stem}.", dir=target.parent) as folder:
        files, schema = _write_segments(parts, Path(folder))
        if schema is None:
            return False
        if len(files) > 1:
            whole = Path(folder) / "whole"
            _write(whole, _stored(schema), (_fitted(_nulls(part), schema) for file in files for part in _read(file)))
            files = [whole]
        os.replace(files[-1], target)
    return True


def _write_segments(parts: Iterable[pa.Table], folder: Path) -> tuple[list[Path], pa.Schema | None]:
    """Write a file for each run of parts with one schema; and the schema of all."""
    files: list[Path] = []
    schema: pa.Schema | None = None
    remaining = iter(parts)
    part = next(remaining, None)

    def run() -> Iterator[pa.Table]:
        nonlocal schema, part
        while part is not None:
            fitted = _fitted(part, part.schema if schema is None else schema)
            if schema is not None and _stored(fitted.schema) != _stored(schema):
                schema = fitted.schema
                return
            schema = fitted.schema
            yield fitted
            part = next(remaining, None)

    while part is not None:
        files.append(folder / str(len(files)))
        schema = part.schema if schema is None else schema
        _write(files[-1], _stored(schema), run())
    return files, schema


def _fitted(part: pa.Table, schema: pa.Schema) -> pa.Table:
    """A part with the columns of a schema, in types that hold both."""
    return pa.concat_tables([schema.empty_table(), part], promote_options="permissive")


def _stored(schema: pa.Schema) -> pa.Schema:
    """The schema of a file: a column of nothing but nulls is written as one of strings."""
    for index, field in enumerate(schema):
        if pa.types.is_null(field.type):
            schema = schema.set(index, field.with_type(pa.string()))
    return schema


def _nulls(part: pa.Table) -> pa.Table:
    """A part whose columns of nothing but nulls have no type, which fits any other."""
    for index, field in enumerate(part.schema):
        if part.column(index).null_count == len(part):
            part = part.set_column(index, field.with_type(pa.null()), pa.nulls(len(part)))
    return part


def _read(file: Path) -> Iterator[pa.Table]:
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as batches:
        for batch in batches:
            yield pa.Table.from_batches([batch])


def _write(file: Path, schema: pa.Schema, parts: Iterable[pa.Table]) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for part in parts:
            for index, field in enumerate(part.schema):
                if pa.types.is_null(field.type):
                    part = part.set_column(index, schema.field(index), pa.nulls(len(part), pa.string()))
            writer.write_table(part)
