"""Exports, opened by the libraries that they are for."""

import json

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertForTokenClassification,
    pipeline,
)

import headset.verify as verify_module
from backbones import Backbone, HeadsetError
from heads import Pooling, SequenceClassification, TokenClassification
from headset import Headset

TEXTS = ["the film was very good", "bad", "a book is not a film"]


def make(folder, **heads):
    labels = {name: ["bad", "good", "so so"] for name, head in heads.items() if not isinstance(head, Pooling)}
    labels |= {name: ["O", "B-X", "I-X"] for name, head in heads.items() if isinstance(head, TokenClassification)}
    if any(getattr(head, "problem_type", "") == "regression" for head in heads.values()):
        labels = {}
    torch.manual_seed(0)
    headset = Headset(Backbone.from_pretrained(str(folder)), heads, labels, AutoTokenizer.from_pretrained(folder))
    headset.states = dict.fromkeys(headset.states, "trained")
    return headset.eval()


def stock_logits(kind, folder):
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model.eval()(**batch).logits, model.config


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_a_sequence_head_is_a_stock_classifier(tiny_bert, tmp_path, problem_type):
    headset = make(tiny_bert, topic=SequenceClassification(problem_type))
    [(name, folder)] = headset.export(str(tmp_path / "out")).items()
    assert (name, folder) == ("topic", str(tmp_path / "out" / "topic"))
    logits, config = stock_logits(AutoModelForSequenceClassification, folder)
    batch = dict(headset.tokenizer(TEXTS, padding=True, return_tensors="pt"))
    torch.testing.assert_close(logits, headset(batch)["topic"].logits, rtol=1e-5, atol=1e-6)
    assert config.problem_type == problem_type
    if problem_type == "single_label_classification":
        assert config.id2label == {0: "bad", 1: "good", 2: "so so"}
        answers = pipeline("text-classification", folder)(TEXTS)
        ours = headset.predict(TEXTS)["topic"]
        for theirs, mine in zip(answers, ours, strict=True):
            assert theirs["label"] == mine["label"]
            assert theirs["score"] == pytest.approx(mine["score"], abs=1e-5)


def test_a_token_head_is_a_stock_tagger(tiny_bert, tmp_path):
    headset = make(tiny_bert, tags=TokenClassification())
    folder = headset.export(str(tmp_path))["tags"]
    logits, config = stock_logits(AutoModelForTokenClassification, folder)
    batch = dict(headset.tokenizer(TEXTS, padding=True, return_tensors="pt"))
    torch.testing.assert_close(logits, headset(batch)["tags"].logits, rtol=1e-5, atol=1e-6)
    assert config.id2label == {0: "O", 1: "B-X", 2: "I-X"}
    assert "pooler.dense.weight" not in "".join(BertForTokenClassification.from_pretrained(folder).state_dict())
    assert isinstance(pipeline("token-classification", folder)(TEXTS[0]), list)


@pytest.mark.parametrize(
    "head",
    [
        Pooling(),
        Pooling("cls", normalize=True),
        Pooling(["mean", "max", "cls", "last"], projection=7),
        Pooling("max", projection=5, normalize=True, objective="similarity"),
    ],
    ids=lambda head: str(head.spec()["init_args"]),
)
def test_a_pooling_head_is_a_sentence_transformer(tiny_bert, tmp_path, head):
    headset = make(tiny_bert, vector=head)
    folder = headset.export(str(tmp_path))["vector"]
    theirs = SentenceTransformer(folder, device="cpu").encode(TEXTS, convert_to_tensor=True)
    ours = torch.tensor([row["vector"] for row in headset.predict(TEXTS)["vector"]])
    torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_one_native_score_is_a_cross_encoder(tiny_bert, tmp_path, problem_type):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    labels = {"score": ["relevant"]} if problem_type.startswith("multi") else {}
    headset = Headset(
        Backbone.from_pretrained(str(tiny_bert)), {"score": SequenceClassification(problem_type)}, labels, tokenizer
    )
    headset.eval().states["score"] = "trained"
    folder = headset.export(str(tmp_path), format="sentence-transformers")["score"]
    pairs = [("a film", text) for text in TEXTS]
    ours = [row["value"] if "value" in row else row["scores"]["relevant"] for row in headset.predict(pairs)["score"]]
    theirs = CrossEncoder(folder, device="cpu").predict(pairs)
    assert theirs.tolist() == pytest.approx(ours, abs=1e-6)
    logits, _ = stock_logits(AutoModelForSequenceClassification, folder)
    assert logits.shape == (3, 1)


