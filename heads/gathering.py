"""Vectors of all processes in each of them, with their gradients."""

from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["gathered"]


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, in the order of the processes; every process has to call it.

    The gradient of a row is the sum of those in all processes. DistributedDataParallel takes the mean over processes,
    so that means over each process's part of a batch teach what their mean over the whole batch would.

    Args:
        rows: Those of this process ``(B, D)``; others may have more or fewer.

    Returns:
        All rows ``(B1 + B2 + ..., D)``, and where those of this process begin.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows, 0
    own = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, own)
    sizes = [int(count) for count in counts]
    filled = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), rows.shape[1])])
    parts = _AllGather.apply(filled)  # type: ignore[no-untyped-call]
    everything = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return everything, sum(sizes[: distributed.get_rank()])


class _AllGather(torch.autograd.Function):
    """What torch.distributed.nn has for some backends only."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient[distributed.get_rank()]
