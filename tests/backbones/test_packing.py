"""Passes without padding give what the stock model gives for padded rows, or do not take place."""

import copy
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AttentionInterface,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
    GPT2Model,
    JambaConfig,
    JambaModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    OPTConfig,
    OPTModel,
    Qwen2Config,
    Qwen2Model,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
)

from backbones import Backbone, attention
from backbones.attention import Layout, _by_groups, _padded
from backbones.calls import BackboneCall, merge_calls

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 99,
    "pad_token_id": 1,
    "max_position_embeddings": 80,
}
SMALLER = {name: value for name, value in SIZES.items() if name != "max_position_embeddings"}
LENGTHS = (12, 3, 7, 3, 1)


class Neighbours(BertModel):
    """An architecture that nobody thought of: a token has a little of the one before it."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + 0.01 * output.last_hidden_state.roll(1, 1)
        return output


class Windows(BertModel):
    """Another: beyond 64 tokens a row falls into windows, and no argument says so."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, **kwargs):
        output = super().forward(input_ids, attention_mask, position_ids=position_ids, **kwargs)
        if attention_mask is not None and input_ids.shape[1] > 64:
            output.last_hidden_state = output.last_hidden_state.cumsum(1)
        return output


PACKED = {
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES)),
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**SIZES, local_attention=8, global_attn_every_n_layers=2)),
    "gpt2": lambda: GPT2Model(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=80)),
    "opt": lambda: OPTModel(OPTConfig(ffn_dim=64, word_embed_proj_dim=32, **SIZES)),
    "qwen2": lambda: Qwen2Model(Qwen2Config(num_key_value_heads=2, **SIZES)),
    "mistral": lambda: MistralModel(MistralConfig(num_key_value_heads=2, sliding_window=4, **SIZES)),
}
PADDED = {
    "neighbours": lambda: Neighbours(BertConfig(**SIZES)),
    "deberta": lambda: DebertaV2Model(DebertaV2Config(relative_attention=True, pos_att_type=["p2c", "c2p"], **SIZES)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**SIZES)),
    "jamba": lambda: JambaModel(
        JambaConfig(attn_layer_period=2, attn_layer_offset=1, num_key_value_heads=4, **SMALLER)
    ),
    "t5": lambda: T5EncoderModel(T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=99)),
    "eager": lambda: BertModel(BertConfig(attn_implementation="eager", **SIZES)),
}


