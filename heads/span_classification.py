"""Spans of words and what they are, also within each other."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall
from backbones.errors import HeadsetError
from backbones.layers import check_layer_choice
from heads.base import Head, HeadContext, HeadOutput, init_linear
from heads.scorers import Scorer
from heads.span_metrics import SpanScores
from heads.span_target import NO_SPAN, SpanTarget
from heads.tagging import packed, word_ids, word_lasts, word_starts
from heads.target import IGNORE, Target

__all__ = ["SpanClassification"]

Span = tuple[int, int, int]


class SpanClassification(Head):
    """Every span of up to ``max_width`` words to a label or none: entities, which may lie within each other.

    A span is what its first and its last token and its width say (Zhong and Chen 2021): three vectors, added, through a
    GELU and a linear layer. Of the spans that get a label the best ones stay (Yu et al. 2020): one that overlaps a
    better one goes, unless either is within the other and ``nested`` is on.

    Args:
        max_width: The most words of a span; longer ones are not found.
        nested: Whether spans may lie within each other.
        hidden_size: The width of a span's vector.
        hidden_layers: Which hidden layers are read: ``last``, a number, a list of numbers (concatenated), or ``mix``, a
            learned mean of all.
        dropout: Before each linear layer.

    Raises:
        HeadsetError: An argument is not one of these.

    Example:
        >>> SpanClassification(max_width=4).spec()["init_args"]["nested"]
        True
    """

    decodes: ClassVar[bool] = True

    def __init__(
        self,
        max_width: int = 8,
        nested: bool = True,
        hidden_size: int = 150,
        hidden_layers: int | str | list[int] = "last",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in {"max_width": max_width, "hidden_size": hidden_size}.items():
            if value < 1:
                raise HeadsetError(f"Invalid {name}: {value}. Give a number of at least 1.")
        check_layer_choice(hidden_layers)
        self.max_width = max_width
        self.nested = nested
        self.hidden_size = hidden_size
        self.hidden_layers = hidden_layers
        self.dropout = dropout

    def build(self, context: HeadContext) -> None:
        """Make the layers."""
        if not context.labels:
            raise HeadsetError("SpanClassification needs the labels of spans: labels={'<head>': ['PER', 'LOC', ...]}.")
        self.scorer = Scorer(context, 2 * self.hidden_size, self.hidden_layers, dropout=self.dropout)
        self.widths = nn.Embedding(self.max_width, self.hidden_size)
        nn.init.normal_(self.widths.weight, std=context.spec.initializer_range)
        self.score = nn.Linear(self.hidden_size, 1 + len(context.labels))
        init_linear(self.score, context.spec)

    def unused(self, backbone: Backbone) -> set[str]:
        """What the scorer does without."""
        return self.scorer.unused(backbone)

    def target(self) -> Target:
        """A list of spans a row."""
        return SpanTarget()

    def request(self, batch: Mapping[str, Any]) -> BackboneCall | None:
        """The scorer's own call."""
        return self.scorer.request(batch)

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """Scores ``(B, T, M, 1 + C)`` of spans by their first token and their number of words, none first.

        ``info`` has ``spans``, which of them there are ``(B, T, M)``, and ``ends``, their last words ``(B, T, M)``.
        """
        vectors: Tensor = self.scorer(features, batch).logits
        first, last = vectors.chunk(2, dim=-1)
        ids = word_ids(batch, vectors)
        starts = word_starts(ids)
        places, real = packed(word_lasts(ids))
        numbers = (starts.long().cumsum(-1) - 1).clamp(min=0).unsqueeze(-1) + torch.arange(
            self.max_width, device=ids.device
        )
        spans = starts.unsqueeze(-1) & (numbers < real.sum(-1).view(-1, 1, 1))
        rows = torch.arange(len(ids), device=ids.device).view(-1, 1, 1)
        tokens = places[rows, numbers.clamp(max=places.shape[1] - 1)]
        hidden = F.gelu(first.unsqueeze(2) + last[rows, tokens] + self.widths.weight)
        logits = self.score(F.dropout(hidden, self.dropout, self.training)).masked_fill(~spans.unsqueeze(-1), 0.0)
        info = {"word_ids": ids, "spans": spans, "ends": ids[rows, tokens]}
        return HeadOutput(logits, info)

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Cross entropy of all spans that there are, summed, over the number of words.

        Args:
            output: Scores ``(B, T, M, 1 + C)``.
            labels: Spans ``(B, S, 3)`` as `SpanTarget` has them. Those that are longer than M words, or that were cut
                off, are passed over.
        """
        classes = self._classes(output, labels)
        losses = F.cross_entropy(
            output.logits.float().flatten(0, 2), classes.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        return losses / self.loss_size(output, labels).clamp(min=1)

    def loss_size(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """The number of words."""
        size: Tensor = output.info["spans"][..., 0].sum()
        return size

    def predict(self, output: HeadOutput) -> list[dict[str, Any]]:
        """``{"entities": [{"type", "start", "end", "score"}, ...]}``, in words; ``end`` is exclusive."""
        names = self.labels or ()
        return [
            {
                "entities": [
                    {"type": names[label], "start": start, "end": end, "score": score}
                    for (start, end, label), score in sorted(row.items(), key=lambda item: (item[0][0], -item[0][1]))
                ]
            }
            for row in self._found(output)
        ]

    def metrics(self) -> MetricCollection:
        """Precision, recall and F1 of spans with their labels; those that the head cannot find are missed too."""
        return MetricCollection({"spans": SpanScores()})

    def metric_inputs(self, output: HeadOutput, labels: Tensor) -> tuple[list[set[Span]], list[set[Span]]]:
        """The spans found in each row, and the true ones."""
        true = [{(start, end, label) for start, end, label in row if start != NO_SPAN} for row in labels.tolist()]
        return [set(row) for row in self._found(output)], true

    def _classes(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """The class of each span ``(B, T, M)``: 0 is none, -100 no span."""
        ids, spans, ends = output.info["word_ids"], output.info["spans"], output.info["ends"]
        start, end, label = labels.unsqueeze(2).unbind(-1)  # (B, S, 1)
        tokens = word_starts(ids).unsqueeze(1) & (ids.unsqueeze(1) == start)  # (B, S, T)
        row, span, token = tokens.nonzero(as_tuple=True)
        width = (ends[row, token] == (end - 1)[row, span]) & spans[row, token]  # (N, M), at most one of each
        found, place = width.nonzero(as_tuple=True)
        classes = torch.zeros_like(ends).masked_fill(~spans, IGNORE)
        classes[row[found], token[found], place] = label[row, span, 0][found] + 1
        return classes

    def _found(self, output: HeadOutput) -> list[dict[Span, float]]:
        """The spans of each row with their scores, without those that overlap better ones."""
        scores, classes = output.logits.float().softmax(-1).max(-1)
        ids, ends = output.info["word_ids"], output.info["ends"]
        found: list[dict[Span, float]] = [{} for _ in ids]
        chosen = (output.info["spans"] & (classes > 0)).nonzero(as_tuple=True)
        order = scores[chosen].argsort(descending=True, stable=True)
        row, token, width = (index[order] for index in chosen)
        parts = row, ids[row, token], ends[row, token, width] + 1, classes[row, token, width] - 1
        values = scores[row, token, width].tolist()
        for (index, *span), score in zip(torch.stack(parts, 1).tolist(), values, strict=True):
            start, end, label = span
            if not any(self._clash((start, end), other) for other in found[index]):
                found[index][start, end, label] = score
        return found

    def _clash(self, span: tuple[int, int], other: Span) -> bool:
        (start, end), (first, last, _) = span, other
        within = (first <= start and end <= last) or (start <= first and last <= end)
        return start < last and first < end and not (self.nested and within)
