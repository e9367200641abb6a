"""Backbones: loading without random weights, what they say of themselves, freezing, train mode."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForQuestionAnswering,
    RobertaConfig,
    RobertaForMaskedLM,
    RoFormerConfig,
    RoFormerForSequenceClassification,
    T5Config,
    T5Model,
)

from backbones import Backbone, BackboneOptions, HeadsetError

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
}

TASK_MODELS = {
    "named like a task": lambda: RoFormerForSequenceClassification(RoFormerConfig(embedding_size=32, **SIZES)),
    "base inside a classifier": lambda: BertForSequenceClassification(BertConfig(**SIZES)),
    "base without pooler": lambda: BertForTokenClassification(BertConfig(**SIZES)),
    "AutoModel adds a random pooler": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)),
    "AutoModel makes all of it random": lambda: LlamaForQuestionAnswering(LlamaConfig(**SIZES)),
}


@pytest.mark.parametrize("case", TASK_MODELS)
def test_base_in_a_task_checkpoint_has_exactly_its_weights(case, tmp_path):
    task = TASK_MODELS[case]()
    task.save_pretrained(tmp_path)
    backbone = Backbone.from_pretrained(str(tmp_path))
    saved = {key.split(".", 1)[1]: value for key, value in task.state_dict().items() if "." in key}
    state = backbone.model.state_dict()
    assert len(state) > 10
    for key, value in state.items():
        assert torch.equal(value, saved[key]), key


@pytest.mark.parametrize("case", TASK_MODELS)
def test_rebuilt_from_its_options_it_has_the_same_shapes(case, tmp_path):
    TASK_MODELS[case]().save_pretrained(tmp_path)
    backbone = Backbone.from_pretrained(str(tmp_path))
    again = Backbone.from_options(backbone.options())
    assert type(again.model) is type(backbone.model)
    shapes = {key: value.shape for key, value in backbone.model.state_dict().items()}
    assert {key: value.shape for key, value in again.model.state_dict().items()} == shapes


def test_missing_weights_are_an_error_that_names_them(tmp_path):
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(HeadsetError, match=r"lacks weights of BertModel: encoder\.layer\.1\.output\.dense\.weight"):
        Backbone.from_pretrained(str(tmp_path))


def test_weights_missing_inside_a_task_checkpoint_are_an_error(tmp_path):
    BertForTokenClassification(BertConfig(**SIZES)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["bert.embeddings.word_embeddings.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(HeadsetError, match=r"bert\.embeddings\.word_embeddings\.weight"):
        Backbone.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
        ({"hidden_act": "nope"}, "KeyError: 'nope'"),
        ({"hidden_size": -4}, "negative dimension"),
    ],
)
def test_settings_of_which_no_model_is_made_are_told(tmp_path, setting, message):
    BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | setting))
    with pytest.raises(HeadsetError, match=rf"no model of this configuration .* 'bert': .*{message}"):
        Backbone.from_options(BackboneOptions(path=str(tmp_path), random_weights=True))


def test_a_folder_with_only_a_config_needs_consent_to_random_weights(tmp_path):
    BertConfig(**SIZES).save_pretrained(tmp_path)
    with pytest.raises(HeadsetError, match=r"no weights.*random_weights"):
        Backbone.from_pretrained(str(tmp_path))
    backbone = Backbone.from_options(BackboneOptions(path=str(tmp_path), random_weights=True))
    assert backbone.spec.num_layers == 3


@pytest.mark.parametrize(
    "path", ["no/such/folder", "package://no_such_package/model", "package://torch/no_such_folder"]
)
def test_a_wrong_path_is_one_clear_error(path):
    with pytest.raises(HeadsetError, match=path.split("/")[-1]):
        Backbone.from_pretrained(path)


@pytest.mark.parametrize(
    "model",
    [
        BertModel(BertConfig(**SIZES)),
        DistilBertModel(DistilBertConfig(dim=32, n_layers=3, n_heads=2, hidden_dim=64, vocab_size=99)),
        GPT2Model(GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=99)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_spec_and_hidden_states_are_those_of_the_model(model):
    backbone = Backbone(model).eval()
    assert (backbone.spec.hidden_size, backbone.spec.num_layers, backbone.spec.vocab_size) == (32, 3, 99)
    inputs = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 1]]), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    output = backbone(**inputs, output_hidden_states=True)
    assert output.last_hidden_state.shape == (2, 3, 32)
    assert len(output.hidden_states) == 4
    assert torch.equal(output.last_hidden_state, model.eval()(**inputs).last_hidden_state)


def test_the_encoder_of_an_encoder_decoder_is_what_reads():
    config = T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=99)
    backbone = Backbone(T5Model(config))
    assert backbone.model.get_submodule(backbone.encoder_path) is backbone.model.get_encoder()


def test_it_trains_in_train_mode_although_transformers_loads_in_eval_mode(tmp_path):
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path)
    assert not AutoModel.from_pretrained(tmp_path).training
    backbone = Backbone.from_pretrained(str(tmp_path))
    assert all(module.training for module in backbone.modules())
    backbone.freeze("all")
    assert not any(module.training for module in backbone.train().modules())


@pytest.mark.parametrize(
    ("what", "frozen_prefixes"),
    [
        (None, ()),
        ("embeddings", ("embeddings.",)),
        (2, ("embeddings.", "encoder.layer.0.", "encoder.layer.1.")),
        ("all", ("embeddings.", "encoder.", "pooler.")),
    ],
)
def test_freezing(what, frozen_prefixes):
    backbone = Backbone(BertModel(BertConfig(**SIZES))).freeze(what)
    for name, parameter in backbone.model.named_parameters():
        assert parameter.requires_grad != (name.startswith(frozen_prefixes) if frozen_prefixes else False), name


def test_freezing_embeddings_of_a_decoder_takes_all_of_them():
    backbone = Backbone(GPT2Model(GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=99))).freeze("embeddings")
    frozen = [name for name, parameter in backbone.model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["wte.weight", "wpe.weight"]


@pytest.mark.parametrize("what", ["some", -1, 4])
def test_freezing_what_is_not_there_is_an_error(what):
    with pytest.raises(HeadsetError, match=r"freeze"):
        Backbone(BertModel(BertConfig(**SIZES))).freeze(what)
