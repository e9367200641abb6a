"""One answer a text: a class, several classes, or numbers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, PearsonCorrCoef
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall
from backbones.errors import HeadsetError, invalid_choice
from backbones.layers import check_layer_choice
from heads.base import Head, HeadContext, HeadOutput, class_metrics, class_predictions
from heads.native import NativeModel
from heads.poolers import pooling_modes
from heads.scorers import Scorer
from heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, Target
from heads.task_models import label_settings

__all__ = ["SequenceClassification"]

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"


class SequenceClassification(Head):
    """Texts to a class, to several classes, or to numbers.

    With ``pooling="native"`` the scores come from the very modules that ``AutoModelForSequenceClassification`` has for
    the architecture, so that what is trained is a stock transformers model. Any other pooling goes by the attention
    mask and feeds a linear layer.

    Args:
        problem_type: As in transformers: ``single_label_classification`` (cross entropy),
            ``multi_label_classification`` (binary cross entropy per label), or ``regression`` (mean squared error).
        pooling: ``native``; or ``cls``, ``mean``, ``max``, ``last``, ``attention``, or a list of these, concatenated.
        hidden_layers: Which hidden layers are pooled: ``last``, a number, a list of numbers (concatenated), or ``mix``,
            a learned mean of all. The native pooling reads the last one.
        num_outputs: How many numbers a text has, in regression.
        threshold: The probability from which a label counts as given, in multi-label classification.
        dropout: Before the linear layer, where pooling is not native.

    Raises:
        HeadsetError: An argument is not one of these.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from backbones import Backbone
        >>> from heads import HeadContext
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        >>> head = SequenceClassification(pooling=["cls", "mean"])
        >>> head.attach(HeadContext(Backbone(BertModel(config)), labels=("ham", "spam")))
        >>> head.scorer.linear
        Linear(in_features=64, out_features=2, bias=True)
    """

    def __init__(
        self,
        problem_type: str = SINGLE,
        pooling: str | list[str] = "native",
        hidden_layers: int | str | list[int] = "last",
        num_outputs: int = 1,
        threshold: float = 0.5,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if problem_type not in (SINGLE, MULTI, REGRESSION):
            raise invalid_choice("problem type", problem_type, [SINGLE, MULTI, REGRESSION])
        check_layer_choice(hidden_layers)
        if pooling != "native":
            pooling_modes(pooling)
        elif hidden_layers != "last":
            raise HeadsetError(
                f"hidden_layers: {hidden_layers} needs a pooling of ours, since the native one reads the last layer. "
                "Set pooling to cls, mean, max, last or attention."
            )
        self.problem_type = problem_type
        self.pooling = pooling
        self.hidden_layers = hidden_layers
        self.num_outputs = num_outputs
        self.threshold = threshold
        self.dropout = dropout

    @property
    def auto_class(self) -> str | None:
        """The task in transformers, where the scores are native."""
        return "AutoModelForSequenceClassification" if self.pooling == "native" else None

    def build(self, context: HeadContext) -> None:
        """Make the scorer: the native one, or our own."""
        size = self.num_outputs if context.labels is None else len(context.labels)
        if self.auto_class:
            settings = label_settings(context.labels, size) | {"problem_type": self.problem_type}
            self.scorer: NativeModel | Scorer = NativeModel(
                self.auto_class, context.backbone, instead="pooling: mean", **settings
            )
        else:
            self.scorer = Scorer(context, size, self.hidden_layers, self.pooling, self.dropout)

    def unused(self, backbone: Backbone) -> set[str]:
        """What the scorer does without."""
        return self.scorer.unused(backbone)

    def target(self) -> Target:
        """Classes, lists of classes, or numbers."""
        if self.problem_type == REGRESSION:
            return NumberTarget(self.num_outputs)
        return MultiLabelTarget() if self.problem_type == MULTI else ClassTarget()

    def request(self, batch: Mapping[str, Any]) -> BackboneCall | None:
        """The scorer's own call."""
        return self.scorer.request(batch)

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """Scores ``(B, C)``."""
        return HeadOutput(self.scorer(features, batch).logits)

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Cross entropy, binary cross entropy, or mean squared error, as transformers has them.

        Args:
            output: Scores ``(B, C)``.
            labels: Classes ``(B,)``; or 0 and 1, ``(B, C)``; or numbers, ``(B,)`` or ``(B, C)``.
        """
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
