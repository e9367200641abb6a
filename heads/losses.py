"""Loss functions of heads, as functions of scores and labels; each in float32, a mean as its reference takes it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from heads.target import IGNORE

__all__ = ["binary_cross_entropy", "class_size", "cross_entropy", "number_loss"]

TINY = 1e-12  # in the place of the sum of weights, where no row has any


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0, gamma: float = 0.0
) -> Tensor:
    """Cross entropy of one class a row, as torch has it, or focal loss (Lin et al. 2017).

    The focal loss of a row is ``-weight * (1 - p) ** gamma * log(p)``, p the probability of its class; with gamma 0 it
    is cross entropy.

    Args:
        logits: Scores ``(N, C)``.
        labels: Classes ``(N,)``, -100 where there is none; or probabilities ``(N, C)``.
        weights: Of the classes ``(C,)``. The loss is then a mean over the weights of the rows' classes; over rows,
            where labels are probabilities.
        smoothing: The part of each label that is shared among all classes; without gamma.
        gamma: How much rows count less that are right already; with classes only.
    """
    logits = logits.float()
    if not gamma:
        labels = labels.float() if labels.is_floating_point() else labels
        if weights is None or labels.is_floating_point():
            return F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, label_smoothing=smoothing)
        total = F.cross_entropy(
            logits, labels, weights, ignore_index=IGNORE, label_smoothing=smoothing, reduction="sum"
        )
        return total / _row_weights(labels, weights).sum().clamp(min=TINY)
    rows = F.nll_loss(logits.log_softmax(-1), labels, ignore_index=IGNORE, reduction="none")  # -log(p), 0 without label
    # A probability of 1 has no gradient, also where gamma is below 1.
    wrong = (-torch.expm1(-rows)).clamp(min=torch.finfo(rows.dtype).eps)
    each = _row_weights(labels, weights)
    return (each * wrong**gamma * rows).sum() / each.sum().clamp(min=TINY)


def class_size(labels: Tensor, weights: Tensor | None = None) -> Tensor | float:
    """What `cross_entropy` is a mean over: rows with a class, or the weights of their classes."""
    return float(len(labels)) if labels.is_floating_point() else _row_weights(labels, weights).sum()


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0, gamma: float = 0.0
) -> Tensor:
    """Binary cross entropy of several labels a row, as torch has it; or focal loss, as torchvision without alpha.

    Args:
        logits: Scores ``(B, L)``.
        labels: Zeros and ones ``(B, L)``.
        weights: Of the ones of each label ``(L,)``, as ``pos_weight`` of torch.
        smoothing: The part of each label that goes half to 0, half to 1.
        gamma: How much answers count less that are right already.
    """
    logits = logits.float()
    labels = labels.float() * (1 - smoothing) + smoothing / 2
    each = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="none")
    if gamma:
        chance = logits.sigmoid()
        wrong = chance + labels - 2 * chance * labels
        each = each * wrong.clamp(min=torch.finfo(wrong.dtype).eps) ** gamma
    return each.mean()


def number_loss(values: Tensor, labels: Tensor, kind: str, delta: float = 1.0) -> Tensor:
    """The loss of numbers: ``mse``, ``l1``, or ``huber``, which is quadratic up to ``delta`` and linear from there.

    Args:
        values: Numbers of the shape of ``labels``.
        labels: The true ones.
        kind: Which of the three.
        delta: Of the Huber loss (Huber 1964).
    """
    values, labels = values.float(), labels.float()
    if kind == "huber":
        return F.huber_loss(values, labels, delta=delta)
    return F.l1_loss(values, labels) if kind == "l1" else F.mse_loss(values, labels)


def _row_weights(labels: Tensor, weights: Tensor | None) -> Tensor:
    """The weight of each row's class ``(N,)``, 0 where there is none."""
    known = labels != IGNORE
    return known.float() if weights is None else weights[labels.clamp(min=0)] * known
