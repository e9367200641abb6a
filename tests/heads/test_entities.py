"""Entities and their scores, against seqeval."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from torch import Tensor, distributed
from torchmetrics import MetricCollection

from heads.entities import entities, entity_metrics, is_bio

torch.set_num_threads(1)
LABELS = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC-X")), "B", "I", "S-"]
tags = st.lists(st.sampled_from(LABELS), max_size=12)
# A batch: sentences of (true tag, predicted tag, whether it counts).
Batch = list[list[tuple[str, str, bool]]]
tokens = st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS), st.booleans())
runs = st.lists(st.lists(st.lists(tokens, max_size=8), min_size=1, max_size=4), min_size=1, max_size=3)


@given(tags)
@settings(max_examples=500, deadline=None)
def test_entities_equal_seqeval(sentence: list[str]) -> None:
    assert entities(sentence) == get_entities(sentence)


@given(tags)
def test_bilou_reads_as_iobes(sentence: list[str]) -> None:
    bilou = [{"E": "L", "S": "U"}.get(tag[0], tag[0]) + tag[1:] for tag in sentence]
    assert entities(bilou) == get_entities(sentence)


@pytest.mark.parametrize(
    ("labels", "answer"),
    [(LABELS, True), (["B-X", "L-X", "U-X"], True), (["O", "NOUN"], False), (["B_X"], False), (["O", ""], False)],
)
def test_is_bio(labels: list[str], answer: bool) -> None:
    assert is_bio(labels) is answer


def tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    """A batch as predictions and targets, padded with -100; words that do not count are -100 as well."""
    target = torch.full((len(batch), max(map(len, batch))), -100)
    preds = torch.zeros_like(target)
    for row, sentence in enumerate(batch):
        for column, (true, predicted, counts) in enumerate(sentence):
            preds[row, column] = LABELS.index(predicted)
            target[row, column] = LABELS.index(true) if counts else -100
    return preds, target


def seqeval_scores(run: list[Batch]) -> dict[str, Any]:
    sentences = [[token for token in sentence if token[2]] for batch in run for sentence in batch]
    true, predicted = ([[token[index] for token in sentence] for sentence in sentences] for index in (0, 1))
    scores = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    return {name: pytest.approx(float(score(true, predicted, zero_division=0))) for name, score in scores.items()}


@given(runs, st.booleans())
@settings(max_examples=100, deadline=None)
def test_scores_equal_seqeval(run: list[Batch], as_logits: bool) -> None:
    metrics = MetricCollection(entity_metrics(LABELS))
    for preds, target in map(tensors, run):
        metrics.update(torch.nn.functional.one_hot(preds, len(LABELS)).float() if as_logits else preds, target)
    assert {name: value.item() for name, value in metrics.compute().items()} == seqeval_scores(run)


def test_the_three_scores_share_one_count() -> None:
    metrics = MetricCollection(entity_metrics(LABELS))
    metrics.update(torch.tensor([[1, 3, 0]]), torch.tensor([[1, 3, -100]]))
    assert [sorted(group) for group in metrics.compute_groups.values()] == [["f1", "precision", "recall"]]


SHARES: list[list[Batch]] = [
    [[[("B-PER", "B-PER", True), ("I-PER", "I-PER", True)], [("O", "B-PER", True)]], [[("B-PER", "O", True)]]],
    [[[("B-LOC-X", "B-LOC-X", True), ("O", "I-LOC-X", False), ("O", "S-PER", True)]]],
]


def work(rank: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metrics = MetricCollection(entity_metrics(LABELS))
    for preds, target in map(tensors, SHARES[rank]):
        metrics.update(preds, target)
    torch.save({name: value.item() for name, value in metrics.compute().items()}, f"{results}/{rank}.pt")
    distributed.destroy_process_group()


def test_counts_sum_over_processes_with_uneven_shares(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == seqeval_scores(SHARES[0] + SHARES[1])
