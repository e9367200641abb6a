"""What is chosen on validation: a threshold for each label, and the temperature of probabilities."""

import torch
from torch import Tensor

__all__ = ["best_temperature", "best_thresholds"]

HALVINGS = 50
LOWEST, HIGHEST = 0.01, 100.0  # of temperatures


def best_thresholds(probabilities: Tensor, labels: Tensor, otherwise: float = 0.5) -> Tensor:
    """The threshold of each label with the best F1.

    It lies half way between two probabilities, so that rounding changes nothing. Of equally good ones it is the one
    nearest to one half, and of two such the higher.

    Args:
        probabilities: Of N rows ``(N, L)``.
        labels: Zeros and ones ``(N, L)``.
        otherwise: For labels that no row has.

    Returns:
        Thresholds, float64 ``(L,)``: a label counts as given from there.
    """
    scores, order = probabilities.double().sort(dim=0, descending=True, stable=True)
    hits = labels.double().gather(0, order).cumsum(0)
    given = torch.arange(1, len(scores) + 1, device=scores.device, dtype=scores.dtype).unsqueeze(1)
    following = torch.cat([scores[1:], scores.new_zeros(1, scores.shape[1])])
    f1 = 2 * hits / (given + hits[-1])
    thresholds = (scores + following) / 2
    # Equal probabilities are on the same side of any threshold.
    f1[:-1][scores[1:] == scores[:-1]] = -1
    distance = (thresholds - 0.5).abs().masked_fill(f1 < f1.amax(0), 2)
    best = distance.argmin(0, keepdim=True)
    found = thresholds.gather(0, best).squeeze(0)
    return torch.where(hits[-1] > 0, found, otherwise)


def best_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """The temperature T that gives ``softmax(logits / T)`` the best likelihood (Guo et al. 2017).

    The negative logarithm of the likelihood is convex in ``1 / T``, so that the sign of its derivative says on which
    side the optimum is.

    Args:
        logits: Of N rows ``(N, C)``.
        labels: Their classes ``(N,)``.

    Returns:
        T between 0.01 and 100, float64, a scalar.
    """
    logits = logits.double()
    truth = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    low, high = (logits.new_tensor(bound).log() for bound in (LOWEST, HIGHEST))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        expected = ((logits / middle.exp()).softmax(-1) * logits).sum(-1)
        # The derivative by 1 / T: where it is above 0, 1 / T is too large.
        too_cold = (expected - truth).mean() > 0
        low, high = torch.where(too_cold, middle, low), torch.where(too_cold, high, middle)
    return ((low + high) / 2).exp()
