"""What heads with one class a row answer, and how they are measured."""

from typing import Any

from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

__all__ = ["class_metrics", "class_predictions"]


def class_predictions(probabilities: Tensor, labels: tuple[str, ...] | None, classes: Tensor) -> list[dict[str, Any]]:
    """The chosen class of each row with its probability, and those of all classes.

    Args:
        probabilities: Of the classes ``(B, C)``.
        labels: Their names; numbers, if there are none.
        classes: The chosen ones ``(B,)``.
    """
    names = labels or tuple(str(index) for index in range(probabilities.shape[-1]))
    rows = probabilities.tolist()
    return [
        {"label": names[top], "score": row[top], "scores": dict(zip(names, row, strict=True))}
        for top, row in zip(classes.tolist(), rows, strict=True)
    ]


def class_metrics(labels: tuple[str, ...] | None) -> MetricCollection:
    """Accuracy and macro F1 for one class a row, without metrics where there is no label set."""
    if not labels:
        return MetricCollection({})
    size = len(labels)
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(size, average="micro"),
            "f1": MulticlassF1Score(size, average="macro"),
        }
    )
