"""Heads that no stock class has, exported with their code, and loaded where there is only transformers."""

import difflib
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5Model,
)

from backbones import Backbone, HeadsetError
from heads import Head, HeadOutput, Pooling, SequenceClassification, TokenClassification
from heads.answers import AnswerTarget
from heads.choice_target import ChoiceTarget
from heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, PairTarget, TagTarget
from headset import Headset
from headset.export import natural_format
from headset.export_custom import task_of
from headset.info import describe_path

TEXTS = ["the film was very good", "bad", "a book is not a film"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

# What a user does who has transformers and nothing else of ours.
USER = """
import json, sys
folder, out, tasks = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("headset", "heads", "backbones", "lightning", "pytorch_lightning", "torchmetrics",
                                  "own_heads", "own_helper", "lab"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Blocker())
import torch, transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, Trainer, TrainingArguments, pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as STOCK

texts = ["the film was very good", "bad", "a book is not a film"]
answers, facts = {}, {}
for name, (kind, task) in tasks.items():
    place = f"{folder}/{name}"
    tokenizer = AutoTokenizer.from_pretrained(place)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    load = getattr(transformers, kind).from_pretrained
    model, info = load(place, trust_remote_code=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    with torch.no_grad():
        output = model(**batch)
        key = next(key for key in ("logits", "start_logits", "pooler_output") if key in output)
        answers[name] = output[key].contiguous()
        model.save_pretrained(f"{out}/{name}")
        again = load(f"{out}/{name}", trust_remote_code=True)(**batch)[key]
        assert torch.equal(again, answers[name]), name
        assert torch.equal(AutoModel.from_pretrained(place, trust_remote_code=True)(**batch)[key], answers[name])
    config = json.load(open(f"{out}/{name}/config.json"))
    stock = config["backbone_class"], STOCK[config["backbone_config"]["model_type"]]
    fails = []
    for refused in ("AutoConfig", "AutoModel", kind, *stock):
        for folder_of_model in (place, f"{out}/{name}"):
            try:
                getattr(transformers, refused).from_pretrained(folder_of_model)
            except ValueError as error:
                fails.append("trust_remote_code=True" in str(error))
            else:
                fails.append(False)
    facts[name] = {"fails": fails, "model_type": model.config.model_type, "id2label": model.config.id2label,
                   "type": type(output).__name__, "training": model.training}
    labels = torch.tensor([0, 1, 2]) if output[key].dim() == 2 else torch.zeros(batch["input_ids"].shape).long()
    if "multi" in name or "number" in name:
        labels = torch.ones_like(output[key])
    if kind != "AutoModel":
        given = {"labels": labels}
        if key == "start_logits":
            given = {"start_positions": torch.zeros(3).long(), "end_positions": torch.ones(3).long()}
        model.train()(**batch, **given).loss.backward()
        facts[name]["grads"] = all(p.grad is not None for p in model.head.parameters())
    if task:
        facts[name]["pipeline"] = pipeline(task, place, trust_remote_code=True)(texts, batch_size=2)
    if name == "own":
        rows = [{**tokenizer(text), "labels": index, "text": text} for index, text in enumerate(texts)]
        options = TrainingArguments(f"{out}/run", max_steps=2, save_steps=1, use_cpu=True, disable_tqdm=True)
        trainer = Trainer(model, options, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
        trained = {key: value.clone() for key, value in model.state_dict().items()}
        again = load(f"{out}/run/checkpoint-2", trust_remote_code=True)
        facts["trained"] = all(torch.equal(value, trained[key]) for key, value in again.state_dict().items())
        before = load(place, trust_remote_code=True).state_dict()
        facts["changed"] = not torch.equal(trained["head.score.weight"], before["head.score.weight"])
        Trainer(model, options, train_dataset=rows, processing_class=tokenizer).train(f"{out}/run/checkpoint-1")
save_file(answers, f"{out}/answers.safetensors")
json.dump(facts, open(f"{out}/facts.json", "w"), default=float)
"""

OWN_HEAD = '''
"""Heads of a researcher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch.nn as nn
import torch
import torchmetrics

import own_helper
from heads import Head, HeadContext, HeadOutput, SequenceClassification, register_head
from heads.answers import AnswerTarget
from own_helper import *
from own_helper import Block as Layers

if TYPE_CHECKING:
    from headset import Headset

SCALE = 2.0  # not that of the helper
TEMPERATURES = {"low": 0.5}
TEMPERATURES["high"] = 1.5


@dataclass(frozen=True)
class Options:
    """Options."""

    width: int = 8
    scale: float = SCALE


class Block(nn.Module):
    """Not the helper's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor

    @property
    def factor(self) -> float:
        return own_helper.SCALE


class Averaging(Head):
    """What both heads share."""

    gain = 1.5

    @staticmethod
    def average(hidden, mask):
        return (hidden * mask).sum(1) / mask.sum(1)

    def loss(self, output, labels):
        return nn.functional.cross_entropy(output.logits, labels)

    def metrics(self):
        return torchmetrics.MetricCollection({"f1": torchmetrics.F1Score("multiclass", num_classes=3)})


@register_head
class Own(Averaging):
    """Two layers."""

    def __init__(self, width: int = 8, level: str = "high", sizes: list[int] | None = None):
        super().__init__()
        self.width, self.level, self.sizes = width, level, sizes

    def build(self, context: HeadContext) -> None:
        self.options = Options(self.width)
        self.block = Block()
        make = lambda size: nn.Linear(size, len(context.labels))  # noqa: E731
        self.layers = Layers(context.spec.hidden_size, self.options.width)
        self.score = make(self.width)
        positions = torch.arange(512).float().div(512).sin()
        self.register_buffer("positions", positions, persistent=False)
        self.offset = torch.full((1,), math.pi)
        self.norm = nn.BatchNorm1d(self.width)

    def forward(self, features, batch) -> HeadOutput:
        """The scores."""
        hidden = features.last_hidden_state
        places = self.positions[: hidden.shape[1]].unsqueeze(-1)
        average = self.average(hidden + places.to(hidden), batch["attention_mask"].unsqueeze(-1))
        layers = self.norm(self.layers(average))
        scale = own_helper.scale(layers) * np.float32(TEMPERATURES[self.level]).item() * self.options.scale
        step = getattr(self, f"_step_{self.level}")
        return HeadOutput(step(self.block(self.score(scale)) + self.offset) * self.gain)

    def _step_high(self, x):
        return x.sinh() + EXTRA

    def predict(self, output) -> list[Headset]:
        return super().predict(output)


class Scaled(SequenceClassification):
    """The scores of transformers' own modules, scaled."""

    def forward(self, features, batch):
        return HeadOutput(3 * super().forward(features, batch).logits)


class Spans(Averaging):
    """Starts and ends."""

    reads = "question"

    def target(self):
        return AnswerTarget(no_answer=False)

    def build(self, context):
        self.score = nn.Linear(context.spec.hidden_size, 2)

    def forward(self, features, batch):
        return HeadOutput(self.score(features.last_hidden_state))
'''

HELPER = '''
"""A file beside the head's."""

import torch
from torch import nn
from torch.nn import functional as F

SCALE = 3.0
EXTRA = 0.25


def scale(x):
    return x / SCALE


class Block(nn.Module):
    """Two layers."""

    def __init__(self, size, width):
        super().__init__()
        self.first, self.second = nn.Linear(size, width), nn.Linear(width, width)

    def forward(self, x):
        return self.second(F.gelu(self.first(x)))
'''


# A package whose modules import each other, in the ways that there are.
LAB = {
    "__init__": """
        WIDTH = 7
        from .layers import Layers  # which imports WIDTH
        """,
    "layers": """
        import torch
        from . import WIDTH, tools
        class Layers(torch.nn.Sequential):
            def __init__(self, size):
                super().__init__(torch.nn.Linear(size, WIDTH), tools.Double())
        """,
    "tools/__init__": """
        import torch
        class Double(torch.nn.Module):
            def forward(self, x): return 2 * x
        """,
    "tools/deep": '''
        """Text that looks like code: from heads import Head"""
        FACTOR = 0.5; SIGN = "ä"; from ..base import First
        ''',
    "base": """
        import torch, lab.late as late
        from heads import Head, HeadOutput
        class First(Head):
            def forward(self, features, batch):
                return HeadOutput(self.score(self.scale(features.last_hidden_state[:, 0])))
            def loss(self, output, labels):
                return torch.nn.functional.cross_entropy(output.logits, labels)
            def target(self): return late.ClassTarget()
        """,
    "late": """
        from heads.targets import (  # the targets
            ClassTarget,
            Target,
        )
        def shift(x): return x + 1
        """,
    "head": """
        import torch, lab.tools.deep as deep
        from lab import Layers, WIDTH as SIZE
        from lab.tools.deep import First
        try:
            from .fast import shift
            import fast_shift
        except ImportError:
            shift = None
        class Lab(First):
            def build(self, context):
                self.layers = Layers(context.spec.hidden_size)
                self.score = torch.nn.Linear(SIZE, len(context.labels))
            def scale(self, hidden):
                from .late import shift
                if True: from lab import tools as t
                return t.Double()(shift(self.layers(hidden))) * deep.FACTOR
        """,
}


def make(model, tokenizer, labels=None, **heads):
    torch.manual_seed(0)
    found = {name: ["bad", "good", "so so"] for name, head in heads.items() if not isinstance(head, Pooling)}
    headset = Headset(Backbone(model), heads, found | (labels or {}), AutoTokenizer.from_pretrained(tokenizer))
    for parameter in headset.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    headset.states = dict.fromkeys(headset.states, "trained")
    return headset.eval()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The modules of a researcher, in a folder on the path."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_heads.py").write_text(OWN_HEAD)
    (folder / "own_helper.py").write_text(HELPER)
    (folder / "lab" / "tools").mkdir(parents=True)
    for name, text in LAB.items():
        (folder / "lab" / f"{name}.py").write_text(textwrap.dedent(text))
    sys.path.insert(0, str(folder))
    import own_heads
    from lab.head import Lab

    own_heads.Lab = Lab
    yield own_heads
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] in ("own_heads", "own_helper", "lab")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_bert, own):
    """Every kind of head, exported; what each answered here, and what a user finds."""
    folder = tmp_path_factory.mktemp("exports")
    out = tmp_path_factory.mktemp("user")
    torch.manual_seed(0)
    vocabulary = {"vocab_size": 200, "pad_token_id": 0}
    t5 = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16, "decoder_start_token_id": 0}
    bare = BertForTokenClassification(BertConfig(**vocabulary, **SIZES)).base_model
    deberta = DebertaV2Model(DebertaV2Config(**vocabulary, **SIZES)).bfloat16()
    headsets = [
        make(
            BertModel.from_pretrained(tiny_bert),
            tiny_bert,
            own=own.Own(sizes=[1, 2]),
            tags=TokenClassification(native=False, hidden_layers=[-1, 0]),
        ),
        make(
            T5Model(T5Config(**vocabulary, **t5)),
            tiny_bert,
            multi=SequenceClassification("multi_label_classification", ["attention", "max"], "mix"),
        ),
        make(
            LlamaModel(LlamaConfig(**vocabulary, **SIZES)),
            tiny_bert,
            {"number": None},
            number=own.Scaled("regression", num_outputs=2),
        ),
        make(bare, tiny_bert, {"spans": None}, lab=own.Lab(), spans=own.Spans()),
        make(deberta, tiny_bert, vector=Pooling(["attention", "mean"], "mix", projection=5, normalize=True)),
    ]
    ours = {}
    for headset in headsets:
        batch = dict(headset.tokenizer(TEXTS, padding=True, return_tensors="pt"))
        assert headset.export(str(folder), format="custom").keys() == set(headset.heads)
        with torch.no_grad():
            ours |= {name: output.logits for name, output in headset(batch).items()}
    ours["spans"] = ours["spans"][..., 0]
    text = "text-classification"
    sequence = "AutoModelForSequenceClassification"
    tasks = dict.fromkeys(("own", "lab", "multi", "number"), (sequence, text))
    tasks |= {"tags": ("AutoModelForTokenClassification", "token-classification"), "vector": ("AutoModel", None)}
    tasks["spans"] = ("AutoModelForQuestionAnswering", None)
    done = subprocess.run(
        [sys.executable, "-I", "-c", USER, str(folder), str(out), json.dumps(tasks)],
        env=os.environ | {"HF_MODULES_CACHE": str(out / "modules")},
        cwd=out,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, ours, load_file(out / "answers.safetensors"), json.loads((out / "facts.json").read_text()), headsets


NAMES = ["own", "lab", "multi", "number", "tags", "vector", "spans"]


@pytest.mark.parametrize("name", NAMES)
def test_plain_transformers_gives_the_same(exported, name):
    _, ours, theirs, facts, _ = exported
    exact = ours[name].dtype == torch.float32
    torch.testing.assert_close(theirs[name], ours[name], rtol=1e-5 if exact else 0.05, atol=1e-5 if exact else 0.05)
    assert facts[name]["fails"] == [True] * 10  # without consent nothing is loaded, and nothing else either
    assert facts[name]["model_type"].startswith("headset-")
    assert facts[name]["training"] is False
    assert facts[name].get("grads", True)


def test_outputs_and_labels_are_those_of_the_task(exported):
    _, _, _, facts, headsets = exported
    labels = {"0": "bad", "1": "good", "2": "so so"}
    for name in ("own", "lab", "multi", "tags"):
        assert facts[name]["id2label"] == labels
    assert facts["multi"]["type"] == "SequenceClassifierOutput"
    assert facts["tags"]["type"] == "TokenClassifierOutput"
    assert facts["vector"]["type"] == "BaseModelOutputWithPooling"
    assert facts["spans"]["type"] == "QuestionAnsweringModelOutput"
    answers = headsets[0].predict(TEXTS)["own"]
    for theirs, mine in zip(facts["own"]["pipeline"], answers, strict=True):
        assert theirs["label"] == mine["label"]
        assert theirs["score"] == pytest.approx(mine["score"], abs=1e-5)
    several = headsets[1].predict(TEXTS)["multi"]
    for theirs, mine in zip(facts["multi"]["pipeline"], several, strict=True):
        assert theirs["score"] == pytest.approx(max(mine["scores"].values()), abs=1e-4)
    assert len(facts["tags"]["pipeline"]) == len(TEXTS)


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_is_complete_and_readable(exported, name):
    folder = exported[0] / name
    files = {path.name for path in folder.iterdir()}
    code = next(path for path in folder.iterdir() if path.name.startswith("modeling_"))
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in folder.rglob("*"))
    absolute = re.compile(r"^\s*(from|import) (heads|headset|backbones|lightning|torchmetrics|own_helper)\b", re.M)
    assert [file.name for file in folder.glob("*.py") if absolute.search(file.read_text())] == []
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    found = describe_path(str(folder))
    assert found["kind"].startswith("transformers model with code of its own")
    assert f"import {found['heads'][name]['class']} as TheHead" in code.read_text()


