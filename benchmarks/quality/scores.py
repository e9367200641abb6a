"""How good answers are: the same code for every system, and none of headset's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error

from benchmarks.quality.tasks import Task

__all__ = ["METRICS", "pool_of", "retrieval", "score"]

# The metrics of each kind of task, the first one leading; of mse less is better.
METRICS = {
    "sequence": ("accuracy", "f1"),
    "token": ("accuracy", "f1"),
    "regression": ("pearson", "mse"),
    "pair": ("mrr", "recall@1"),
}


def score(task: Task, truth: Sequence[Any], answers: Any) -> dict[str, float]:
    """Measure answers.

    Args:
        task: What was asked.
        truth: The labels of the test split; of pairs the second texts.
        answers: Classes, lists of tags or numbers in the order of the rows; of pairs the similarity ``(N, M)`` of each
            first text to all of ``pool_of(truth)``.

    Returns:
        Accuracy and macro F1 over rows or words; Pearson's correlation and the mean squared error; or the mean
        reciprocal rank and recall at 1.
    """
    if task.kind == "pair":
        pool = pool_of(truth)
        return retrieval(np.asarray(answers), np.array([pool.index(text) for text in truth]))
    if task.kind == "regression":
        numbers = np.asarray(answers, dtype=float)
        return {
            "pearson": float(np.corrcoef(truth, numbers)[0, 1]),
            "mse": float(mean_squared_error(truth, numbers)),
        }
    if task.kind == "token":
        if [len(row) for row in truth] != [len(row) for row in answers]:
            raise ValueError("There must be one tag a word.")
        truth = [tag for row in truth for tag in row]
        answers = [str(tag) for row in answers for tag in row]
    return {
        "accuracy": float(accuracy_score(truth, answers)),
        "f1": float(f1_score(truth, answers, average="macro", labels=sorted(set(truth)), zero_division=0.0)),
    }


def pool_of(texts: Sequence[str]) -> list[str]:
    """The different texts among which the right one is looked for, in order."""
    return list(dict.fromkeys(texts))


def retrieval(similarity: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> dict[str, float]:
    """How early the right one of a pool comes; others that are as similar come before it.

    Args:
        similarity: Of each of N texts to each of M in the pool, ``(N, M)``.
        right: The index in the pool of each text's own, ``(N,)``.
    """
    own = similarity[np.arange(len(right)), right]
    rank = (similarity >= own[:, None]).sum(axis=1)
    return {"mrr": float((1 / rank).mean()), "recall@1": float((rank == 1).mean())}
