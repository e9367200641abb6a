"""The systems, and one run of one of them on one task."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.quality import recipes
from benchmarks.quality.scores import pool_of, score
from benchmarks.quality.tasks import HEAD, WARMUP, WEIGHT_DECAY, Split, Task, read_split, write_rows

__all__ = ["BETTER", "DEFAULT", "SYSTEMS", "configuration", "fit", "run", "settings_of", "systems_of"]

DEFAULT = "headset"
BETTER = "headset, better options"
TRAINER = "transformers' Trainer"
SENTENCES = "sentence-transformers"
LINEAR = "TF-IDF, linear"


def headset(task: Task, train: Split, test: Split, seed: int, folder: Path) -> Any:
    """Headset with default options."""
    return _train_and_answer(task, train, test, seed, folder, {"heads": {HEAD: task.head}})


def better_headset(task: Task, train: Split, test: Split, seed: int, folder: Path) -> Any:
    """Headset with the better options of the task."""
    return _train_and_answer(task, train, test, seed, folder, {"heads": {HEAD: task.better_head}, **task.better_model})


SYSTEMS: dict[str, Callable[[Task, Split, Split, int, Path], Any]] = {
    LINEAR: recipes.tfidf,
    TRAINER: recipes.trainer,
    SENTENCES: recipes.sentence_transformers,
    DEFAULT: headset,
    BETTER: better_headset,
}


def systems_of(task: Task) -> list[str]:
    """The systems that do a task: pairs are learnt by sentence-transformers, all else by transformers' Trainer."""
    absent = TRAINER if task.kind == "pair" else SENTENCES
    return [name for name in SYSTEMS if name != absent]


def settings_of(task: Task, system: str) -> dict[str, Any]:
    """All that the scores of a run depend on, besides the seed and the versions."""
    settings = asdict(task)
    unused = {DEFAULT: ["better_head", "better_model"], BETTER: ["head"]}
    for name in unused.get(system, ["head", "better_head", "better_model"]):
        del settings[name]
    return settings | {"text": list(task.text), "system": system, "warmup": WARMUP, "weight_decay": WEIGHT_DECAY}


def run(task: Task, system: str, seed: int, folder: Path, split: str = "test") -> dict[str, Any]:
    """Train one system on one task and measure it.

    Args:
        task: The task.
        system: The name of the system.
        seed: Of everything that is drawn.
        folder: For what the run writes; it is emptied before, and removed after.
        split: What is answered: ``test``, or ``validation`` where options are chosen.

    Returns:
        ``scores``, ``settings``, and ``seconds`` of processor time for training and answering.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    train, test = read_split(task, "train"), read_split(task, split)
    start = time.process_time()
    answers = SYSTEMS[system](task, train, test, seed, folder)
    seconds = time.process_time() - start
    shutil.rmtree(folder)
    return {
        "scores": score(task, test.labels, answers),
        "settings": settings_of(task, system),
        "seconds": round(seconds, 2),
    }


def configuration(task: Task, train: Path | str, model: dict[str, Any], seed: int) -> dict[str, Any]:
    """What ``headset fit`` takes for a task.

    Args:
        task: The task.
        train: The file of the rows.
        model: The heads, and more settings under ``model``.
        seed: Of the run and of the order of the rows.
    """
    data: dict[str, Any] = {"train": str(train), "text": list(task.text) if task.kind == "pair" else task.text[0]}
    if task.label:
        data["labels"] = {name: task.label for name in model["heads"]}
    return {
        "seed_everything": seed,
        "model": {"backbone": task.model, "learning_rate": task.learning_rate, "warmup": WARMUP, **model},
        "data": {**data, "max_length": task.max_length, "batch_size": task.batch_size, "seed": seed},
        "trainer": {"max_epochs": task.epochs, "accelerator": "cpu", "enable_progress_bar": False},
    }


def fit(settings: dict[str, Any], folder: Path) -> str:
    """Run ``headset fit`` with settings; the path of the checkpoint."""
    from headset.cli import run

    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    run(["fit", "-c", str(file), "--trainer.default_root_dir", str(folder)])
    return str(folder / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt")


def _train_and_answer(task: Task, train: Split, test: Split, seed: int, folder: Path, model: dict[str, Any]) -> Any:
    from headset import Headset

    file = folder / "train.jsonl"
    write_rows(task, train, file)
    trained = Headset.from_checkpoint(fit(configuration(task, file, model, seed), folder))
    keys = {"sequence": "label", "token": "tags", "regression": "value", "pair": "vector"}

    def answer(texts: list[Any]) -> list[Any]:
        rows = trained.predict(texts, batch_size=task.batch_size, max_length=task.max_length)[HEAD]
        return [row[keys[task.kind]] for row in rows]

    if task.kind != "pair":
        return answer(test.texts)
    first, second = (np.array(answer(texts)) for texts in (test.texts, pool_of(test.labels)))
    return _unit(first) @ _unit(second).T


def _unit(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    unit: np.ndarray[Any, Any] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
