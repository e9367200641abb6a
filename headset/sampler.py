"""Which rows make up a batch, in one process or several, and which are set apart for validation."""

from collections import defaultdict
from collections.abc import Iterator, Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import distributed
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

from backbones.errors import HeadsetError

__all__ = ["RowBatches", "stratified_cut"]


# Lightning leaves a DistributedSampler alone under DDP and a SequentialSampler alone under overfit_batches; it would
# put a sampler of single rows in the place of any other.
class RowBatches(DistributedSampler[Any], SequentialSampler):
    """Batches of row indices, such that every row comes once an epoch, over all processes together.

    With W processes a batch of ``batch_size * W`` rows is dealt out among them, so that two processes of b rows train
    on what one process of 2b rows would. All processes have equally many batches: where the last rows are too few to
    give each process one, they join the batch before.

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

    def __iter__(self) -> Iterator[Any]:
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


def stratified_cut(groups: Sequence[Any], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Set a share of rows apart, the same share of each group.

    Args:
        groups: The group of each row.
        share: The share to set apart, between 0 and 1.
        seed: Where the choice comes from.

    Returns:
        The rows that stay and those set apart, each in order. Every group keeps at least one row.

    Raises:
        HeadsetError: Nothing can be set apart.
    """
    members: dict[Any, list[int]] = defaultdict(list)
    for row in np.random.default_rng(seed).permutation(len(groups)).tolist():
        members[groups[row]].append(row)
    wanted = {group: share * len(rows) for group, rows in members.items()}
    count = {group: min(int(wanted[group]), len(rows) - 1) for group, rows in members.items()}
    # What rounding down left over goes to the groups that lost most by it.
    open_groups = [group for group, rows in members.items() if count[group] < min(wanted[group], len(rows) - 1)]
    left = max(1, round(share * len(groups))) - sum(count.values())
    for group in sorted(open_groups, key=lambda group: count[group] - wanted[group])[: max(left, 0)]:
        count[group] += 1
    apart = sorted(row for group, rows in members.items() for row in rows[: count[group]])
    if not apart:
        raise HeadsetError(
            f"No rows of {len(groups)} can be set apart for validation: each is the only one of its class."
        )
    kept = set(range(len(groups))).difference(apart)
    return sorted(kept), apart
