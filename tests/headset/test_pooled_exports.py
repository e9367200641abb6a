"""Heads with a pooling of ours on choices, images and sounds: exported with their code, and loaded by transformers."""

import pytest
import torch
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from backbones import Backbone
from heads import AudioClassification, ImageClassification, MultipleChoice, Reranking
from headset import Headset
from headset.prediction import sample
from headset.processors import load_processor

POOLED = {"pooling": ["attention", "mean"], "hidden_layers": "mix"}


def exported(headset, folder, kind):
    """The head ``answers`` as it comes back, and what it answers here for a sample."""
    for parameter in headset.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    headset.states = dict.fromkeys(headset.states, "trained")
    place = headset.export(str(folder))["answers"]
    model = kind.from_pretrained(place, trust_remote_code=True)
    batch = sample(headset.eval(), "answers")
    return model, batch, headset(batch)["answers"].logits


def test_choices(tiny_bert, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    heads = {"answers": MultipleChoice(**POOLED)}
    headset = Headset(Backbone.from_pretrained(str(tiny_bert)), heads, tokenizer=tokenizer)
    model, batch, ours = exported(headset, tmp_path, AutoModelForMultipleChoice)
    batch.pop("meta")
    labels = torch.tensor([0, 1])
    output = model(**batch, labels=labels)
    torch.testing.assert_close(output.logits, ours, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(ours, labels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [POOLED, {}], ids=["custom", "stock"])
def test_documents_for_queries(tiny_bert, tmp_path, settings):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    heads = {"answers": Reranking(**settings)}
    headset = Headset(Backbone.from_pretrained(str(tiny_bert)), heads, tokenizer=tokenizer)
    model, batch, ours = exported(headset, tmp_path, AutoModelForSequenceClassification)
    batch.pop("meta")
    labels = torch.tensor([[0.0], [1.0]])
    output = model(**batch, labels=labels)
    torch.testing.assert_close(output.logits, ours, rtol=1e-5, atol=1e-5)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(ours, labels)
    torch.testing.assert_close(output.loss, wanted, rtol=1e-5, atol=1e-5)
    query, documents = "the film", ["a good film", "bad", "a book"]
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    scores = [classify({"text": query, "text_pair": document})["score"] for document in documents]
    assert headset.predict([(query, documents)])["answers"][0]["scores"] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize(
    ("reads", "head", "kind"),
    [
        ("image", ImageClassification, AutoModelForImageClassification),
        ("audio", AudioClassification, AutoModelForAudioClassification),
    ],
)
def test_images_and_sounds(tiny_models, tmp_path, reads, head, kind):
    folder, heads = str(tiny_models[reads]), {"answers": head(**POOLED)}
    processor = load_processor(folder, heads)
    headset = Headset(Backbone.from_pretrained(folder), heads, {"answers": ["a", "b", "c"]}, processor=processor)
    model, batch, ours = exported(headset, tmp_path, kind)
    batch.pop("meta")
    torch.testing.assert_close(model(**batch).logits, ours, rtol=1e-5, atol=1e-5)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
