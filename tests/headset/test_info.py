"""headset info: every folder that is written here, and damaged ones."""

import json

import pytest
from transformers import AutoTokenizer

from backbones import Backbone, HeadsetError
from heads import Pooling, SequenceClassification
from headset import Headset
from headset.info import describe_path, info


@pytest.fixture(scope="module")
def folder(tiny_bert, tmp_path_factory):
    """A folder with a saved headset and exports, made by hand where the export itself is tested elsewhere."""
    place = tmp_path_factory.mktemp("info")
    heads = {
        "topic": SequenceClassification(),
        "score": SequenceClassification("regression"),
        "vector": Pooling(normalize=True),
    }
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    headset = Headset(Backbone.from_pretrained(str(tiny_bert)), heads, {"topic": ["bad", "good"]}, tokenizer)
    headset.run = {"metrics": {"val/topic/f1": 0.75}}
    headset.save_pretrained(str(place / "whole"))
    headset.export(str(place / "out"), head="topic", allow_untrained=True)
    for name in ("score", "vector"):
        headset.export(str(place / "out"), format="sentence-transformers", head=name, allow_untrained=True)
    adapter = {"peft_type": "LORA", "task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
    (place / "adapter").mkdir()
    (place / "adapter" / "adapter_config.json").write_text(json.dumps(adapter | {"base_model_name_or_path": "a/base"}))
    (place / "adapter" / "adapter_model.safetensors").write_bytes((place / "whole" / "model.safetensors").read_bytes())
    return place


@pytest.mark.parametrize(
    ("path", "kind", "backbone", "head"),
    [
        ("out/topic", "transformers model", "bert", ("topic", "BertForSequenceClassification", ["bad", "good"])),
        ("out/score", "CrossEncoder", "bert", ("score", "BertForSequenceClassification", None)),
        ("out/vector", "SentenceTransformer", "bert", ("vector", "Transformer + Pooling + Normalize", None)),
        ("adapter", "peft adapter (LORA)", "a/base", ("adapter", "SEQ_CLS: classifier", None)),
    ],
)
def test_an_export_tells_what_it_is(folder, path, kind, backbone, head):
    found = describe_path(str(folder / path))
    assert (found["kind"], found["backbone"]) == (kind, backbone)
    [(name, described)] = found["heads"].items()
    assert (name, described["class"], described["labels"]) == head


def test_a_folder_of_exports_lists_them(folder, capsys):
    heads = describe_path(str(folder / "out"))["heads"]
    assert {name: head["state"] for name, head in heads.items()} == {
        "score": "CrossEncoder",
        "topic": "transformers model",
        "vector": "SentenceTransformer",
    }
    info(str(folder / "out"))
    assert "a folder of exports" in capsys.readouterr().out


def test_a_saved_headset_tells_its_heads_and_metrics(folder, capsys):
    found = describe_path(str(folder / "whole"))
    assert found["kind"] == "saved headset"
    assert found["heads"]["topic"] == {"class": "SequenceClassification", "labels": ["bad", "good"], "state": "new"}
    info(str(folder / "whole"))
    assert "val/topic/f1: 0.75" in capsys.readouterr().out


def test_damaged_folders_are_clear_errors(folder, tmp_path):
    def copy(path):
        place = tmp_path / "copy"
        place.mkdir(exist_ok=True)
        for file in (folder / path).iterdir():
            if file.is_file():
                (place / file.name).write_bytes(file.read_bytes())
        return place

    def fails(message):
        with pytest.raises(HeadsetError, match=message):
            describe_path(str(tmp_path / "copy"))

    place = copy("out/topic")
    (place / "config.json").write_text('{"model_type"')
    fails("config.json cannot be read as JSON")
    (place / "config.json").write_text("[]")
    fails("config.json is not what it should be")
    place = copy("out/topic")
    (place / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes()[:100])
    fails("model.safetensors is damaged")
    (place / "model.safetensors").unlink()
    fails("holds no weights")
    (place / "config.json").unlink()
    (place / "README.md").write_text("")
    fails("holds no checkpoint, no saved headset and no export")
