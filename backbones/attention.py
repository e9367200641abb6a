"""Attention over the rows of a batch that lie one behind the other, each of which sees itself alone."""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from backbones.grouped_attention import grouped_attention

__all__ = ["PACKED", "Layout", "NotPackableError", "laid_out"]

# The name that transformers knows `packed_attention` by. An export has a copy of this module, with one of its own.
PACKED = f"packed_by_{__name__.replace('.', '_')}"

# What models pass to their attention that says nothing of who sees whom.
NEUTRAL = ("position_ids", "use_cache", "output_hidden_states", "return_dict", "deterministic")


class NotPackableError(Exception):
    """A model asks for more than attention within rows."""


@dataclass(frozen=True)
class Layout:
    """Where the rows of a batch lie in a packed one: in the order of their lengths, one behind the other.

    Args:
        size: B and T of the batch.
        index: Where each packed token is in the flattened batch, int64 ``(N,)``.
        groups: How many rows there are of which length, ascending.
        starts: On a GPU: where each packed row starts, and the last one ends, int32 ``(B + 1,)``.
    """

    size: tuple[int, int]
    index: Tensor
    groups: tuple[tuple[int, int], ...]
    starts: Tensor | None = None

    @classmethod
    def of(cls, mask: Tensor, lengths: Sequence[int]) -> "Layout":
        """The layout for a mask, bool ``(B, T)``, whose rows have so many real tokens; all on the CPU."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        places = torch.arange(mask.numel()).view(mask.shape)
        groups: dict[int, int] = {}
        for row in order:
            groups[lengths[row]] = groups.get(lengths[row], 0) + 1
        index = places[order][mask[order]]
        return cls((mask.shape[0], mask.shape[1]), index, tuple((rows, length) for length, rows in groups.items()))

    def to(self, device: torch.device) -> "Layout":
        """The same on another device."""
        if device.type == "cpu":
            return self
        lengths = torch.tensor([length for rows, length in self.groups for _ in range(rows)])
        starts = nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        index = self.index.to(device, non_blocking=True)
        return Layout(self.size, index, self.groups, starts.to(device, non_blocking=True))

    def pack(self, values: Tensor) -> Tensor:
        """The tokens ``(1, N, ...)`` of a batch ``(B, T, ...)``."""
        return values.flatten(0, 1).index_select(0, self.index).unsqueeze(0)

    def unpack(self, values: Tensor) -> Tensor:
        """The batch ``(B, T, ...)`` of tokens ``(1, N, ...)``, with zeros at padding."""
        rows, length = self.size
        batch = values.new_zeros(rows * length, *values.shape[2:])
        return batch.index_copy(0, self.index, values.squeeze(0)).view(rows, length, *values.shape[2:])


_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextlib.contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """While this is open, `packed_attention` goes by a layout."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' own functions compute it, within the rows of the layout that is open.

    Args:
        module: The attention layer.
        query: ``(1, H, N, D)``.
        key: ``(1, H', N, D)``, where H' divides H.
        value: ``(1, H', N, D')``.
        attention_mask: None.
        scaling: What scores are multiplied by; ``D**-0.5`` if not given.
        dropout: The share of the attention that is dropped.
        is_causal: Whether a token sees earlier ones alone; if not given, what the layer says.
        sliding_window: w: a token sees those less than w before it, and after it.
        kwargs: What else a model gives.

    Returns:
        ``(1, N, H, D')``, and None in place of the attention weights.

    Raises:
        NotPackableError: There is no layout, a mask is given, or anything that is not known to be without effect.
    """
    layout = _layout.get()
    unknown = [name for name, it in kwargs.items() if it is not None and it is not False and name not in NEUTRAL]
    if layout is None or attention_mask is not None or unknown:
        raise NotPackableError(f"a mask, or {unknown}")
    tokens = len(layout.index)
    if query.shape[0] != 1 or query.shape[2] != tokens or key.shape[2] != tokens:
        raise NotPackableError("attention to something else")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    alike = query.shape[1:] == key.shape[1:] == value.shape[1:] and query.dtype == torch.float32
    if dropout > 0 and alike and query.device.type == "cpu" and not causal and sliding_window is None:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return grouped_attention(query, key, value, layout.groups, scaling, dropout), None
    if layout.starts is None or query.device.type != "cuda":
        return _by_groups(query, key, value, layout, scaling, dropout, causal, sliding_window), None
    if dropout == 0 and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] == value.shape[-1]:
        return _by_kernel(query, key, value, layout, scaling, causal, sliding_window), None
    return _padded(query, key, value, layout, scaling, dropout, causal, sliding_window), None


AttentionInterface.register(PACKED, packed_attention)


def _by_groups(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scaling: float | None,
    dropout: float,
    causal: bool,
    window: int | None,
) -> Tensor:
    """Rows of the same length together: nothing is padded, and nothing is masked but what a row does not see."""
    sizes = [rows * length for rows, length in layout.groups]
    parts = [it.transpose(1, 2)[0].split(sizes) for it in (query, key, value)]
    grouped = query.shape[1] != key.shape[1]
    answers = []
    for (rows, length), *tensors in zip(layout.groups, *parts, strict=True):
        q, k, v = (it.unflatten(0, (rows, length)).transpose(1, 2) for it in tensors)
        seen = _seen(length, causal, window, query.device) if window is not None and window < length else None
        only_causal = causal and seen is None
        answer = scaled_dot_product_attention(
            q, k, v, attn_mask=seen, dropout_p=dropout, scale=scaling, is_causal=only_causal, enable_gqa=grouped
        )
        answers.append(answer.transpose(1, 2).flatten(0, 1))
    return torch.cat(answers).unsqueeze(0)


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, causal: bool, window: int | None
) -> Tensor:
    """The kernel of torch for rows of several lengths; it has no dropout, and is for half precision on GPUs."""
    from torch.nn.attention.varlen import varlen_attn

    longest = layout.groups[-1][1]
    reach = -1 if window is None or window >= longest else window - 1
    q, k, v = (it.transpose(1, 2)[0] for it in (query, key, value))
    assert layout.starts is not None
    answer = varlen_attn(
        q,
        k,
        v,
        layout.starts,
        layout.starts,
        longest,
        longest,
        scale=scaling,
        window_size=(reach, 0 if causal else reach),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(answer, Tensor)
    return answer.unsqueeze(0)


def _padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scaling: float | None,
    dropout: float,
    causal: bool,
    window: int | None,
) -> Tensor:
    """Attention alone padded, everything around it not: what is left on GPUs, with dropout or in full precision."""
    (rows, length), tokens = layout.size, layout.index
    real = torch.zeros(rows * length, dtype=torch.bool, device=query.device).index_fill(0, tokens, True)
    seen = real.view(rows, 1, 1, length) & _seen(length, causal, window, query.device)
    seen = seen | torch.eye(length, dtype=torch.bool, device=query.device)  # padding sees itself, or its softmax is NaN
    q, k, v = (layout.unpack(it.transpose(1, 2)).transpose(1, 2) for it in (query, key, value))
    answer = scaled_dot_product_attention(
        q, k, v, attn_mask=seen, dropout_p=dropout, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return layout.pack(answer.transpose(1, 2))


def _seen(length: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """Which tokens each token of a row sees, bool ``(length, length)``."""
    places = torch.arange(length, device=device)
    after = places.unsqueeze(0) - places.unsqueeze(1)
    reach = length if window is None else window
    return (after > -reach) & (after < (1 if causal else reach))
