"""Averaged weights, by Lightning's WeightAveraging and EMAWeightAveraging, without averaging whole numbers."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

__all__ = ["WholeNumbers"]


class WholeNumbers(Callback):
    """Has averages of weights copy buffers of whole numbers, such as the positions of tokens.

    ``use_buffers``, the default of those callbacks, would round the average of 3 and 3 down to 2 with some decays.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Change what the callbacks before this one average with."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            average = getattr(callback, "_average_model", None)
            if average is not None and average.avg_fn is not None:
                average.avg_fn = _of_floats(average.avg_fn)


def _of_floats(mean: Callable[..., Any]) -> Callable[..., Any]:
    def of_floats(averaged: Tensor, current: Tensor, number: Any) -> Any:
        return mean(averaged, current, number) if averaged.is_floating_point() else current

    return of_floats
