"""Whole headsets in folders: with a researcher's head, and with what others may have written into the file."""

import json
import sys

import pytest
import torch
from transformers import AutoTokenizer

from backbones import Backbone, HeadsetError
from heads import Pooling, SequenceClassification
from heads.registry import load_head_class
from headset import Headset
from headset.prediction import sample

CODE = """
from pathlib import Path
import torch
from heads import Head, HeadOutput
Path(__file__).with_name("imported").touch()

class Own(Head):
    def __init__(self, width=4):
        super().__init__()
        self.width = width
    def build(self, context):
        size = context.spec.hidden_size
        self.score = torch.nn.Sequential(torch.nn.Linear(size, self.width), torch.nn.Linear(self.width, 2))
    def forward(self, features, batch):
        return HeadOutput(self.score(features.last_hidden_state[:, 0]))
    def loss(self, output, labels):
        return torch.nn.functional.cross_entropy(output.logits, labels)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that forgets the researcher's module, and says whether it was imported since."""
    (tmp_path / "folder_heads.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))

    def forget():
        sys.modules.pop("folder_heads", None)
        mark = tmp_path / "imported"
        known = mark.exists()
        mark.unlink(missing_ok=True)
        return known

    yield forget
    forget()


def save(tiny_bert, folder, **heads):
    labels = {name: ["bad", "good"] for name, head in heads.items() if not isinstance(head, Pooling)}
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    headset = Headset(Backbone.from_pretrained(str(tiny_bert)), heads, labels, tokenizer).eval()
    headset.save_pretrained(str(folder))
    return headset


def test_a_researchers_head_comes_back_with_consent(own, tiny_bert, tmp_path):
    heads = {"own": load_head_class("folder_heads.Own")(width=3), "vector": Pooling(["mean", "max"])}
    ours = save(tiny_bert, tmp_path / "saved", **heads)
    assert own()
    with pytest.raises(HeadsetError, match=r"folder_heads\.Own is not registered here.*trust_heads=True"):
        Headset.from_pretrained(str(tmp_path / "saved"))
    assert not own()
    theirs = Headset.from_pretrained(str(tmp_path / "saved"), trust_heads=True)
    assert own()
    assert theirs.labels == ours.labels and type(theirs.head("own")).__module__ == "folder_heads"
    batch = sample(ours, "own")
    for name, output in ours(batch).items():
        assert torch.equal(theirs(batch)[name].logits, output.logits)


OWN = {"class_path": "folder_heads.Own", "init_args": {}}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("heads.a.class_path", "folder_heads.Own", "not registered here"),
        ("heads.a.class_path", "folder_heads", "not registered here"),
        ("heads.a.class_path", "heads.folder_heads.Own", "cannot be imported"),
        ("heads.a.class_path", "heads./../folder_heads.Own", "cannot be imported"),
        ("heads.a.class_path", "heads..folder_heads.Own", "cannot be imported"),
        ("heads.a.class_path", "heads.base.inspect.sys.exit", "cannot be imported"),
        ("heads.a.class_path", "heads.base.inspect", "is not a head"),
        ("heads.a.class_path", "os.system", "is not a head"),
        ("heads.a.class_path", "torch.nn.Identity", "not.*a head"),
        ("heads.a.class_path", ["os.system"], "damaged"),
        ("heads.a.init_args", {"pooling": OWN}, "Invalid pooling mode"),
        ("heads.a.init_args", {"__class__": "folder_heads.Own"}, "has no argument"),
        ("heads.a.init_args", ["mean"], "damaged"),
        ("heads.a", "folder_heads.Own", "damaged"),
        ("heads", [], "damaged"),
        ("backbone.class_name", "pipeline", "has no model class"),
        ("backbone.config.model_type", "folder_heads", "does not know the architecture"),
        ("backbone.config", None, "damaged"),
        ("backbone.unknown", 1, "damaged"),
        ("labels.a", 5, "damaged"),
        ("states", None, "damaged"),
    ],
)
def test_nothing_is_imported_that_a_folder_names(own, tiny_bert, tmp_path, path, value, message):
    save(tiny_bert, tmp_path / "saved", a=SequenceClassification(pooling="mean"))
    file = tmp_path / "saved" / "headset.json"
    description = json.loads(file.read_text())
    *parents, last = path.split(".")
    place = description
    for name in parents:
        place = place[name]
    place[last] = value
    file.write_text(json.dumps(description))
    with pytest.raises(HeadsetError, match=message):
        Headset.from_pretrained(str(tmp_path / "saved"))
    assert not own()


def test_a_damaged_description_is_told(tiny_bert, tmp_path):
    save(tiny_bert, tmp_path / "saved", a=SequenceClassification(pooling="mean"))
    (tmp_path / "saved" / "headset.json").write_text("{")
    with pytest.raises(HeadsetError, match=r"headset\.json is damaged"):
        Headset.from_pretrained(str(tmp_path / "saved"))