def test_code_of_the_researcher_stays_as_it_was_written(exported, own):
    copies = {"own_heads": "own", "own_helper": "own", "lab.late": "lab", "lab.tools.deep": "lab"}
    for module, name in copies.items():
        ours = Path(sys.modules[module].__file__).read_text().splitlines()
        theirs = (exported[0] / name / f"{module.replace('.', '_')}.py").read_text().splitlines()
        changes = [line[2:].strip() for line in difflib.ndiff(ours, theirs) if line[0] in "+-"]
        assert len(theirs) > 2 and all(re.match("from|import|FACTOR|if True", line) for line in changes)
    assert 'SIGN = "ä"; from .lab_base import First' in (exported[0] / "lab" / "lab_tools_deep.py").read_text()
    assert json.loads((exported[0] / "own" / "config.json").read_text())["head_args"]["sizes"] == [1, 2]


def test_what_is_needed_is_named(exported):
    cards = {name: (exported[0] / name / "README.md").read_text() for name in NAMES}
    assert [name for name, card in cards.items() if "pip install" in card] == ["own", "number", "spans"]
    assert "# pip install numpy\n" in cards["own"]


def test_a_trainer_goes_on_and_loads_its_checkpoints(exported):
    assert exported[3]["trained"] and exported[3]["changed"]


