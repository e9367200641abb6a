"""The syntactic tree of a sentence: each word's head, and its relation to it."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall
from backbones.errors import HeadsetError, invalid_choice
from backbones.layers import check_layer_choice
from heads.attachment_scores import AttachmentScores
from heads.base import Head, HeadContext, HeadOutput
from heads.biaffine import Biaffine
from heads.dependency_target import DependencyTarget
from heads.scorers import Scorer
from heads.tagging import word_ids, word_starts
from heads.target import IGNORE, Target
from heads.trees import maximum_tree

__all__ = ["DependencyParsing"]

SLOPE = 0.1  # of the leaky ReLU, as in the paper


class DependencyParsing(Head):
    """Words to the head and the relation of each: a deep biaffine parser (Dozat and Manning 2017).

    A word is read at its first subword. Of each, layers make a vector as a dependent and one as a head, for arcs and
    for relations; a biaffine product scores every pair, and the relations of each word to its head.

    Args:
        decoding: ``mst`` gives the tree with the highest sum of scores, with one word at the root; ``greedy`` each
            word's own best head, which may be no tree.
        arc_size: The width of the vectors for arcs.
        relation_size: The width of the vectors for relations.
        hidden_layers: Which hidden layers are read: ``last``, a number, a list of numbers (concatenated), or ``mix``, a
            learned mean of all.
        dropout: Before and after the layers that make the vectors.

    Raises:
        HeadsetError: An argument is not one of these.

    Example:
        >>> DependencyParsing(arc_size=100).spec()["init_args"]["decoding"]
        'mst'
    """

    decodes: ClassVar[bool] = True

    def __init__(
        self,
        decoding: Literal["mst", "greedy"] = "mst",
        arc_size: int = 500,
        relation_size: int = 100,
        hidden_layers: int | str | list[int] = "last",
        dropout: float = 0.33,
    ) -> None:
        super().__init__()
        if decoding not in ("mst", "greedy"):
            raise invalid_choice("decoding", decoding, ["mst", "greedy"])
        for name, value in {"arc_size": arc_size, "relation_size": relation_size}.items():
            if value < 1:
                raise HeadsetError(f"Invalid {name}: {value}. Give a number of at least 1.")
        check_layer_choice(hidden_layers)
        self.decoding = decoding
        self.arc_size = arc_size
        self.relation_size = relation_size
        self.hidden_layers = hidden_layers
        self.dropout = dropout

    def build(self, context: HeadContext) -> None:
        """Make the layers."""
        if not context.labels:
            raise HeadsetError("DependencyParsing needs the relations: labels={'<head>': ['nsubj', 'obj', ...]}.")
        self.scorer = Scorer(context, 2 * sum(self._sizes), self.hidden_layers, dropout=self.dropout)
        self.root = nn.Parameter(torch.empty(sum(self._sizes)))
        nn.init.normal_(self.root, std=context.spec.initializer_range)
        self.arcs = Biaffine(self.arc_size, 1, head_bias=False)
        self.relations = Biaffine(self.relation_size, len(context.labels), head_bias=True)

    @property
    def _sizes(self) -> list[int]:
        return [self.arc_size, self.relation_size]

    def unused(self, backbone: Backbone) -> set[str]:
        """What the scorer does without."""
        return self.scorer.unused(backbone)

    def target(self) -> Target:
        """A head and a relation a word."""
        return DependencyTarget()

    def request(self, batch: Mapping[str, Any]) -> BackboneCall | None:
        """The scorer's own call."""
        return self.scorer.request(batch)

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """Scores ``(B, T, 1 + T)`` of each token's heads, the root first.

        ``info`` has the vectors for relations of dependents ``(B, T, D)`` and of heads ``(B, 1 + T, D)``.
        """
        vectors = F.leaky_relu(self.scorer(features, batch).logits, SLOPE)
        dependents, heads = F.dropout(vectors, self.dropout, self.training).chunk(2, dim=-1)
        root = self.root.to(heads.dtype).expand(len(heads), 1, -1)
        heads = torch.cat([root, heads], dim=1)
        (arc_dependents, dependents), (arc_heads, heads) = (
            part.split(self._sizes, dim=-1) for part in (dependents, heads)
        )
        ids = word_ids(batch, vectors)
        words = {"word_ids": ids, "words": batch.get("meta", {}).get("words")}
        logits = self.arcs.all_pairs(arc_dependents, arc_heads)
        return HeadOutput(logits, {"dependents": dependents, "heads": heads, **words})

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Cross entropy of heads and of the relations to the true heads, added, over the number of words.

        Args:
            output: Scores ``(B, T, 1 + T)``.
            labels: Heads by the numbers of words and relations ``(B, T, 2)``, -100 where there is none. A word whose
                head was cut off is passed over.
        """
        columns = self._columns(output, labels[..., 0])
        known = columns != IGNORE
        arcs = F.cross_entropy(self._scores(output).flatten(0, 1), columns.flatten(), reduction="sum")
        relations = self._relations(output, columns.clamp(min=0))
        gold = labels[..., 1].masked_fill(~known, IGNORE)
        total = arcs + F.cross_entropy(relations.flatten(0, 1), gold.flatten(), reduction="sum")
        return total / known.sum().clamp(min=1)

    def loss_size(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """The number of words that the loss is a mean over."""
        return (self._columns(output, labels[..., 0]) != IGNORE).sum()

    def predict(self, output: HeadOutput) -> list[dict[str, Any]]:
        """``{"head", "deprel", "scores"}``, one a word: the number of its head, from 1, or 0, the root.

        The score is the probability of the head. A word that was cut off, or that the tokenizer leaves nothing of, has
        None.
        """
        columns, heads, relations = self._found(output)
        scores = self._scores(output).softmax(-1).gather(-1, columns.unsqueeze(-1)).squeeze(-1)
        ids, names = output.info["word_ids"], self.labels or ()
        sizes = output.info.get("words") or (ids.amax(-1) + 1).tolist()
        starts, rows = word_starts(ids), []
        for row, size in enumerate(sizes):
            found: dict[str, list[Any]] = {key: [None] * size for key in ("head", "deprel", "scores")}
            parts = [part[row, starts[row]].tolist() for part in (ids, heads, relations, scores)]
            for word, head, relation, score in zip(*parts, strict=True):
                found["head"][word], found["deprel"][word], found["scores"][word] = head, names[relation], score
            rows.append(found)
        return rows

    def metrics(self) -> MetricCollection:
        """The shares of words with the right head, and with the right head and relation."""
        return MetricCollection({"attachment": AttachmentScores()})

    def metric_inputs(self, output: HeadOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Heads and relations ``(B, T, 2)``, and the true ones."""
        _, heads, relations = self._found(output)
        return torch.stack([heads, relations], dim=-1), labels

    def _scores(self, output: HeadOutput) -> Tensor:
        """Scores of heads in float32 ``(B, T, 1 + T)``, very low for what is the word itself or no word."""
        words = word_starts(output.info["word_ids"])
        itself = torch.eye(words.shape[1], dtype=torch.bool, device=words.device)
        closed = F.pad(~words.unsqueeze(1) | itself, (1, 0), value=False)
        return output.logits.float().masked_fill(closed, torch.finfo(torch.float32).min / 2)

    def _columns(self, output: HeadOutput, heads: Tensor) -> Tensor:
        """Where heads, numbers of words ``(B, T)``, stand in the scores; -100 for none."""
        ids = output.info["word_ids"]
        there = word_starts(ids).unsqueeze(1) & (ids.unsqueeze(1) == heads.unsqueeze(2) - 1)
        columns = torch.where(there.any(-1), there.int().argmax(-1) + 1, IGNORE)
        return columns.masked_fill(heads == 0, 0)

    def _relations(self, output: HeadOutput, columns: Tensor) -> Tensor:
        """Scores of the relations ``(B, T, C)`` to the heads in some columns ``(B, T)``."""
        heads = output.info["heads"]
        chosen = heads.gather(1, columns.unsqueeze(-1).expand(-1, -1, heads.shape[-1]))
        scores: Tensor = self.relations(output.info["dependents"], chosen).float()
        return scores

    def _found(self, output: HeadOutput) -> tuple[Tensor, Tensor, Tensor]:
        """The columns of the heads found, the numbers of these words, and the relations, each ``(B, T)``."""
        scores, ids = self._scores(output), output.info["word_ids"]
        columns = scores.argmax(-1)
        if self.decoding == "mst":
            for row, words in enumerate(word_starts(ids)):
                places = F.pad(words, (1, 0), value=True).nonzero().squeeze(1)
                if len(places) > 1:
                    heads = maximum_tree(scores[row, words][:, places].tolist())
                    columns[row, words] = places[heads]
        relations = self._relations(output, columns).argmax(-1)
        return columns, F.pad(ids + 1, (1, 0)).gather(1, columns), relations
