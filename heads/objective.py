"""Objectives: what a head learns by, as a setting, and the loss that it stands for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from backbones.errors import HeadsetError, invalid_choice
from heads.full_precision import FullPrecision
from heads.label_counts import LabelCounts
from heads.losses import binary_cross_entropy, class_size, cross_entropy, number_loss

__all__ = ["MULTI", "REGRESSION", "SINGLE", "TAGS", "Objective", "plain_objective"]

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"
TAGS = "token classification"  # no problem type of transformers

# The losses of each problem type, the default one first, and the settings that each has.
LOSSES: dict[str, dict[str, tuple[str, ...]]] = {
    SINGLE: {
        "cross_entropy": ("label_smoothing", "class_weights", "soft_labels"),
        "focal": ("gamma", "class_weights"),
        "coral": (),
        "corn": (),
    },
    MULTI: {
        "binary_cross_entropy": ("label_smoothing", "positive_weights"),
        "focal": ("gamma", "label_smoothing", "positive_weights"),
    },
    TAGS: {"cross_entropy": ("label_smoothing", "class_weights"), "focal": ("gamma", "class_weights")},
    REGRESSION: {"mse": (), "l1": (), "huber": ("delta",)},
}
BALANCED = "balanced"
NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "gamma": (lambda value: value >= 0, "of at least 0"),
    "delta": (lambda value: value > 0, "above 0"),
    "label_smoothing": (lambda value: 0 <= value < 1, "from 0 to below 1"),
}


@dataclass(frozen=True)
class Objective:
    """A loss and its settings.

    Args:
        problem_type: Which losses there are.
        loss: Its name.
        gamma: Of the focal loss: how much examples count less that are right already.
        delta: Of the Huber loss: where it becomes linear.
        label_smoothing: The part of each label that is shared among all.
        class_weights: The weights of labels, 1 where not given; ``balanced`` takes them from the train split.
        positive_weights: The same for the ones of several labels.
        soft_labels: Whether labels are probabilities.
    """

    problem_type: str
    loss: str
    gamma: float = 2.0
    delta: float = 1.0
    label_smoothing: float = 0.0
    class_weights: Mapping[str, float] | str | None = None
    positive_weights: Mapping[str, float] | str | None = None
    soft_labels: bool = False

    @classmethod
    def read(cls, setting: str | Mapping[str, Any] | None, problem_type: str) -> "Objective":
        """The objective that a setting names: the name of a loss, or a dictionary with ``loss`` and its settings.

        Raises:
            HeadsetError: The problem type has no such loss, or the loss no such setting.
        """
        losses = LOSSES[problem_type]
        given = {"loss": setting} if isinstance(setting, str) else dict(setting or {})
        loss = given.pop("loss", next(iter(losses)))
        if loss not in losses:
            raise invalid_choice(f"objective of {problem_type}", loss, losses)
        for name in given:
            if name not in losses[loss]:
                raise invalid_choice(f"setting of the objective {loss}", name, losses[loss])
        objective = cls(problem_type, loss, **given)
        objective._check()
        return objective

    @property
    def balanced(self) -> bool:
        """Whether weights come from the train split."""
        return BALANCED in (self.class_weights, self.positive_weights)

    def weights(self, labels: tuple[str, ...] | None, counts: LabelCounts | None) -> FullPrecision | None:
        """The weights of a label set, if there are any; unknown ones where they come from data that is not there.

        Raises:
            HeadsetError: A label has a weight and is not in the label set, or is in no row of the train split.
        """
        setting = self.class_weights or self.positive_weights
        if setting is None or labels is None:
            return None
        if isinstance(setting, Mapping):
            for name in setting:
                if name not in labels:
                    raise invalid_choice("label in the weights", name, labels)
            return FullPrecision([float(setting.get(label, 1.0)) for label in labels])
        if counts is None:
            return FullPrecision([float("nan")] * len(labels))
        return FullPrecision(counts.class_weights() if self.class_weights else counts.positive_weights())

    def __call__(self, logits: Tensor, labels: Tensor, weights: FullPrecision | None = None) -> Tensor:
        """The loss of scores ``(N, C)``.

        Raises:
            HeadsetError: The weights are balanced ones, and there was no train split to take them from.
        """
        if self.problem_type == REGRESSION:
            return number_loss(logits.reshape(labels.shape), labels, self.loss, self.delta)
        values = None if weights is None else weights.value
        if self.balanced and values is not None and values.isnan().any():
            raise HeadsetError(
                "Balanced weights come from the train split: fit with a TextData, or give the weights of the labels."
            )
        function = binary_cross_entropy if self.problem_type == MULTI else cross_entropy
        return function(logits, labels, values, self.label_smoothing, self.gamma if self.loss == "focal" else 0.0)

    def size(self, labels: Tensor, weights: FullPrecision | None = None) -> Tensor | float:
        """How much the loss is a mean over: rows, or their weights."""
        if self.problem_type in (SINGLE, TAGS):
            return class_size(labels, None if weights is None else weights.value)
        return float(len(labels))

    def _check(self) -> None:
        for name, (fits, wanted) in NUMBERS.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not fits(value):
                raise HeadsetError(f"Invalid {name}: {value!r}. Give a number {wanted}.")
        for name in ("class_weights", "positive_weights"):
            value = getattr(self, name)
            if isinstance(value, str) and value != BALANCED:
                raise HeadsetError(f"Invalid {name}: {value!r}. Give {BALANCED}, or a weight by label: {{LABEL: 2.0}}.")
            if isinstance(value, Mapping) and any(weight < 0 for weight in value.values()):
                raise HeadsetError(f"Invalid {name}: {dict(value)}. Give weights of at least 0.")
        if self.soft_labels and self.class_weights == BALANCED:
            raise HeadsetError("Balanced weights count labels, and soft labels are none. Give class_weights by label.")


def plain_objective(setting: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    """A setting as a checkpoint holds it: labels that are numbers in YAML are strings."""
    if not isinstance(setting, Mapping):
        return setting
    return {
        name: {str(label): weight for label, weight in value.items()} if isinstance(value, Mapping) else value
        for name, value in setting.items()
    }