def test_tied_and_unused_weights_are_written_once(exported):
    keys = load_file(exported[0] / "multi" / "model.safetensors").keys()
    assert sum("embed_tokens" in key or "shared" in key for key in keys) == 1


def test_custom_is_the_natural_way_out_of_what_has_no_other(exported):
    assert natural_format(exported[4][4], "vector") == "custom"


@pytest.mark.parametrize(
    ("reads", "target", "labels", "shape", "task"),
    [
        ("text", ClassTarget(), 3, (2, 3), "text-classification"),
        ("text", NumberTarget(2), None, (2, 2), "text-classification"),
        ("text", ClassTarget(), 3, (2, 3, 1), ""),
        ("text", TagTarget(), 3, (2, 5, 3), "token-classification"),
        ("text", None, None, (2, 5, 9), "fill-mask"),
        ("text", None, None, (2, 5, 8), ""),
        ("pair", PairTarget(False), None, (2, 4), "feature-extraction"),
        ("question", AnswerTarget(False), None, (2, 5, 2), "question-answering"),
        ("choices", ChoiceTarget(), None, (2, 4), "multiple-choice"),
        ("image", MultiLabelTarget(), 3, (2, 3), "image-classification"),
        ("audio", ClassTarget(), 3, (2, 3), "audio-classification"),
    ],
)
def test_the_task_is_told_by_what_a_head_reads_and_gives(monkeypatch, reads, target, labels, shape, task):
    head = Stray()
    monkeypatch.setattr(Stray, "reads", reads)
    monkeypatch.setattr(head, "target", lambda: target)
    head.labels = None if labels is None else ("a", "b", "c")[:labels]
    assert task_of(head, HeadOutput(torch.zeros(shape)), vocab_size=9) == task


