"""Predicting: from file to file, against transformers' pipeline and a loop by hand; vectors; several heads at once."""

import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from backbones import Backbone
from backbones.loading import load_tokenizer, resolve_path
from benchmarks.speed.measuring import Numbers
from benchmarks.speed.training import BATCH, HEAD, read_rows
from heads import Pooling, SequenceClassification
from heads.base import Head
from headset import Headset

__all__ = ["EncodeSide", "HeadsSide", "HeadsetFiles", "HeadsetVectors", "PipelineFiles", "SortedFiles"]

WARM = 8  # the turn that warms up has so many times fewer texts


class _Files:
    """A file of texts becomes one of labels and scores; imports are done before, loading the model counts.

    Args:
        model: The checkpoint, or the folder of the stock model that was exported from it.
        file: The texts, as JSON lines. Each turn has them in another order, so that nothing of them is cached.
        folder: Where files are written.
        max_length: Where texts are cut, in tokens.
        precision: ``fp32``, ``bf16-mixed``, ``bf16`` for weights too, or what is the default.
    """

    name = ""

    def __init__(self, model: str, file: str, folder: str, max_length: int = 512, precision: str = "default") -> None:
        self.model = model
        self.file = file
        self.folder = Path(folder)
        self.max_length = max_length
        self.precision = precision

    def run(self, turn: int) -> Numbers:
        """Predict once; ``rate`` is the rows a second, ``positive`` the share of the first label among the answers."""
        texts = _of_turn(read_rows(self.file)["text"], turn)
        random.Random(turn).shuffle(texts)
        name = f"{self.name}-{self.precision}"
        source, target = self.folder / f"{name}-{turn}.jsonl", self.folder / f"{name}-{turn}.predicted.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        start = time.perf_counter()
        self.predict(str(source), str(target))
        seconds = time.perf_counter() - start
        with target.open(encoding="utf-8") as lines:
            labels = [self.label(json.loads(line)) for line in lines]
        if len(labels) != len(texts):
            raise ValueError(f"{len(texts)} texts, {len(labels)} answers")
        return {"rate": len(texts) / seconds, "share": labels.count(min(labels)) / len(labels)}

    def predict(self, source: str, target: str) -> None:
        """Read, predict and write."""
        raise NotImplementedError

    def label(self, row: Mapping[str, Any]) -> str:
        """The label in a row that was written."""
        label: str = row["label"]
        return label

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights of a stock model."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


class PipelineFiles(_Files):
    """``pipeline("text-classification", batch_size=32)`` of transformers."""

    name = "pipeline"

    def predict(self, source: str, target: str) -> None:
        """Read, predict and write."""
        classify: Any = pipeline("text-classification", self.model, batch_size=BATCH)
        texts = read_rows(source)["text"]
        answers = classify(texts, truncation=True, max_length=self.max_length)
        _write(target, texts, [(row["label"], row["score"]) for row in answers])


class SortedFiles(_Files):
    """A loop by hand over batches of texts sorted by length."""

    name = "sorted"

    def predict(self, source: str, target: str) -> None:
        """Read, predict and write."""
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        model = AutoModelForSequenceClassification.from_pretrained(self.model, dtype=self.dtype).eval()
        texts = read_rows(source)["text"]
        encoded = tokenizer(texts, truncation=True, max_length=self.max_length)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        order = sorted(range(len(texts)), key=lengths.__getitem__, reverse=True)
        answers: list[Any] = [None] * len(texts)
        mixed = torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16-mixed")
        with torch.inference_mode(), mixed:
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                part = {name: [encoded[name][row] for row in rows] for name in encoded}
                logits = model(**tokenizer.pad(part, return_tensors="pt")).logits
                scores, labels = logits.float().softmax(-1).max(-1)
                for row, score, label in zip(rows, scores.tolist(), labels.tolist(), strict=True):
                    answers[row] = model.config.id2label[label], score
        _write(target, texts, answers)


class HeadsetFiles(_Files):
    """``headset predict``."""

    name = "headset"

    def predict(self, source: str, target: str) -> None:
        """Read, predict and write."""
        from headset.cli import run

        precision = {"default": [], "fp32": ["--trainer.precision", "32-true"]}[self.precision]
        files = ["--data.predict", source, "--output", target, "--overwrite", "true"]
        run(["predict", "--ckpt_path", self.model, *files, "--trainer.accelerator", "cpu", *precision])

    def label(self, row: Mapping[str, Any]) -> str:
        """The label in a row that was written."""
        label: str = row[HEAD]["label"] if HEAD in row else row[f"{HEAD}_label"]
        return label


