"""Long documents in windows, against stock tokenizers and models; short ones are those of the ordinary head."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from backbones import Backbone, HeadsetError
from heads import Pooling, SequenceClassification, TokenClassification
from heads.testing import check_head
from headset import Headset, LitHeadset, TextData
from headset.document_encoder import DocumentEncoder
from headset.prediction import encoder_for

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
LABELS = {"topic": ["bad", "good", "so so"]}
WORDS = "the film was very good and a bad book is not".split()
LONG = " ".join(WORDS[(7 * place) % 11] for place in range(70))
SHORT = "a bad book"
CUT = {"truncation": True, "max_length": 16, "stride": 5, "return_overflowing_tokens": True}


@pytest.mark.parametrize("windows", ["mean", "max", "attention"])
def test_heads_keep_the_contract(windows):
    check_head(SequenceClassification(pooling="mean", windows=windows))
    check_head(Pooling(windows=windows, objective="similarity", normalize=True))
    if windows != "attention":
        check_head(SequenceClassification(windows=windows))


def make(folder, head):
    torch.manual_seed(0)
    labels = LABELS if isinstance(head, SequenceClassification) else None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    headset = Headset(Backbone.from_pretrained(str(folder)), {"topic": head}, labels, tokenizer).eval()
    for parameter in headset.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    headset.states["topic"] = "trained"
    return headset


def answer(headset, texts):
    encoder = DocumentEncoder(headset.tokenizer, 16, stride=5)
    encoded = encoder.encode([texts])
    batch = encoder.collate([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)])
    with torch.no_grad():
        return headset(batch)["topic"].logits


def stock_windows(headset, text):
    windows = headset.tokenizer(text, padding=True, return_tensors="pt", **CUT)
    assert len(windows.pop("overflow_to_sample_mapping")) == (9 if text == LONG else 1)
    return windows


@pytest.mark.parametrize("windows", ["mean", "max"])
def test_native_scores_are_pooled_over_the_windows_of_stock_tokenizers(tiny_bert, tmp_path, windows):
    headset = make(tiny_bert, SequenceClassification(windows=windows))
    place = headset.export(str(tmp_path))["topic"]
    stock = AutoModelForSequenceClassification.from_pretrained(place).eval()
    with torch.no_grad():
        wanted = [stock(**stock_windows(headset, text)).logits for text in (LONG, SHORT)]
    pooled = torch.stack([scores.mean(0) if windows == "mean" else scores.amax(0) for scores in wanted])
    torch.testing.assert_close(answer(headset, [LONG, SHORT]), pooled, rtol=1e-5, atol=1e-5)
    [said] = headset.predict([LONG], max_length=16, stride=5)["topic"]
    assert list(said["scores"].values()) == pytest.approx(pooled[0].softmax(0).tolist(), abs=1e-5)
    card = (Path(place) / "README.md").read_text()
    assert "return_overflowing_tokens" in card and {"mean": ".mean(0)", "max": ".amax(0)"}[windows] in card


@pytest.mark.parametrize("windows", ["mean", "max", "attention"])
def test_vectors_are_pooled_before_they_are_scored(tiny_bert, tmp_path, windows):
    headset = make(tiny_bert, SequenceClassification(pooling="mean", windows=windows))
    scorer = headset.head("topic").scorer
    inputs = stock_windows(headset, LONG)
    with torch.no_grad():
        hidden = headset.backbone.model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        vectors = (hidden * mask).sum(1) / mask.sum(1)
        if windows == "attention":
            shares = (vectors @ scorer.over_windows.pooler.query).softmax(0)
            pooled = shares @ vectors
        else:
            pooled = vectors.mean(0) if windows == "mean" else vectors.amax(0)
        wanted = scorer.linear(pooled)
    ours = answer(headset, [SHORT, LONG])
    torch.testing.assert_close(ours[1], wanted, rtol=1e-5, atol=1e-5)
    if windows == "attention":  # the export takes the windows of a batch as its tokenizer gives them
        place = headset.export(str(tmp_path))["topic"]
        model = AutoModelForSequenceClassification.from_pretrained(place, trust_remote_code=True).eval()
        batch = AutoTokenizer.from_pretrained(place)([SHORT, LONG], padding=True, return_tensors="pt", **CUT)
        torch.testing.assert_close(model(**batch).logits, ours, rtol=1e-5, atol=1e-5)
        assert [row["label"] for row in model.predict(batch)] == [LABELS["topic"][best] for best in ours.argmax(-1)]
        assert "output = model(**windows)" in (Path(place) / "README.md").read_text()


@pytest.mark.parametrize("settings", [{}, {"pooling": ["cls", "max"], "hidden_layers": "mix"}])
@pytest.mark.parametrize("windows", ["mean", "max"])
def test_a_short_text_is_answered_as_by_the_ordinary_head(tiny_bert, settings, windows):
    plain, windowed = (make(tiny_bert, SequenceClassification(**settings, windows=one)) for one in (None, windows))
    windowed.load_state_dict(plain.state_dict())
    texts = [SHORT, "the film was very good"]
    batches = [encoder_for(plain, "topic"), encoder_for(windowed, "topic")]
    assert plain.predict(texts) == windowed.predict(texts)
    inputs = [encoder.encode([texts])["input_ids"] for encoder in batches]
    assert [[[ids]] for ids in inputs[0]] == inputs[1]


def test_vectors_of_long_documents(tiny_bert, tmp_path):
    headset = make(tiny_bert, Pooling(windows="mean", projection=5, normalize=True))
    with torch.no_grad():
        inputs = stock_windows(headset, LONG)
        hidden, mask = headset.backbone.model(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(-1)
        vector = headset.head("topic").dense(((hidden * mask).sum(1) / mask.sum(1)).mean(0))
    wanted = vector / vector.norm()
    [row] = headset.predict([LONG], max_length=16, stride=5)["topic"]
    torch.testing.assert_close(torch.tensor(row["vector"]), wanted, rtol=1e-5, atol=1e-5)
    [pair] = headset.predict([(LONG, LONG)], max_length=16, stride=5)["topic"]
    assert pair["similarity"] == pytest.approx(1, abs=1e-5) and pair["vectors"][0] == pytest.approx(row["vector"])
    with pytest.raises(HeadsetError, match="windows: mean; sentence-transformers has"):
        headset.export(str(tmp_path / "refused"), format="sentence-transformers")
    place = headset.export(str(tmp_path))["topic"]
    model = AutoModel.from_pretrained(place, trust_remote_code=True).eval()
    batch = headset.tokenizer([LONG, SHORT], padding=True, return_tensors="pt", **CUT)
    torch.testing.assert_close(model(**batch).pooler_output[0], wanted, rtol=1e-5, atol=1e-5)


def rows(folder, name, texts):
    lines = [
        {"text": text, "label": ["bad", "good"][row % 2], "other": texts[row - 1]} for row, text in enumerate(texts)
    ]
    (folder / name).write_text("\n".join(map(json.dumps, lines)))
    return str(folder / name)


@pytest.mark.parametrize(
    ("head", "text"),
    [(SequenceClassification(windows="max"), "text"), (Pooling(windows="attention"), ["text", "other"])],
    ids=["scores", "vectors"],
)
def test_a_run_on_long_texts(tiny_bert, tmp_path, head, text):
    train = rows(tmp_path, "train.jsonl", [LONG, SHORT, f"{SHORT} {LONG}", "good", LONG[:100]])
    settings = {"max_length": 16, "stride": 5, "batch_size": 2, "text": text}
    data = TextData(train=train, validation=train, predict=train, **settings)
    module = LitHeadset(str(tiny_bert), {"topic": head}, learning_rate=1e-3)
    trainer = Trainer(default_root_dir=tmp_path, max_epochs=1, **QUIET)
    trainer.fit(module, datamodule=data)
    assert trainer.callback_metrics["val/topic/loss"].isfinite()
    answers = [row for batch in trainer.predict(module, datamodule=data) for row in batch["topic"]]
    assert len(answers) == 5
    if text == "text":
        alone = module.built.predict([LONG, SHORT], max_length=16, stride=5)["topic"]
        assert [row["score"] for row in answers[:2]] == pytest.approx([row["score"] for row in alone], abs=1e-5)


def test_a_cap_on_windows_is_told(tiny_bert, tmp_path, caplog):
    train = rows(tmp_path, "train.jsonl", [LONG, SHORT, SHORT, "good"])
    data = TextData(train=train, max_length=16, stride=5, max_windows=3)
    data.connect(AutoTokenizer.from_pretrained(tiny_bert), {"topic": SequenceClassification(windows="mean")}, {})
    data.setup("fit")
    [batch] = data.train_dataloader()
    assert sorted(batch["meta"]["windows"]) == [1, 1, 1, 3] and batch["input_ids"].shape == (6, 16)
    assert "4 rows" in caplog.text and "1 of them cut to 3 windows of 16 tokens" in caplog.text


@pytest.mark.parametrize(
    ("heads", "settings", "message"),
    [
        ({"a": SequenceClassification(windows="mean")}, {"text": ["text", "other"]}, "data.text names 2 columns"),
        (
            {"a": SequenceClassification(windows="mean"), "b": TokenClassification()},
            {"labels": {"a": "label", "b": "label"}},
            "a as document; b as text",
        ),
        ({"a": SequenceClassification(windows="mean")}, {"stride": 14, "max_length": 16}, "from 0 to 13 in common"),
        ({"a": SequenceClassification(windows="mean")}, {"max_windows": 0}, "Invalid data.max_windows: 0"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_bert, tmp_path, heads, settings, message):
    train = rows(tmp_path, "train.jsonl", [LONG, SHORT])
    with pytest.raises(HeadsetError, match=message):
        data = TextData(train=train, **settings)
        data.connect(AutoTokenizer.from_pretrained(tiny_bert), heads, {})
        data.setup("fit")


def test_wrong_ways_to_pool_are_refused():
    with pytest.raises(HeadsetError, match=r"Invalid pooling of windows: 'maen'.*Did you mean 'mean'"):
        SequenceClassification(windows="maen")
    with pytest.raises(HeadsetError, match="pools vectors, and native modules give scores"):
        SequenceClassification(windows="attention")