class Stray(Head):
    """A head whose code is in a module of the tests, which is none of a package."""

    def build(self, context):
        self.score = torch.nn.Linear(context.spec.hidden_size, len(context.labels))

    def forward(self, features, batch):
        return HeadOutput(self.score(features.last_hidden_state[:, 0]))

    def loss(self, output, labels):
        return torch.nn.functional.cross_entropy(output.logits, labels)


def refused(model, tokenizer, folder, head):
    with pytest.raises(HeadsetError) as caught:
        make(model, tokenizer, head=head).export(str(folder / "out"), format="custom")
    assert not (folder / "out").exists() or not any((folder / "out").iterdir())
    return str(caught.value)


def test_what_cannot_go_is_refused_and_leaves_nothing(tiny_bert, tmp_path, monkeypatch):
    model = BertModel.from_pretrained(tiny_bert)

    def local():
        class Local(Stray):
            pass

        return Local()

    assert "--format transformers" in refused(model, tiny_bert, tmp_path, SequenceClassification())
    assert "inside a function" in refused(model, tiny_bert, tmp_path, local()).replace(
        "in a function", "inside a function"
    )
    head = Stray()
    monkeypatch.setattr(Stray, "__module__", "__main__")
    assert "is defined in a script or a notebook" in refused(model, tiny_bert, tmp_path, head)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import heads", "bad_heads.py, line 9: heads cannot be copied as a whole"),
        ("import bad_lab.tools", "bad_heads.py, line 9: write 'from bad_lab import tools'"),
        ("from bad_lab import table", "table cannot be copied as a whole"),
        (
            "importlib.import_module('bad_lab.tools')",
            "bad_heads.py, line 9: ModuleNotFoundError: No module named 'bad_",
        ),
        ("open(torch.__file__ and __file__[:-3] + '.txt')", "bad_heads.py, line 9: FileNotFoundError"),
        ("torchmetrics.Accuracy('binary')", "ImportError: Accuracy is for training"),
        ("HIDDEN", "does not give the same numbers"),
    ],
)
def test_code_that_cannot_go_is_refused_with_its_place(tiny_bert, tmp_path, monkeypatch, line, message):
    code = f"""
    import importlib
    import torch
    import torchmetrics
    from heads.base import Head, HeadOutput
    HIDDEN = 0
    class Bad(Head):
        def build(self, context):
            self.score = torch.nn.Linear(context.spec.hidden_size, len(context.labels))
            {line}
        def loss(self, output, labels):
            raise NotImplementedError
        def forward(self, features, batch):
            return HeadOutput(self.score(features.last_hidden_state[:, 0]) + HIDDEN)
    """
    (tmp_path / "bad_heads.py").write_text(textwrap.dedent(code.strip("\n")))
    (tmp_path / "bad_heads.txt").write_text("data")
    (tmp_path / "bad_lab" / "table").mkdir(parents=True)
    (tmp_path / "bad_lab" / "tools.py").write_text("SIZE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import bad_heads

    try:
        bad_heads.HIDDEN = 1
        text = refused(BertModel.from_pretrained(tiny_bert), tiny_bert, tmp_path, bad_heads.Bad())
        assert message in text
        assert "'head'" in text
    finally:
        for name in [name for name in sys.modules if name.startswith("bad_")]:
            del sys.modules[name]
