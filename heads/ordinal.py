"""Ordinal objectives: classes in an order, learnt as ranks.

Of K classes a row has K - 1 rank scores, whether its class is above the first, the second, ...; from them come the
probabilities of all classes. The class that is predicted is the number of ranks that are more likely than not.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCohenKappa
from torchmetrics.regression import MeanAbsoluteError

__all__ = ["ORDINAL", "Coral", "Corn", "OrdinalScale", "ordinal_metrics"]


class OrdinalScale(nn.Module, ABC):
    """How scores become ranks, ranks probabilities, and what is learnt.

    Args:
        classes: K, the number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    @staticmethod
    @abstractmethod
    def size(classes: int) -> int:
        """How many scores a row has."""

    @abstractmethod
    def ranks(self, scores: Tensor) -> Tensor:
        """Rank scores ``(B, K - 1)``."""

    @abstractmethod
    def log_probabilities(self, ranks: Tensor) -> Tensor:
        """Logarithms of the probabilities of classes ``(B, K)``."""

    @abstractmethod
    def classify(self, ranks: Tensor) -> Tensor:
        """The classes ``(B,)``."""

    @abstractmethod
    def loss(self, ranks: Tensor, labels: Tensor) -> Tensor:
        """The loss, with labels ``(B,)``."""

    def loss_size(self, labels: Tensor) -> Tensor | float:
        """What the loss is a mean over."""
        return float(len(labels))


class Coral(OrdinalScale):
    """CORAL (Cao, Mirjalili, Raschka 2020): one score a row, and a bias for each rank; consistent ranks.

    The biases start as those of coral-pytorch, the authors' own implementation.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.biases = nn.Parameter(torch.arange(classes - 1, 0, -1).float() / (classes - 1))

    @staticmethod
    def size(classes: int) -> int:
        """One."""
        return 1

    def ranks(self, scores: Tensor) -> Tensor:
        """The score and each bias."""
        return scores.float() + self.biases.float()

    def log_probabilities(self, ranks: Tensor) -> Tensor:
        """Differences of the probabilities of being above a rank, taken in falling order, in which they end up."""
        above = ranks.sort(-1, descending=True).values
        upper, lower = above[:, :-1], above[:, 1:]
        gap = (lower - upper).clamp(max=-torch.finfo(above.dtype).eps)
        between = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(gap))
        return torch.cat([F.logsigmoid(-above[:, :1]), between, F.logsigmoid(above[:, -1:])], -1)

    def classify(self, ranks: Tensor) -> Tensor:
        """The number of ranks with a probability above one half."""
        return (ranks > 0).sum(-1)

    def loss(self, ranks: Tensor, labels: Tensor) -> Tensor:
        """Binary cross entropy of each rank, the sum over ranks, the mean over rows."""
        above = _above(labels, self.classes)
        return F.binary_cross_entropy_with_logits(ranks, above.float(), reduction="none").sum(-1).mean()


class Corn(OrdinalScale):
    """CORN (Shi, Cao, Raschka 2021): a rank is learnt from the rows that are above the ranks before it."""

    @staticmethod
    def size(classes: int) -> int:
        """K - 1."""
        return classes - 1

    def ranks(self, scores: Tensor) -> Tensor:
        """The scores."""
        return scores.float()

    def log_probabilities(self, ranks: Tensor) -> Tensor:
        """Products of the conditional probabilities, by the chain rule."""
        above = F.pad(F.logsigmoid(ranks).cumsum(-1), (1, 0))
        return above + F.pad(F.logsigmoid(-ranks), (0, 1))

    def classify(self, ranks: Tensor) -> Tensor:
        """The number of ranks with a probability above one half."""
        return (ranks.sigmoid().cumprod(-1) > 0.5).sum(-1)

    def loss(self, ranks: Tensor, labels: Tensor) -> Tensor:
        """Binary cross entropy, the mean over all pairs of a rank and a row that it is learnt from."""
        above = _above(labels, self.classes)
        learnt = self._learnt(above)
        each = F.binary_cross_entropy_with_logits(ranks, above.float(), reduction="none")
        return (each * learnt).sum() / learnt.sum()

    def loss_size(self, labels: Tensor) -> Tensor:
        """The number of these pairs."""
        return self._learnt(_above(labels, self.classes)).sum()

    @staticmethod
    def _learnt(above: Tensor) -> Tensor:
        """Which ranks a row teaches, bool ``(B, K - 1)``: the first, and those after one that it is above."""
        return F.pad(above[:, :-1], (1, 0), value=True)


ORDINAL: dict[str, type[OrdinalScale]] = {"coral": Coral, "corn": Corn}


def ordinal_metrics(classes: int) -> MetricCollection:
    """Accuracy, mean absolute error in ranks, and Cohen's kappa with quadratic weights."""
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "mae": MeanAbsoluteError(),
            "kappa": MulticlassCohenKappa(classes, weights="quadratic"),
        }
    )


def _above(labels: Tensor, classes: int) -> Tensor:
    """Whether a row is above each rank, bool ``(B, K - 1)``."""
    return labels.unsqueeze(-1) > torch.arange(classes - 1, device=labels.device)
