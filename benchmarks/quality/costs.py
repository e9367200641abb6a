"""What three heads on one encoder cost, against three encoders: measured in turn, in one process."""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from backbones import Backbone
from backbones.loading import load_tokenizer
from benchmarks.quality.recipes import label_names
from benchmarks.quality.tasks import Task, read_split
from heads.registry import make_head
from headset import Headset

__all__ = ["measure"]

ROUNDS = 7
TEXTS = 64  # that are answered for by all heads


def measure(tasks: Mapping[str, Task], seed: int) -> dict[str, float]:
    """Processor time of all heads on one encoder, as a share of that of an encoder each.

    Rounds alternate between the two, each on the same rows, so that a slow moment of the machine meets both. A round
    of training is a step on a batch of every table, for all of its heads; a round of prediction answers for all heads.

    Args:
        tasks: The task of each head.
        seed: Where heads, and the choice of rows, come from.

    Returns:
        ``training`` and ``prediction``: the median over the rounds of the one time over the other.
    """
    torch.manual_seed(seed)
    one = _headset(tasks)
    alone = {name: _headset({name: task}) for name, task in tasks.items()}
    tables = {task.source: [name for name in tasks if tasks[name].source == task.source] for task in tasks.values()}
    batches = {source: _batches(one, {name: tasks[name] for name in names}) for source, names in tables.items()}
    learners = {id(it): _Learner(it) for it in (one, *alone.values())}

    def train(headsets: Mapping[str, Headset], index: int) -> None:
        for source, names in tables.items():
            batch, labels = batches[source][index]
            for learner, its in itertools.groupby(names, key=lambda name: id(headsets[name])):
                learners[learner].step(batch, labels, list(its))

    texts = [text for task in tasks.values() for text in read_split(task, "test").texts[: TEXTS // len(tasks)]]

    def predict(headsets: Mapping[str, Headset], index: int) -> None:
        for model in {id(it): it for it in headsets.values()}.values():
            model.predict(texts, max_length=48, allow_untrained=True)

    shared = dict.fromkeys(tasks, one)
    return {"training": _ratio(train, shared, alone), "prediction": _ratio(predict, shared, alone)}


class _Learner:
    """A headset that is trained as by hand, without a Trainer."""

    def __init__(self, model: Headset) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(self, batch: dict[str, Any], labels: Mapping[str, torch.Tensor], names: Sequence[str]) -> None:
        outputs = self.model({**batch, "labels": labels}, names)
        losses = [self.model.head(name).loss(output, labels[name]) for name, output in outputs.items()]
        self.optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        self.optimizer.step()


def _headset(tasks: Mapping[str, Task]) -> Headset:
    path = next(iter(tasks.values())).model
    labels = {name: label_names(task, read_split(task, "train")) or None for name, task in tasks.items()}
    heads = {name: make_head(task.head, trusted=True) for name, task in tasks.items()}
    return Headset(Backbone.from_pretrained(path), heads, labels, load_tokenizer(path))


def _batches(model: Headset, tasks: Mapping[str, Task]) -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """A batch for each round of one table, with the labels of all of its heads."""
    splits = {name: read_split(task, "train") for name, task in tasks.items()}
    task, split = next(iter(tasks.values())), next(iter(splits.values()))
    assert model.tokenizer is not None
    found = []
    for index in range(ROUNDS + 1):
        rows = slice(index * task.batch_size, (index + 1) * task.batch_size)
        batch = model.tokenizer(
            split.texts[rows], padding=True, truncation=True, max_length=task.max_length, return_tensors="pt"
        )
        labels = {}
        for name, its in splits.items():
            names = model.labels[name]
            values = its.labels[rows] if names is None else [names.index(label) for label in its.labels[rows]]
            labels[name] = torch.tensor(values)
        found.append((dict(batch), labels))
    return found


def _ratio(
    work: Callable[[Mapping[str, Headset], int], None], shared: Mapping[str, Headset], alone: Mapping[str, Headset]
) -> float:
    """The median over the rounds of the time with one encoder over that with an encoder each."""
    ratios = []
    for index in range(ROUNDS + 1):
        times = []
        for headsets in (shared, alone):
            start = time.process_time()
            work(headsets, index)
            times.append(time.process_time() - start)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios[1:])  # the first round warms up
