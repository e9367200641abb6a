"""Pooling, against sentence-transformers' own module."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.modules import Pooling as StockPooling
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from backbones.errors import HeadsetError
from heads.poolers import POOLING_MODES, Pooler

torch.set_num_threads(1)
WIDTH = 8
STOCK = {"cls": "cls", "max": "max", "mean": "mean", "last": "lasttoken"}
RIGHT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
masks = st.integers(1, 4).flatmap(
    lambda rows: st.integers(1, 7).flatmap(
        lambda width: st.lists(
            st.lists(st.integers(0, 1), min_size=width, max_size=width), min_size=rows, max_size=rows
        ).map(torch.tensor)
    )
)


def pool(pooling: str | list[str], hidden: Tensor, mask: Tensor) -> Tensor:
    return Pooler(pooling, hidden.shape[-1])(hidden, mask)


def stock(pooling: list[str], hidden: Tensor, mask: Tensor) -> Tensor:
    module = StockPooling(hidden.shape[-1], [STOCK[mode] for mode in pooling])
    return module({"token_embeddings": hidden, "attention_mask": mask})["sentence_embedding"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", [RIGHT, RIGHT.flip(1)], ids=["right padding", "left padding"])
@pytest.mark.parametrize("mode", STOCK)
def test_equals_sentence_transformers(mode: str, mask: Tensor, dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 5, WIDTH).to(dtype)
    assert_close(pool(mode, hidden, mask), stock([mode], hidden, mask), rtol=0, atol=0)


def test_modes_are_concatenated_in_the_order_of_sentence_transformers() -> None:
    hidden = torch.randn(3, 5, WIDTH)
    pooler = Pooler(["last", "mean", "cls", "max"], WIDTH)
    assert pooler.width == 4 * WIDTH
    assert_close(pooler(hidden, RIGHT), stock(["cls", "max", "mean", "last"], hidden, RIGHT), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(mask=masks)
@settings(max_examples=40, deadline=None)
def test_attention_is_one_learned_query(dtype: torch.dtype, mask: Tensor) -> None:
    mask = mask[mask.any(dim=1)]  # torch gives NaN for a row without tokens
    hidden = torch.randn(*mask.shape, WIDTH).to(dtype)
    pooler = Pooler("attention", WIDTH, initializer_range=1.0).to(dtype)
    query = pooler.query.expand(len(mask), 1, WIDTH)
    expected = scaled_dot_product_attention(query, hidden, hidden, mask.bool().unsqueeze(1), scale=1.0).squeeze(1)
    tolerance = {} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    assert_close(pooler(hidden, mask), expected, **tolerance)


@given(mask=masks)
@settings(max_examples=60, deadline=None)
def test_only_tokens_under_the_mask_count(mask: Tensor) -> None:
    """Any holes: equal to sentence-transformers on the kept tokens alone, whatever stands elsewhere."""
    hidden = torch.randn(*mask.shape, WIDTH)
    noisy = hidden.masked_fill(mask.unsqueeze(-1) == 0, float("nan")).requires_grad_()
    pooled = pool(list(STOCK), noisy, mask)
    for row, kept, got in zip(hidden, mask.bool(), pooled, strict=True):
        alone = row[kept].unsqueeze(0)
        expected = stock(list(STOCK), alone, torch.ones(1, alone.shape[1]))[0] if kept.any() else torch.zeros_like(got)
        assert_close(got, expected)
    pooled.sum().backward()
    assert noisy.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_a_row_without_tokens_is_zero_with_finite_gradients(mode: str, dtype: torch.dtype) -> None:
    hidden = torch.randn(2, 4, WIDTH).to(dtype).requires_grad_()
    pooler = Pooler(mode, WIDTH).to(dtype)
    vectors = pooler(hidden, torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1]]))
    vectors.float().square().sum().backward()
    assert vectors.dtype == dtype and vectors[0].eq(0).all() and vectors[1].ne(0).any()
    assert all(tensor.grad.isfinite().all() for tensor in [hidden, *pooler.parameters()])
    assert hidden.grad[1].ne(0).any() and hidden.grad[0].eq(0).all()


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ("maen", "Invalid pooling mode: 'maen'. Valid pooling modes: cls, .* Did you mean 'mean'?"),
        (["cls", "mean", "cls"], "'cls' is named twice: cls, mean, cls"),
        ([], "list of pooling modes is empty"),
    ],
)
def test_errors(pooling: str | list[str], message: str) -> None:
    with pytest.raises(HeadsetError, match=message):
        Pooler(pooling, WIDTH)
