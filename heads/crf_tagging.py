"""One tag a word, where the tags of a sentence are chosen together."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall
from backbones.errors import HeadsetError
from backbones.layers import check_layer_choice
from heads.base import Head, HeadContext, HeadOutput
from heads.crf import CRF
from heads.scorers import Scorer
from heads.tagging import packed, tag_metrics, tag_predictions, word_ids, word_starts
from heads.targets import IGNORE, TagTarget, Target

__all__ = ["CRFTagging"]


class CRFTagging(Head):
    """Words to tags by a conditional random field: the best sequence of tags, and not the best tag of each word.

    A linear layer scores the tags of each word at its first subword, and a linear-chain CRF learns which tags follow
    which (Lafferty et al. 2001; Lample et al. 2016). With BIO, IOBES or BILOU tags no sequence comes out that the
    scheme does not allow, such as I-PER after O. Where the data has one, its entities are read as seqeval reads them,
    and learnt in tags that the scheme allows; a row whose entities cannot be written so, because the label set lacks a
    tag, teaches nothing. Other tags may follow each other in any order.

    Args:
        hidden_layers: Which hidden layers are read: ``last``, a number, a list of numbers (concatenated), or ``mix``, a
            learned mean of all.
        dropout: Before the linear layer.

    Raises:
        HeadsetError: An argument is not one of these.

    Example:
        >>> CRFTagging(hidden_layers="mix").spec()["init_args"]["hidden_layers"]
        'mix'
    """

    decodes: ClassVar[bool] = True

    def __init__(self, hidden_layers: int | str | list[int] = "last", dropout: float = 0.1) -> None:
        super().__init__()
        check_layer_choice(hidden_layers)
        self.hidden_layers = hidden_layers
        self.dropout = dropout

    def build(self, context: HeadContext) -> None:
        """Make the linear layer and the CRF."""
        if context.labels is None:
            raise HeadsetError("CRFTagging needs the set of tags: labels={'<head>': ['O', 'B-PER', ...]}.")
        self.scorer = Scorer(context, len(context.labels), self.hidden_layers, dropout=self.dropout)
        self.crf = CRF(context.labels)

    def unused(self, backbone: Backbone) -> set[str]:
        """What the scorer does without."""
        return self.scorer.unused(backbone)

    def target(self) -> Target:
        """A list of tags a row, one a word."""
        return TagTarget()

    def request(self, batch: Mapping[str, Any]) -> BackboneCall | None:
        """The scorer's own call."""
        return self.scorer.request(batch)

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """Emissions ``(B, T, C)``; ``info["word_ids"]`` ``(B, T)`` says which word a token is of."""
        logits: Tensor = self.scorer(features, batch).logits
        info = {"word_ids": word_ids(batch, logits), "words": batch.get("meta", {}).get("words")}
        return HeadOutput(logits, info)

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """The negative log likelihood of the sequences of tags, over the number of words.

        Args:
            output: Emissions ``(B, T, C)``.
            labels: Tags ``(B, T)`` at the first subword of each word, -100 elsewhere.
        """
        emissions, tags, mask, learnt = self._gold(output, labels)
        likelihood = self.crf.log_likelihood(emissions, tags, mask).masked_fill(~learnt, 0.0)
        return -likelihood.sum() / (mask.sum(1) * learnt).sum().clamp(min=1)

    def loss_size(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """The number of words that the loss is a mean over."""
        _, _, mask, learnt = self._gold(output, labels)
        return (mask.sum(1) * learnt).sum()

    def predict(self, output: HeadOutput) -> list[dict[str, Any]]:
        """``{"tags", "scores"}``, one a word; with BIO tags also ``"entities"``, whose ``end`` is exclusive.

        The tags are the most probable sequence; the score of each is its probability over all sequences. A word that
        was cut off, or that the tokenizer leaves nothing of, has the tag None. Entities count in words.
        """
        emissions, places, mask = self._words(output)
        tags = self.crf.decode(emissions, mask)
        scores = self.crf.marginals(emissions, mask).gather(2, tags.unsqueeze(2)).squeeze(2)
        shape = output.logits.shape[:2]
        return tag_predictions(
            tags.new_zeros(shape).scatter(1, places, tags),
            scores.new_zeros(shape).scatter(1, places, scores),
            output.info,
            self.labels or (),
        )

    def metrics(self) -> MetricCollection:
        """Accuracy over words; precision, recall and F1 of entities with BIO tags, else macro F1 over tags."""
        return tag_metrics(self.labels or ())

    def metric_inputs(self, output: HeadOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Tags ``(B, T)``, and the true ones at the first subword of each word."""
        emissions, places, mask = self._words(output)
        tags = torch.zeros_like(labels).scatter(1, places, self.crf.decode(emissions, mask))
        return tags, labels.masked_fill(~word_starts(output.info["word_ids"]), IGNORE)

    def _words(self, output: HeadOutput) -> tuple[Tensor, Tensor, Tensor]:
        """The emissions of words ``(B, W, C)``, which tokens they are, and which are real."""
        places, mask = packed(word_starts(output.info["word_ids"]))
        return _at(output.logits, places), places, mask

    def _gold(self, output: HeadOutput, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The emissions of words that have a tag, these tags in legal form, which are real, and which rows teach."""
        places, mask = packed(labels != IGNORE)
        tags = self.crf.scheme.legalised(labels.gather(1, places).clamp(min=0), mask)
        return _at(output.logits, places), tags, mask, self.crf.scheme.is_legal(tags, mask)


def _at(scores: Tensor, places: Tensor) -> Tensor:
    return scores.gather(1, places.unsqueeze(2).expand(-1, -1, scores.shape[2]))
