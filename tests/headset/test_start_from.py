"""Heads added to a trained headset, heads trained apart and merged, and predictions of some heads."""

import json
import shutil

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from backbones import BackboneOptions, HeadsetError
from heads import SequenceClassification
from headset import Headset, LitHeadset, TextData
from headset.main import main
from headset.merging import merge

LENGTHS = {"two": 16}  # by which its tokenizer is saved otherwise
TEXTS = ["a good film", "a bad book", "the film"]


def trained(folder, backbone, name, data, **settings):
    """The checkpoint of a run of one step with a head."""
    seed_everything(1)
    heads = settings.pop("heads", None) or {name: SequenceClassification()}
    options = BackboneOptions(str(backbone), freeze=settings.pop("freeze", "all"))
    module = LitHeadset(options, heads, learning_rate=0.01, scheduler="constant", warmup=0, **settings)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=folder / name, max_epochs=1, **quiet)
    labels = {one: "label" for one in heads}
    data = TextData(train=str(data), labels=labels, batch_size=8, max_length=LENGTHS.get(name))
    trainer.fit(module, data)
    return trainer.checkpoint_callback.best_model_path


@pytest.fixture(scope="module")
def other_csv(tmp_path_factory):
    file = tmp_path_factory.mktemp("other") / "other.csv"
    file.write_text("text,label\nthe film,yes\na good book,no\nvery good,yes\nbad,no\n")
    return file


def logits(path, name):
    headset = Headset.from_checkpoint(path) if isinstance(path, str) else path
    batch = dict(headset.tokenizer(TEXTS, return_tensors="pt", padding=True))
    with torch.no_grad():
        return headset(batch, [name])[name].logits


def test_a_head_is_added_and_the_old_one_stays_to_the_bit(tmp_path, tiny_bert, small_csv, other_csv):
    first = trained(tmp_path, tiny_bert, "mood", small_csv, freeze=None)
    both = trained(tmp_path, tiny_bert, "choice", other_csv, start_from=first, frozen_heads=["mood"])
    content = torch.load(both, weights_only=True)["hyper_parameters"]
    assert content["states"] == {"mood": "trained", "choice": "trained"} and content["start_from"] is None
    assert content["labels"] == {"mood": ["negative", "neutral", "positive"], "choice": ["no", "yes"]}
    assert torch.equal(logits(both, "mood"), logits(first, "mood"))
    again = trained(tmp_path, tiny_bert, "again", other_csv, start_from=both, frozen_heads=["mood", "choice"])
    assert torch.equal(logits(again, "mood"), logits(first, "mood"))
    assert torch.equal(logits(again, "choice"), logits(both, "choice"))


def test_the_old_heads_may_learn_on_and_are_not_new(tmp_path, tiny_bert, small_csv):
    first = trained(tmp_path, tiny_bert, "mood", small_csv)
    heads = {"mood": SequenceClassification(), "more": SequenceClassification(pooling="mean")}
    module = LitHeadset(str(tiny_bert), heads, start_from=first, labels={"more": ["a", "b"]})
    module.configure_model()
    assert module.headset.states == {"mood": "trained", "more": "new"}
    assert torch.equal(logits(module.headset.eval(), "mood"), logits(first, "mood"))
    assert all(weight.requires_grad for weight in module.headset.head("mood").parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "elsewhere"}, "holds its own backbone"),
        (
            {"heads": {"mood": SequenceClassification(pooling="mean")}},
            "fixes the heads setting of 'mood': {'pooling': 'native'}, and cannot go on with {'pooling': 'mean'}",
        ),
        ({"labels": {"mood": ["a", "b", "c"]}}, "fixes the labels setting of 'mood'"),
        ({"start_from": "nowhere.ckpt"}, "There is no checkpoint nowhere.ckpt"),
    ],
)
def test_what_a_checkpoint_fixes_stays(tmp_path, tiny_bert, small_csv, settings, message):
    first = trained(tmp_path, tiny_bert, "mood", small_csv)
    arguments = {"backbone": str(tiny_bert), "heads": {"mood": SequenceClassification()}, "start_from": first}
    with pytest.raises(HeadsetError, match=message):
        LitHeadset(**(arguments | settings))


