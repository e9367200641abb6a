"""The data of a run: the tables of its sources become label sets, tokenised examples, and batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from backbones.errors import HeadsetError, invalid_choice
from heads.base import Head
from heads.label_counts import LabelCounts
from headset.feature_store import FeatureStore
from headset.label_sets import LabelSets
from headset.label_statistics import count_labels
from headset.labels import Labels, label_columns
from headset.loader import ResumableLoader
from headset.orders import WindowOrder
from headset.processors import Processor
from headset.readers import Source
from headset.sampler import Sampling, check_sampling
from headset.source_settings import plain, predict_settings, source_settings
from headset.sources import DataSource
from headset.steps import step_loader
from headset.streaming import Stream, StreamLoader, check_stream

__all__ = ["TextData"]

STAGES = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("predict",)}


class TextData(LightningDataModule):
    """Texts, images or sounds with labels, from files, folders or the hub.

    A source is the path of a CSV, TSV, JSONL, JSON, Parquet or CoNLL file; a folder that ``datasets`` saved; a folder
    of images or sounds, with a folder for each label or a ``metadata.csv``; a hub id; or a dictionary of arguments for
    ``datasets.load_dataset``. With ``streaming: true`` among these, ``train`` is read as it is needed, and never kept.

    What is given at the top level is one source without a name. With ``sources`` there are several: each trains the
    heads that its ``labels`` name, and what it does not say is as at the top level.

    Args:
        train: The rows to learn from.
        validation: The rows to validate on; a number is the share of ``train`` to set apart for it, the same
            with the same seed, with its part of each class.
        test: The rows to test on.
        predict: The rows to predict; they need no labels.
        text: The column with the texts or lists of words, by default ``text``; two columns are pairs of texts, or
            questions and contexts.
        labels: The column with the labels of the only head, or for each head its column; null for a head that needs
            none. A list of columns has zeros and ones for several labels a row, or several numbers. In a source that is
            called like a head, one column is that head's.
        missing_labels: Whether rows may lack labels of some heads, as null or an empty cell. Those without any are left
            out.
        image: The column with the images, or their paths, for heads that read images; by default ``image``. Relative
            paths start in the folder of the file that they stand in.
        audio: The same for heads that read sounds.
        choices: For heads that choose or rerank: the column with lists of choices or documents, or several columns.
            With two columns of texts the second one is how each choice begins.
        max_length: The most tokens of an input; by default the tokenizer's own limit, at most 512.
        stride: How many tokens the windows of a long text or context have in common, for heads that read questions or
            have ``windows``; by default 128, or half of ``max_length`` where that is less.
        max_windows: The most windows of a text, for heads that have ``windows``; the rest is cut off.
        max_seconds: Where sounds are cut; by default only where the feature extractor does.
        batch_size: The rows of a training batch, in each process; of questions the windows.
        batch_tokens: The most tokens of a training batch instead, in each process, counted with padding: of rows of
            similar length, as many as fit.
        eval_batch_size: The rows of any other batch, with all of their windows; by default ``batch_size``.
        num_workers: The worker processes of each data loader.
        num_proc: The processes that tokenise.
        seed: Where the order of the rows and the share for validation come from.
        conll_columns: The names of the columns of CoNLL files.
        sources: Several sources by name, each with settings of its own: all of the above but ``predict``, ``seed`` and
            the numbers of processes.
        sampling: Which sources a training step has. ``size``: one, and every batch of each once an epoch. A temperature
            T: one, drawn with a probability proportional to its size to the power of 1/T. A weight for each source: one
            drawn by these. ``all``: a batch of each, of which the smaller ones begin anew.

    Raises:
        HeadsetError: A setting is unknown or out of range, or a list of columns is empty or has a name twice.

    Example:
        >>> data = TextData(train="train.csv", validation=0.1)
        >>> # data.connect(processor, {"topic": SequenceClassification()}, {}); data.setup("fit")
        >>> mood = {"train": "a.csv", "labels": {"mood": "label"}}
        >>> both = TextData(sources={"moods": mood, "names": {"train": "b.conll", "text": "tokens", "labels": "tags"}})
    """

    def __init__(
        self,
        train: Source | None = None,
        validation: float | Source | None = None,
        test: Source | None = None,
        predict: Source | None = None,
        text: list[str] | str | None = None,
        labels: Labels = "label",
        missing_labels: bool = False,
        image: str | None = None,
        audio: str | None = None,
        choices: list[str] | str | None = None,
        max_length: int | None = None,
        max_seconds: float | None = None,
        stride: int | None = None,
        max_windows: int | None = None,
        batch_size: int = 32,
        batch_tokens: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        num_proc: int | None = None,
        seed: int = 0,
        conll_columns: list[str] | None = None,
        sources: dict[str, dict[str, Any]] | None = None,
        sampling: float | dict[str, float] | str = "size",
    ) -> None:
        super().__init__()
        train, validation, test, predict, sources = map(plain, (train, validation, test, predict, sources))
        self.save_hyperparameters(logger=False)
        settings = source_settings(self.hparams)
        check_stream(settings)
        self.sources = {name: DataSource(name, its, seed, num_proc) for name, its in settings.items()}
        check_sampling(sampling, list(self.sources))
        self.sampling: Sampling = sampling
        self.num_workers = num_workers
        self.seed = seed
        self.epoch = 0  # where training starts: worker processes fetch batches before Lightning tells samplers
        self.done = 0  # how many batches of that epoch a resumed run has seen
        self.labels = LabelSets({}, ())
        self.datasets: dict[str, dict[str, Any]] = {}  # of tables, and of a stream
        # Heads with weights, and so with labels, of the backbone's checkpoint, which the settings do not confirm.
        self.loaded: set[str] = set()
        # Heads that are not trained, and so need no rows.
        self.idle: set[str] = set()
        # Where the order of the rows to predict is restored: called with theirs when their loader is made, it gives the
        # number of batches that are done.
        self.begin_prediction: Callable[[WindowOrder], int] | None = None
        # By split and source, the features of a frozen backbone, which a run fills in.
        self.features: dict[tuple[str, str], list[FeatureStore]] = {}
        self._prediction: DataSource | None = None
        self._connection: tuple[Any, ...] = ()

    def connect(
        self, processor: Processor, heads: Mapping[str, Head], labels: Mapping[str, Sequence[str] | None]
    ) -> None:
        """Say what the data is for. With a Trainer this is taken from the LightningModule.

        Args:
            processor: The tokenizer, image processor or feature extractor of the model.
            heads: The heads by name; they need not be built. For prediction those to predict with.
            labels: The label sets that are fixed already, by head; the others are found in ``train``.
        """
        known = {name: tuple(names) if (names := labels.get(name)) is not None else None for name in heads}
        connection = (processor, dict(heads), known)
        if connection != self._connection:
            self._connection = connection
            self.processor, self.heads = processor, dict(heads)
            self.labels = LabelSets(known, self.loaded)
            self.datasets, self._prediction = {}, None

    @property
    def label_sets(self) -> dict[str, tuple[str, ...] | None]:
        """The label set of each head, as far as it is known."""
        return self.labels.found

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
            self.idle = set(module.hparams.get("frozen_heads") or ())
            heads = getattr(module, "predicted_heads", module.heads) if stage == "predict" else module.heads
            self.connect(module.processor, heads, module.labels)
        if not self._connection:
            raise HeadsetError(
                "TextData does not know its heads yet. Call connect(processor, heads, labels) before setup."
            )
        sources = [self._predicted()] if stage == "predict" else self._labelling()
        splits = {source.name: self._splits(source, stage) for source in sources}
        if not any(splits.values()):
            raise HeadsetError(
                f"There are no rows for {stage}: no source has them. Set data.sources.NAME.{STAGES[stage][0]}."
            )
        for source in sources:
            source.check(splits[source.name])
        by_head = {
            name: [source for source in sources if name in source.heads]
            for name in self.heads
            if stage != "predict" and any(name in source.heads and splits[source.name] for source in sources)
        }
        for name, its in by_head.items():
            self.labels.settle(name, its, stage == "fit")
        for source in sources:
            for split in splits[source.name]:
                examples = self.datasets.setdefault(split, {})
                if source.name not in examples:
                    examples[source.name] = source.examples(split, self.labels.found, self.labels.origins)
        # After the rows: where one of them is wrong, that says more than that the rest has one label.
        for name, its in by_head.items():
            self.labels.check(name, its)

    def label_counts(self) -> dict[str, LabelCounts]:
        """How often the rows to learn from have each label, for the heads that ask for it."""
        tables = self.datasets.get("train", {}).values()
        asking = [name for name, head in self.heads.items() if tables and head.needs_label_counts]
        return {name: count_labels(tables, name, self.label_sets[name] or ()) for name in asking}

    def raw(self, split: str, source: str | None = None) -> Dataset:
        """The table of a split as it was read; ``meta["rows"]`` of a batch are the row numbers in it.

        Where validation is a share of train, both are rows of the same table.

        Args:
            split: ``train``, ``validation``, ``test`` or ``predict``.
            source: The name of the source, where there are several.
        """
        return self._predicted().raw(split) if split == "predict" else self._source(source).raw(split)

    def examples(self, split: str, source: str | None = None) -> Dataset:
        """The encoded rows of a split; arguments as for `raw`."""
        return self.datasets[split]["" if split == "predict" else self._source(source).name]

    def train_dataloader(self) -> DataLoader[Any] | StreamLoader:
        """Batches of ``train`` in a new order each epoch, or in its own order with ``overfit_batches``."""
        overfit = getattr(self.trainer, "overfit_batches", 0)
        for rows in self.datasets["train"].values():
            if isinstance(rows, Stream):
                return StreamLoader(rows, None if overfit else self.seed, self.epoch, self.num_workers, self.done)
        return self._loader("train", shuffle=not overfit)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Batches of ``validation``, source by source; none where there is none."""
        return self._loader("validation") if "validation" in self.datasets else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches of ``test``, source by source."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of ``predict``: in order, unless ``begin_prediction`` is set."""
        loader = self._loader("predict")
        if self.begin_prediction is not None:
            loader.skip = self.begin_prediction(loader.sampler.orders[""])  # type: ignore[attr-defined]
        return loader

    def _loader(self, split: str, shuffle: bool = False) -> ResumableLoader:
        sources = {"": self._predicted()} if split == "predict" else self.sources
        sampling = self.sampling if shuffle or (split == "train" and self.sampling == "all") else "size"
        parts = {name: sources[name].part(split, rows, self.heads) for name, rows in self.datasets[split].items()}
        if split == "predict" and self.begin_prediction is None:
            parts = {name: replace(part, windows=False) for name, part in parts.items()}
        pinned = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        loader = step_loader(
            parts, shuffle, sampling, self.seed, self.epoch, self.num_workers, self.features, split, pinned
        )
        loader.skip = self.done if split == "train" else 0
        return loader

    def _source(self, name: str | None) -> DataSource:
        if name is None and len(self.sources) == 1:
            return next(iter(self.sources.values()))
        if name not in self.sources:
            raise invalid_choice("source", str(name), self.sources)
        return self.sources[name]

    def _labelling(self) -> list[DataSource]:
        """The sources, each told what heads it is for."""
        labels = {name: source.settings.labels for name, source in self.sources.items()}
        columns = label_columns(labels, self.heads, self.idle)
        for name, source in self.sources.items():
            source.connect(self.processor, {head: self.heads[head] for head in columns[name]}, columns[name])
        return list(self.sources.values())

    def _predicted(self) -> DataSource:
        """The rows to predict, read as those are that train the heads."""
        if self._prediction is None:
            settings = {name: source.settings for name, source in self.sources.items()}
            its = predict_settings(self.hparams, settings, self.heads)
            self._prediction = DataSource("", its, num_proc=self.hparams["num_proc"])
            self._prediction.connect(self.processor, self.heads, {})
        return self._prediction

    def _splits(self, source: DataSource, stage: str) -> list[str]:
        """The splits of a source that a stage needs."""
        if len(self.sources) == 1 and stage != "fit":
            return list(STAGES[stage])
        return [split for split in STAGES[stage] if split == "train" or source.locations[split] is not None]
