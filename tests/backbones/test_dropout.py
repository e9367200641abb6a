"""Dropout from few random bits, and attention with it, against torch's own."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, BertModel

from backbones import Backbone, dropout, grouped_attention
from backbones.dropout import FastDropout, kept

GROUPS = ((1, 1), (3, 4), (1, 5), (2, 7))
HEADS, WIDTH = 3, 8


def factors_of(values, share):
    """What values are multiplied by."""
    stays, factor = kept(values, share)
    return stays * factor


def rows_of(values, groups):
    """Each row ``(1, H, length, D)`` of ``(1, H, N, D)``."""
    return values.split([length for rows, length in groups for _ in range(rows)], dim=2)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_as_many_values_are_dropped_as_asked_for_and_the_others_make_up_for_it(share):
    torch.manual_seed(0)
    factors = factors_of(torch.empty(1001, 999), share)
    assert factors.unique().tolist() == [0, pytest.approx(1 / (1 - share), rel=1e-4)]
    assert (factors == 0).float().mean().item() == pytest.approx(share, abs=3e-3)
    assert factors.mean().item() == pytest.approx(1, abs=1e-2)
    pairs = (factors[:, 1:] == 0) & (factors[:, :-1] == 0)  # neighbours come from the same number
    assert pairs.float().mean().item() == pytest.approx(share**2, abs=3e-3)
    torch.manual_seed(0)
    assert torch.equal(factors, factors_of(torch.empty(1001, 999), share))


def test_layers_drop_so_in_training_alone_and_give_the_gradients_of_what_they_kept():
    layer, values = nn.Dropout(0.3), torch.randn(50, 40, requires_grad=True)
    with FastDropout():
        torch.manual_seed(1)
        answer = layer(values)
        answer.sum().backward()
        assert torch.equal(layer.eval()(values), values)
    torch.manual_seed(1)
    factors = factors_of(values, 0.3)
    assert torch.equal(answer, values * factors)
    assert torch.equal(values.grad, factors)


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize(("calls", "sizes"), [(0, [3, 9, 3, 6]), (100, [12, 9]), (1000, [21])])
def test_attention_and_its_gradients_are_those_of_torch_for_each_row(monkeypatch, share, calls, sizes):
    monkeypatch.setattr(grouped_attention, "CALLS", calls)
    grouped_attention.buckets_of.cache_clear()
    torch.manual_seed(0)
    tokens = sum(rows * length for rows, length in GROUPS)
    inputs = [torch.randn(1, tokens, HEADS, WIDTH).transpose(1, 2).requires_grad_() for _ in range(3)]
    factors = []

    def noted(values, its):
        stays, factor = kept(values, its)
        factors.append(stays * factor)
        return stays, factor

    monkeypatch.setattr(grouped_attention, "kept", noted)
    answer = grouped_attention.grouped_attention(*inputs, GROUPS, 0.3, share)
    grouped_attention.buckets_of.cache_clear()
    padded = grouped_attention.buckets_of(GROUPS, HEADS).sizes
    assert [rows for rows, _ in padded] == sizes
    widths = [width for rows, width in padded for _ in range(rows // HEADS)]
    expected, place = [], 0
    for width, q, k, v in zip(widths, *(rows_of(it, GROUPS) for it in inputs), strict=True):
        length, size = q.shape[2], HEADS * width**2
        its = factors[0][place : place + size].view(1, HEADS, width, width)[..., :length, :length]
        place += size
        expected.append(((q @ k.transpose(2, 3) * 0.3).softmax(-1) * its @ v).transpose(1, 2))
        if share == 0:
            torch.testing.assert_close(expected[-1].transpose(1, 2), scaled_dot_product_attention(q, k, v, scale=0.3))
    assert place == factors[0].numel()
    expected = torch.cat(expected, 1)
    torch.testing.assert_close(answer, expected)
    weights = torch.randn_like(answer)
    mine = torch.autograd.grad((answer * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(mine, theirs)


def test_a_backbone_drops_so_unless_it_computes_something_again(monkeypatch):
    calls = []
    monkeypatch.setattr(dropout, "kept", lambda values, share: calls.append(share) or kept(values, share))
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    backbone = Backbone(BertModel(config))
    batch = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    backbone(**batch)
    assert not calls  # it is as transformers has it
    backbone.padding_free = True
    backbone(**batch)
    assert len(calls) == 5
    backbone.eval()(**batch)
    backbone.train().model.gradient_checkpointing_enable()
    backbone(**batch)
    assert len(calls) == 5
