"""LoRA and 4-bit weights in a backbone, held against peft and transformers."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModel, BitsAndBytesConfig, GPT2Config, GPT2Model

from backbones import Backbone, BackboneOptions, HeadsetError
from backbones.freezing import transformer_layers

INPUTS = {
    "input_ids": torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
LORAS = {
    "all-linear": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "patterns": {"r": 4, "target_modules": ["query", "dense"], "rank_pattern": {"query": 2}, "use_rslora": True},
    "dora": {"target_modules": ["value"], "use_dora": True},
    "bias": {"target_modules": ["query", "word_embeddings"], "bias": "lora_only"},
    "pissa": {"r": 4, "target_modules": ["value"], "init_lora_weights": "pissa"},
}


def make(folder, seed=0, **options):
    """A backbone in eval mode, whose adapters have values."""
    torch.manual_seed(seed)
    backbone = Backbone.from_options(BackboneOptions(str(folder), **options))
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    return backbone.eval()


def hidden(backbone):
    with torch.no_grad():
        return backbone(**INPUTS).last_hidden_state


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory):
    """A model whose linear layers have their weights transposed."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=1)
    GPT2Model(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", LORAS)
def test_it_is_what_peft_makes_of_the_same_model(tiny_bert, name):
    torch.manual_seed(0)
    theirs = get_peft_model(AutoModel.from_pretrained(tiny_bert), LoraConfig(**LORAS[name])).eval()
    backbone = Backbone.from_options(BackboneOptions(str(tiny_bert), lora=LORAS[name]))
    wrapped = {path for path, module in theirs.base_model.model.named_modules() if isinstance(module, BaseTunerLayer)}
    assert wrapped == {path for path, module in backbone.model.named_modules() if isinstance(module, BaseTunerLayer)}
    trainable = {key for key, value in theirs.base_model.model.named_parameters() if value.requires_grad}
    assert trainable == {key for key, value in backbone.model.named_parameters() if value.requires_grad}
    backbone = make(tiny_bert, lora=LORAS[name])
    theirs.base_model.model.load_state_dict(backbone.model.state_dict())
    with torch.no_grad():
        assert torch.equal(hidden(backbone), theirs(**INPUTS).last_hidden_state)


@pytest.mark.parametrize("quantization", [None, NF4], ids=["full", "4 bits"])
@pytest.mark.parametrize("name", LORAS)
def test_a_backbone_rebuilt_from_its_options_loads_its_weights_and_gives_the_same(tiny_bert, name, quantization):
    if name == "pissa" and quantization:
        pytest.skip("PiSSA changes the weights, which 4-bit ones cannot")
    backbone = make(tiny_bert, lora=LORAS[name], quantization=quantization)
    options = backbone.options()
    assert options.lora == LORAS[name] and (options.quantization or {}).get("load_in_4bit") == (quantization and True)
    again = Backbone.from_options(options).eval()
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(hidden(again), hidden(backbone))
    assert [type(module) for module in again.modules()] == [type(module) for module in backbone.modules()]
    assert again.options() == options
    stock = copy.deepcopy(backbone).make_stock()
    torch.testing.assert_close(hidden(stock), hidden(backbone), rtol=1e-5, atol=1e-6)
    plain = AutoModel.from_pretrained(tiny_bert).eval()
    assert plain.state_dict().keys() == stock.model.state_dict().keys()
    assert [type(module) for module in plain.modules()] == [type(module) for module in stock.model.modules()]
    assert stock.options().lora is None and stock.options().quantization is None
    assert getattr(backbone.model, "is_loaded_in_4bit", False) == bool(quantization)
    assert not getattr(stock.model, "is_loaded_in_4bit", False)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_gpt2"])
def test_four_bits_are_those_of_transformers(request, model, double):
    folder = request.getfixturevalue(model)
    settings = {**NF4, "bnb_4bit_use_double_quant": double}
    theirs = AutoModel.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**settings), dtype=torch.float32)
    backbone = make(folder, quantization=settings)
    with torch.no_grad():
        expected = theirs.eval()(**INPUTS).last_hidden_state
    assert torch.equal(hidden(backbone), expected)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.spec == make(folder).spec and backbone.spec.dtype == torch.float32
    assert (hidden(make(folder)) - expected).abs().max() > 1e-3
    again = Backbone.from_options(backbone.options()).eval()
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(hidden(again), expected)
    stock = copy.deepcopy(backbone).make_stock()
    torch.testing.assert_close(hidden(stock), expected, rtol=1e-5, atol=1e-6)
    make(folder).load_state_dict(stock.state_dict())
    assert torch.equal(hidden(backbone), expected)


