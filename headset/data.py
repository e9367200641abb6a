"""The data of a run: tables become label sets, tokenised examples, and batches."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from backbones.errors import HeadsetError
from heads.base import Head
from heads.label_counts import LabelCounts
from heads.targets import ClassTarget
from headset.batches import Collator, make_encoder
from headset.checks import (
    RowError,
    check_choice_columns,
    check_choices,
    check_columns,
    check_pairs,
    check_settings,
    check_text_columns,
    check_words,
    needs_words,
)
from headset.encoders import Encoder, reading
from headset.examples import ExampleMaker, make_examples
from headset.label_statistics import count_labels
from headset.labels import LabelColumn, Labels, check_label_set, check_order, label_columns, other_labels
from headset.loader import ResumableLoader
from headset.processors import Processor
from headset.readers import Source, place, read
from headset.sampler import RowBatches, stratified_cut

__all__ = ["TextData"]

STAGES = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("predict",)}
LabelSets = dict[str, tuple[str, ...] | None]


class TextData(LightningDataModule):
    """Texts, images or sounds with labels, from files, folders or the hub.

    A source is the path of a CSV, TSV, JSONL, JSON, Parquet or CoNLL file; a folder that ``datasets`` saved; a folder
    of images or sounds, with a folder for each label or a ``metadata.csv``; a hub id; or a dictionary of arguments for
    ``datasets.load_dataset``.

    Args:
        train: The rows to learn from.
        validation: The rows to validate on; a number is the share of ``train`` to set apart for it, the same
            with the same seed, with its part of each class.
        test: The rows to test on.
        predict: The rows to predict; they need no labels.
        text: The column with the texts or lists of words; two columns are pairs of texts, or questions and contexts.
        labels: The column with the labels of the only head, or for each head its column. A list of columns has zeros
            and ones for several labels a row, or several numbers.
        image: The column with the images, or their paths, for heads that read images. Relative paths start in the
            folder of the file that they stand in.
        audio: The same for heads that read sounds.
        choices: For heads that choose or rerank: the column with lists of choices or documents, or several columns.
            With two columns of texts the second one is how each choice begins.
        max_length: The most tokens of an input; by default the tokenizer's own limit, at most 512.
        stride: How many tokens the windows of a long text or context have in common, for heads that read questions or
            have ``windows``; by default 128, or half of ``max_length`` where that is less.
        max_windows: The most windows of a text, for heads that have ``windows``; the rest is cut off.
        max_seconds: Where sounds are cut; by default only where the feature extractor does.
        batch_size: The rows of a training batch, in each process; of questions the windows.
        eval_batch_size: The rows of any other batch, with all of their windows; by default ``batch_size``.
        num_workers: The worker processes of each data loader.
        num_proc: The processes that tokenise.
        seed: Where the order of the rows and the share for validation come from.
        conll_columns: The names of the columns of CoNLL files.

    Raises:
        HeadsetError: A number is out of range, or a list of columns is empty or has a name twice.

    Example:
        >>> data = TextData(train="train.csv", validation=0.1)
        >>> # data.connect(processor, {"topic": SequenceClassification()}, {}); data.setup("fit")
    """

    def __init__(
        self,
        train: Source | None = None,
        validation: float | Source | None = None,
        test: Source | None = None,
        predict: Source | None = None,
        text: list[str] | str = "text",
        labels: Labels = "label",
        image: str = "image",
        audio: str = "audio",
        choices: list[str] | str | None = None,
        max_length: int | None = None,
        max_seconds: float | None = None,
        stride: int | None = None,
        max_windows: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        num_proc: int | None = None,
        seed: int = 0,
        conll_columns: list[str] | None = None,
    ) -> None:
        super().__init__()
        train, validation, test, predict = map(_plain, (train, validation, test, predict))
        self.save_hyperparameters(logger=False)
        check_settings(self.hparams)
        self.share = float(validation) if isinstance(validation, int | float) else None
        cut_from = train if self.share is not None else validation
        self.sources: dict[str, Any] = {"train": train, "validation": cut_from, "test": test, "predict": predict}
        self.text = (text,) if isinstance(text, str) else tuple(text)
        self.choices = (choices,) if isinstance(choices, str) else tuple(choices or ())
        self.labels = labels
        self.image = image
        self.audio = audio
        self.max_length = max_length
        self.max_seconds = max_seconds
        self.stride = stride
        self.max_windows = max_windows
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.num_proc = num_proc
        self.seed = seed
        self.conll_columns = conll_columns
        self.epoch = 0  # where training starts: worker processes fetch batches before Lightning tells samplers
        self.done = 0  # how many batches of that epoch a resumed run has seen
        self.label_sets: LabelSets = {}
        self.datasets: dict[str, Dataset] = {}
        # Heads with weights, and so with labels, of the backbone's checkpoint, which the settings do not confirm.
        self.loaded: set[str] = set()
        self._tables: dict[str, Dataset] = {}
        self._cut: tuple[list[int], ...] = ()
        self._origins: dict[str, str] = {}
        self._connection: tuple[Any, ...] = ()

    def connect(
        self, processor: Processor, heads: Mapping[str, Head], labels: Mapping[str, Sequence[str] | None]
    ) -> None:
        """Say what the data is for. With a Trainer this is taken from the LightningModule.

        Args:
            processor: The tokenizer, image processor or feature extractor of the model.
            heads: The heads by name; they need not be built.
            labels: The label sets that are fixed already, by head; the others are found in ``train``.
        """
        known = {name: tuple(names) if (names := labels.get(name)) is not None else None for name in heads}
        connection = (processor, dict(heads), known)
        if connection != self._connection:
            self._connection = connection
            self.processor, self.heads, self.label_sets = processor, dict(heads), dict(known)
            self.datasets, self._cut, self._origins = {}, (), {}

    def prepare_data(self) -> None:
        """Read and tokenise in one process, so that the others find it done."""
        if self.trainer is not None and self.trainer.state.fn is not None:
            self.setup(str(self.trainer.state.fn.value))

    def setup(self, stage: str) -> None:
        """Read, check and tokenise what a stage needs.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            HeadsetError: A source, a column, a text or a label is missing or wrong.
        """
        if self.trainer is not None:
            module: Any = self.trainer.lightning_module
            self.loaded = getattr(module, "loaded_heads", set())
            self.connect(module.processor, module.heads, module.labels)
        if not self._connection:
            raise HeadsetError(
                "TextData does not know its heads yet. Call connect(processor, heads, labels) before setup."
            )
        splits = [
            split for split in STAGES[stage] if split != "validation" or self.sources[split] or stage == "validate"
        ]
        for split in splits:
            self._encoder(split)  # complains of settings before rows are read
        columns = self._columns(stage)
        for split in splits:
            if split not in self.datasets:
                self.datasets[split] = self._examples(split, columns)
        # After the rows: where one of them is wrong, that says more than that the rest has one label.
        for name, column in columns.items():
            if column.labels is not None:
                pinned = self._connection[2][name]
                check_label_set(name, column, "" if pinned else place(self._source("train")))
                check_order(name, self.heads[name].ordered and not pinned, column.labels)

    def label_counts(self) -> dict[str, LabelCounts]:
        """How often the rows to learn from have each label, for the heads that ask for it."""
        tables, asking = [self.datasets[it] for it in ("train",) if it in self.datasets], self.heads.items()
        return {
            name: count_labels(tables, name, self.label_sets[name] or ())
            for name, head in asking
            if tables and head.needs_label_counts
        }

    def raw(self, split: str) -> Dataset:
        """The table of a split as it was read; ``meta["rows"]`` of a batch are the row numbers in it.

        Where validation is a share of train, both are rows of the same table.
        """
        name = self._table(split)
        source = self._source(split)
        if name not in self._tables:
            self._tables[name] = read(source, name, self.conll_columns)
        return self._tables[name]

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of ``train`` in a new order each epoch, or in its own order with ``overfit_batches``."""
        overfit = getattr(self.trainer, "overfit_batches", 0)
        return self._loader("train", self.batch_size, shuffle=not overfit)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Batches of ``validation``, in order; none where there is none."""
        return self._loader("validation", self.eval_batch_size) if "validation" in self.datasets else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches of ``test``, in order."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of ``predict``, in order."""
        return self._loader("predict", self.eval_batch_size)

    def _loader(self, split: str, batch_size: int, shuffle: bool = False) -> DataLoader[Any]:
        rows: Any = self.datasets[split]
        batches: Any = RowBatches(rows, batch_size, shuffle, self.seed)
        batches.set_epoch(self.epoch)
        targets = {name: target for name, head in self.heads.items() if (target := head.target()) is not None}
        collate: Any = Collator(self._encoder(split), targets)
        workers = self.num_workers
        loader = ResumableLoader(
            rows,
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
        )
        loader.skip = self.done if split == "train" else 0
        return loader

    def _encoder(self, split: str) -> Encoder:
        source, heads = self._source(split), list(self.heads.values())
        learns = split != "predict"
        return make_encoder(
            self.reads,
            self.processor,
            self.max_length,
            split_words=not learns and any(map(needs_words, heads)),
            word_ids=learns and any(head.needs_word_ids for head in heads),
            in_parts=learns and all(head.learns_in_parts for head in heads),
            stride=self.stride,
            max_windows=self.max_windows,
            texts=len(self.text),
            folder=os.path.dirname(source) if isinstance(source, str) and os.path.isfile(source) else "",
            max_seconds=self.max_seconds,
        )

    @property
    def reads(self) -> str:
        """What a row is read as, by all heads."""
        reads = reading(self.heads, self.text)
        check_text_columns(self.text, reads)
        check_choices(list(self.heads), reads, self.choices, self.text)
        return reads

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that are read."""
        return {"image": (self.image,), "audio": (self.audio,)}.get(self.reads, self.text + self.choices)

    def _table(self, split: str) -> str:
        """The split whose table holds the rows: ``train`` also for a share of it."""
        return "train" if split == "validation" and self.share is not None else split

    def _source(self, split: str) -> Source:
        source: Source | None = self.sources[split]
        if source is None:
            name = self._table(split)
            raise HeadsetError(
                f"There are no rows for {split}: data.{name} is not set. Give a file, a folder or a hub id."
            )
        return source

    def _columns(self, stage: str) -> dict[str, LabelColumn]:
        """Where the labels of each head are, and its label set; nothing for prediction."""
        if stage == "predict":
            return {}
        sizes = {"batch_size": self.batch_size} if stage == "fit" else {}
        if stage != "fit" or self.sources["validation"]:
            sizes["eval_batch_size"] = self.eval_batch_size
        check_pairs(self.heads, self.text, sizes)
        columns = label_columns(self.labels, self.heads)
        for name, column in columns.items():
            # A target that has no label set says so of no values as well.
            if name not in self._origins and column.target.find_labels([]) is not None:
                self._set_labels(name, column, stage)
            columns[name] = replace(column, labels=self.label_sets[name], origin=self._origins.get(name, ""))
        return columns

    def _set_labels(self, name: str, column: LabelColumn, stage: str) -> None:
        """Find the label set of a head, or note where it came from, for errors about other labels."""
        known = self.label_sets[name]
        self._origins[name] = "the run." if known else f"{place(self._source('train'))}."
        if known and stage != "fit":
            return
        found = self._find_labels(column)
        if not known:
            self.label_sets[name] = found
        elif found and name in self.loaded and set(found) != set(known):
            raise other_labels(name, known, found)
        elif found and not set(found) <= set(known):
            self._origins[name] = (
                f"the run, and {place(self._source('train'))} has: {', '.join(found)}. Give the run these labels, or, "
                f"if the head is a trained one, start it anew: --model.new_heads '[{name}]'"
            )

    def _find_labels(self, column: LabelColumn) -> tuple[str, ...] | None:
        """The labels in the whole table of train, also where validation is a share of it."""
        rows, where = self.raw("train"), place(self._source("train"))
        check_columns(rows, column.names, where)
        try:
            return column.find_labels(rows)
        except HeadsetError as error:
            raise HeadsetError(f"{where}: {column}: {error}") from error

    def _part(self, examples: Dataset, split: str, columns: Mapping[str, LabelColumn]) -> Dataset:
        """The examples of rows that belong to a split; all of them, unless validation is cut from train."""
        if self.share is None or split not in ("train", "validation"):
            return examples
        if not self._cut:
            rows = self.raw("train")
            classes = [c for c in columns.values() if isinstance(c.target, ClassTarget)][:1]
            for column in classes:
                check_columns(rows, column.names, place(self._source("train")))
            groups = [list(map(str, column.all_values(rows))) for column in classes] or [[""] * len(rows)]
            self._cut = stratified_cut(groups[0], self.share, self.seed)
        return examples.select(np.flatnonzero(np.isin(examples["row"][:], self._cut[split == "validation"])))

    def _examples(self, split: str, columns: Mapping[str, LabelColumn]) -> Dataset:
        source, table, encoder = self._source(split), self.raw(split), self._encoder(split)
        maker = ExampleMaker(encoder, self.inputs, columns, table.features, split in encoder.splits)
        check_columns(table, maker.columns, place(source))
        if split != "predict":
            check_words(self.heads, self.text, table.features, place(source))
        if self.choices or self.reads == "candidates":
            check_choice_columns(self.text, self.choices, table.features, place(source))
        try:
            examples = make_examples(table, maker, self.num_proc)
        except RowError as error:
            where = place(source, error.row, self.conll_columns)
            raise HeadsetError(f"{self._table(split)}: {where}: {error.message}") from error
        examples = self._part(examples, split, columns)
        rows = len(set(examples["row"][:])) if maker.splits else len(examples)
        told = f"{split}: {rows} rows from {place(source)}"
        if len(examples) > rows:
            told += f", in {len(examples)} parts of at most {encoder.length} tokens"
        if "truncated" in examples.column_names:
            told += f"; {sum(examples['truncated'][:])} of them cut to {encoder.limit}"
            examples = examples.remove_columns("truncated")
        rank_zero_info(told)
        return examples


def _plain(source: Any) -> Any:
    """Paths as strings, so that the settings go into a checkpoint as plain values."""
    return os.fspath(source) if isinstance(source, os.PathLike) else source
