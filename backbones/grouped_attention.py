"""Attention with dropout on a CPU, over rows of several lengths, in few calls.

With dropout torch has no kernel for attention on a CPU, and computes it in some twenty calls, there and back, for each
length; in a batch of short texts the calls cost more than what they compute. Here rows of one length share the products
of matrices and the softmax, and all rows whatever else there is.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from backbones.dropout import kept

__all__ = ["grouped_attention"]

Groups = tuple[tuple[int, int], ...]


def grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, groups: Groups, scaling: float, dropout: float
) -> Tensor:
    """Softmax attention within rows, as ``scaled_dot_product_attention`` has it.

    Args:
        query: ``(1, H, N, D)``.
        key: ``(1, H, N, D)``.
        value: ``(1, H, N, D)``.
        groups: How many rows there are of which length, in the order in which they lie.
        scaling: What scores are multiplied by.
        dropout: The share of the attention that is dropped.

    Returns:
        ``(1, N, H, D)``.
    """
    _, heads, tokens, width = query.shape
    q, k, v = (it.transpose(1, 2).reshape(-1, width) for it in (query, key, value))
    answer: Tensor = _Attention.apply(q, k, v, groups, heads, scaling, dropout)  # type: ignore[no-untyped-call]
    return answer.view(1, tokens, heads, width)


@functools.lru_cache(maxsize=16)
def _orders(groups: Groups, heads: int) -> tuple[Tensor, Tensor]:
    """Where what lies by row, head and token is in what lies by token and head, and the other way; ``(N * H,)``."""
    places = torch.arange(sum(rows * length for rows, length in groups) * heads)
    parts = places.split([rows * length * heads for rows, length in groups])
    there = [
        part.view(rows, length, heads).transpose(1, 2).flatten()
        for part, (rows, length) in zip(parts, groups, strict=True)
    ]
    order = torch.cat(there)
    return order, torch.empty_like(order).index_copy(0, order, places)


class _Attention(torch.autograd.Function):
    """Takes and gives ``(N * H, D)``, by token and head; what is between lies by row, head and token."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, groups: Groups, heads: int, scaling: float, dropout: float
    ) -> Tensor:
        there, back = _orders(groups, heads)
        q, k, v = (it.index_select(0, there) for it in (q, k, v))
        q.mul_(scaling)
        chances, answer = q.new_empty(sum(rows * heads * length**2 for rows, length in groups)), torch.empty_like(v)
        for its_q, its_k, its in zip(*_tokens((q, k), groups, heads), _pairs(chances, groups, heads), strict=True):
            torch.softmax(torch.bmm(its_q, its_k.transpose(1, 2)), -1, out=its)
        stays = kept(chances, dropout)
        seen = _pairs(chances * stays, groups, heads)
        for its, its_v, out in zip(seen, *_tokens((v, answer), groups, heads), strict=True):
            torch.bmm(its, its_v, out=out)
        ctx.save_for_backward(q, k, v, chances, stays)
        ctx.settings = groups, heads, scaling
        return answer.index_select(0, back)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        q, k, v, chances, stays = ctx.saved_tensors
        groups, heads, scaling = ctx.settings
        there, back = _orders(groups, heads)
        of_q, of_k, of_v = (torch.empty_like(it) for it in (q, k, v))
        of_chances = torch.empty_like(chances)
        its_v, given, its_of_v = _tokens((v, gradient.index_select(0, there), of_v), groups, heads)
        seen, its_of_chances = (_pairs(it, groups, heads) for it in (chances * stays, of_chances))
        for one, values, its, out_v, out in zip(seen, its_v, given, its_of_v, its_of_chances, strict=True):
            torch.bmm(one.transpose(1, 2), its, out=out_v)
            torch.bmm(its, values.transpose(1, 2), out=out)
        of_chances.mul_(stays)
        its_q, its_k, its_of_q, its_of_k = _tokens((q, k, of_q, of_k), groups, heads)
        for place, (one, its) in enumerate(zip(its_of_chances, _pairs(chances, groups, heads), strict=True)):
            of_scores = torch._softmax_backward_data(one, its, -1, one.dtype)
            torch.bmm(of_scores, its_k[place], out=its_of_q[place])
            torch.bmm(of_scores.transpose(1, 2), its_q[place], out=its_of_k[place])
        gradients = [it.index_select(0, back) for it in (of_q.mul_(scaling), of_k, of_v)]
        return (*gradients, None, None, None, None)


def _tokens(tensors: tuple[Tensor, ...], groups: Groups, heads: int) -> list[list[Tensor]]:
    """Of each tensor ``(N * H, D)`` its groups ``(rows * H, length, D)``."""
    sizes = [rows * length * heads for rows, length in groups]
    lengths = [length for _, length in groups]
    return [
        [part.view(-1, length, part.shape[-1]) for part, length in zip(it.split(sizes), lengths, strict=True)]
        for it in tensors
    ]


def _pairs(values: Tensor, groups: Groups, heads: int) -> list[Tensor]:
    """The groups ``(rows * H, length, length)`` of values of all pairs of tokens in a row."""
    parts = values.split([rows * heads * length**2 for rows, length in groups])
    return [part.view(-1, length, length) for part, (_, length) in zip(parts, groups, strict=True)]
