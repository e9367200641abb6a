"""From the rows of a table to encoded examples with encoded labels, each row checked on the way."""

import inspect
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import transformers
from datasets import Dataset, Features

from backbones.errors import HeadsetError
from headset.batches import LABEL
from headset.checks import RowError, check_lengths
from headset.encoders import RAW, Encoder
from headset.environment import environment
from headset.file_encoder import FileEncoder
from headset.labels import LabelColumn
from headset.readers import cache_file, cached

__all__ = ["ExampleMaker", "column_array", "labelled", "make_examples"]

QUIET_ROWS = 20_000  # fewer rows take no time worth a progress bar,
QUIET_FILES = 500  # nor fewer files
TYPED_ROWS = 1000  # as many as datasets looks at for the types of columns
PART = 10_000  # rows in memory at a time
ENCODED_ROWS = 1000  # rows that are encoded at a time at most,
ENCODED_BYTES = 2**23  # and bytes of them, about


@dataclass(frozen=True)
class ExampleMaker:
    """What ``Dataset.map`` calls: rows in, examples out.

    Args:
        encoder: Makes the inputs.
        inputs: The columns that the encoder reads.
        labels: For each head that needs labels, where they are; empty for prediction.
        features: The columns of the table.
        splits: Whether a long row becomes several examples.
    """

    encoder: Encoder
    inputs: tuple[str, ...]
    labels: Mapping[str, LabelColumn]
    features: Features
    splits: bool = False

    @property
    def columns(self) -> list[str]:
        """Every column that is read."""
        return list(dict.fromkeys([*self.inputs, *(name for label in self.labels.values() for name in label.names)]))

    def __call__(self, rows: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """Check and tokenise some rows.

        Raises:
            RowError: An input or a label is missing or wrong.
        """
        for column in self.inputs:
            for row, value in zip(indices, rows[column], strict=True):
                self.encoder.check(row, column, value)
        try:
            inputs = self.encoder.encode([rows[column] for column in self.inputs])
        except RowError as error:
            raise RowError(indices[error.row], error.message) from error
        examples = {name: values for name, values in inputs.items() if name != RAW} | {"row": indices}
        for head, label in self.labels.items():
            words = rows[self.inputs[0]] if label.target.per_word else None
            examples[LABEL + head] = list(self._encoded(label, rows, indices, words, inputs))
        return self.encoder.parts(examples) if self.splits else examples

    def _encoded(
        self,
        label: LabelColumn,
        rows: Mapping[str, list[Any]],
        indices: list[int],
        words: list[Any] | None,
        inputs: Mapping[str, list[Any]],
    ) -> Iterator[Any]:
        values = label.values(rows, self.features)
        for position, row in enumerate(indices):
            value: Any = ""
            try:
                value = next(values)
                if value is None and label.missing:
                    yield None
                    continue
                if words is not None and isinstance(value, list) and isinstance(words[position], list):
                    check_lengths(words[position], value, self.inputs[0])
                yield label.target.encode(value, label.labels, {key: item[position] for key, item in inputs.items()})
            except HeadsetError as error:
                if value is None:
                    hint = " If rows without a label are meant, set data.missing_labels: true."
                else:
                    hint = "" if label.labels is None else f" The label set comes from {label.origin}"
                raise RowError(row, f"{label}: {error}{hint}") from error


def make_examples(rows: Dataset, maker: ExampleMaker, num_proc: int | None) -> Dataset:
    """Encode a table, or take the result from the cache of ``datasets``.

    Args:
        rows: The table.
        maker: What makes examples of rows; together with the rows it is the key in the cache.
        num_proc: The number of processes; None is this one alone.

    Raises:
        RowError: A row is at fault.
    """
    stamps = maker.encoder.stamps(rows, maker.inputs[0]) if isinstance(maker.encoder, FileEncoder) else ()
    target = cache_file([rows._fingerprint, *_identity(maker), *stamps])
    for part in target.parent.glob(f"{target.stem}*.arrow"):
        if cached(part) is None:
            part.unlink()
    with (
        _written(target.parent),
        _quiet(len(rows) < (QUIET_FILES if maker.encoder.lazy else QUIET_ROWS)),
    ):
        examples: Dataset = rows.select_columns(maker.columns).map(
            maker,
            with_indices=True,
            batched=True,
            batch_size=max(min(ENCODED_ROWS, ENCODED_BYTES * len(rows) // (rows.data.nbytes or 1)), 1),
            remove_columns=maker.columns,
            num_proc=num_proc,
            cache_file_name=str(target),
            new_fingerprint=target.stem,
            load_from_cache_file=True,
            desc="Encoding",
            features=_features(rows, maker) if any(label.missing for label in maker.labels.values()) else None,
        )
    if maker.encoder.lazy:
        raw = rows.select_columns(maker.inputs).rename_column(maker.inputs[0], RAW)
        return datasets.concatenate_datasets([raw, examples], axis=1)
    return examples


def column_array(examples: Dataset, name: str) -> np.ndarray:
    """A column of numbers or truth values of a whole table."""
    column: pa.ChunkedArray = examples.select_columns(name).with_format("arrow")[:][name]
    values: np.ndarray = column.to_numpy()
    return values


def labelled(examples: Dataset, columns: Iterable[str]) -> np.ndarray:
    """For each of the examples whether it has a label for some head."""
    table = examples.select_columns([LABEL + name for name in columns]).with_format("arrow")
    parts = table.iter(PART)
    some: list[np.ndarray] = [np.any([column.is_valid() for column in part.columns], axis=0) for part in parts]
    return np.concatenate(some)


def _features(rows: Dataset, maker: ExampleMaker) -> Features:
    """The columns of the examples, found in rows of which some have a label for each head.

    They would be found in the first rows alone, in which no row may have one.
    """
    first = (label.first_labelled(rows) for label in maker.labels.values())
    some = list(dict.fromkeys([*(row for row in first if row is not None), *range(min(len(rows), TYPED_ROWS))]))
    return Dataset.from_dict(maker(rows.select_columns(maker.columns)[some], some)).features


def _identity(maker: ExampleMaker) -> list[str]:
    """Whatever the examples depend on beside the rows: settings, tokenizer, and the code that makes them."""
    things = (maker, maker.encoder, *(label.target for label in maker.labels.values()))
    modules = {kind.__module__ for thing in things for kind in type(thing).__mro__ if kind is not object}
    return [
        repr((maker.inputs, sorted(maker.labels.items()), maker.features, maker.splits)),
        transformers.__version__,
        *maker.encoder.identity(),
        *map(_code, sorted(modules)),
    ]


def _code(module: str) -> str:
    """The source of a module, so that changed code makes examples anew; where it has none, they always are."""
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError):
        return uuid.uuid4().hex


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Tell why encoded rows cannot be written; where the disk is full, `datasets` leaves there what it began."""
    earlier = set(folder.glob("tmp*"))
    try:
        with environment(f"writing encoded rows to the cache, {folder}"):
            yield
    except HeadsetError as error:
        if isinstance(error.__cause__, OSError):
            for file in set(folder.glob("tmp*")) - earlier:
                file.unlink(missing_ok=True)
        raise


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """Without the progress bars of ``datasets``."""
    change = wanted and not datasets.are_progress_bars_disabled()
    if change:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if change:
            datasets.enable_progress_bars()
