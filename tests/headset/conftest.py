"""Fixtures for tests of the data: tables from what a test gives, and heads that are nothing but their target."""

import json

import datasets
import pytest
from transformers import AutoTokenizer

from backbones.errors import HeadsetError
from heads.base import Head
from heads.targets import ClassTarget, PairTarget
from headset.data import TextData


class TargetHead(Head):
    """A head that is nothing but its target."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.reads = "pair" if isinstance(answer, PairTarget) else "text"

    def target(self):
        return self.answer

    def build(self, context):
        raise NotImplementedError

    forward = loss = build


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache folder of `datasets` that is empty at the beginning of each test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return AutoTokenizer.from_pretrained(tiny_tokenizer)


@pytest.fixture
def target_head():
    return TargetHead


@pytest.fixture
def make(tmp_path, tokenizer):
    """Makes a TextData for heads with the given targets, and a file of each split that is given by its content."""

    def write(name, content):
        suffix = ".csv"
        if isinstance(content, list):
            suffix = ".jsonl"
            content = "\n".join(json.dumps(row) for row in content)
        elif "," not in content:
            suffix = ".conll"
        path = tmp_path / f"{name}{suffix}"
        path.write_text(content, encoding="utf-8")
        return str(path)

    def make(targets=None, known=None, **settings):
        for split in ("train", "validation", "test", "predict"):
            content = settings.get(split)
            if isinstance(content, list) or (isinstance(content, str) and "\n" in content):
                settings[split] = write(split, content)
        data = TextData(**settings)
        targets = targets or {"topic": ClassTarget()}
        data.connect(tokenizer, {name: TargetHead(target) for name, target in targets.items()}, known or {})
        return data

    return make


@pytest.fixture
def fault():
    """Sets up data that has a fault, and gives the message."""

    def fault(data, stage="fit"):
        with pytest.raises(HeadsetError) as caught:
            data.setup(stage)
        return str(caught.value)

    return fault