class _Vectors:
    """Texts become vectors."""

    def __init__(self, model: str, file: str, max_length: int = 512) -> None:
        self.texts = read_rows(file)["text"]
        self.max_length = max_length
        self.load(model)

    def run(self, turn: int) -> Numbers:
        """Make the vectors once; ``rate`` is the texts a second."""
        texts = _of_turn(self.texts, turn)
        start = time.perf_counter()
        first = self.vectors(texts)[0]
        seconds = time.perf_counter() - start
        return {"rate": len(texts) / seconds, "seconds": seconds, "first": float(first[0])}

    def load(self, model: str) -> None:
        """Load the model."""
        raise NotImplementedError

    def vectors(self, texts: Sequence[str]) -> Any:
        """A vector for each text."""
        raise NotImplementedError


class EncodeSide(_Vectors):
    """``SentenceTransformer.encode(batch_size=32)``."""

    def load(self, model: str) -> None:
        """Load the model; mean pooling, normalised."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling as MeanPooling

        words = Transformer(resolve_path(model), max_seq_length=self.max_length)
        size = words.get_embedding_dimension()
        self.model = SentenceTransformer(modules=[words, MeanPooling(size, "mean"), Normalize()], device="cpu")

    def vectors(self, texts: Sequence[str]) -> Any:
        """A vector for each text."""
        return self.model.encode(list(texts), batch_size=BATCH)


class HeadsetVectors(_Vectors):
    """``Headset.predict`` of a `Pooling` head."""

    def load(self, model: str) -> None:
        """Load the model."""
        self.model = _headset(model, {"vector": Pooling(normalize=True)})

    def vectors(self, texts: Sequence[str]) -> Any:
        """A vector for each text."""
        rows = self.model.predict(texts, batch_size=BATCH, max_length=self.max_length)["vector"]
        return [row["vector"] for row in rows]


class HeadsSide(_Vectors):
    """``Headset.predict`` of several heads on one backbone, or on a backbone each.

    Args:
        heads: How many of the four heads.
        together: Whether they share a backbone.
        work: As for vectors.
    """

    def __init__(self, heads: int, together: bool, **work: Any) -> None:
        self.heads = heads
        self.together = together
        super().__init__(**work)

    def load(self, model: str) -> None:
        """Load the model, or the models."""
        chosen = dict(list(_four_heads().items())[: self.heads])
        parts = [chosen] if self.together else [{name: head} for name, head in chosen.items()]
        self.models = [_headset(model, part) for part in parts]

    def vectors(self, texts: Sequence[str]) -> Any:
        """All answers; of the last head they are numbers or vectors."""
        settings: dict[str, Any] = {"batch_size": BATCH, "max_length": self.max_length, "allow_untrained": True}
        answers = [model.predict(texts, **settings) for model in self.models]
        if sum(map(len, answers)) != self.heads:
            raise ValueError(f"{self.heads} heads, {sum(map(len, answers))} answers")
        return [[0.0]]


def _of_turn(texts: Sequence[str], turn: int) -> list[str]:
    """The texts of a turn: all, but for the one that warms up."""
    return list(texts if turn else texts[: -(-len(texts) // WARM)])


def _four_heads() -> dict[str, Head]:
    return {
        "first": SequenceClassification(),
        "second": SequenceClassification(pooling="mean"),
        "third": SequenceClassification(problem_type="regression", pooling="max"),
        "vector": Pooling(normalize=True),
    }


def _headset(model: str, heads: dict[str, Head]) -> Headset:
    torch.manual_seed(0)
    labels = {name: ("no", "yes") for name in heads if name in ("first", "second")}
    backbone = Backbone.from_pretrained(model)
    return Headset(backbone, heads, labels=labels, tokenizer=load_tokenizer(model)).eval()


def _write(target: str, texts: Sequence[str], answers: Sequence[tuple[str, float]]) -> None:
    with Path(target).open("w", encoding="utf-8") as file:
        for text, (label, score) in zip(texts, answers, strict=True):
            file.write(json.dumps({"text": text, "label": label, "score": score}, ensure_ascii=False) + "\n")
