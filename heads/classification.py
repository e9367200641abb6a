"""What heads with one answer an input share: a class, several classes, or numbers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, PearsonCorrCoef
from transformers import PretrainedConfig
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall
from backbones.errors import invalid_choice
from heads.base import Head, HeadContext, HeadOutput, class_metrics, class_predictions
from heads.native import NativeModel
from heads.outputs import head_output, stock_loss
from heads.scorers import Scorer
from heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, Target
from heads.task_models import label_settings

__all__ = ["MULTI", "REGRESSION", "SINGLE", "Classification"]

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"


class Classification(Head):
    """An abstract head with one answer an input: how it learns, what it predicts, and how it is measured.

    A subclass keeps ``problem_type``, ``num_outputs`` and ``threshold``, and of the scorer ``pooling``,
    ``hidden_layers`` and ``dropout``.
    """

    problem_type: str
    num_outputs: int
    threshold: float
    pooling: str | list[str]
    hidden_layers: int | str | list[int]
    dropout: float
    scorer: NativeModel | Scorer

    def check_problem_type(self) -> None:
        """Check the problem type.

        Raises:
            HeadsetError: It is none of transformers'.
        """
        if self.problem_type not in (SINGLE, MULTI, REGRESSION):
            raise invalid_choice("problem type", self.problem_type, [SINGLE, MULTI, REGRESSION])

    @classmethod
    def stored_arguments(cls, config: PretrainedConfig) -> dict[str, Any]:
        """As transformers reads a configuration: one output without a problem type is regression."""
        kind = config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE)
        return {"problem_type": kind, "num_outputs": config.num_labels if kind == REGRESSION else 1}

    def size(self, context: HeadContext) -> int:
        """C, the number of scores."""
        return self.num_outputs if context.labels is None else len(context.labels)

    def build(self, context: HeadContext) -> None:
        """Make the scorer: the native one, or our own."""
        if self.auto_class:
            self.scorer = self.native_model(context, instead="pooling: mean")
        else:
            self.scorer = Scorer(context, self.size(context), self.hidden_layers, self.pooling, self.dropout)

    def native_model(self, context: HeadContext, instead: str = "") -> NativeModel:
        """The modules that transformers has for this task and architecture, for the labels of the run."""
        settings = label_settings(context.labels, self.size(context)) | {"problem_type": self.problem_type}
        assert self.auto_class is not None
        return NativeModel(self.auto_class, context.backbone, instead, **settings)

    def unused(self, backbone: Backbone) -> set[str]:
        """What the scorer does without."""
        return self.scorer.unused(backbone)

    def request(self, batch: Mapping[str, Any]) -> BackboneCall | None:
        """The scorer's own call."""
        return self.scorer.request(batch)

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """Scores ``(B, C)``."""
        return head_output(self.scorer(features, batch), batch)

    def target(self) -> Target:
        """Classes, lists of classes, or numbers."""
        if self.problem_type == REGRESSION:
            return NumberTarget(self.num_outputs)
        return MultiLabelTarget() if self.problem_type == MULTI else ClassTarget()

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Cross entropy, binary cross entropy, or mean squared error, as transformers has them.

        Args:
            output: Scores ``(B, C)``.
            labels: Classes ``(B,)``; or 0 and 1, ``(B, C)``; or numbers, ``(B,)`` or ``(B, C)``.
        """
        known = stock_loss(output, labels)
        if known is not None:
            return known
        logits = output.logits
        if self.problem_type == SINGLE:
            return F.cross_entropy(logits, labels)
        if self.problem_type == MULTI:
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.mse_loss(logits.reshape(labels.shape), labels.to(logits.dtype))

    def predict(self, output: HeadOutput) -> list[dict[str, Any]]:
        """``{"label", "score", "scores"}``; ``{"labels", "scores"}`` of several labels; ``{"value"}`` of regression."""
        if self.problem_type == SINGLE:
            return class_predictions(output.logits, self.labels)
        rows = output.logits.float()
        if self.problem_type == REGRESSION:
            return [{"value": row[0]} if len(row) == 1 else {"values": row} for row in rows.tolist()]
        names = self.labels or ()
        answers = [dict(zip(names, row, strict=True)) for row in rows.sigmoid().tolist()]
        return [
            {"labels": [name for name, score in scores.items() if score >= self.threshold], "scores": scores}
            for scores in answers
        ]

    def metrics(self) -> MetricCollection:
        """Accuracy and F1 for classes; errors and Pearson's correlation for numbers."""
        if self.problem_type == SINGLE:
            return class_metrics(self.labels)
        if self.problem_type == REGRESSION:
            errors: dict[str, Metric | MetricCollection] = {"mse": MeanSquaredError(), "mae": MeanAbsoluteError()}
            if self.num_outputs == 1:
                errors["pearson"] = PearsonCorrCoef()
            return MetricCollection(errors)
        size = len(self.labels or ())
        return MetricCollection(
            {
                "accuracy": MultilabelExactMatch(size, self.threshold),
                "f1": MultilabelF1Score(size, self.threshold, average="macro"),
                "f1_micro": MultilabelF1Score(size, self.threshold, average="micro"),
            }
        )

    def metric_inputs(self, output: HeadOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Classes as scores, several labels as probabilities, numbers in the shape of the labels."""
        logits = output.logits.float()
        if self.problem_type == SINGLE:
            return logits, labels
        return (
            (logits.sigmoid(), labels.int()) if self.problem_type == MULTI else (logits.reshape(labels.shape), labels)
        )
