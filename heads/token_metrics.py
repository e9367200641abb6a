"""Metrics over tokens of a vocabulary, any number of them at a time; also none."""

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

__all__ = ["Perplexity", "TokenAccuracy"]


class TokenAccuracy(MeanMetric):
    """The share of tokens with the best score; ``update`` takes scores ``(N, V)`` and tokens ``(N,)``."""

    def update(self, scores: Tensor, tokens: Tensor) -> None:  # type: ignore[override]
        """Add some tokens."""
        super().update((scores.argmax(-1) == tokens).float())


class Perplexity(MeanMetric):
    """The exponential of the mean loss of all tokens; ``update`` takes scores ``(N, V)`` and tokens ``(N,)``."""

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def update(self, scores: Tensor, tokens: Tensor) -> None:  # type: ignore[override]
        """Add the losses of some tokens."""
        super().update(F.cross_entropy(scores, tokens, reduction="none"))

    def compute(self) -> Tensor:
        """The perplexity of all tokens so far."""
        return super().compute().exp()
