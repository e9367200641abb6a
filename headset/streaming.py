"""Training on a stream: rows that are read and encoded as they come, and that are never kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from backbones.errors import HeadsetError
from heads.base import Head
from headset.batches import Collator
from headset.checks import RowError
from headset.encoders import RAW
from headset.examples import ExampleMaker
from headset.source_settings import SourceSettings

__all__ = ["Stream", "StreamLoader", "check_counts", "check_stream", "first_rows", "is_stream"]

BUFFER = 10_000  # examples among which the next one is drawn
PART = 1000  # rows that are read at a time
Example = dict[str, Any]


def is_stream(source: Any) -> bool:
    """Whether a source is to be read as a stream."""
    return isinstance(source, Mapping) and bool(source.get("streaming"))


def check_stream(sources: Mapping[str, SourceSettings]) -> None:
    """Check that a stream is where one can be.

    Args:
        sources: The settings of each source.

    Raises:
        HeadsetError: It is not ``train``, not the only source, or asked for what needs its length.
    """
    for settings in sources.values():
        for split in ("validation", "test", "predict"):
            if is_stream(getattr(settings, split)):
                raise HeadsetError(
                    f"data.{split} is a stream, and only data.train can be one: leave out streaming: true."
                )
        if not is_stream(settings.train):
            continue
        if len(sources) > 1:
            raise HeadsetError(
                "A stream has no size by which sources could be drawn, so that it is the only source of a run. Leave "
                "out streaming: true, or the other sources."
            )
        if settings.batch_tokens is not None:
            raise HeadsetError(
                "data.batch_tokens makes batches of rows of like length, which are not known of a stream. Set "
                "data.batch_size."
            )
        if isinstance(settings.validation, int | float):
            raise HeadsetError(
                f"data.validation is {settings.validation}, and no share of a stream can be set apart, since its "
                "length is not known. Name the rows to validate on: data.validation: FILE."
            )


def check_counts(heads: Mapping[str, Head]) -> None:
    """Check that no head asks how often labels are in the rows to learn from.

    Raises:
        HeadsetError: One does.
    """
    for name, head in heads.items():
        if head.needs_label_counts:
            raise HeadsetError(
                f"The head {name!r} balances its labels by how often they are, which is not known of a stream. Give "
                "the weights: {LABEL: 1.0, ...}."
            )


def first_rows(rows: datasets.IterableDataset, place: str) -> Dataset:
    """The first rows of a stream, by which its columns are known.

    Raises:
        HeadsetError: There are none, or they cannot be read.
    """
    part = next(_parts(rows, place), None)
    if part is None:
        raise HeadsetError(f"train: {place} is empty, it has no rows.")
    return Dataset.from_dict(part, features=rows.features)


@dataclass
class Stream(IterableDataset[Any]):
    """The examples of a stream.

    Each process and each of its workers reads all rows, and encodes those of its own batches. So batches are the same
    whatever the number of workers, and two processes of b rows have what one of 2b rows has. Where long rows become
    several examples, each encodes all of them.

    Args:
        rows: The stream.
        maker: What makes examples of rows.
        collator: What makes a batch of examples.
        batch_size: The examples of a batch, in each process.
        place: What to call the stream in messages.
        labelled: Whether rows without a label for any head are left out.
        seed: With the epoch, where the order comes from; None keeps the order.
        epoch: The epoch to read.
        skip: The batches to pass over.
        processes: The number of processes and the number of this one.
    """

    rows: datasets.IterableDataset
    maker: ExampleMaker
    collator: Collator
    batch_size: int
    place: str
    labelled: bool = False
    seed: int | None = None
    epoch: int = 0
    skip: int = 0
    processes: tuple[int, int] = (1, 0)

    def __iter__(self) -> Iterator[Any]:
        """The batches of an epoch for this process and worker; an error, if it is one of the data, as the last."""
        worker = get_worker_info()
        workers, mine = (worker.num_workers, worker.id) if worker else (1, 0)
        world, rank = self.processes
        try:
            for number, batch in enumerate(self._batches(self.batch_size * world, world)):
                if number >= self.skip and (number - self.skip) % workers == mine:
                    yield self._batch(batch[rank::world]) if len(batch) > rank else self._filler(batch[0])
        except RowError as error:
            yield HeadsetError(f"train: {self.place}, row {error.row + 1} of the stream: {error.message}")
        except HeadsetError as error:
            yield error

    def _batches(self, size: int, world: int) -> Iterator[list[Example]]:
        """The batches of all processes."""
        examples = self._examples()
        if self.seed is not None:
            examples = _shuffled(examples, np.random.default_rng([self.seed, self.epoch]))
        batch = list(islice(examples, size))
        if len(batch) < world:
            raise HeadsetError(f"{len(batch)} rows cannot be shared among {world} processes.")
        while batch:
            yield batch
            batch = list(islice(examples, size))

    def _examples(self) -> Iterator[Example]:
        """Encoded examples where a row may become several, else the rows."""
        start = 0
        for part in _parts(self.rows, self.place):
            count = len(next(iter(part.values())))
            columns = {name: part.get(name, [None] * count) for name in self.maker.columns}
            numbers = list(range(start, start + count))
            start += count
            if self.labelled:
                kept = self._labelled(columns)
                numbers = [numbers[place] for place in kept]
                columns = {name: [values[place] for place in kept] for name, values in columns.items()}
            made = self.maker(columns, numbers) if self.maker.splits else columns | {"row": numbers}
            yield from (dict(zip(made, values, strict=True)) for values in zip(*made.values(), strict=True))

    def _labelled(self, columns: Mapping[str, list[Any]]) -> list[int]:
        """The places of rows that have a label for some head."""
        labels = [list(label.values(columns, self.maker.features)) for label in self.maker.labels.values()]
        return [place for place, values in enumerate(zip(*labels, strict=True)) if any(v is not None for v in values)]

    def _filler(self, example: Example) -> Any:
        """A batch that counts for nothing, of a process for which no row is left."""
        batch = self._batch([example])
        return {**batch, "meta": {**batch["meta"], "filler": True}}

    def _batch(self, examples: Sequence[Example]) -> Any:
        columns = {name: [example[name] for example in examples] for name in examples[0]}
        if not self.maker.splits:
            made = self.maker(columns, columns["row"])
            columns = {RAW: columns[self.maker.inputs[0]], **made} if self.maker.encoder.lazy else made
        return self.collator({name: values for name, values in columns.items() if name != "truncated"})


class StreamLoader:
    """The batches of a stream, epoch by epoch; a resumed run goes on in the middle of one.

    What a resumed run has seen is read again and passed over.

    Args:
        stream: The examples.
        seed: With the epoch, where their order comes from; None keeps the order.
        epoch: The epoch that comes first.
        workers: The number of worker processes.
        skip: The batches of that epoch to pass over.
    """

    def __init__(self, stream: Stream, seed: int | None, epoch: int = 0, workers: int = 0, skip: int = 0) -> None:
        self.stream = replace(stream, seed=seed, epoch=epoch)
        self.workers = workers
        self.skip = skip

    @property
    def sampler(self) -> "StreamLoader":
        """What Lightning tells the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch."""
        self.stream.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        """The batches of an epoch, or those that are left of it.

        Raises:
            HeadsetError: A row is at fault, or the stream cannot be read.
        """
        # Not before the first batch is asked for: Lightning makes an iterator only to see whether it can.
        skip, self.skip = self.skip, 0
        stream = replace(self.stream, skip=skip)
        if distributed.is_available() and distributed.is_initialized():
            stream.processes = distributed.get_world_size(), distributed.get_rank()
        if stream.seed is not None:
            # By which files come in another order. Here, since all workers share the number, which each would add to.
            stream.rows.set_epoch(1 + stream.seed + stream.epoch)
        for batch in DataLoader(stream, batch_size=None, num_workers=self.workers):
            if isinstance(batch, HeadsetError):
                raise batch
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Nothing; that it is here tells Lightning that an epoch can be resumed."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing."""


def _shuffled(examples: Iterator[Example], generator: np.random.Generator) -> Iterator[Example]:
    """Examples in the order in which they are drawn from a buffer, that is filled again with the next ones."""
    buffer = list(islice(examples, BUFFER))
    for example in examples:
        place = int(generator.integers(len(buffer)))
        yield buffer[place]
        buffer[place] = example
    yield from (buffer[place] for place in generator.permutation(len(buffer)))


def _parts(rows: datasets.IterableDataset, place: str) -> Iterator[dict[str, list[Any]]]:
    """The rows of a stream in parts, column by column.

    Raises:
        HeadsetError: They cannot be read.
    """
    try:
        yield from rows.iter(PART)
    except HeadsetError:
        raise
    except Exception as error:
        reason = next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__)
        raise HeadsetError(f"train: {place} cannot be read on: {type(error).__name__}: {reason}") from error
