"""The choice of hidden layers, against the hidden states of a stock model."""

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertModel
from transformers.modeling_outputs import BaseModelOutput

from backbones.errors import HeadsetError
from backbones.layers import LayerChoice

torch.set_num_threads(1)
LAYERS, WIDTH = 4, 16


@pytest.fixture(scope="module")
def features() -> BaseModelOutput:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
    )
    return BertModel(config)(torch.randint(0, 30, (2, 5)), output_hidden_states=True)


@pytest.mark.parametrize("layer", [0, 1, LAYERS, -1, -LAYERS - 1])
def test_one_layer(features: BaseModelOutput, layer: int) -> None:
    choice = LayerChoice(layer, WIDTH, LAYERS)
    assert choice.needs_hidden_states and choice.width == WIDTH
    assert_close(choice(features), features.hidden_states[layer], rtol=0, atol=0)


def test_last_needs_no_hidden_states(features: BaseModelOutput) -> None:
    choice = LayerChoice("last", WIDTH, LAYERS)
    assert not choice.needs_hidden_states and not list(choice.parameters())
    assert choice(BaseModelOutput(last_hidden_state=features.last_hidden_state)) is features.last_hidden_state


def test_several_layers_are_concatenated_in_the_order_given(features: BaseModelOutput) -> None:
    choice = LayerChoice([-1, -2, -3, -4], WIDTH, LAYERS)
    expected = torch.cat(features.hidden_states[:0:-1], dim=-1)
    assert choice.width == 4 * WIDTH
    assert_close(choice(features), expected, rtol=0, atol=0)


def test_mix_starts_as_the_plain_mean_and_learns(features: BaseModelOutput) -> None:
    mix = LayerChoice("mix", WIDTH, LAYERS)
    assert mix.width == WIDTH
    assert_close(mix(features), torch.stack(features.hidden_states).mean(dim=0))
    mix(features).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in mix.parameters())


def test_mix_is_the_scalar_mix_of_peters(features: BaseModelOutput) -> None:
    mix = LayerChoice("mix", WIDTH, LAYERS)
    raw = torch.randn(LAYERS + 1)
    mix.load_state_dict({"weights": raw, "gamma": torch.tensor(1.7)})
    shares = raw.exp() / raw.exp().sum()
    expected = 1.7 * sum(share * state for share, state in zip(shares, features.hidden_states, strict=True))
    assert_close(mix(features), expected)
    half = BaseModelOutput(hidden_states=tuple(state.bfloat16() for state in features.hidden_states))
    assert_close(mix.bfloat16()(half).float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("mxi", "Invalid hidden layer: 'mxi'. Valid hidden layers: last, mix, .* Did you mean 'mix'?"),
        ([], "The list of hidden layers is empty"),
        (5, r"no hidden layer 5: the backbone has 4 layers. Valid layers: 0 .* to 4, or -1 \(the last\) to -5"),
        ([1, -6], "no hidden layer -6"),
    ],
)
def test_errors_say_what_is_there(choice: int | str | list[int], message: str) -> None:
    with pytest.raises(HeadsetError, match=message):
        LayerChoice(choice, WIDTH, LAYERS)


def test_missing_hidden_states(features: BaseModelOutput) -> None:
    with pytest.raises(HeadsetError, match=r"Expected 5 hidden states .* got 0. .*output_hidden_states=True"):
        LayerChoice("mix", WIDTH, LAYERS)(BaseModelOutput(last_hidden_state=features.last_hidden_state))
