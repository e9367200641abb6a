"""Documents in the order of their relevance for a query, each read together with it: a cross-encoder."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall
from backbones.errors import invalid_choice
from heads.base import Head, HeadContext, HeadOutput
from heads.choices import masked, one_by_one
from heads.native import NativeModel
from heads.outputs import logits_of
from heads.relevance import NO_DOCUMENT, RelevanceTarget, query_numbers, ranking_metrics
from heads.scorers import NATIVE, Scorer, check_pooling
from heads.task_models import label_settings

__all__ = ["Reranking"]

OBJECTIVES = ("pointwise", "pairwise", "listwise")


class Reranking(Head):
    """A query and a document to one score, by which the documents of a query are ordered (Nogueira and Cho 2019).

    A row is a query with a list of documents, or with one; each document is read with the query as one input. With
    ``pooling="native"`` the score comes from the very modules that ``AutoModelForSequenceClassification`` has for the
    architecture, so that what is trained is a stock model with one output, which a ``CrossEncoder`` of
    sentence-transformers loads.

    Args:
        objective: ``pointwise`` is the binary cross entropy of each document's relevance from 0 to 1
            (``BinaryCrossEntropyLoss`` of sentence-transformers). ``pairwise`` is RankNet (Burges et al. 2005): that of
            each pair of a row's documents in the right order. ``listwise`` is the cross entropy between the softmax of
            a row's scores and its relevance, scaled to a sum of 1 (ListNet of Cao et al. 2007 with the distribution of
            Bruch et al. 2019). The last two learn from the rows that have documents to tell apart.
        pooling: ``native``; or ``cls``, ``mean``, ``max``, ``last``, ``attention``, or a list of these, concatenated.
        hidden_layers: Which hidden layers are pooled: ``last``, a number, a list of numbers (concatenated), or ``mix``,
            a learned mean of all. The native pooling reads the last one.
        dropout: Before the linear layer, where pooling is not native.

    Raises:
        HeadsetError: An argument is not one of these.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from backbones import Backbone
        >>> from heads import HeadContext
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        >>> head, backbone = Reranking(), Backbone(BertModel(config))
        >>> head.attach(HeadContext(backbone))
        >>> batch = {"input_ids": torch.ones(2, 4, 16, dtype=torch.long)}
        >>> head(backbone.run(head.request(batch)), batch).logits.shape
        torch.Size([2, 4])
    """

    reads = "candidates"

    def __init__(
        self,
        objective: str = "pointwise",
        pooling: str | list[str] = NATIVE,
        hidden_layers: int | str | list[int] = "last",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if objective not in OBJECTIVES:
            raise invalid_choice("objective", objective, OBJECTIVES)
        check_pooling(pooling, hidden_layers)
        self.objective = objective
        self.pooling = pooling
        self.hidden_layers = hidden_layers
        self.dropout = dropout

    @property
    def auto_class(self) -> str | None:
        """The task in transformers, where the scores are native."""
        return "AutoModelForSequenceClassification" if self.pooling == NATIVE else None

    def build(self, context: HeadContext) -> None:
        """Make the scorer: the native one, or our own."""
        self.scorer: NativeModel | Scorer
        if self.auto_class:
            # By it transformers trains one output with binary cross entropy, and pipelines put a sigmoid on it.
            settings = label_settings(None, 1) | {"problem_type": "multi_label_classification"}
            self.scorer = NativeModel(self.auto_class, context.backbone, "pooling: mean", **settings)
        else:
            self.scorer = Scorer(context, 1, self.hidden_layers, self.pooling, self.dropout)

    def unused(self, backbone: Backbone) -> set[str]:
        """What the scorer does without."""
        return self.scorer.unused(backbone)

    def target(self) -> RelevanceTarget:
        """The relevance of each document."""
        return RelevanceTarget(1.0 if self.objective == "pointwise" else None)

    def request(self, batch: Mapping[str, Any]) -> BackboneCall | None:
        """The scorer's own call, with all documents of all rows one after the other."""
        return self.scorer.request(one_by_one(batch))

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """Scores ``(B, C)`` of inputs ``(B, C, T)``, -inf for documents that a row lacks; ``(N, 1)`` of ``(N, T)``.

        ``meta["choices"]`` has the texts of each row's documents, ``meta["queries"]`` its query.
        """
        logits = logits_of(self.scorer(features, one_by_one(batch)))
        meta = batch.get("meta", {})
        ids = next(value for value in batch.values() if isinstance(value, Tensor))
        output = masked(logits.view(len(ids), -1), meta.get("choices"))
        return HeadOutput(output.logits, output.info | {"queries": meta.get("queries")})

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """The objective's loss, a mean over documents, over pairs of them, or over rows.

        Args:
            output: Scores ``(B, C)``.
            labels: Relevance ``(B, C)``, or less where the last documents are lacking; -1 for those that a row lacks.
        """
        logits, labels = output.logits.float(), self._wide(output, labels)
        rows = _with_relevant(labels)
        if self.objective == "pointwise":
            there = labels != NO_DOCUMENT
            return F.binary_cross_entropy_with_logits(logits[there], labels[there])
        if self.objective == "pairwise":
            first, second = _pairs(labels)
            losses = -F.logsigmoid(logits[first] - logits[second])
            return losses.mean() if len(losses) else logits.nan_to_num(neginf=0.0).sum() * 0.0
        if not rows.any():
            return logits.nan_to_num(neginf=0.0).sum() * 0.0
        shares = labels[rows].clamp(min=0)
        return F.cross_entropy(
            logits[rows].masked_fill(labels[rows] == NO_DOCUMENT, -1e9), shares / shares.sum(-1, True)
        )

    def loss_size(self, output: HeadOutput, labels: Tensor) -> float:
        """The documents, the pairs of them, or the rows that the loss is a mean over."""
        labels = self._wide(output, labels)
        if self.objective == "pointwise":
            return float((labels != NO_DOCUMENT).sum())
        return float(len(_pairs(labels)[0][0]) if self.objective == "pairwise" else _with_relevant(labels).sum())

    def predict(self, output: HeadOutput) -> list[dict[str, Any]]:
        """``{"ranking", "scores"}``: the numbers of a row's documents from 0, best first; of each a score from 0 to 1.

        Beside these ``document``, the text of the best one.
        """
        rows = output.logits.float().sigmoid().tolist()
        documents = output.info["choices"] or [[None] * len(row) for row in rows]
        answers = []
        for texts, row in zip(documents, rows, strict=True):
            scores = row[: len(texts)]
            ranking = sorted(range(len(scores)), key=lambda index, scores=scores: -scores[index])  # type: ignore[misc]
            answers.append({"document": texts[ranking[0]], "ranking": ranking, "scores": scores})
        return answers

    def metrics(self) -> MetricCollection:
        """MRR, nDCG@10 and mean average precision, over all documents of a query that the rows have."""
        return ranking_metrics()

    def metric_inputs(self, output: HeadOutput, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positive scores, relevance, and the number of the query, of each document: all ``(N,)``."""
        labels = self._wide(output, labels)
        there = labels != NO_DOCUMENT
        queries = output.info["queries"]
        numbers = torch.arange(len(labels)) if queries is None else query_numbers(queries)
        numbers = numbers.to(labels.device).unsqueeze(-1).expand_as(labels)
        # torchmetrics takes documents with scores below 0 for not found: these are above it, in the same order.
        return F.softplus(output.logits.detach().float()[there]), labels[there], numbers[there]

    def _wide(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Relevance for every score: of the rows that have labels the longest may be shorter than that of the batch."""
        labels = labels.view(len(output.logits), -1)
        return F.pad(labels.float(), (0, output.logits.shape[-1] - labels.shape[-1]), value=NO_DOCUMENT)


def _with_relevant(labels: Tensor) -> Tensor:
    """The rows with a relevant document, bool ``(B,)``."""
    return (labels > 0).any(-1)


def _pairs(labels: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The pairs of a row's documents of which the first is more relevant, as indices of both."""
    there = labels != NO_DOCUMENT
    more = (labels.unsqueeze(-1) > labels.unsqueeze(-2)) & there.unsqueeze(-1) & there.unsqueeze(-2)
    row, first, second = more.nonzero(as_tuple=True)
    return (row, first), (row, second)
