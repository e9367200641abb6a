"""Masking: which tokens are taken out of a text, and what stands in their place.

As BERT's authors do it (Devlin et al., 2019, https://arxiv.org/abs/1810.04805): 15 % of the tokens are to be found
again; of these 80 % are replaced by the mask token, 10 % by any token, and 10 % stay.
"""

import zlib

import torch
from torch import Tensor

__all__ = ["fixed_draws", "mask_tokens", "word_starts"]

REPLACED, OTHER = 0.8, 0.1  # the shares of masked tokens that become the mask token, and any token


def mask_tokens(ids: Tensor, masked: Tensor, draws: Tensor, mask_id: int, vocab_size: int) -> Tensor:
    """Put something else in the place of most masked tokens.

    Args:
        ids: Token ids ``(B, T)``.
        masked: Which of them are masked ``(B, T)``.
        draws: Numbers from 0 to 1 ``(2, B, T)``: what stands in the place of a token, and which other token that is.
        mask_id: The mask token.
        vocab_size: How many tokens there are to stand in the place of one.

    Returns:
        The ids with tokens masked ``(B, T)``.
    """
    replaced = masked & (draws[0] < REPLACED)
    other = masked & ~replaced & (draws[0] < REPLACED + OTHER)
    drawn = (draws[1] * vocab_size).long().clamp(max=vocab_size - 1)
    return torch.where(other, drawn, ids.masked_fill(replaced, mask_id))


def word_starts(word_ids: Tensor) -> Tensor:
    """For each token ``(B, T)`` the position of the first one of its word; its own where it is of no word (-1)."""
    positions = torch.arange(word_ids.shape[-1], device=word_ids.device).expand_as(word_ids)
    goes_on = torch.zeros_like(word_ids, dtype=torch.bool)
    goes_on[:, 1:] = (word_ids[:, 1:] == word_ids[:, :-1]) & (word_ids[:, 1:] >= 0)
    return positions.masked_fill(goes_on, 0).cummax(-1).values


def fixed_draws(ids: Tensor, real: Tensor) -> Tensor:
    """Draws ``(3, B, T)`` that come from the tokens of a row alone: the same in every epoch, batch and process.

    Args:
        ids: Token ids ``(B, T)``.
        real: Which of them are not padding ``(B, T)``.
    """
    draws = torch.ones(3, *ids.shape)
    for row, (tokens, where) in enumerate(zip(ids.cpu(), real.cpu(), strict=True)):
        seed = zlib.crc32(tokens[where].numpy().tobytes())
        draws[:, row, where] = torch.rand(3, int(where.sum()), generator=torch.Generator().manual_seed(seed))
    return draws.to(ids.device)
