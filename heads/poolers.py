"""Pooling: from one vector a token to one vector a text, by the attention mask."""

import torch
from torch import Tensor, nn

from backbones.errors import HeadsetError, invalid_choice

__all__ = ["POOLING_MODES", "Pooler", "pooling_modes"]

POOLING_MODES = ("cls", "max", "mean", "last", "attention")  # in the order in which sentence-transformers saves them


def pooling_modes(pooling: str | list[str]) -> tuple[str, ...]:
    """The pooling modes asked for, in the order in which they are concatenated.

    Raises:
        HeadsetError: A mode is unknown or named twice, or none is named.

    >>> pooling_modes(["mean", "cls"])
    ('cls', 'mean')
    """
    modes = [pooling] if isinstance(pooling, str) else pooling
    if not modes:
        raise HeadsetError(f"The list of pooling modes is empty. Valid pooling modes: {', '.join(POOLING_MODES)}.")
    for mode in modes:
        if mode not in POOLING_MODES:
            raise invalid_choice("pooling mode", mode, POOLING_MODES)
        if modes.count(mode) > 1:
            raise HeadsetError(f"Pooling mode {mode!r} is named twice: {', '.join(modes)}. Name each mode once.")
    return tuple(mode for mode in POOLING_MODES if mode in modes)


class Pooler(nn.Module):
    """One vector a text, from the tokens that the attention mask keeps; padding may be on any side, or in between.

    - ``cls``: the first token kept.
    - ``max``, ``mean``: over the tokens kept, dimension by dimension.
    - ``last``: the last token kept.
    - ``attention``: the mean weighted by ``softmax(H q)`` with a learned query q (Safari et al. 2020, "Self-attention
      encoding and pooling for speaker recognition").

    Several modes are concatenated in this order, whatever the order given, as in sentence-transformers' ``Pooling``
    module, whose vectors these equal. A text without any token kept gives zeros.

    Args:
        pooling: One of the modes or a list of them.
        hidden_size: D, the width of a token's vector.
        initializer_range: Standard deviation of the query at the start.

    Raises:
        HeadsetError: A mode is unknown or named twice.
    """

    def __init__(self, pooling: str | list[str], hidden_size: int, initializer_range: float = 0.02) -> None:
        super().__init__()
        self.modes = pooling_modes(pooling)
        self.width = hidden_size * len(self.modes)
        if "attention" in self.modes:
            self.query = nn.Parameter(torch.empty(hidden_size).normal_(std=initializer_range))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool.

        Args:
            hidden: Token vectors ``(B, T, D)``. What stands at masked positions is never looked at.
            mask: Which tokens to keep ``(B, T)``, boolean or 0/1.

        Returns:
            Vectors ``(B, width)`` in the dtype of ``hidden``; sums are taken in float32 or better.
        """
        mask = mask.bool().unsqueeze(-1)
        hidden = hidden.masked_fill(~mask, 0.0)
        return torch.cat([self._pool(mode, hidden, mask).to(hidden.dtype) for mode in self.modes], dim=-1)

    def _pool(self, mode: str, hidden: Tensor, mask: Tensor) -> Tensor:
        accumulate = torch.promote_types(hidden.dtype, torch.float32)
        lowest = torch.finfo(hidden.dtype).min
        if mode == "cls":
            return _token(hidden, mask.int().argmax(dim=1, keepdim=True))
        if mode == "last":
            return _token(hidden, _last(mask))
        if mode == "max":
            return hidden.masked_fill(~mask, lowest).amax(dim=1).masked_fill(~mask.any(dim=1), 0.0)
        if mode == "mean":
            return hidden.sum(dim=1, dtype=accumulate) / mask.sum(dim=1).clamp(min=1)
        scores = (hidden @ self.query).unsqueeze(-1)
        shares = scores.masked_fill(~mask, lowest).softmax(dim=1, dtype=accumulate)
        return (shares * hidden).sum(dim=1)


def _token(hidden: Tensor, index: Tensor) -> Tensor:
    """The vector ``(B, D)`` of one token each, by its index ``(B, 1, 1)``; take_along_dim would fix T in ONNX."""
    return hidden.gather(1, index.expand(-1, -1, hidden.shape[-1])).squeeze(1)


def _last(mask: Tensor) -> Tensor:
    """The index of the last token kept ``(B, 1, 1)``."""
    return mask.shape[1] - 1 - mask.int().flip(1).argmax(dim=1, keepdim=True)
