"""Fine-tuned models of transformers come in as a backbone and a head, and go out again as they were."""

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from backbones import HeadsetError
from heads import SequenceClassification, TokenClassification
from headset import Headset, LitHeadset

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
NAMES = {"id2label": {0: "x", 1: "y", 2: "z"}, "label2id": {"x": 0, "y": 1, "z": 2}}
MODELS = {
    "bert": lambda size: BertForSequenceClassification(BertConfig(vocab_size=size, **SIZES, **NAMES)),
    "bert tags": lambda size: BertForTokenClassification(BertConfig(vocab_size=size, **SIZES, **NAMES)),
    "roberta": lambda size: RobertaForSequenceClassification(
        RobertaConfig(vocab_size=size, pad_token_id=0, max_position_embeddings=80, **SIZES, **NAMES)
    ),
    "distilbert": lambda size: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=size, dim=32, n_layers=2, n_heads=2, hidden_dim=64, **NAMES)
    ),
    "llama": lambda size: LlamaForSequenceClassification(
        LlamaConfig(vocab_size=size, pad_token_id=0, **SIZES, **NAMES)
    ),
    "regression": lambda size: BertForSequenceClassification(BertConfig(vocab_size=size, num_labels=1, **SIZES)),
}


@pytest.mark.parametrize("case", MODELS)
def test_in_and_out_again_keys_weights_and_logits_are_the_same(case, tiny_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    torch.manual_seed(0)
    stock = MODELS[case](len(tokenizer)).eval()
    stock.save_pretrained(tmp_path / "in")
    tokenizer.save_pretrained(tmp_path / "in")
    headset = Headset.from_transformers(str(tmp_path / "in"), head="mine")
    assert headset.states == {"mine": "loaded"}
    batch = dict(tokenizer(["the film was good", "bad"], padding=True, return_tensors="pt"))
    batch = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        torch.testing.assert_close(headset(batch)["mine"].logits, stock(**batch).logits, rtol=1e-5, atol=1e-6)
    if case != "regression":
        assert headset.labels == {"mine": ("x", "y", "z")}
    headset.predict(["a good film"])

    out = type(stock).from_pretrained(headset.export(str(tmp_path / "out"))["mine"])
    before, after = stock.state_dict(), out.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert out.config.id2label == stock.config.id2label


@pytest.mark.parametrize("size", [1, 2, 3])
def test_numbers_without_names_get_none(size, tmp_path):
    stock = BertForSequenceClassification(BertConfig(problem_type="regression", num_labels=size, **SIZES)).eval()
    headset = Headset.from_transformers(stock)
    assert headset.labels == {"head": None}
    headset.head("head").scorer.whole(headset.backbone).save_pretrained(tmp_path)
    assert Headset.from_transformers(BertForSequenceClassification.from_pretrained(tmp_path)).labels == {"head": None}


def test_names_of_numbers_are_kept(tmp_path):
    names = {0: "valence", 1: "arousal", 2: "dominance"}
    config = BertConfig(problem_type="regression", id2label=names, label2id={it: i for i, it in names.items()}, **SIZES)
    headset = Headset.from_transformers(BertForSequenceClassification(config).eval())
    batch = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    with torch.no_grad():
        output = headset(batch)["head"]
    assert len(headset.head("head").predict(output)[0]["values"]) == 3
    headset.save_pretrained(str(tmp_path / "whole"))
    again = Headset.from_pretrained(str(tmp_path / "whole"))
    assert again.labels == {"head": tuple(names.values())}
    assert again.head("head").scorer.config.id2label == names


def test_a_loaded_model_is_shared_and_not_copied():
    stock = BertForSequenceClassification(BertConfig(vocab_size=50, **SIZES, **NAMES))
    headset = Headset.from_transformers(stock)
    assert headset.backbone.model is stock.bert
    assert list(headset.heads) == ["head"]


def test_without_its_head_weights_it_is_refused(tmp_path):
    BertForMaskedLM(BertConfig(vocab_size=50, **SIZES)).save_pretrained(tmp_path / "mlm")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mlm")
    assert stock.classifier.weight.std() > 0  # stock makes it up
    config = BertConfig.from_pretrained(tmp_path / "mlm", architectures=["BertForSequenceClassification"])
    config.save_pretrained(tmp_path / "mlm")
    with pytest.raises(HeadsetError, match=r"lacks weights of BertForSequenceClassification: .*classifier"):
        Headset.from_transformers(str(tmp_path / "mlm"), processor=AutoTokenizer)


@pytest.fixture
def tagger(tmp_path, tiny_tokenizer):
    """A folder with a fine-tuned tagger."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    torch.manual_seed(0)
    MODELS["bert tags"](len(tokenizer)).save_pretrained(tmp_path / "tagger")
    tokenizer.save_pretrained(tmp_path / "tagger")
    return str(tmp_path / "tagger")


def built(tagger, policy, head, labels):
    module = LitHeadset(tagger, {"mine": head}, labels={"mine": labels}, stored_head=policy)
    module.configure_model()
    return module.headset


def test_one_option_says_what_becomes_of_the_head_in_the_backbones_checkpoint(tagger):
    stock = BertForTokenClassification.from_pretrained(tagger)
    kept = built(tagger, "keep", TokenClassification(), ["z", "y", "x"])
    assert kept.states == {"mine": "loaded"} and kept.labels == {"mine": ("x", "y", "z")}
    assert torch.equal(kept.head("mine").scorer.whole(kept.backbone).classifier.weight, stock.classifier.weight)
    for policy, head in (("replace", TokenClassification()), ("drop", SequenceClassification(pooling="mean"))):
        new = built(tagger, policy, head, ["a", "b"])
        assert new.states == {"mine": "new"} and new.labels == {"mine": ("a", "b")}
        assert torch.equal(
            new.backbone.model.encoder.layer[1].output.dense.weight, stock.bert.encoder.layer[1].output.dense.weight
        )


@pytest.mark.parametrize(
    ("policy", "head", "message"),
    [
        (
            "keep",
            SequenceClassification(),
            "holds BertForTokenClassification, and no head is of that task, so none can keep",
        ),
        ("replace", SequenceClassification(), "none can replace its weights. To do without them: stored_head: drop"),
        ("drop", TokenClassification(), "the head 'mine' is of that task. .*stored_head: replace"),
        ("kep", TokenClassification(), "Invalid stored_head: 'kep'. .*keep, replace, drop. Did you mean 'keep'"),
    ],
)
def test_heads_that_are_not_what_the_option_says_are_refused(tagger, policy, head, message):
    with pytest.raises(HeadsetError, match=message):
        built(tagger, policy, head, ["x", "y", "z"])


def test_a_task_without_a_head_here_says_so():
    with pytest.raises(
        HeadsetError, match=r"no head here for BertForNextSentencePrediction.*AutoModelForTokenClassification"
    ):
        Headset.from_transformers(BertForNextSentencePrediction(BertConfig(vocab_size=50, **SIZES)))
