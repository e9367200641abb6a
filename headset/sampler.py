"""Which rows make up a batch, in one process or several."""

from collections.abc import Iterator, Sized
from typing import Any, cast

import torch
from torch import distributed
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

from backbones.errors import HeadsetError

__all__ = ["RowBatches"]


# Lightning leaves a DistributedSampler alone under DDP and a SequentialSampler alone under overfit_batches; it would
# put a sampler of single rows in the place of any other.
class RowBatches(DistributedSampler[Any], SequentialSampler):
    """Batches of row indices, such that every row comes once an epoch, over all processes together.

    With W processes a batch of ``batch_size * W`` rows is dealt out among them, so that two processes of b rows train on
    what one process of 2b rows would. All processes have equally many batches: where the last rows are too few to give
    each process one, they join the batch before.

    Args:
        dataset: The rows; only their number counts.
        batch_size: The rows of one batch in one process.
        shuffle: Whether each epoch has its own order.
        seed: With the epoch, what the order comes from.
        num_replicas: The number of processes, W; None asks ``torch.distributed`` when the batches are made.
        rank: The number of this process; None likewise.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(cast(Dataset[Any], dataset), num_replicas or 1, rank or 0, shuffle, seed)
        self.batch_size = batch_size
        self.fixed = num_replicas is not None

    def processes(self) -> tuple[int, int]:
        """The number of processes and the number of this one."""
        if self.fixed or not (distributed.is_available() and distributed.is_initialized()):
            return self.num_replicas, self.rank
        return distributed.get_world_size(), distributed.get_rank()

    def starts(self) -> list[int]:
        """Where in the order each batch of all processes begins.

        Raises:
            HeadsetError: There are fewer rows than processes.
        """
        world, _ = self.processes()
        rows = len(cast(Sized, self.dataset))
        if rows < world:
            raise HeadsetError(f"{rows} rows cannot be shared among {world} processes. Use at most {rows} devices.")
        starts = list(range(0, rows, self.batch_size * world))
        return starts[:-1] if rows - starts[-1] < world else starts

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of this process."""
        rows = len(cast(Sized, self.dataset))
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(rows, generator=generator).tolist() if self.shuffle else list(range(rows))
        world, rank = self.processes()
        starts = self.starts()
        for start, end in zip(starts, [*starts[1:], rows], strict=True):
            yield order[start:end][rank::world]

    def __len__(self) -> int:
        """The number of batches, the same in every process."""
        return len(self.starts())