def a_batch(lengths=LENGTHS, left=False):
    """Rows of these lengths, padded."""
    ids = torch.randint(5, 99, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    places = torch.arange(max(lengths))
    size = torch.tensor(lengths).unsqueeze(1)
    mask = places >= max(lengths) - size if left else places < size
    return {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long()}


def packed(model, run, *args, **kwargs):
    """What a backbone without padding gives, and how many tokens its model has seen at most."""
    backbone = Backbone(model)
    backbone.padding_free = True
    output, seen = None, []
    with torch.no_grad():
        backbone.eval().run(run)  # tries the model out
    backbone.train(kwargs.pop("training", False))
    handle = model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    output = backbone.run(run)
    handle.remove()
    return output, seen


def compare(model, batch, **flags):
    """A packed run against the stock model: hidden states, pooler, and all gradients."""
    stock = copy.deepcopy(model).eval()
    ours, seen = packed(model, BackboneCall({**batch, **flags}))
    assert seen == [int(batch["attention_mask"].sum())]
    theirs = stock(**batch, **flags)
    real = batch["attention_mask"].bool()
    weights = torch.randn(theirs.last_hidden_state.shape, generator=torch.Generator().manual_seed(1))
    for output in (ours, theirs):
        loss = (output.last_hidden_state * weights)[real].sum()
        if output.get("pooler_output") is not None:
            loss = loss + output.pooler_output.square().sum()
        loss.backward()
    for mine, its in zip(ours.get("hidden_states") or (), theirs.get("hidden_states") or (), strict=True):
        torch.testing.assert_close(mine[real], its[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.last_hidden_state[real], theirs.last_hidden_state[real], rtol=1e-5, atol=1e-5)
    assert not ours.last_hidden_state[~real].any()
    if "pooler_output" in theirs:
        torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, rtol=1e-5, atol=1e-5)
    expected = {name: parameter.grad for name, parameter in stock.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", PACKED)
def test_it_gives_what_the_stock_model_gives_for_padded_rows(name, left):
    torch.manual_seed(0)
    model = PACKED[name]()
    if left and hasattr(model, "pooler"):
        model.pooler = None  # it takes the first token, which is none here
    compare(model, a_batch(left=left), output_hidden_states=True)


def test_types_of_tokens_go_along():
    batch = a_batch()
    compare(BertModel(BertConfig(**SIZES)), {**batch, "token_type_ids": batch["input_ids"] % 2})


def test_gradient_checkpointing_computes_the_same_gradients_again():
    torch.manual_seed(0)
    model = BertModel(BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SIZES))
    model.gradient_checkpointing_enable()
    gradients = []
    for padding_free in (False, True):
        model.zero_grad()
        run = BackboneCall(a_batch())
        output = packed(model, run, training=True)[0] if padding_free else model.train()(**run.kwargs)
        (output.last_hidden_state * run.kwargs["attention_mask"].unsqueeze(-1)).square().sum().backward()
        gradients.append({name: it.grad for name, it in model.named_parameters() if it.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PADDED)
def test_what_would_give_something_else_runs_as_it_always_did(name):
    torch.manual_seed(0)
    model, batch = PADDED[name](), a_batch()
    ours, seen = packed(model, BackboneCall(batch))
    assert seen == [batch["input_ids"].numel()]
    assert torch.equal(ours.last_hidden_state, model(**batch).last_hidden_state)


def test_longer_rows_are_tried_out_again():
    model = Windows(BertConfig(**SIZES))
    backbone = Backbone(model).eval()
    backbone.padding_free = True
    short, long = a_batch(), a_batch((70, 9, 9))
    for batch, is_packed in ((short, True), (long, False), (short, True)):
        output = backbone.run(BackboneCall(batch))
        assert bool(output.last_hidden_state[~batch["attention_mask"].bool()].any()) is not is_packed
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(output.last_hidden_state[real], model(**batch).last_hidden_state[real])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"output_attentions": True}, "attentions"),
        ({"attention_mask": None}, "no mask"),
        ({"attention_mask": torch.ones(5, 12, dtype=torch.long)}, "no padding"),
        ({"attention_mask": torch.tensor([1, 0, 1] * 4).expand(5, 12)}, "holes"),
        ({"inputs_embeds": torch.zeros(5, 12, 32), "input_ids": None}, "no tokens"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_what_is_no_plain_call_runs_as_it_always_did(change, what):
    backbone = Backbone(BertModel(BertConfig(attn_implementation="sdpa", **SIZES))).eval()
    if what == "attentions":
        backbone.model.set_attn_implementation("eager")
    run = {name: value for name, value in {**a_batch(), **change}.items() if value is not None}
    expected = backbone.run(BackboneCall(run)).last_hidden_state
    backbone.padding_free = True
    assert torch.equal(backbone.run(BackboneCall(run)).last_hidden_state, expected)


def test_a_head_that_needs_what_is_at_padding_gets_it_for_all_that_share_its_pass():
    batch = a_batch()
    calls = {"a": BackboneCall(batch), "b": BackboneCall(batch, padded=True)}
    [(shared, names)] = merge_calls(calls)
    assert names == ["a", "b"] and shared.padded
    backbone = Backbone(BertModel(BertConfig(**SIZES))).eval()
    backbone.padding_free = True
    assert (
        backbone.run(shared).last_hidden_state[1, -1].any()
        and not backbone.run(calls["a"]).last_hidden_state[1, -1].any()
    )


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_that_is_padded_gives_what_attention_by_rows_gives(causal, window):
    mask = a_batch()["attention_mask"].bool()
    layout = Layout.of(mask, mask.sum(1).tolist())
    query, key, value = (torch.randn(1, heads, len(layout.index), 8) for heads in (4, 2, 2))
    arguments = query, key, value, layout, 0.3, 0.0, causal, window
    torch.testing.assert_close(_padded(*arguments), _by_groups(*arguments))


def test_a_copy_of_the_module_as_exports_have_it_changes_nothing():
    path = Path(attention.__file__)
    spec = importlib.util.spec_from_file_location("some_export.backbones_attention", path)
    copied = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = copied
    spec.loader.exec_module(copied)
    assert AttentionInterface()[attention.PACKED] is attention.packed_attention
    assert AttentionInterface()[copied.PACKED] is copied.packed_attention
