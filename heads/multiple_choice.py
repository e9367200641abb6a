"""One of several choices: how a story goes on, or which answer to a question is right."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall
from heads.base import Head, HeadContext, HeadOutput
from heads.choice_target import ChoiceTarget
from heads.choices import masked, one_by_one
from heads.native import NativeModel
from heads.outputs import head_output, stock_loss
from heads.scorers import NATIVE, Scorer, check_pooling

__all__ = ["MultipleChoice"]


class MultipleChoice(Head):
    """A text and several choices to the one that fits.

    The text is read with each choice. With ``pooling="native"`` the scores come from the very modules that
    ``AutoModelForMultipleChoice`` has for the architecture; with any other, each text with its choice is pooled, and a
    linear layer scores it. Rows may have different numbers of choices: those that a row lacks have the probability 0.

    Args:
        pooling: ``native``; or ``cls``, ``mean``, ``max``, ``last``, ``attention``, or a list of these, concatenated.
        hidden_layers: Which hidden layers are pooled: ``last``, a number, a list of numbers (concatenated), or ``mix``,
            a learned mean of all. The native pooling reads the last one.
        dropout: Before the linear layer, where pooling is not native.

    Raises:
        HeadsetError: An argument is not one of these.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from backbones import Backbone
        >>> from heads import HeadContext
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        >>> head, backbone = MultipleChoice(), Backbone(BertModel(config))
        >>> head.attach(HeadContext(backbone))
        >>> batch = {"input_ids": torch.ones(2, 4, 16, dtype=torch.long)}
        >>> head(backbone.run(head.request(batch)), batch).logits.shape
        torch.Size([2, 4])
    """

    reads = "choices"

    def __init__(
        self,
        pooling: str | list[str] = NATIVE,
        hidden_layers: int | str | list[int] = "last",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_pooling(pooling, hidden_layers)
        self.pooling = pooling
        self.hidden_layers = hidden_layers
        self.dropout = dropout

    @property
    def auto_class(self) -> str | None:
        """The task in transformers, where the scores are native."""
        return "AutoModelForMultipleChoice" if self.pooling == NATIVE else None

    def build(self, context: HeadContext) -> None:
        """Make the scorer: the native one, or our own."""
        self.scorer: NativeModel | Scorer
        if self.auto_class:
            self.scorer = NativeModel(self.auto_class, context.backbone, instead="pooling: mean")
        else:
            self.scorer = Scorer(context, 1, self.hidden_layers, self.pooling, self.dropout)

    def unused(self, backbone: Backbone) -> set[str]:
        """What the scorer does without."""
        return self.scorer.unused(backbone)

    def target(self) -> ChoiceTarget:
        """The number, the letter or the text of the right choice."""
        return ChoiceTarget()

    def request(self, batch: Mapping[str, Any]) -> BackboneCall | None:
        """The scorer's own call, with all choices of all rows one after the other."""
        return self.scorer.request(batch if self.auto_class else one_by_one(batch))

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """Scores ``(B, C)`` of inputs ``(B, C, T)``, -inf for choices that a row lacks.

        ``meta["choices"]`` has the texts of each row's choices; where it is not given, each row has C.
        """
        choices = batch.get("meta", {}).get("choices")
        if not self.auto_class:
            scores: Tensor = self.scorer(features, one_by_one(batch))["logits"]
            return masked(scores.view(len(batch["input_ids"]), -1), choices)
        output = head_output(self.scorer(features, batch), batch)
        answer = masked(output.logits, choices)
        known = output.info if answer.logits is output.logits else {}  # else the loss knows nothing of the lacking ones
        return HeadOutput(answer.logits, known | answer.info)

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Cross entropy over the choices, as transformers has it.

        Args:
            output: Scores ``(B, C)``.
            labels: The number of the right choice ``(B,)``.
        """
        known = stock_loss(output, labels)
        return F.cross_entropy(output.logits, labels) if known is None else known

    def predict(self, output: HeadOutput) -> list[dict[str, Any]]:
        """``{"choice", "text", "score", "scores"}``: the best choice, as its number from 0, and probabilities."""
        rows = output.logits.float().softmax(-1).tolist()
        best = output.logits.argmax(-1).tolist()
        choices = output.info["choices"] or [[None] * len(row) for row in rows]
        return [
            {"choice": index, "text": texts[index], "score": row[index], "scores": row[: len(texts)]}
            for index, row, texts in zip(best, rows, choices, strict=True)
        ]

    def metrics(self) -> MetricCollection:
        """Accuracy."""
        # A micro average counts what is right: it is no matter that each row has its own number of classes.
        return MetricCollection({"accuracy": MulticlassAccuracy(2, average="micro", validate_args=False)})

    def metric_inputs(self, output: HeadOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The best choice of each row and the right one, both ``(B,)``."""
        return output.logits.argmax(-1), labels
