"""Fixtures for tests of the data: tables from what a test gives, and heads that are nothing but their target."""

import json

import datasets
import numpy as np
import PIL.Image
import pytest
import soundfile
from transformers import AutoTokenizer, BertConfig, BertModel, ViTImageProcessorPil, Wav2Vec2FeatureExtractor

from backbones.errors import HeadsetError
from heads.base import Head
from heads.targets import ClassTarget, PairTarget
from heads.testing import tiny_backbone
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
def batch_of():
    """Makes a batch for training of rows of the only source."""

    def batch_of(data, rows):
        loader = data.train_dataloader()
        return loader.collate_fn(loader.dataset["", rows])

    return batch_of


@pytest.fixture
def fault():
    """Sets up data that has a fault, and gives the message."""

    def fault(data, stage="fit"):
        with pytest.raises(HeadsetError) as caught:
            data.setup(stage)
        return str(caught.value)

    return fault


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """The folders of a ViT for 16 x 16 pixels and of a Wav2Vec2, 2 layers each, by what they read."""
    folder = tmp_path_factory.mktemp("models")
    processors = {"image": ViTImageProcessorPil(size={"height": 16, "width": 16})}
    processors["audio"] = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    for reads, processor in processors.items():
        tiny_backbone(reads).model.save_pretrained(folder / reads)
        processor.save_pretrained(folder / reads)
    return {reads: folder / reads for reads in processors}


@pytest.fixture
def picture():
    """Writes a picture of noise around a colour."""

    def picture(path, seed=0, colour=(128, 128, 128), size=(20, 24)):
        noise = np.random.default_rng(seed).integers(-60, 60, (*size, 3))
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)
        return path

    return picture


@pytest.fixture
def sound():
    """Writes a tone with noise."""

    def sound(path, seed=0, pitch=440, seconds=0.1, rate=16000, channels=1):
        noise = np.random.default_rng(seed).normal(0, 0.01, (int(seconds * rate), channels))
        path.parent.mkdir(parents=True, exist_ok=True)
        tone = np.sin(2 * np.pi * pitch * np.arange(len(noise)) / rate)[:, None] * 0.3
        soundfile.write(path, (tone + noise).astype(np.float32), rate)
        return path

    return sound


@pytest.fixture(scope="session")
def still_bert(tmp_path_factory, tiny_bert):
    """The tiny model without dropout, which processes draw apart."""
    folder = tmp_path_factory.mktemp("still")
    model = BertModel.from_pretrained(tiny_bert)
    BertConfig.from_pretrained(
        tiny_bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0
    ).save_pretrained(folder)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder
