"""LoRA on its way out: adapter folders that peft and transformers load, and stock models with LoRA merged."""

import json

import pytest
import torch
import transformers
from peft import AutoPeftModel, AutoPeftModelForSequenceClassification, AutoPeftModelForTokenClassification, PeftModel
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertForSequenceClassification

from backbones import Backbone, BackboneOptions, HeadsetError
from heads import MaskedLM, Pooling, QuestionAnswering, SequenceClassification, TokenClassification
from heads.outputs import logits_of
from headset import Headset, export_peft
from headset.prediction import sample
from headset.stock import stock_copy

TEXTS = ["the film was very good", "bad", "a book is not a film"]
LABELS = ["bad", "good", "so so"]
ALL = {"r": 4, "target_modules": "all-linear"}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BASES = {
    "bert": SIZES,
    "roberta": SIZES | {"pad_token_id": 0, "max_position_embeddings": 80},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1},
    "llama": SIZES | {"pad_token_id": 0, "num_key_value_heads": 2},
    "mixtral": SIZES | {"pad_token_id": 0, "num_key_value_heads": 2, "num_local_experts": 4},
}


@pytest.fixture(scope="module")
def base(tiny_tokenizer, tmp_path_factory):
    """Makes the folder of a base model of an architecture, with a tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)

    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=len(tokenizer), **BASES[kind])).save_pretrained(
            folder
        )
        tokenizer.save_pretrained(folder)
        return folder

    return make


def make(folder, heads, labels=(), **options):
    """A headset whose adapters have values."""
    torch.manual_seed(0)
    backbone = Backbone.from_options(BackboneOptions(str(folder), **options))
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    named = {name: LABELS for name in labels}
    headset = Headset(backbone, heads, named, AutoTokenizer.from_pretrained(folder))
    headset.states = dict.fromkeys(heads, "trained")
    return headset.eval()


def answers(headset, name):
    batch = sample(headset, name)
    batch = {key: value for key, value in batch.items() if key != "meta"}
    with torch.no_grad():
        return batch, headset(batch, [name])[name].logits


CASES = {
    "bert": ("bert", SequenceClassification(), ALL, {}),
    "bert tags, without the pooler that has adapters": ("bert", TokenClassification(), ALL, {}),
    "bert, ranks and biases": (
        "bert",
        SequenceClassification(),
        {
            "target_modules": ["query", "dense"],
            "rank_pattern": {"^encoder.layer.1.attention.self.query": 2},
            "bias": "all",
            "use_rslora": True,
        },
        {},
    ),
    "bert, one layer with DoRA": (
        "bert",
        TokenClassification(),
        {"target_modules": ["value"], "layers_to_transform": [1], "use_dora": True},
        {},
    ),
    "bert, embeddings that the head is tied to": (
        "bert",
        MaskedLM(),
        {"target_modules": ["word_embeddings", "key"]},
        {},
    ),
    "bert, answers by the types of tokens": ("bert", QuestionAnswering(), ALL, {}),
    "roberta, whose head has names of the base": ("roberta", SequenceClassification(), ALL, {}),
    "distilbert, whose head is two modules": ("distilbert", SequenceClassification(), ALL, {}),
    "gpt2, with transposed weights": ("gpt2", TokenClassification(), {"target_modules": ["c_attn", "c_proj"]}, {}),
    "llama": ("llama", SequenceClassification(), {}, {}),
    "mixtral, whose experts are parameters": ("mixtral", SequenceClassification(), ALL, {}),
    "bert in 4 bits": ("bert", SequenceClassification(), ALL, {"quantization": NF4}),
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.filterwarnings("error:Found missing adapter keys")
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_folder_gives_the_same_in_peft_and_in_transformers(base, tmp_path, case):
    kind, head, lora, options = CASES[case]
    place = base(kind)
    headset = make(
        place, {"x": head}, () if isinstance(head, MaskedLM | QuestionAnswering) else ("x",), lora=lora, **options
    )
    export_peft.check(headset, "x")
    loader = export_peft.write(headset, "x", tmp_path)
    assert loader.name == head.auto_class
    files = {path.name for path in tmp_path.iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
    } <= files and "config.json" not in files
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(place)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    scorer = head.scorer.task.state_dict() | {tie.task_key: tie.weight for tie in head.scorer.ties}
    heads = {key.removeprefix("base_model.model.") for key in weights if "lora_" not in key} - set(scorer)
    assert all(key.endswith("bias") for key in heads) and bool(heads) == ("bias" in lora)
    assert all(any(key.startswith(f"{path}.") for path in config["modules_to_save"]) for key in scorer)

    batch, ours = answers(headset, "x")
    auto_class = getattr(transformers, head.auto_class)
    by_task = {SequenceClassification: AutoPeftModelForSequenceClassification}
    by_task |= {
        TokenClassification: AutoPeftModelForTokenClassification,
        MaskedLM: AutoPeftModel,
        QuestionAnswering: AutoPeftModel,
    }
    models = [
        PeftModel.from_pretrained(auto_class.from_pretrained(place, **loader.arguments), tmp_path),
        by_task[type(head)].from_pretrained(tmp_path, **loader.arguments),
        auto_class.from_pretrained(tmp_path, **loader.arguments),
    ]
    for model in models:
        with torch.no_grad():
            torch.testing.assert_close(logits_of(model.eval()(**batch)), ours, rtol=0, atol=4e-7)
        assert head.labels is None or list(model.config.id2label.values()) == LABELS

    if "tied" in case:
        with pytest.raises(HeadsetError, match=r"LoRA on embeddings\.word_embeddings cannot be merged"):
            stock_copy(headset)
        return
    merged = head.scorer.whole(stock_copy(headset).backbone)
    merged.save_pretrained(tmp_path / "merged")
    stock, info = auto_class.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values()) and getattr(stock.config, "quantization_config", None) is None
    assert type(stock) is type(merged) and {value.dtype for value in stock.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(logits_of(stock.eval()(**batch)), ours, rtol=0, atol=1e-6)
    assert torch.equal(answers(headset, "x")[1], ours)


def test_rounding_in_bfloat16_is_no_difference(tiny_bert, tmp_path):
    headset = make(tiny_bert, {"topic": TokenClassification()}, ("topic",), lora=ALL, dtype="bfloat16")
    folder = headset.export(str(tmp_path), format="peft")["topic"]
    assert load_file(f"{folder}/adapter_model.safetensors")


def test_every_format_of_a_run_with_lora_is_verified(tiny_bert, tmp_path):
    heads = {"topic": SequenceClassification(), "vector": Pooling()}
    headset = make(tiny_bert, heads, ("topic",), lora=ALL, quantization=NF4)
    headset.save_pretrained(str(tmp_path / "whole"))
    headset = Headset.from_pretrained(str(tmp_path / "whole"))
    folders = headset.export(str(tmp_path / "merged"))
    plain = AutoModel.from_pretrained(tiny_bert).state_dict()
    assert load_file(f"{folders['topic']}/model.safetensors").keys() == {f"bert.{key}" for key in plain} | {
        f"classifier.{key}" for key in ("weight", "bias")
    }
    vectors = SentenceTransformer(folders["vector"], device="cpu").encode(TEXTS, convert_to_tensor=True)
    ours = torch.tensor([row["vector"] for row in headset.predict(TEXTS)["vector"]])
    torch.testing.assert_close(vectors, ours, rtol=1e-5, atol=1e-6)

    (tmp_path / "out" / "topic").mkdir(parents=True)
    (tmp_path / "out" / "topic" / "adapter_config.json").touch()  # of an earlier export
    headset.export(str(tmp_path / "out"), format="peft", head="topic", overwrite=True)
    card = (tmp_path / "out" / "topic" / "README.md").read_text()
    assert "library_name: peft" in card and "id2label={0: 'bad', 1: 'good', 2: 'so so'}" in card


def test_a_base_with_a_classifier_for_other_labels(tiny_bert, tmp_path):
    torch.manual_seed(3)
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert)).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "base")
    headset = make(tmp_path / "base", {"x": SequenceClassification()}, ("x",), lora=ALL)
    loader = export_peft.write(headset, "x", tmp_path)
    batch, ours = answers(headset, "x")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, **loader.arguments)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**batch).logits, ours, rtol=0, atol=4e-7)


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        (SequenceClassification(), {}, "no LoRA that an adapter folder could hold.*--format transformers"),
        (SequenceClassification(pooling="mean"), {"lora": ALL}, "does not score with modules.*--format custom"),
        (
            SequenceClassification(),
            {"lora": {"target_modules": ["value"], "init_lora_weights": "pissa"}},
            "a change of the backbone's own weights.*--format transformers",
        ),
    ],
)
def test_what_an_adapter_folder_cannot_hold_says_where_it_goes(tiny_bert, tmp_path, head, options, message):
    headset = make(tiny_bert, {"x": head}, ("x",), **options)
    with pytest.raises(HeadsetError, match=message):
        headset.export(str(tmp_path / "out"), format="peft")
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_gone_or_another_one_is_told(base, tmp_path):
    place = base("bert")
    headset = make(place, {"x": SequenceClassification()}, ("x",), lora=ALL)
    torch.manual_seed(1)
    AutoModel.from_config(AutoConfig.from_pretrained(place)).save_pretrained(place)
    with pytest.raises(HeadsetError, match="does not give the same numbers in peft"):
        headset.export(str(tmp_path / "out"), format="peft")
    (place / "config.json").unlink()
    with pytest.raises(HeadsetError, match="names its base model, and that is not there any more"):
        headset.export(str(tmp_path / "out"), format="peft")