def test_a_frozen_head_has_to_be_trained(tmp_path, tiny_bert, small_csv):
    with pytest.raises(HeadsetError, match="'mood' is frozen and newly initialised"):
        heads = {"mood": SequenceClassification(), "more": SequenceClassification()}
        known = {"mood": ["negative", "neutral", "positive"]}
        trained(tmp_path, tiny_bert, "x", small_csv, heads=heads, frozen_heads=["mood"], labels=known)


@pytest.fixture(scope="module")
def apart(tmp_path_factory, tiny_bert, other_csv):
    folder = tmp_path_factory.mktemp("apart")
    return [trained(folder, tiny_bert, name, other_csv) for name in ("one", "two")]


def test_merged_heads_answer_and_export_as_each_did(tmp_path, apart, capsys):
    whole, folder = str(tmp_path / "whole.ckpt"), str(tmp_path / "whole")
    assert main(["merge", "--ckpt_paths", *apart, "--output", whole]) == 0
    assert main(["merge", "--ckpt_paths", *apart, "--output", folder]) == 0
    Headset.from_checkpoint(whole).export(str(tmp_path / "out"), format="transformers")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "one")
    for name, path in zip(("one", "two"), apart, strict=True):
        wanted = logits(path, name)
        assert torch.equal(logits(whole, name), wanted)
        assert torch.equal(logits(Headset.from_pretrained(folder), name), wanted)
        stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / name)
        with torch.no_grad():
            assert torch.equal(stock(**tokenizer(TEXTS, return_tensors="pt", padding=True)).logits, wanted)
    assert main(["merge", "--ckpt_paths", *apart, "--output", whole]) == 1
    assert "is there already" in capsys.readouterr().err
    module = LitHeadset(Headset.from_checkpoint(whole).backbone.path, {}, start_from=apart)
    module.configure_model()
    assert torch.equal(logits(module.headset.eval(), "two"), logits(apart[1], "two"))


def test_where_a_backbone_was_does_not_count(tmp_path, tiny_bert, apart, other_csv):
    copy = shutil.copytree(tiny_bert, tmp_path / "copy")
    again = trained(tmp_path, copy, "three", other_csv)
    merge([apart[0], again], str(tmp_path / "x.ckpt"))
    assert set(Headset.from_checkpoint(str(tmp_path / "x.ckpt")).heads) == {"one", "three"}


def test_heads_of_different_backbones_or_of_one_name_are_not_merged(tmp_path, tiny_bert, apart, other_csv):
    moved = trained(tmp_path, tiny_bert, "three", other_csv, freeze=None)
    with pytest.raises(HeadsetError, match=r"the first weight that differs is backbone\.model\.embeddings"):
        merge([apart[0], moved], str(tmp_path / "x.ckpt"))
    with pytest.raises(HeadsetError, match="both have a head called 'one'"):
        merge([apart[0], apart[0]], str(tmp_path / "x.ckpt"))


def test_some_heads_are_predicted_in_one_pass(tmp_path, apart, monkeypatch):
    whole = str(tmp_path / "whole.ckpt")
    merge(apart, whole)
    (tmp_path / "in.csv").write_text("text\n" + "\n".join(TEXTS) + "\n")
    calls = []
    from backbones import Backbone

    run = Backbone.run
    monkeypatch.setattr(Backbone, "run", lambda self, call: calls.append(call) or run(self, call))

    def predict(*arguments):
        calls.clear()
        command = ["predict", "--ckpt_path", whole, "--data.predict", str(tmp_path / "in.csv"), "--overwrite", "true"]
        assert (
            main([*command, "--output", str(tmp_path / "out.jsonl"), "--trainer.accelerator", "cpu", *arguments]) == 0
        )
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    both, one = predict(), predict("--heads", "two")
    assert len(calls) == 1
    assert {"one", "two"} <= both[0].keys() and "two" in one[0] and "one" not in one[0]
    assert [row["two"] for row in one] == [row["two"] for row in both]
    assert len(predict("--heads", "one,two")) == 3 and len(calls) == 1
    with pytest.raises(HeadsetError, match="Invalid head: 'tow'"):
        LitHeadset.load_from_checkpoint(whole).predict_only(["tow"])
