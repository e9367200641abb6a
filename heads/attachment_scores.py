"""How well words are attached to their heads."""

import torch
from torch import Tensor
from torchmetrics import Metric

from heads.target import IGNORE

__all__ = ["AttachmentScores"]


class AttachmentScores(Metric):
    """The share of words with the right head (``uas``), and with the right head and relation (``las``).

    All words count, also punctuation.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    heads: Tensor
    both: Tensor
    words: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("heads", "both", "words"):
            self.add_state(state, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the words of a batch.

        Args:
            preds: Heads and relations ``(B, T, 2)``.
            target: The true ones; a word is where the head is not -100.
        """
        words = target[..., 0] != IGNORE
        right = (preds == target) & words.unsqueeze(-1)
        self.heads += right[..., 0].sum()
        self.both += right.all(-1).sum()
        self.words += words.sum()

    def compute(self) -> dict[str, Tensor]:
        """The shares of all words so far."""
        words = self.words.clamp(min=1)
        return {"uas": self.heads / words, "las": self.both / words}
