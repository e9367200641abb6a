"""How well spans are found."""

from collections.abc import Sequence, Set

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["SpanScores"]


class SpanScores(Metric):
    """Exact precision, recall and F1: a span counts if its boundaries and its label are right (micro average).

    Of spans that do not overlap these are the numbers of seqeval; 0 where there is nothing to count.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    predicted: Tensor
    true: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("correct", "predicted", "true"):
            self.add_state(state, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Sequence[Set[tuple[int, ...]]], target: Sequence[Set[tuple[int, ...]]]) -> None:
        """Count the spans of a batch.

        Args:
            preds: The spans of each row, as (first word, word after the last, label).
            target: The true ones.
        """
        for found, true in zip(preds, target, strict=True):
            self.correct += len(found & true)
            self.predicted += len(found)
            self.true += len(true)

    def compute(self) -> dict[str, Tensor]:
        """The scores of all spans so far."""
        return {
            "precision": self.correct / self.predicted.clamp(min=1),
            "recall": self.correct / self.true.clamp(min=1),
            "f1": 2 * self.correct / (self.predicted + self.true).clamp(min=1),
        }
