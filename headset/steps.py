"""The data loader: a step has rows of one source, or of all, and the batches made of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch.utils.data import Dataset as Table

from headset.batches import Collator
from headset.columns import Columns, Sizes
from headset.feature_rows import Features, FeaturesBeside, NumberedRows
from headset.interruption import ignore_signals
from headset.loader import ResumableLoader
from headset.orders import Order, RowOrder, TokenOrder, WindowOrder
from headset.sampler import Sampling, SourceBatches

__all__ = ["SourcePart", "StepRows", "step_loader"]


@dataclass(frozen=True)
class SourcePart:
    """The examples of one source for a split, and how they become batches.

    Args:
        rows: The examples.
        batch_size: The rows of a batch, in each process.
        collator: What makes a batch of rows.
        batch_tokens: The most tokens of a batch instead, in each process.
        windows: Whether it is made in windows of rows, each sorted by length.
    """

    rows: Dataset
    batch_size: int
    collator: Collator
    batch_tokens: int | None = None
    windows: bool = False

    @property
    def order(self) -> Order:
        """How its rows become batches."""
        if self.batch_tokens is not None:
            return TokenOrder(len(self.rows), self.batch_tokens, Sizes(self.rows), self.collator.source)
        if self.windows:
            measure = Sizes(self.rows) if "input_ids" in self.rows.column_names else None
            return WindowOrder(len(self.rows), self.batch_size, measure)
        return RowOrder(len(self.rows), self.batch_size)


class StepRows(Table[Any]):
    """The examples of all sources, by what `SourceBatches` gives for a step."""

    def __init__(self, parts: Mapping[str, SourcePart]) -> None:
        self.rows = {name: Columns(part.rows) for name, part in parts.items()}

    def __len__(self) -> int:
        """The number of all rows."""
        return sum(map(len, self.rows.values()))

    def __getitem__(self, step: Any) -> Any:
        """The name of the source with its rows, column by column; of several batches a list."""
        if isinstance(step, list):
            return [self[batch] for batch in step]
        source, rows = step
        return source, self.rows[source][rows]


class StepCollator:
    """Makes of the rows of a source a batch, and of those of several a list of batches."""

    def __init__(self, parts: Mapping[str, SourcePart]) -> None:
        self.collators = {name: part.collator for name, part in parts.items()}

    def __call__(self, step: Any) -> Any:
        """The batch, or the batches, of what `StepRows` gives."""
        if isinstance(step, list):
            return [self(batch) for batch in step]
        source, rows = step
        return self.collators[source](rows)


def step_loader(
    parts: Mapping[str, SourcePart],
    shuffle: bool,
    sampling: Sampling,
    seed: int,
    epoch: int,
    workers: int,
    features: Features,
    split: str,
    pinned: bool = False,
) -> ResumableLoader:
    """A data loader over the examples of several sources.

    Args:
        parts: The examples of each source; those without any are passed over.
        shuffle: Whether each epoch has its own order.
        sampling: Which sources a step has, as `SourceBatches` says.
        seed: With the epoch, where orders come from.
        epoch: The epoch that comes first.
        workers: The number of worker processes.
        features: What batches have beside, by split and source.
        split: Which split the examples are of.
        pinned: Whether batches lie where a GPU fetches them from by itself.
    """
    parts = {name: part for name, part in parts.items() if len(part.rows)}
    orders = {name: part.order for name, part in parts.items()}
    steps: Any = SourceBatches(orders, shuffle, sampling, seed)
    steps.set_epoch(epoch)
    return ResumableLoader(
        NumberedRows(StepRows(parts)),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=FeaturesBeside(StepCollator(parts), features, split),
        persistent_workers=workers > 0,
        pin_memory=pinned,
        worker_init_fn=ignore_signals,
    )
