"""Dropout on a CPU from few random bits: torch draws a number for each value, which costs as much as a layer."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout
from torch.overrides import TorchFunctionMode

__all__ = ["FastDropout", "kept"]

LEVELS = 2**16


def kept(values: Tensor, share: float) -> tuple[Tensor, float]:
    """Which values stay, 1 or 0 in a byte each, and what they are multiplied by to make up for the others.

    Each value has 16 random bits of its own; a share of 0.1 becomes 6,554 of 65,536.

    Args:
        values: Any tensor on the CPU.
        share: Of the values that are dropped, between 0 and 1.
    """
    dropped = round(share * LEVELS)
    bits = torch.empty((values.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    draws = bits.view(torch.int16)[: values.numel()].view(values.shape)
    # Comparing into bytes is several times faster than into booleans, and so is multiplying by them.
    stays = torch.ge(draws, dropped - LEVELS // 2, out=torch.empty(values.shape, dtype=torch.uint8))
    return stays, LEVELS / (LEVELS - dropped)


class FastDropout(TorchFunctionMode):
    """While this is open, ``torch.nn.functional.dropout`` draws as `kept` does, for float32 on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        kwargs = kwargs or {}
        if func is dropout and _applies(*args, **kwargs):
            values, share = args[0], kwargs["p"]
            stays, factor = kept(values, share)
            return (values * stays).mul_(factor)
        return func(*args, **kwargs)


def _applies(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> bool:
    here = values.device.type == "cpu" and values.dtype == torch.float32
    return here and training and not inplace and 0 < p < 1
