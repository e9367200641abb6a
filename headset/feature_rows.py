"""Batches with the features of their rows, where there are such."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from headset.feature_store import FeatureStore
from headset.orders import Filler

__all__ = ["Features", "FeaturesBeside", "NumberedRows"]

# By split and source, for each call. It is filled when loaders are made already, and before their first batch.
Features = Mapping[tuple[str, str], Sequence[FeatureStore]]


class NumberedRows(Dataset[Any]):
    """The rows of steps, with what asked for them: the name of a source and numbers of rows; or a list of such."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        """The number of all rows."""
        return len(self.rows)

    def __getitem__(self, step: Any) -> Any:
        """The step and its rows."""
        return step, self.rows[step]


class FeaturesBeside:
    """Makes batches, and puts the features of their rows into ``meta["features"]``: for each call the kept tensors.

    ``meta["filler"]`` says of a batch that it counts for nothing.

    Args:
        collate: What makes a batch of rows, or a list of batches of those of several sources.
        features: The features of all rows.
        split: Of which split they are.
    """

    def __init__(self, collate: Callable[[Any], Any], features: Features, split: str) -> None:
        self.collate = collate
        self.features = features
        self.split = split

    def __call__(self, numbered: Any) -> Any:
        """The batch, or the batches, of a step."""
        step, rows = numbered
        batches = self.collate(rows)
        pairs = zip(step, batches, strict=True) if isinstance(step, list) else [(step, batches)]
        for (source, numbers), batch in pairs:
            if stores := self.features.get((self.split, source)):
                batch["meta"]["features"] = [store.gather(numbers) for store in stores]
            if isinstance(numbers, Filler):
                batch["meta"]["filler"] = True
        return batches
