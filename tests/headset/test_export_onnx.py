"""ONNX exports, run by ONNX Runtime on other batch sizes and lengths than they were made with."""

import json
import sys

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    ConvNextImageProcessor,
    DistilBertConfig,
    LlamaConfig,
    ResNetConfig,
    RobertaConfig,
    T5Config,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
)

from backbones import Backbone, HeadsetError
from heads import (
    AudioClassification,
    Head,
    HeadOutput,
    ImageClassification,
    MaskedLM,
    MultipleChoice,
    Pooling,
    QuestionAnswering,
    SequenceClassification,
    TokenClassification,
)
from headset import Headset, export_onnx
from headset.info import describe_path

TEXTS = ["the film was very good", "bad", "a book is not a film", "not good", "very " * 20]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
T5 = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16, "decoder_start_token_id": 0}
LABELS = ["bad", "good", "so so"]
CASES = {
    "native": (BertConfig(**SIZES), SequenceClassification()),
    "vectors": (BertConfig(**SIZES), Pooling(["mean", "last"], projection=5, normalize=True)),
    "tags": (RobertaConfig(**SIZES, pad_token_id=0, dtype="bfloat16"), TokenClassification()),
    "mix": (DistilBertConfig(**DISTIL), SequenceClassification(pooling=["cls", "attention"], hidden_layers="mix")),
    "decoder": (LlamaConfig(**SIZES), SequenceClassification("regression", num_outputs=2)),
    "encoder of two": (T5Config(**T5), SequenceClassification("multi_label_classification", pooling="max")),
}


def make(config, head, tokenizer, labels=True):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    backbone = Backbone.from_config(config, dtype=config.dtype or torch.float32)
    unlabelled = not labels or isinstance(head, Pooling) or getattr(head, "problem_type", "") == "regression"
    headset = Headset(backbone, {"head": head}, {} if unlabelled else {"head": LABELS}, tokenizer).eval()
    headset.states["head"] = "trained"
    return headset


@pytest.mark.parametrize("case", CASES)
def test_it_gives_our_numbers_at_any_size(tiny_tokenizer, tmp_path, case, monkeypatch):
    if case == "mix":
        monkeypatch.setattr(export_onnx, "FILE_LIMIT", 1000)
    config, head = CASES[case]
    headset = make(config, head, tiny_tokenizer)
    folder = tmp_path / "out" / "head"
    assert headset.export(str(tmp_path / "out"), format="onnx") == {"head": str(folder)}
    session = InferenceSession(folder / "model.onnx")
    assert {one.name: one.shape for one in session.get_inputs()} == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "sequence_length"],
    }
    [output] = session.get_outputs()
    assert output.name == ("sentence_embedding" if case == "vectors" else "logits")
    assert output.shape[0] == "batch_size"
    tolerance = 0.05 if case == "tags" else 1e-5
    for texts in (TEXTS, TEXTS[:2], TEXTS[:1], TEXTS[4:]):
        batch = dict(headset.tokenizer(texts, padding=True, return_tensors="pt"))
        with torch.inference_mode():
            ours = headset(batch)["head"].logits.float()
        [theirs] = session.run(None, {name: value.numpy() for name, value in batch.items()})
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=tolerance, atol=tolerance)

    assert (folder / "model.onnx_data").is_file() == (case == "mix")
    config = json.loads((folder / "config.json").read_text())
    if head.labels is not None:
        assert config["id2label"] == {str(index): label for index, label in enumerate(LABELS)}
    found = describe_path(str(folder))
    assert (found["kind"], found["backbone"]) == ("ONNX model", config["model_type"])
    text = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXTS[0])
    assert text.ids == headset.tokenizer(TEXTS[0])["input_ids"]


def words(*shape):
    ids = torch.randint(5, 60, shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def other_kind(kind, tokenizer):
    """A headset with a head that is not about one text, and batches of other sizes than the export was made with."""
    wave = {"conv_dim": [16] * 3, "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3], "num_feat_extract_layers": 3}
    if kind == "image":
        backbone = Backbone.from_config(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
        made = {"processor": ConvNextImageProcessor(size={"shortest_edge": 64}), "labels": {"head": LABELS}}
        sizes = [{"pixel_values": torch.rand(1, 3, 48, 80)}, {"pixel_values": torch.rand(4, 3, 64, 32)}]
        headset = Headset(backbone, {"head": ImageClassification()}, **made)
    elif kind == "audio":
        config = Wav2Vec2Config(**SIZES, **wave, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
        made = {"processor": Wav2Vec2FeatureExtractor(return_attention_mask=False), "labels": {"head": LABELS}}
        sizes = [{"input_values": torch.rand(1, 3000)}, {"input_values": torch.rand(4, 900)}]
        headset = Headset(Backbone.from_config(config), {"head": AudioClassification()}, **made)
    else:
        heads = {"question": QuestionAnswering(), "choices": MultipleChoice(), "mask": MaskedLM()}
        headset = make(BertConfig(**SIZES), heads[kind], tokenizer, labels=False)
        sizes = [words(1, 5, 7), words(4, 2, 20)] if kind == "choices" else [words(1, 7), words(4, 20)]
    return headset.eval(), sizes


@pytest.mark.parametrize("kind", ["question", "choices", "mask", "image", "audio"])
def test_heads_that_read_something_else(tiny_tokenizer, tmp_path, kind):
    torch.manual_seed(0)
    headset, batches = other_kind(kind, tiny_tokenizer)
    folder = headset.export(str(tmp_path / "out"), format="onnx", allow_untrained=True)["head"]
    session = InferenceSession(f"{folder}/model.onnx")
    names = [output.name for output in session.get_outputs()]
    assert names == (["start_logits", "end_logits"] if kind == "question" else ["logits"])
    for batch in batches:
        with torch.inference_mode():
            logits = headset(batch)["head"].logits
        theirs = session.run(None, {name: value.numpy() for name, value in batch.items()})
        for one, ours in zip(theirs, logits.unbind(-1) if kind == "question" else [logits], strict=True):
            np.testing.assert_allclose(one, ours.numpy(), rtol=1e-4, atol=1e-5)


class Looking(Head):
    """A head whose way depends on the numbers that it sees."""

    def build(self, context):
        self.score = torch.nn.Linear(context.spec.hidden_size, len(context.labels))

    def forward(self, features, batch):
        scores = self.score(features.last_hidden_state[:, 0])
        return HeadOutput(scores if scores.sum().item() > 0 else -scores)

    def loss(self, output, labels):
        return torch.nn.functional.cross_entropy(output.logits, labels)


def test_what_cannot_be_traced_is_one_clear_error(tiny_tokenizer, tmp_path, capfd):
    headset = make(BertConfig(**SIZES), Looking(), tiny_tokenizer)
    with pytest.raises(HeadsetError, match="'head' cannot be exported to ONNX"):
        headset.export(str(tmp_path / "out"), format="onnx")
    assert list((tmp_path / "out").iterdir()) == []
    assert "torch.onnx" not in capfd.readouterr().out


def test_a_package_that_is_missing_is_named(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    headset = make(BertConfig(**SIZES), SequenceClassification(), tiny_tokenizer)
    with pytest.raises(HeadsetError, match=r"needs onnxscript: pip install 'headset\[onnx\]'"):
        headset.export(str(tmp_path / "out"), format="onnx")
