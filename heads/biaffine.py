"""Scores of pairs of vectors."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Biaffine"]


class Biaffine(nn.Module):
    """A score, or C of them, for a dependent x and a head y: ``[x; 1] U [y; 1]`` (Dozat and Manning 2017).

    Args:
        size: D, the width of both vectors.
        outputs: C, the number of scores.
        head_bias: Whether y is extended by a one as well: without, what x alone says is left out.
    """

    def __init__(self, size: int, outputs: int, head_bias: bool) -> None:
        super().__init__()
        self.head_bias = head_bias
        self.weight = nn.Parameter(torch.empty(outputs, size + 1, size + head_bias))
        nn.init.normal_(self.weight, std=size**-1.0)

    def forward(self, dependents: Tensor, heads: Tensor) -> Tensor:
        """The scores of each pair ``(B, T, C)``, of dependents and heads ``(B, T, D)``."""
        dependents, heads = self._extended(dependents, heads)
        return torch.einsum("bti,cij,btj->btc", dependents, self.weight, heads)

    def all_pairs(self, dependents: Tensor, heads: Tensor) -> Tensor:
        """The first score of all pairs ``(B, T, S)``, of dependents ``(B, T, D)`` and heads ``(B, S, D)``."""
        dependents, heads = self._extended(dependents, heads)
        return dependents @ self.weight[0] @ heads.transpose(1, 2)

    def _extended(self, dependents: Tensor, heads: Tensor) -> tuple[Tensor, Tensor]:
        return F.pad(dependents, (0, 1), value=1.0), F.pad(heads, (0, 1), value=1.0) if self.head_bias else heads
