"""A configuration run once to its end, and then killed and resumed until it ends: both compared, to the bit."""

import csv
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.torture.runs import LIMIT, Kill, a_kill, checkpoints, clear, events, newest, read, run

# What tells of places, and how a tokenizer cut and padded its last batch.
PASSING = (
    *("dirpath", "best_model_path", "last_model_path", "kth_best_model_path", "best_k_models", "before"),
    *("_last_checkpoint_saved", "tokenizer.json"),
    *("val_loop.batch_progress.total.ready", "val_loop.batch_progress.total.started"),  # headset.resuming.settle
)


class Counting(Kill):
    """Counts what happens, and writes the counts down at the end."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_fit_end(self, trainer, *_):
        if trainer.global_rank == 0:
            torch.save(dict(self.counts), self.folder / "counts.pt")


def torture(drawn: dict[str, Any], backbone: str, folder: Path, lives: int, kills: int) -> tuple[int, list[str]]:
    """Run a configuration, and kill it.

    Args:
        drawn: The configuration.
        backbone: The folder of a model.
        folder: Where the runs write to.
        lives: How many runs to compare with the first one.
        kills: How often each of them is killed at most.

    Returns:
        How many runs were compared (one for each time that it started), and what differed.
    """
    dice = random.Random(drawn["seed"])
    whole = folder / "whole"
    outcome = run(drawn, backbone, whole, kill=Counting(whole))
    if outcome != "done":
        return 0, [f"the uninterrupted run: {outcome}"]
    counts = torch.load(whole / "counts.pt")
    compared, differences = 0, []
    for life in range(lives):
        its = folder / f"life-{life}"
        its.mkdir()
        ckpt_path = None
        history = []
        for number in range(kills + 1):
            last = number == kills
            kill, seconds = (Kill(), LIMIT) if last else a_kill(counts, dice, drawn["processes"])
            clear(its)
            outcome = run(drawn, backbone, its, ckpt_path, kill, seconds)
            compared += 1
            history.append(f"{kill.what} {kill.number} {kill.rank} from {ckpt_path}: {outcome[-600:]}")
            found = _sequences(whole, its, outcome == "done" and number > 0)
            if outcome not in ("done", "killed"):
                found.append(outcome)
            if outcome == "done":
                found += _results(whole, its, bool(events(its)))
            differences += [f"life {life}: {each} ({'; '.join(history)})" for each in found]
            if outcome == "done" or found:
                break
            ckpt_path = newest(its)
    return compared, differences


def _sequences(whole: Path, its: Path, to_the_end: bool) -> list[str]:
    """Whether what happened in a run, in each process, is a part of what happened in the whole one."""
    found = []
    for rank, (truth, told) in enumerate(zip(events(whole), events(its), strict=False)):
        if not told:
            continue
        if told[0] not in truth:
            same = [line for line in truth if line.split(" ")[:3] == told[0].split(" ")[:3]]
            found.append(f"process {rank} began with {told[0]}, which is {same or 'not there'}")
            continue
        expected = truth[truth.index(told[0]) :]
        for number, line in enumerate(told):
            if number >= len(expected) or line != expected[number]:
                there = expected[number] if number < len(expected) else "nothing"
                found.append(f"process {rank}: {line} instead of {there}")
                break
        else:
            if to_the_end and len(told) < len(expected):
                found.append(f"process {rank} ended before {expected[len(told)]}")
    return found


def _results(whole: Path, its: Path, trained: bool) -> list[str]:
    """What the two runs left behind."""
    found = []
    if trained:
        found += _unequal("weights", torch.load(whole / "weights.pt"), torch.load(its / "weights.pt"))
    if (whole / "saver").read_text() != (its / "saver").read_text():
        found.append(f"ModelCheckpoint: {(its / 'saver').read_text()} instead of {(whole / 'saver').read_text()}")
    theirs = {path.name: path for path in checkpoints(its)}
    for path in checkpoints(whole):
        if path.name in theirs:
            found += _unequal(path.name, read(path), read(theirs[path.name]))
    rows = [row for path in whole.rglob("metrics.csv") for row in _rows(path)]
    newest_log = max(its.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime_ns, default=None)
    # Lightning repeats what heads had that are not in a step, as long as it remembers it: not across a resume.
    for row in _rows(newest_log) if newest_log else []:
        if not any(row.items() <= other.items() for other in rows):
            found.append(f"metrics.csv has {row}")
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def _unequal(name: str, one: Any, two: Any) -> list[str]:
    """Where two values differ, but for places and times."""
    if name.endswith(PASSING) or "datamodule_hyper" in name:
        return []
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        found = [f"{name}: keys {sorted(map(str, one.keys() ^ two.keys()))}"] if one.keys() != two.keys() else []
        return found + [
            each for key in one.keys() & two.keys() for each in _unequal(f"{name}.{key}", one[key], two[key])
        ]
    if isinstance(one, list | tuple) and len(one) == len(two):
        return [each for place in range(len(one)) for each in _unequal(f"{name}.{place}", one[place], two[place])]
    if isinstance(one, torch.Tensor):
        same = one.shape == two.shape and torch.equal(one.nan_to_num(nan=-7.0), two.nan_to_num(nan=-7.0))
    else:
        same = one == two or (one != one and two != two)
    return [] if same else [f"{name}: {str(two)[:80]} instead of {str(one)[:80]}"]
