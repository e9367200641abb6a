"""Three heads in one run, on one encoder, against three runs with one head each."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.quality.costs import measure
from benchmarks.quality.scores import score
from benchmarks.quality.systems import DEFAULT, configuration, fit
from benchmarks.quality.systems import run as run_single
from benchmarks.quality.systems import settings_of as single_settings
from benchmarks.quality.tasks import DATA, TASKS, Task, read_split

__all__ = ["COSTS", "HEADS", "NAME", "RUNS", "SINGLE", "TOGETHER", "run", "settings_of"]

NAME = "several heads"
HEADS: dict[str, Task] = {
    "intensity": TASKS["regression"],
    "source": replace(
        TASKS["regression"], name="source", kind="sequence", label="source", head="SequenceClassification"
    ),
    "attack": TASKS["sequence"],
}
# How the three losses are weighed in one run: settings under `model`.
TOGETHER: dict[str, dict[str, Any]] = {
    "together": {},
    "together, loss_weights: {intensity: 0.25}": {"loss_weights": {"intensity": 0.25}},
}
SINGLE = {"intensity": ("regression", DEFAULT), "attack": ("sequence", DEFAULT)}  # runs that are made already
COSTS = "costs"
RUNS = ("source", *TOGETHER, COSTS)
KEYS = {"intensity": "value", "source": "label", "attack": "label"}


def settings_of(name: str) -> dict[str, Any]:
    """All that the scores of a run depend on, besides the seed and the versions."""
    if name == "source":
        return single_settings(HEADS[name], DEFAULT)
    return {"heads": {head: single_settings(task, DEFAULT) for head, task in HEADS.items()}, **TOGETHER.get(name, {})}


def run(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and measure.

    Args:
        name: One of ``RUNS``: ``source`` alone, all heads together, or the cost of both.
        seed: Of everything that is drawn.
        folder: For what the run writes; it is emptied before, and removed after.

    Returns:
        ``scores``, by head where there are several, ``settings``, and ``seconds`` of processor time.
    """
    if name == "source":
        return run_single(HEADS[name], DEFAULT, seed, folder)
    start = time.process_time()
    if name == COSTS:
        scores: dict[str, Any] = measure(HEADS, seed)
    else:
        scores = train_together(TOGETHER[name], seed, folder)
    return {"scores": scores, "settings": settings_of(name), "seconds": round(time.process_time() - start, 2)}


def together(model: dict[str, Any], seed: int) -> dict[str, Any]:
    """What ``headset fit`` takes for three heads on two tables.

    Args:
        model: Settings under ``model``, besides the heads.
        seed: Of the run and of the order of the rows.
    """
    sources: dict[str, dict[str, Any]] = {}
    for head, task in HEADS.items():
        file = {"path": "csv", "data_files": str(DATA / f"{task.source}.train.csv"), "split": f"train[:{task.rows}]"}
        source = sources.setdefault(task.source, {"train": file, "text": task.text[0], "labels": {}})
        source["labels"][head] = task.label
    settings = configuration(TASKS["regression"], "", {"heads": {}}, seed)
    settings["model"] |= {"heads": {head: task.head for head, task in HEADS.items()}, **model}
    data = {name: value for name, value in settings["data"].items() if name not in ("train", "text", "labels")}
    return settings | {"data": {"sources": sources, **data}}


def train_together(model: dict[str, Any], seed: int, folder: Path, split: str = "test") -> dict[str, Any]:
    """Train all heads in one run, and measure each on its own test split."""
    from headset import Headset

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trained = Headset.from_checkpoint(fit(together(model, seed), folder))
    scores = {}
    for head, task in HEADS.items():
        rows = read_split(task, split)
        found = trained.predict(rows.texts, [head], batch_size=task.batch_size, max_length=task.max_length)[head]
        scores[head] = score(task, rows.labels, [row[KEYS[head]] for row in found])
    shutil.rmtree(folder)
    return scores
