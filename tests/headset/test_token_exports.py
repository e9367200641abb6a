"""Heads that decode their answers: out with their code, where transformers alone says what headset said; no graph."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer, BertModel

from backbones import Backbone, HeadsetError
from heads import CRFTagging, DependencyParsing, SpanClassification
from headset import Headset

WORDS = [["the", "film", "was", "very", "good"], ["bad"], ["a", "book", "is", "not", "a", "film"]]
HEADS = {
    "crf": (CRFTagging("mix"), ["O", "B-X", "I-X"]),
    "spans": (SpanClassification(3), ["X", "Y"]),
    "tree": (DependencyParsing(arc_size=8, relation_size=4), ["det", "nsubj", "root"]),
}
USER = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("headset", "heads", "backbones", "lightning", "torchmetrics"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocker())
from transformers import AutoModel, AutoTokenizer
answers = {}
for folder in sys.argv[2:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer(json.loads(sys.argv[1]), is_split_into_words=True, padding=True, return_tensors="pt")
    answers[folder.rpartition("/")[2]] = model.predict(inputs)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def headset(tiny_bert):
    torch.manual_seed(0)
    heads, labels = ({name: pair[part] for name, pair in HEADS.items()} for part in (0, 1))
    model = Headset(
        Backbone(BertModel.from_pretrained(tiny_bert)), heads, labels, AutoTokenizer.from_pretrained(tiny_bert)
    )
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.states = dict.fromkeys(model.states, "trained")
    return model.eval()


def close(got, wanted):
    """Equal, with numbers nearly so."""
    if isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(close(got[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(close, got, wanted))
    return got == (pytest.approx(wanted, abs=1e-4) if isinstance(wanted, float) else wanted)


def test_transformers_alone_says_the_same(headset, tmp_path):
    folders = headset.export(str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-I", "-c", USER, json.dumps(WORDS), *folders.values()],
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, ours = json.loads(done.stdout.splitlines()[-1]), headset.predict(WORDS)
    for name in HEADS:
        assert close(theirs[name], ours[name]), name
        assert headset.predict([" ".join(words) for words in WORDS], [name])[name] == ours[name]
        assert "model.predict(tokenizer(words" in (tmp_path / name / "README.md").read_text()


@pytest.mark.parametrize("name", HEADS)
def test_there_is_no_graph_of_them(headset, tmp_path, name):
    with pytest.raises(HeadsetError, match="step by step, which is no graph"):
        headset.export(str(tmp_path), format="onnx", head=name)
