"""One tag a word: entities, parts of speech, or any other."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor
from torchmetrics import MetricCollection
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall
from backbones.errors import HeadsetError, invalid_choice
from backbones.layers import check_layer_choice
from heads.base import Head, HeadContext, HeadOutput
from heads.full_precision import FullPrecision
from heads.native import NativeModel
from heads.objective import TAGS, Objective, plain_objective
from heads.outputs import head_output, stock_loss
from heads.scorers import Scorer
from heads.tagging import tag_metrics, tag_predictions, word_ids, word_starts
from heads.targets import IGNORE, TagTarget, Target
from heads.task_models import label_settings

__all__ = ["TokenClassification"]


class TokenClassification(Head):
    """Words to tags: with BIO prefixes these are entities, without they are tags of their own.

    A word's tag is read at its first subword. The scores come from the very modules that
    ``AutoModelForTokenClassification`` has for the architecture, unless ``native`` is off.

    Args:
        subwords: Which subwords of a word learn its tag: the ``first`` one, or ``all`` (a B- tag goes on as I-).
        native: Score with the modules of transformers; else with a linear layer of ours.
        hidden_layers: Which hidden layers are read, where the scores are not native: ``last``, a number, a list of
            numbers (concatenated), or ``mix``, a learned mean of all.
        dropout: Before the linear layer, where the scores are not native.
        objective: The loss, by name or as ``{loss: ..., setting: ...}``: ``cross_entropy``, by default as transformers
            has it, or ``focal``. Settings: ``label_smoothing``, ``class_weights``, ``gamma``.

    Raises:
        HeadsetError: An argument is not one of these.

    Example:
        >>> TokenClassification(subwords="all").spec()["init_args"]["subwords"]
        'all'
    """

    def __init__(
        self,
        subwords: Literal["first", "all"] = "first",
        native: bool = True,
        hidden_layers: int | str | list[int] = "last",
        dropout: float = 0.1,
        objective: str | dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if subwords not in ("first", "all"):
            raise invalid_choice("choice of subwords", subwords, ["first", "all"])
        check_layer_choice(hidden_layers)
        if native and hidden_layers != "last":
            raise HeadsetError(f"hidden_layers: {hidden_layers} needs native: false, since native heads read the last.")
        self.subwords = subwords
        self.native = native
        self.hidden_layers = hidden_layers
        self.dropout = dropout
        self.objective = plain_objective(objective)
        self.learning = Objective.read(self.objective, TAGS)
        self.weights: FullPrecision | None = None

    @property
    def needs_label_counts(self) -> bool:
        """Whether weights come from the train split."""
        return self.learning.balanced

    @property
    def auto_class(self) -> str | None:
        """The task in transformers, where the scores are native."""
        return "AutoModelForTokenClassification" if self.native else None

    def build(self, context: HeadContext) -> None:
        """Make the scorer: the native one, or our own."""
        if context.labels is None:
            raise HeadsetError("TokenClassification needs the set of tags: labels={'<head>': ['O', 'B-PER', ...]}.")
        if self.auto_class:
            settings = label_settings(context.labels, len(context.labels))
            self.scorer: NativeModel | Scorer = NativeModel(
                self.auto_class, context.backbone, instead="native: false", **settings
            )
        else:
            self.scorer = Scorer(context, len(context.labels), self.hidden_layers, dropout=self.dropout)
        self.weights = self.learning.weights(context.labels, context.label_counts)

    def unused(self, backbone: Backbone) -> set[str]:
        """What the scorer does without."""
        return self.scorer.unused(backbone)

    def target(self) -> Target:
        """A list of tags a row, one a word."""
        return TagTarget(self.subwords)

    def request(self, batch: Mapping[str, Any]) -> BackboneCall | None:
        """The scorer's own call."""
        return self.scorer.request(batch)

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """Scores ``(B, T, C)``; ``info["word_ids"]`` ``(B, T)`` says which word a token is of."""
        if self.objective is not None:  # transformers would compute a loss of its own
            batch = {**batch, "labels": None}
        output = head_output(self.scorer(features, batch), batch)
        words = {"word_ids": word_ids(batch, output.logits), "words": batch.get("meta", {}).get("words")}
        return HeadOutput(output.logits, output.info | words)

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """What the objective says, over the tokens that have a tag; by default as transformers has it.

        Args:
            output: Scores ``(B, T, C)``.
            labels: Tags ``(B, T)``, -100 where there is none.
        """
        known = stock_loss(output, labels)
        if known is not None:
            return known
        return self.learning(output.logits.flatten(0, 1), labels.flatten(), self.weights)

    def loss_size(self, output: HeadOutput, labels: Tensor) -> Tensor | float:
        """The number of tokens that have a tag, or the weights of these tags."""
        return self.learning.size(labels.flatten(), self.weights)

    def predict(self, output: HeadOutput) -> list[dict[str, Any]]:
        """``{"tags", "scores"}``, one a word; with BIO tags also ``"entities"``, whose ``end`` is exclusive.

        A word that was cut off, or that the tokenizer leaves nothing of, has the tag None. Entities count in words.
        """
        best, tags = output.logits.float().softmax(-1).max(-1)
        return tag_predictions(tags, best, output.info, self.labels or ())

    def metrics(self) -> MetricCollection:
        """Accuracy over words; precision, recall and F1 of entities with BIO tags, else macro F1 over tags."""
        return tag_metrics(self.labels or ())

    def metric_inputs(self, output: HeadOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Tags ``(B, T)``, and the true ones at the first subword of each word."""
        return output.logits.argmax(-1), labels.masked_fill(~word_starts(output.info["word_ids"]), IGNORE)
