"""Sentence and document vectors, trained on pairs of texts."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric, MetricCollection
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall
from backbones.errors import HeadsetError, invalid_choice
from backbones.layers import LayerChoice, check_layer_choice
from heads.base import Head, HeadContext, HeadOutput, attention_mask, init_linear
from heads.gathering import gathered
from heads.poolers import Pooler, pooling_modes
from heads.targets import PairTarget, Target
from heads.windows import WindowPooler, check_windows

__all__ = ["Pooling"]

OBJECTIVES = ("contrastive", "similarity")


class Pooling(Head):
    """One vector a text: token vectors pooled, projected if asked, scaled to unit length if asked.

    With the objective ``contrastive`` it learns from pairs that belong together, each against the second texts of all
    other pairs in the batch, over all processes together (Henderson et al. 2017; ``MultipleNegativesRankingLoss`` of
    sentence-transformers with a scale of 1 / temperature and ``gather_across_devices``). The third text of a row, where
    there is one, is another that does not belong to the first: a hard negative, for all rows. With ``similarity`` it
    learns scores: the mean squared error between the cosine of a pair and its score (Reimers and Gurevych 2019;
    ``CosineSimilarityLoss``).

    Args:
        pooling: ``cls``, ``mean``, ``max``, ``last``, ``attention``, or a list of them, concatenated.
        hidden_layers: ``last``, ``mix``, a layer's number, or a list of numbers.
        projection: The length of a vector after a linear layer; None for no such layer.
        normalize: Give vectors of length 1.
        objective: ``contrastive`` or ``similarity``.
        temperature: What cosines are divided by before the softmax of the contrastive objective.
        windows: Read a text that is longer than ``max_length`` in overlapping windows, and pool over their vectors:
            ``mean``, ``max`` or ``attention``. By default it is cut.

    Raises:
        HeadsetError: An argument is none of the above.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from backbones import Backbone
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        >>> backbone = Backbone(BertModel(config))
        >>> head = Pooling(projection=8)
        >>> head.attach(HeadContext(backbone))
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7]])}
        >>> head(backbone.run(head.request(batch)), batch).logits.shape
        torch.Size([1, 8])
    """

    def __init__(
        self,
        pooling: str | list[str] = "mean",
        hidden_layers: int | str | list[int] = "last",
        projection: int | None = None,
        normalize: bool = False,
        objective: str = "contrastive",
        temperature: float = 0.05,
        windows: str | None = None,
    ) -> None:
        super().__init__()
        pooling_modes(pooling)
        check_layer_choice(hidden_layers)
        check_windows(windows)
        if objective not in OBJECTIVES:
            raise invalid_choice("objective", objective, OBJECTIVES)
        if temperature <= 0:
            raise HeadsetError(f"Expected a temperature above 0, got {temperature}. The usual one is 0.05.")
        if projection is not None and projection < 1:
            raise HeadsetError(f"Expected a projection to at least 1 dimension, got {projection}; use null for none.")
        self.pooling = pooling
        self.hidden_layers = hidden_layers
        self.projection = projection
        self.normalize = normalize
        self.objective = objective
        self.temperature = temperature
        self.windows = windows
        self.reads = "pair" if windows is None else "documents"

    def build(self, context: HeadContext) -> None:
        """Make the mix of layers, the attention query and the projection, as far as they are asked for."""
        spec = context.spec
        self.layers = LayerChoice(self.hidden_layers, spec.hidden_size, spec.num_layers)
        self.pooler = Pooler(self.pooling, self.layers.width, spec.initializer_range)
        self.over_windows: WindowPooler | None = None
        if self.windows is not None:
            self.over_windows = WindowPooler(self.windows, self.pooler.width, spec.initializer_range)
        self.dense = None if self.projection is None else nn.Linear(self.pooler.width, self.projection)
        init_linear(self, spec)

    def unused(self, backbone: Backbone) -> set[str]:
        """The backbone's own pooler: hidden states do not go through it."""
        return backbone.pooler_parameters

    def target(self) -> Target:
        """A score for each pair, or no column at all."""
        return PairTarget(scored=self.objective == "similarity")

    def request(self, batch: Mapping[str, Any]) -> BackboneCall | None:
        """The model inputs, with hidden states if ``hidden_layers`` needs them."""
        call = super().request(batch)
        if call is None or not self.layers.needs_hidden_states:
            return call
        return replace(call, kwargs={**call.kwargs, "output_hidden_states": True})

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """The vectors of a batch.

        Args:
            features: The backbone's output.
            batch: Of single texts, or of pairs (``batch["meta"]["texts"] == 2``): the first texts of all rows, then the
                second ones, then the third ones where there are such.

        Returns:
            ``logits``: vectors ``(B, D)``, for pairs ``(2B, D)``; ``info["texts"]``: the number of texts a row.
        """
        hidden = self.layers(features)
        vectors: Tensor = self.pooler(hidden, attention_mask(batch, hidden))
        if self.over_windows is not None:
            vectors = self.over_windows(vectors, batch.get("meta", {}))
        if self.dense is not None:
            vectors = self.dense(vectors)
        if self.normalize:
            vectors = functional.normalize(vectors, dim=-1)
        meta = batch.get("meta", {})
        return HeadOutput(vectors, {"texts": meta.get("texts", 1), "filler": "filler" in meta})

    def loss(self, output: HeadOutput, labels: Tensor | None) -> Tensor:
        """The loss of a batch of pairs.

        Args:
            output: The vectors of B pairs.
            labels: The scores ``(B,)`` of the objective ``similarity``; not looked at by ``contrastive``.

        Raises:
            HeadsetError: The batch is not of pairs, or lacks the scores.
        """
        cosines, target = self._compare(output, labels)
        if self.objective == "contrastive":
            return functional.cross_entropy(cosines / self.temperature, target)
        return functional.mse_loss(cosines, target)

    def predict(self, output: HeadOutput) -> list[dict[str, Any]]:
        """The vector of each row; for pairs both vectors and their cosine, for three texts that of the first two."""
        if output.info["texts"] == 1:
            return [{"vector": vector} for vector in output.logits.tolist()]
        texts = _texts(output)
        cosines = torch.cosine_similarity(texts[0], texts[1]).tolist()
        rows = zip(*(vectors.tolist() for vectors in texts), strict=True)
        return [{"similarity": cosine, "vectors": list(row)} for cosine, row in zip(cosines, rows, strict=True)]

    def metrics(self) -> MetricCollection:
        """How well second texts are found within their batch, or how well cosines follow the scores."""
        if self.objective == "contrastive":
            return MetricCollection({"accuracy": InBatchAccuracy(), "mrr": InBatchMRR()})
        return MetricCollection({"spearman": SpearmanCorrCoef(), "pearson": PearsonCorrCoef()})

    def metric_inputs(self, output: HeadOutput, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cosines and what they should be.

        Returns:
            For ``contrastive`` the cosines of all first with all other texts ``(B, B)`` or ``(B, 2B)``, and the index
            of each row's own ``(B,)``; for ``similarity`` the cosine of each pair ``(B,)`` and its score ``(B,)``.

        Raises:
            HeadsetError: The batch is not of pairs, or lacks the scores.
        """
        cosines, target = self._compare(output, labels)
        return cosines.detach(), target  # Spearman's metric keeps every prediction, and with it its graph

    def select(self, output: HeadOutput, rows: Tensor) -> HeadOutput:
        """The answer for some rows, with all texts of each."""
        size = len(output.logits) // output.info["texts"]
        chosen = torch.cat([rows + text * size for text in range(output.info["texts"])])
        return HeadOutput(output.logits[chosen], output.info)

    def loss_size(self, output: HeadOutput, labels: Any) -> float:
        """The rows."""
        return float(len(output.logits) // output.info["texts"])

    def _compare(self, output: HeadOutput, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `metric_inputs` gives, with the texts of all processes."""
        first, *others = _texts(output)
        if self.objective == "contrastive":
            if output.info.get("filler"):  # a row that is no one's candidate, and whose loss does not count
                others = [vectors[:0] for vectors in others]
            candidates, starts = zip(*map(gathered, others), strict=True)
            cosines = functional.normalize(first, dim=-1) @ functional.normalize(torch.cat(candidates), dim=-1).T
            own = torch.arange(len(first), device=first.device) + starts[0]
            return cosines, own.clamp(max=cosines.shape[1] - 1)
        if labels is None:
            raise HeadsetError("The objective 'similarity' learns from a score for each pair; this batch has none.")
        return torch.cosine_similarity(first, others[0]), labels.float().view(-1)


def _texts(output: HeadOutput) -> tuple[Tensor, ...]:
    """The vectors of first, of second and of further texts, each ``(B, D)``, in float32."""
    if output.info["texts"] < 2:
        raise HeadsetError(
            "Pooling learns from pairs of texts, and this batch has one text a row. Name two columns: text: [a, b]."
        )
    return output.logits.float().chunk(output.info["texts"])


class InBatchScore(Metric):
    """Ranks each row's own second text among all of its batch, by cosine; equal ones count against it.

    The more rows a batch has, the harder it is: compare runs of one batch size.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    found: Tensor
    reciprocal: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("found", "reciprocal", "rows"):
            self.add_state(state, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Rank a batch: cosines ``(B, C)`` with all candidates, and the index of each row's own ``(B,)``."""
        rank = (preds >= preds.gather(1, target.unsqueeze(1))).sum(dim=1)
        self.found += (rank == 1).sum()
        self.reciprocal += (1 / rank).sum()
        self.rows += len(rank)

    @abstractmethod
    def compute(self) -> Tensor:
        """The score over all batches, a scalar."""


class InBatchAccuracy(InBatchScore):
    """The share of rows whose own second text is the nearest in the batch: recall at 1."""

    def compute(self) -> Tensor:
        """Rows found at the first rank over all rows, a scalar."""
        return self.found / self.rows


class InBatchMRR(InBatchScore):
    """The mean reciprocal rank of each row's own second text in the batch."""

    def compute(self) -> Tensor:
        """The mean of 1 / rank, a scalar."""
        return self.reciprocal / self.rows
