"""Numbers of a head that keep their precision whatever its weights are in."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FullPrecision"]


class FullPrecision(nn.Module):
    """Numbers that no optimizer changes and checkpoints hold, in float32: weights of labels, thresholds.

    Args:
        values: What they start as.
    """

    value: Tensor

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(values, dtype=torch.float32))

    def set(self, values: Tensor) -> None:
        """Give the numbers other values."""
        self.value.copy_(values)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Go along to other devices, and not to other types."""
        before = self.value
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.value.dtype != before.dtype:
            self.value = before.to(self.value.device)
        return self
