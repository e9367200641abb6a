"""Attention with dropout on a CPU, over rows of several lengths, in few calls.

With dropout torch has no kernel for attention on a CPU, and computes it in some twenty calls, there and back, for each
length; in a batch of short texts the calls cost more than what they compute. Here rows of about one length share the
products of matrices and the softmax, and all rows whatever else there is.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from backbones.dropout import kept

__all__ = ["grouped_attention"]

CALLS = 20_000  # pairs of tokens that cost as much as one more bucket

Groups = tuple[tuple[int, int], ...]


class Buckets(NamedTuple):
    """Rows of about one length, each padded to the longest of its bucket.

    Args:
        sizes: How many rows times heads there are in each bucket, and how long they are.
        places: Where each head of each token lies among padded rows, which lie by row, head and token; ``(N * H,)``.
        masks: For each bucket -inf at padding, ``(rows * H, 1, length)``, or None where there is none.
    """

    sizes: Groups
    places: Tensor
    masks: tuple[Tensor | None, ...]


def grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, groups: Groups, scaling: float, dropout: float
) -> Tensor:
    """Softmax attention within rows, as ``scaled_dot_product_attention`` has it.

    Args:
        query: ``(1, H, N, D)``.
        key: ``(1, H, N, D)``.
        value: ``(1, H, N, D)``.
        groups: How many rows there are of which length, ascending, in the order in which they lie.
        scaling: What scores are multiplied by.
        dropout: The share of the attention that is dropped.

    Returns:
        ``(1, N, H, D)``.
    """
    _, heads, tokens, width = query.shape
    q, k, v = (it.transpose(1, 2).reshape(-1, width) for it in (query, key, value))
    buckets = buckets_of(groups, heads)
    answer: Tensor = _Attention.apply(q, k, v, buckets, scaling, dropout)  # type: ignore[no-untyped-call]
    return answer.view(1, tokens, heads, width)


@functools.lru_cache(maxsize=16)
def buckets_of(groups: Groups, heads: int) -> Buckets:
    """Lengths are put together where the padding costs less than calls of their own."""
    buckets: list[list[int]] = []  # the lengths of the rows in each
    for rows, length in groups:
        before = buckets[-1] if buckets else []
        if before and len(before) * heads * (length**2 - before[-1] ** 2) < CALLS:
            before += [length] * rows
        else:
            buckets.append([length] * rows)
    sizes = tuple((len(lengths) * heads, lengths[-1]) for lengths in buckets)
    every = torch.arange(sum(rows * longest for rows, longest in sizes))
    parts = every.split([rows * longest for rows, longest in sizes])
    places, masks = [], []
    for part, lengths in zip(parts, buckets, strict=True):
        real = torch.arange(lengths[-1]) < torch.tensor(lengths).unsqueeze(1)
        places.append(part.view(len(lengths), heads, lengths[-1]).transpose(1, 2)[real].flatten())
        masks.append(None if lengths[0] == lengths[-1] else _mask(real, heads))
    return Buckets(sizes, torch.cat(places), tuple(masks))


def _mask(real: Tensor, heads: int) -> Tensor:
    """What is added to scores, ``(rows * H, 1, length)``, for real tokens, bool ``(rows, length)``."""
    return torch.zeros(real.shape).masked_fill(~real, -torch.inf).repeat_interleave(heads, 0).unsqueeze(1)


class _Attention(torch.autograd.Function):
    """Takes and gives ``(N * H, D)``, by token and head; what is between lies by row, head and token."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, buckets: Buckets, scaling: float, dropout: float) -> Tensor:
        q, k, v = (_padded(it, buckets) for it in (q, k, v))
        q.mul_(scaling)
        chances, answer = q.new_empty(sum(rows * length**2 for rows, length in buckets.sizes)), torch.empty_like(v)
        parts = zip(*_tokens((q, k), buckets), _pairs(chances, buckets), buckets.masks, strict=True)
        for its_q, its_k, its, mask in parts:
            its_k = its_k.transpose(1, 2)
            scores = torch.bmm(its_q, its_k) if mask is None else torch.baddbmm(mask, its_q, its_k)
            torch.softmax(scores, -1, out=its)
        stays, factor = kept(chances, dropout)
        seen = _pairs((chances * stays).mul_(factor), buckets)
        for its, its_v, out in zip(seen, *_tokens((v, answer), buckets), strict=True):
            torch.bmm(its, its_v, out=out)
        ctx.save_for_backward(q, k, v, chances, stays)
        ctx.settings = buckets, scaling, factor
        return answer.index_select(0, buckets.places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        q, k, v, chances, stays = ctx.saved_tensors
        buckets, scaling, factor = ctx.settings
        of_q, of_k, of_v = (torch.empty_like(it) for it in (q, k, v))
        of_chances = torch.empty_like(chances)
        its_v, given, its_of_v = _tokens((v, _padded(gradient, buckets), of_v), buckets)
        seen, its_of_chances = (_pairs(it, buckets) for it in ((chances * stays).mul_(factor), of_chances))
        for one, values, its, out_v, out in zip(seen, its_v, given, its_of_v, its_of_chances, strict=True):
            torch.bmm(one.transpose(1, 2), its, out=out_v)
            torch.bmm(its, values.transpose(1, 2), out=out)
        of_chances.mul_(stays).mul_(factor)
        its_q, its_k, its_of_q, its_of_k = _tokens((q, k, of_q, of_k), buckets)
        for place, (one, its) in enumerate(zip(its_of_chances, _pairs(chances, buckets), strict=True)):
            of_scores = torch._softmax_backward_data(one, its, -1, one.dtype)
            torch.bmm(of_scores, its_k[place], out=its_of_q[place])
            torch.bmm(of_scores.transpose(1, 2), its_q[place], out=its_of_k[place])
        gradients = [it.index_select(0, buckets.places) for it in (of_q.mul_(scaling), of_k, of_v)]
        return (*gradients, None, None, None)


def _padded(values: Tensor, buckets: Buckets) -> Tensor:
    """The values of tokens ``(N * H, D)`` among those of padding, which are zero."""
    padded = values.new_zeros(sum(rows * length for rows, length in buckets.sizes), values.shape[1])
    return padded.index_copy_(0, buckets.places, values)


def _tokens(tensors: tuple[Tensor, ...], buckets: Buckets) -> list[list[Tensor]]:
    """Of each padded tensor its buckets ``(rows * H, length, D)``."""
    sizes = [rows * length for rows, length in buckets.sizes]
    return [[part.view(*size, -1) for part, size in zip(it.split(sizes), buckets.sizes, strict=True)] for it in tensors]


def _pairs(values: Tensor, buckets: Buckets) -> list[Tensor]:
    """The buckets ``(rows * H, length, length)`` of values of all pairs of tokens in a row."""
    parts = values.split([rows * length**2 for rows, length in buckets.sizes])
    return [part.view(-1, length, length) for part, (_, length) in zip(parts, buckets.sizes, strict=True)]
