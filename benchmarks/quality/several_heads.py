"""Three heads in one run, on one encoder, against three runs with one head each."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.quality.costs import measure
from benchmarks.quality.scores import score
from benchmarks.quality.systems import BETTER, DEFAULT, configuration, fit
from benchmarks.quality.systems import run as run_single
from benchmarks.quality.systems import settings_of as single_settings
from benchmarks.quality.tasks import DATA, TASKS, Task, read_split

__all__ = ["COSTS", "HEADS", "NAME", "RUNS", "SINGLE", "TOGETHER", "run", "settings_of"]

NAME = "several heads"
HEADS: dict[str, Task] = {
    "intensity": TASKS["regression"],
    "source": replace(
        TASKS["regression"],
        name="source",
        kind="sequence",
        label="source",
        head=TASKS["sequence"].head,
        better_head=TASKS["sequence"].better_head,
    ),
    "attack": TASKS["sequence"],
}
TOGETHER = {"together": DEFAULT, "together, better options": BETTER}
SINGLE = {"intensity": ("regression", DEFAULT), "attack": ("sequence", DEFAULT)}  # runs that are made already
COSTS = "costs"
RUNS = ("source", *TOGETHER, COSTS)
KEYS = {"intensity": "value", "source": "label", "attack": "label"}


def settings_of(name: str) -> dict[str, Any]:
    """All that the scores of a run depend on, besides the seed and the versions."""
    if name == "source":
        return single_settings(HEADS[name], DEFAULT)
    return {head: single_settings(task, TOGETHER.get(name, DEFAULT)) for head, task in HEADS.items()}


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
        scores = train_together(seed, folder, better=TOGETHER[name] == BETTER)
    return {"scores": scores, "settings": settings_of(name), "seconds": round(time.process_time() - start, 2)}


def together(seed: int, better: bool = False) -> dict[str, Any]:
    """What ``headset fit`` takes for three heads on two tables.

    Args:
        seed: Of the run and of the order of the rows.
        better: Whether the heads and the run have the better options.
    """
    sources: dict[str, dict[str, Any]] = {}
    for head, task in HEADS.items():
        file = {"path": "csv", "data_files": str(DATA / f"{task.source}.train.csv"), "split": f"train[:{task.rows}]"}
        source = sources.setdefault(task.source, {"train": file, "text": task.text[0], "labels": {}})
        source["labels"][head] = task.label
    settings = configuration(TASKS["regression"], "", {"heads": {}}, seed)
    heads = {head: task.better_head if better else task.head for head, task in HEADS.items()}
    settings["model"] |= {"heads": heads, **(TASKS["regression"].better_model if better else {})}
    data = {name: value for name, value in settings["data"].items() if name not in ("train", "text", "labels")}
    return settings | {"data": {"sources": sources, **data}}


def train_together(seed: int, folder: Path, better: bool = False, split: str = "test") -> dict[str, Any]:
    """Train all heads in one run, and measure each on its own test split."""
    from headset import Headset

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trained = Headset.from_checkpoint(fit(together(seed, better), folder))
    scores = {}
    for head, task in HEADS.items():
        rows = read_split(task, split)
        found = trained.predict(rows.texts, [head], batch_size=task.batch_size, max_length=task.max_length)[head]
        scores[head] = score(task, rows.labels, [row[KEYS[head]] for row in found])
    shutil.rmtree(folder)
    return scores
