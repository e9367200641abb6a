"""From scores to answers: probabilities, thresholds, predictions and metrics of heads with one answer an input."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassCalibrationError, MultilabelExactMatch, MultilabelF1Score
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, PearsonCorrCoef
from transformers import PretrainedConfig

from backbones.errors import HeadsetError, invalid_choice
from heads.base import Head, HeadOutput
from heads.class_answers import class_metrics, class_predictions
from heads.full_precision import FullPrecision
from heads.objective import MULTI, REGRESSION, SINGLE
from heads.ordinal import OrdinalScale, ordinal_metrics
from heads.tuning import best_temperature, best_thresholds

__all__ = ["TUNED", "Decisions"]

TUNED = "tuned"
BINS = 15  # of the calibration error, as Guo et al. have it


class Decisions(Head):
    """An abstract head that answers with a class, several classes, or numbers.

    A subclass keeps ``problem_type``, ``threshold`` and ``temperature``.
    """

    problem_type: str
    threshold: float | str | dict[str, float]
    temperature: float | str
    scale: OrdinalScale | None

    def __init__(self) -> None:
        super().__init__()
        self.tuned: FullPrecision | None = None  # thresholds, or the temperature

    def check_decisions(self) -> None:
        """Check threshold and temperature.

        Raises:
            HeadsetError: One is out of range, or not one of the problem type.
        """
        for name, value, kind in (
            ("threshold", self.threshold, MULTI),
            ("temperature", self.temperature, SINGLE),
        ):
            if isinstance(value, str) and value != TUNED:
                raise HeadsetError(f"Invalid {name}: {value!r}. Give a number, or {TUNED}: chosen on validation.")
            if value == TUNED and self.problem_type != kind:
                raise HeadsetError(f"{name}: {TUNED} is for {kind}, and the problem type is {self.problem_type}.")
        if isinstance(self.temperature, int | float) and self.temperature <= 0:
            raise HeadsetError(f"Invalid temperature: {self.temperature}. Give a number above 0, or {TUNED}.")
        if self.temperature != 1 and self.ordered:
            raise HeadsetError("A temperature is for scores of classes, and an ordinal objective has scores of ranks.")

    @classmethod
    def stored_decisions(cls, config: PretrainedConfig) -> dict[str, Any]:
        """The arguments that an exported configuration holds: thresholds and temperature."""
        found: dict[str, Any] = {}
        if isinstance(thresholds := getattr(config, "thresholds", None), dict):
            found["threshold"] = thresholds
        if isinstance(temperature := getattr(config, "calibration_temperature", None), int | float):
            found["temperature"] = temperature
        return found

    def build_decisions(self, labels: tuple[str, ...] | None) -> None:
        """Make room for what is chosen on validation."""
        if isinstance(self.threshold, Mapping):
            for name in self.threshold:
                if name not in (labels or ()):
                    raise invalid_choice("label with a threshold", name, labels or ())
        if self.threshold == TUNED:
            self.tuned = FullPrecision([0.5] * len(labels or ()))
        elif self.temperature == TUNED:
            self.tuned = FullPrecision([1.0])

    @property
    def tunes(self) -> bool:
        """Whether a threshold or the temperature is chosen on validation."""
        return self.tuned is not None

    def tune(self, logits: Tensor, labels: Tensor) -> None:
        """Choose the thresholds with the best F1, or the temperature with the best likelihood.

        Args:
            logits: The scores of all rows of validation ``(N, C)``.
            labels: Their labels, as ``target`` makes them.
        """
        assert self.tuned is not None
        if self.problem_type == MULTI:
            self.tuned.set(best_thresholds(logits.float().sigmoid(), labels))
        else:
            self.tuned.set(best_temperature(logits, labels))

    @property
    def thresholds(self) -> Tensor | float:
        """The probability from which a label counts as given: one number, or one for each label ``(L,)``."""
        if isinstance(self.threshold, Mapping):
            return torch.tensor([self.threshold.get(label, 0.5) for label in self.labels or ()])
        if self.threshold == TUNED:
            return 0.5 if self.tuned is None else self.tuned.value
        return float(self.threshold)

    def probabilities(self, output: HeadOutput) -> Tensor:
        """Of classes or of labels, float32 ``(B, C)``."""
        logits = output.logits.float()
        if self.problem_type == MULTI:
            return logits.sigmoid()
        if self.temperature == TUNED:
            temperature: Tensor | float = 1.0 if self.tuned is None else self.tuned.value
        else:
            temperature = float(self.temperature)
        return (logits / temperature).softmax(-1)

    def export_settings(self) -> dict[str, Any]:
        """Thresholds by label, and the temperature, where they are not the usual ones."""
        thresholds, names = self.thresholds, self.labels or ()
        settings: dict[str, Any] = {}
        if self.problem_type == MULTI and (isinstance(thresholds, Tensor) or thresholds != 0.5):
            values = thresholds.tolist() if isinstance(thresholds, Tensor) else [thresholds] * len(names)
            settings["thresholds"] = dict(zip(names, values, strict=True))
        if self.problem_type == SINGLE and self.temperature != 1:
            value = self.tuned.value.item() if self.tuned is not None else self.temperature
            settings["calibration_temperature"] = value
        return settings

    def predict(self, output: HeadOutput) -> list[dict[str, Any]]:
        """``{"label", "score", "scores"}``; ``{"labels", "scores"}`` of several labels; ``{"value"}`` of regression."""
        if self.problem_type == REGRESSION:
            rows = output.logits.float().tolist()
            return [{"value": row[0]} if len(row) == 1 else {"values": row} for row in rows]
        chances = self.probabilities(output)
        if self.problem_type == SINGLE:
            return class_predictions(chances, self.labels, self._classes(output))
        names, given = self.labels or (), (chances >= self._on(chances)).tolist()
        return [
            {
                "labels": [name for name, its in zip(names, flags, strict=True) if its],
                "scores": dict(zip(names, row, strict=True)),
            }
            for flags, row in zip(given, chances.tolist(), strict=True)
        ]

    def metrics(self) -> MetricCollection:
        """Accuracy and F1 for classes; errors and Pearson's correlation for numbers; errors in ranks."""
        size = len(self.labels or ())
        if self.problem_type == REGRESSION:
            errors: dict[str, Metric | MetricCollection] = {"mse": MeanSquaredError(), "mae": MeanAbsoluteError()}
            if self.num_outputs == 1:
                errors["pearson"] = PearsonCorrCoef()
            return MetricCollection(errors)
        if self.problem_type == SINGLE:
            if self.ordered:
                return ordinal_metrics(size)
            metrics = class_metrics(self.labels)
            if self.temperature != 1:
                metrics.add_metrics({"ece": MulticlassCalibrationError(size, BINS)})
            return metrics
        return MetricCollection(
            {
                "accuracy": MultilabelExactMatch(size),
                "f1": MultilabelF1Score(size, average="macro"),
                "f1_micro": MultilabelF1Score(size, average="micro"),
            }
        )

    def metric_inputs(self, output: HeadOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Classes as probabilities, or as they are chosen; several labels as 0 and 1; numbers in the labels' shape."""
        if self.problem_type == REGRESSION:
            return output.logits.float().reshape(labels.shape), labels
        chances = self.probabilities(output)
        if self.problem_type == MULTI:
            return (chances >= self._on(chances)).int(), labels.int()
        classes = labels.argmax(-1) if labels.is_floating_point() else labels
        return (self._classes(output) if self.ordered else chances), classes

    def _classes(self, output: HeadOutput) -> Tensor:
        """The class of each row ``(B,)``."""
        return output.logits.argmax(-1) if self.scale is None else self.scale.classify(output.info["ranks"])

    def _on(self, chances: Tensor) -> Tensor | float:
        return self.thresholds.to(chances.device) if isinstance(self.thresholds, Tensor) else self.thresholds