def test_random_weights_are_quantised_too(tiny_bert):
    backbone = make(tiny_bert, random_weights=True, quantization=NF4)
    assert backbone.quantization["bnb_4bit_quant_type"] == "nf4"


def test_freezing_keeps_adapters_of_the_lowest_layers_as_they_are(tiny_bert):
    backbone = make(tiny_bert, freeze=1, lora=LORAS["all-linear"])
    lowest, highest = transformer_layers(backbone.model)
    assert not any(parameter.requires_grad for parameter in lowest.parameters())
    assert {name.split(".")[-3] for name, value in highest.named_parameters() if value.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    backbone.freeze(None)
    assert any(parameter.requires_grad for parameter in lowest.parameters())
    assert not backbone.model.embeddings.word_embeddings.weight.requires_grad
    assert not any(parameter.requires_grad for parameter in backbone.freeze("all").parameters())
    assert not backbone.train().training


def test_adapters_are_float32_on_a_bfloat16_backbone(tiny_bert):
    backbone = make(tiny_bert, dtype="bfloat16", lora=LORAS["all-linear"])
    types = {value.dtype for value in backbone.parameters() if value.requires_grad}
    assert types == {torch.float32} and backbone.spec.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": {"rnak": 8}}, r"Invalid field of lora: 'rnak'. Valid fields of lora: r, target_modules.*"),
        ({"lora": {"lora_alhpa": 8}}, "Did you mean 'lora_alpha'"),
        ({"lora": {"task_type": "SEQ_CLS"}}, "takes no task_type: the heads say what the task is"),
        ({"lora": {"modules_to_save": ["classifier"]}}, "takes no modules_to_save: heads are trained in full"),
        ({"lora": {"base_model_name_or_path": "x"}}, "it is the path of the backbone"),
        ({"lora": {"init_lora_weights": "eva"}}, "the data of the run are not read before training"),
        ({"lora": {"target_modules": "all-linear", "layers_to_transform": [0]}}, "peft says: `layers_to_transform`"),
        ({"quantization": {"load_in_4bits": True}}, "Did you mean 'load_in_4bit'"),
        ({"quantization": {"load_in_8bit": True}}, "quantised to 4 bits here"),
        ({"quantization": {"bnb_4bit_quant_type": "nf4"}}, "needs load_in_4bit: true"),
        ({"quantization": {**NF4, "bnb_4bit_compute_dtype": "floaty"}}, "transformers says: .*floaty"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_loaded(options, message):
    with pytest.raises(HeadsetError, match=message):
        BackboneOptions("nowhere", **options).check()


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"target_modules": ["query", "valu"]}, "Invalid target module of lora: 'valu'.*Did you mean 'value'"),
        ({"target_modules": "query"}, "not found in the base model.*or a list of layers: dense, key, .*query"),
        ({"target_modules": ["LayerNorm"]}, "LayerNorm.* is not supported"),
        ({"r": 0}, "`r` should be a positive integer"),
        ({"bias": "some"}, "Requested bias: some"),
    ],
)
def test_what_does_not_go_on_the_model_is_a_clear_error(tiny_bert, lora, message):
    with pytest.raises(HeadsetError, match=message):
        make(tiny_bert, lora=lora)


@pytest.mark.parametrize(("freeze", "targets"), [("all", ["query"]), (1, r".*layer\.0.*query")])
def test_freezing_all_adapters_of_a_new_run_is_refused(tiny_bert, freeze, targets):
    with pytest.raises(HeadsetError, match=f"freeze: {freeze} leaves nothing of LoRA to train.*leave freeze out"):
        make(tiny_bert, freeze=freeze, lora={"target_modules": targets})


def test_a_model_quantised_otherwise_is_refused(tiny_bert):
    with pytest.raises(HeadsetError, match="another way than to 4 bits"):
        Backbone.from_pretrained(str(tiny_bert), quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def test_adapters_put_in_by_others_are_not_lost_silently(tiny_bert):
    model = get_peft_model(AutoModel.from_pretrained(tiny_bert), LoraConfig(target_modules=["query"])).base_model.model
    with pytest.raises(HeadsetError, match="add_lora"):
        Backbone(model).options()
