"""Native heads against the stock models of a few architectures of all kinds; `make sweep` does it for all of them."""

import pytest
import torch
from transformers import AutoConfig

from backbones import Backbone, HeadsetError
from heads import HeadContext, TokenClassification
from heads.native import NativeModel
from tests.sweep.architectures import TASKS, pairs
from tests.sweep.check import check

# Encoders, decoders and both; several slots; hashing; no base model; towers; several classes for one task.
ARCHITECTURES = [
    *("bert", "deberta-v2", "longformer", "funnel", "xlnet", "modernbert", "reformer", "perceiver", "luke"),
    *("gpt2", "llama", "qwen3_5", "bart", "t5", "lxmert"),
    *("vit", "deit", "resnet", "clip", "hgnet_v2", "pp_lcnet", "shieldgemma2"),
    *("wav2vec2", "whisper"),
]
PAIRS = [pair for task in TASKS for pair in pairs(task) if pair.model_type in ARCHITECTURES]
SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_equal_to_stock_on_the_way_out_in_answers_and_gradients_and_on_the_way_in(pair):
    assert check(pair) == "exact"


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_fresh_heads_start_as_stock_ones_do(kind):
    config = AutoConfig.for_model(kind, **SIZES | {"hidden_size": 512, "initializer_range": 0.05})
    backbone = Backbone.from_config(config)
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    scorer = NativeModel("AutoModelForSequenceClassification", backbone, num_labels=64)
    weights = [p for p in scorer.parameters() if p.dim() == 2]
    assert weights and all(abs(p.std().item() - 0.05) < 0.005 for p in weights)
    assert all(not p.any() for p in scorer.parameters() if p.dim() == 1)
    assert all(torch.equal(value, before[key]) for key, value in backbone.model.state_dict().items())


def test_an_architecture_without_the_task_says_what_to_set():
    config = AutoConfig.for_model("gptj", n_embd=32, n_layer=1, n_head=2, rotary_dim=4)
    backbone = Backbone.from_config(config)
    with pytest.raises(HeadsetError, match=r"no AutoModelForTokenClassification for .* 'gptj'.*native: false"):
        TokenClassification().attach(HeadContext(backbone, ("x", "y")))


def test_the_embeddings_stay_with_the_backbone_when_a_head_uses_them_too():
    backbone = Backbone.from_config(AutoConfig.for_model("bert", **SIZES))
    masked = NativeModel("AutoModelForMaskedLM", backbone).eval()
    backbone.eval()
    assert not {id(weight) for weight in masked.parameters()} & {id(weight) for weight in backbone.parameters()}
    doubled = {key: value * 2 if "word_embeddings" in key else value for key, value in backbone.state_dict().items()}
    backbone.load_state_dict(doubled, assign=True)
    batch = {"input_ids": torch.tensor([[5, 6, 7]])}
    stock = masked.whole(backbone).eval()
    assert stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
    assert torch.equal(masked(backbone.run(masked.request(batch)), batch).logits, stock(**batch).logits)


def test_weights_that_are_apart_but_said_to_be_one_are_refused():
    backbone = Backbone.from_config(AutoConfig.for_model("bert", **SIZES))
    masked = NativeModel("AutoModelForMaskedLM", backbone)
    apart = masked.whole(Backbone.from_config(AutoConfig.for_model("bert", **SIZES)))
    with pytest.raises(
        HeadsetError, match=r"decoder.weight of BertForMaskedLM is not the same as .* tie_word_embeddings"
    ):
        masked.take(apart)


class Rotating(TokenClassification):
    """A head with a computed buffer, as rotary embeddings have."""

    def build(self, context):
        super().build(context)
        self.register_buffer("angles", torch.tensor([1 / 3]), persistent=False)


def test_in_bfloat16_what_is_computed_keeps_its_precision():
    head = Rotating(native=False)
    backbone = Backbone.from_config(AutoConfig.for_model("bert", **SIZES), dtype=torch.bfloat16)
    head.attach(HeadContext(backbone, labels=("a", "b")))
    assert {weight.dtype for weight in head.parameters()} == {torch.bfloat16}
    assert head.angles.dtype == torch.float32 and head.angles.item() == torch.tensor(1 / 3).item()
