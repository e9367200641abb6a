"""One source of data: its tables, the heads that it is for, and the examples that its rows become."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import datasets
import numpy as np
from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_info

from backbones.errors import HeadsetError
from heads.base import Head
from heads.targets import ClassTarget, PairTarget
from headset.batches import Collator, make_encoder
from headset.checks import (
    RowError,
    check_choice_columns,
    check_choices,
    check_columns,
    check_pairs,
    check_text_columns,
    check_words,
    needs_words,
)
from headset.cut import row_groups, stratified_cut
from headset.encoders import Encoder, reading
from headset.environment import environment
from headset.examples import ExampleMaker, column_array, labelled, make_examples
from headset.labels import LabelColumn
from headset.processors import Processor
from headset.readers import Source, open_stream, place, read
from headset.source_settings import SourceSettings
from headset.steps import SourcePart
from headset.streaming import Stream, check_counts, first_rows, is_stream

__all__ = ["DataSource"]


class DataSource:
    """The tables of one source, and what becomes of them for some heads.

    Args:
        name: Its name; empty where there is but one, at the top level.
        settings: What `TextData` takes for it.
        seed: Where the share for validation comes from.
        num_proc: The processes that tokenise.
    """

    def __init__(self, name: str, settings: SourceSettings, seed: int = 0, num_proc: int | None = None) -> None:
        self.name = name
        self.settings = settings
        self.seed = seed
        self.num_proc = num_proc
        train, validation = settings.train, settings.validation
        self.share = float(validation) if isinstance(validation, int | float) else None
        cut_from = train if isinstance(validation, int | float) else validation
        self.locations: dict[str, Source | None] = {"train": train, "validation": cut_from}
        self.locations |= {"test": settings.test, "predict": settings.predict}
        self.text = _names(settings.text)
        self.choices = _names(settings.choices)
        self.heads: dict[str, Head] = {}
        self.columns: dict[str, LabelColumn | None] = {}
        self._tables: dict[str, Dataset] = {}
        self._stream: Any = None
        self._apart: np.ndarray | None = None  # of each row of train whether it is for validation

    def connect(
        self, processor: Processor, heads: Mapping[str, Head], columns: Mapping[str, LabelColumn | None]
    ) -> None:
        """Say what the source is for.

        Args:
            processor: The tokenizer, image processor or feature extractor of the model.
            heads: The heads that it is for, by name.
            columns: Where their labels are, without label sets; None for a head that needs none.
        """
        missing = self.settings.missing_labels
        self.processor, self.heads = processor, dict(heads)
        self.columns = {name: column and replace(column, missing=missing) for name, column in columns.items()}
        self._apart = None

    @property
    def reads(self) -> str:
        """What a row is read as, by all of its heads."""
        reads = reading(self.heads, self.text)
        check_text_columns(self.text, reads)
        check_choices(list(self.heads), reads, self.choices, self.text)
        return reads

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that are read."""
        image, audio = _names(self.settings.image), _names(self.settings.audio)
        return {"image": image, "audio": audio}.get(self.reads, self.text + self.choices)

    def batch_size(self, split: str) -> int:
        """The rows of a batch of a split."""
        other = self.settings.eval_batch_size
        return self.settings.batch_size if split == "train" or other is None else other

    def check(self, splits: Sequence[str]) -> None:
        """Check the settings before rows are read.

        Raises:
            HeadsetError: A setting does not fit the heads or the processor, or there are no rows for a split.
        """
        with self.told():
            for split in splits:
                self.encoder(split)
            sizes = {
                "batch_size" if split == "train" else "eval_batch_size": self.batch_size(split)
                for split in splits
                if split != "predict"
            }
            check_pairs(self.heads, self.text, sizes)
            if self.settings.batch_tokens is not None and self.reads in ("image", "audio"):
                raise HeadsetError(
                    f"batch_tokens is set, and the heads read {self.reads}, which has no tokens. Set batch_size."
                )

    def encoder(self, split: str) -> Encoder:
        """What makes the inputs of a split.

        Raises:
            HeadsetError: A setting does not fit the heads or the processor.
        """
        source, heads = self.location(split), list(self.heads.values())
        learns = split != "predict"
        return make_encoder(
            self.reads,
            self.processor,
            self.settings.max_length,
            split_words=not learns and any(map(needs_words, heads)),
            word_ids=learns and any(head.needs_word_ids for head in heads),
            in_parts=learns and all(head.learns_in_parts for head in heads),
            stride=self.settings.stride,
            max_windows=self.settings.max_windows,
            texts=len(self.text),
            folder=os.path.dirname(source) if isinstance(source, str) and os.path.isfile(source) else "",
            max_seconds=self.settings.max_seconds,
        )

    def part(self, split: str, rows: Dataset, heads: Collection[str]) -> SourcePart:
        """How the examples of a split become batches, in a run with these heads."""
        mine = tuple(self.heads)
        some = mine != tuple(heads) or (split != "predict" and self.settings.missing_labels)
        targets = {name: target for name, head in self.heads.items() if (target := head.target()) is not None}
        collator = Collator(self.encoder(split), targets, mine if some else None, self.name)
        train = split == "train"
        # What is measured within a batch depends on which rows that has.
        in_batch = any(isinstance(target, PairTarget) and not target.scored for target in targets.values())
        return SourcePart(
            rows,
            self.batch_size(split),
            collator,
            batch_tokens=self.settings.batch_tokens if train else None,
            windows=split == "predict" or not (train or in_batch),
        )

    def table(self, split: str) -> str:
        """The split whose table holds the rows: ``train`` also for a share of it."""
        return "train" if split == "validation" and self.share is not None else split

    def location(self, split: str) -> Source:
        """Where the rows of a split are.

        Raises:
            HeadsetError: There are none.
        """
        source = self.locations[split]
        if source is None:
            setting = f"data.sources.{self.name}" if self.name else "data"
            raise HeadsetError(
                f"There are no rows for {split}: {setting}.{self.table(split)} is not set. Give a file, a folder or a "
                "hub id."
            )
        return source

    def place(self, split: str) -> str:
        """Where the rows of a split are, for messages."""
        return place(self.location(split))

    def raw(self, split: str) -> Dataset:
        """The table of a split as it was read; of a stream the first rows."""
        name = self.table(split)
        source = self.location(split)
        if name not in self._tables and self.streams(split):
            self._stream = open_stream(cast(dict[str, Any], source), name)
            self._tables[name] = first_rows(self._stream, place(source))
        if name not in self._tables:
            with environment(f"reading {place(source)} into the cache, {datasets.config.HF_DATASETS_CACHE}"):
                self._tables[name] = read(source, name, self.settings.conll_columns)
        return self._tables[name]

    def streams(self, split: str) -> bool:
        """Whether a split is a stream."""
        return is_stream(self.locations[split])

    def check_columns(self, split: str, columns: Sequence[str]) -> None:
        """Check that the table of a split has the columns.

        Raises:
            HeadsetError: It lacks some.
        """
        check_columns(self.raw(split), columns, self.place(split))

    def complete(self, head: str, labels: tuple[str, ...] | None, origin: str) -> LabelColumn | None:
        """Where the labels of a head are, with its label set."""
        column = self.columns[head]
        return column and replace(column, labels=labels, origin=origin)

    def examples(
        self, split: str, labels: Mapping[str, tuple[str, ...] | None], origins: Mapping[str, str]
    ) -> Dataset | Stream:
        """The rows of a split, checked and encoded, but those that have no label for any head; of a stream a stream.

        Args:
            split: ``train``, ``validation``, ``test`` or ``predict``.
            labels: The label set of each head.
            origins: Where it comes from, for messages.

        Raises:
            HeadsetError: A column, an input or a label is missing or wrong.
        """
        found = {name: self.complete(name, labels[name], origins.get(name, "")) for name in self.columns}
        columns = {name: column for name, column in found.items() if column is not None}
        table, encoder, where = self.raw(split), self.encoder(split), self.place(split)
        maker = ExampleMaker(encoder, self.inputs, columns, table.features, split in encoder.splits)
        check_columns(table, maker.columns, where)
        if split != "predict":
            check_words(self.heads, self.text, table.features, where)
        if self.choices or self.reads == "candidates":
            check_choice_columns(self.text, self.choices, table.features, where)
        bare = len(columns) == len(self.columns) and self.settings.missing_labels
        if self.streams(split):
            check_counts(self.heads)
            rank_zero_info(f"{split}: a stream of rows from {where}")
            part = self.part(split, table, self.heads)
            return Stream(self._stream, maker, part.collator, part.batch_size, where, bare)
        for name, column in columns.items():
            if split == "train" and column.missing and column.first_labelled(table) is None:
                raise HeadsetError(f"{where}: {column}: no row has a label for the head {name!r}.")
        try:
            examples = make_examples(table, maker, self.num_proc)
        except RowError as error:
            exact = place(self.location(split), error.row, self.settings.conll_columns)
            raise HeadsetError(f"{self.table(split)}: {exact}: {error.message}") from error
        rows = column_array(examples, "row")
        mine = self._part(rows, split)
        kept = mine
        if bare:
            kept = mine & labelled(examples, columns)
        told = f"{split}: {_count(rows[kept])} rows from {where}"
        if kept.sum() > _count(rows[kept]):
            told += f", in {kept.sum()} parts of at most {encoder.length} tokens"
        if "truncated" in examples.column_names:
            told += f"; {column_array(examples, 'truncated')[kept].sum()} of them cut to {encoder.limit}"
            examples = examples.remove_columns("truncated")
        if left_out := _count(rows[mine]) - _count(rows[kept]):
            told += f"; {left_out} more have no label and are left out"
        rank_zero_info(told)
        return examples if kept.all() else examples.select(np.flatnonzero(kept))

    def _part(self, rows: np.ndarray, split: str) -> np.ndarray:
        """Which of some rows belong to a split: all of them, unless validation is cut from train."""
        if self.share is None or split not in ("train", "validation"):
            return np.ones(len(rows), dtype=bool)
        if self._apart is None:
            classes = [c for c in self.columns.values() if c is not None and isinstance(c.target, ClassTarget)]
            if classes:
                self.check_columns("train", classes[0].names)
            groups = row_groups(self.raw("train"), classes[0] if classes else None)
            with self.told():
                self._apart = stratified_cut(groups, self.share, self.seed)
        apart: np.ndarray = self._apart[rows]
        return apart if split == "validation" else ~apart

    @contextmanager
    def told(self) -> Iterator[None]:
        """Say in errors which source they are about, where it has a name."""
        try:
            yield
        except RowError:
            raise
        except HeadsetError as error:
            if not self.name:
                raise
            raise HeadsetError(f"data.sources.{self.name}: {error}") from error


def _names(columns: Sequence[str] | str | None) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns or ())


def _count(rows: np.ndarray) -> int:
    """How many different rows there are, which stand in order."""
    return int(np.count_nonzero(np.diff(rows))) + min(len(rows), 1)