def test_every_head_has_its_own_folder_with_card_and_safetensors(tiny_bert, tmp_path):
    headset = make(tiny_bert, topic=SequenceClassification(), tags=TokenClassification(), vector=Pooling())
    folders = headset.export(str(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tags", "topic", "vector"]
    for name in folders:
        files = {path.name for path in (tmp_path / "out" / name).iterdir()}
        assert {"model.safetensors", "README.md", "tokenizer.json"} <= files
        assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in (tmp_path / "out" / name).rglob("*"))
        assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "out" / name).rglob("*"))
    assert headset.export(str(tmp_path / "one"), head="tags").keys() == {"tags"}


@pytest.mark.parametrize(
    ("heads", "arguments", "message"),
    [
        (
            {"topic": SequenceClassification(pooling="mean")},
            {"format": "transformers"},
            "does not score with modules of transformers",
        ),
        (
            {"vector": Pooling("attention")},
            {"format": "sentence-transformers"},
            "sentence-transformers has hidden_layers: last, the poolings",
        ),
        ({"topic": SequenceClassification()}, {"format": "sentence-transformers"}, "gives neither vectors"),
        ({"topic": SequenceClassification()}, {"format": "onyx"}, "Invalid format: 'onyx'"),
        ({"topic": SequenceClassification()}, {"head": "topics"}, "Did you mean 'topic'"),
    ],
)
def test_what_cannot_be_exported_is_a_clear_error_and_leaves_nothing(tiny_bert, tmp_path, heads, arguments, message):
    headset = make(tiny_bert, **heads)
    with pytest.raises(HeadsetError, match=message):
        headset.export(str(tmp_path / "out"), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_untrained_head_is_refused(tiny_bert, tmp_path):
    headset = make(tiny_bert, topic=SequenceClassification())
    headset.states["topic"] = "new"
    with pytest.raises(HeadsetError, match="newly initialised"):
        headset.export(str(tmp_path / "out"))
    assert headset.export(str(tmp_path / "out"), allow_untrained=True)


def test_an_export_with_other_numbers_fails_and_the_one_before_stays(tiny_bert, tmp_path, monkeypatch):
    headset = make(tiny_bert, topic=SequenceClassification(), tags=TokenClassification())
    headset.export(str(tmp_path / "out"))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    truth = verify_module.answer

    def lie(headset, name, batch):
        return {key: value + (0.01 if name == "tags" else 0.0) for key, value in truth(headset, name, batch).items()}

    monkeypatch.setattr(verify_module, "answer", lie)
    with pytest.raises(HeadsetError, match="does not give the same numbers"):
        headset.export(str(tmp_path / "out"), overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tags", "topic"]


def test_a_folder_of_something_else_is_not_replaced(tiny_bert, tmp_path):
    (tmp_path / "topic").mkdir()
    (tmp_path / "topic" / "notes.txt").write_text("mine")
    headset = make(tiny_bert, topic=SequenceClassification())
    with pytest.raises(HeadsetError, match=r"is there already.*overwrite"):
        headset.export(str(tmp_path))
    with pytest.raises(HeadsetError, match="holds something else"):
        headset.export(str(tmp_path), overwrite=True)
    assert (tmp_path / "topic" / "notes.txt").read_text() == "mine"


def test_an_earlier_export_is_replaced_only_on_request(tiny_bert, tmp_path):
    headset = make(tiny_bert, topic=SequenceClassification())
    headset.export(str(tmp_path))
    with pytest.raises(HeadsetError, match=r"is there already.*overwrite"):
        headset.export(str(tmp_path))
    (tmp_path / "topic" / "stale.safetensors").write_text("old")
    headset.export(str(tmp_path), overwrite=True)
    assert not (tmp_path / "topic" / "stale.safetensors").exists()


def test_a_place_that_cannot_be_written_is_a_clear_error(tiny_bert, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadsetError, match="cannot be written"):
        make(tiny_bert, topic=SequenceClassification()).export(str(tmp_path / "file"))


def test_label_names_of_two_labels_are_kept(tiny_bert, tmp_path):
    headset = Headset(
        Backbone.from_pretrained(str(tiny_bert)),
        {"spam": SequenceClassification()},
        {"spam": ["ham", "spam"]},
        AutoTokenizer.from_pretrained(tiny_bert),
    )
    folder = headset.export(str(tmp_path), allow_untrained=True)["spam"]
    assert AutoConfig.from_pretrained(folder).label2id == {"ham": 0, "spam": 1}
    assert json.loads((tmp_path / "spam" / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]
