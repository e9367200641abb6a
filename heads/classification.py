"""What heads with one answer an input share: a class, several classes, or numbers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall
from backbones.errors import HeadsetError, invalid_choice
from heads.base import HeadContext, HeadOutput
from heads.decisions import Decisions
from heads.full_precision import FullPrecision
from heads.native import NativeModel
from heads.objective import MULTI, REGRESSION, SINGLE, Objective
from heads.ordinal import ORDINAL, OrdinalScale
from heads.outputs import head_output, stock_loss
from heads.scorers import Scorer
from heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, SoftTarget, Target
from heads.task_models import label_settings

__all__ = ["MULTI", "REGRESSION", "SINGLE", "Classification"]


class Classification(Decisions):
    """An abstract head with one answer an input: how it learns, what it predicts, and how it is measured.

    A subclass keeps ``problem_type``, ``objective``, ``num_outputs``, ``threshold`` and ``temperature``, and of the
    scorer ``pooling``, ``hidden_layers`` and ``dropout``; and then checks them with `check_settings`.
    """

    objective: str | dict[str, Any] | None
    num_outputs: int
    pooling: str | list[str]
    hidden_layers: int | str | list[int]
    dropout: float
    scorer: NativeModel | Scorer

    def __init__(self) -> None:
        super().__init__()
        self.weights: FullPrecision | None = None
        self.scale: OrdinalScale | None = None

    def check_settings(self) -> None:
        """Check problem type and objective, once the others are kept.

        Raises:
            HeadsetError: One is unknown, or does not go with another.
        """
        if self.problem_type not in (SINGLE, MULTI, REGRESSION):
            raise invalid_choice("problem type", self.problem_type, [SINGLE, MULTI, REGRESSION])
        loss = self.learning.loss
        if loss in ORDINAL and self.auto_class is not None:
            raise HeadsetError(
                f"The objective {loss} has scores of ranks, and {self.auto_class} those of classes, so no modules of "
                "transformers can learn by it. Set pooling to cls, mean, max, last or attention."
            )
        self.check_decisions()

    @property
    def learning(self) -> Objective:
        """The objective, read from its setting."""
        return Objective.read(self.objective, self.problem_type)

    @property
    def ordered(self) -> bool:
        """Whether the order of the labels is one of rank."""
        return self.learning.loss in ORDINAL

    @property
    def needs_label_counts(self) -> bool:
        """Whether weights come from the train split."""
        return self.learning.balanced

    @classmethod
    def stored_arguments(cls, config: PretrainedConfig) -> dict[str, Any]:
        """As transformers reads a configuration: one output without a problem type is regression."""
        kind = config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE)
        sizes = {"problem_type": kind, "num_outputs": config.num_labels if kind == REGRESSION else 1}
        return sizes | cls.stored_decisions(config)

    def size(self, context: HeadContext) -> int:
        """C, the number of scores."""
        size = self.num_outputs if context.labels is None else len(context.labels)
        return ORDINAL[self.learning.loss].size(size) if self.ordered else size

    def build(self, context: HeadContext) -> None:
        """Make the scorer, the native one or our own, and what objective and decisions have beside it."""
        if self.auto_class:
            self.scorer = self.native_model(context, instead="pooling: mean")
        else:
            self.scorer = self.own_scorer(context)
        self.weights = self.learning.weights(context.labels, context.label_counts)
        if self.ordered:
            self.scale = ORDINAL[self.learning.loss](len(context.labels or ()))
        self.build_decisions(context.labels)

    def own_scorer(self, context: HeadContext) -> Scorer:
        """Layers and pooling as they are set, and a linear layer."""
        return Scorer(context, self.size(context), self.hidden_layers, self.pooling, self.dropout)

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
        """Scores ``(B, C)``; of ranks logarithms of probabilities, and ``info["ranks"]`` ``(B, C - 1)``."""
        if self.objective is not None:  # transformers would compute a loss of its own, which not all labels suit
            batch = {**batch, "labels": None}
        output = head_output(self.scorer(features, batch), batch)
        if self.scale is None:
            return output
        ranks = self.scale.ranks(output.logits)
        return HeadOutput(self.scale.log_probabilities(ranks), output.info | {"ranks": ranks})

    def target(self) -> Target:
        """Classes, probabilities of classes, lists of classes, or numbers."""
        if self.problem_type == REGRESSION:
            return NumberTarget(self.num_outputs)
        if self.problem_type == MULTI:
            return MultiLabelTarget()
        return SoftTarget() if self.learning.soft_labels else ClassTarget()

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """What the objective says; by default as transformers has it.

        Args:
            output: Scores ``(B, C)``.
            labels: Classes ``(B,)``; their probabilities, or 0 and 1, ``(B, C)``; or numbers, ``(B,)`` or ``(B, C)``.
        """
        known = stock_loss(output, labels) if self.objective is None else None
        if known is not None:
            return known
        if self.scale is not None:
            return self.scale.loss(output.info["ranks"], labels)
        return self.learning(output.logits, labels, self.weights)

    def loss_size(self, output: HeadOutput, labels: Tensor) -> Tensor | float:
        """The number of rows, or their weights, where these are what the loss is a mean over."""
        if self.scale is not None:
            return self.scale.loss_size(labels)
        return self.learning.size(labels, self.weights)
