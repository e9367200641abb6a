"""How relevant documents are for queries: the labels of a reranker, and its metrics over the documents of a query."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.retrieval import RetrievalMAP, RetrievalMRR, RetrievalNormalizedDCG

from backbones.errors import HeadsetError
from heads.choice_target import ChoiceTarget
from heads.target import Target, number_in

__all__ = ["NO_DOCUMENT", "RelevanceTarget", "query_numbers", "ranking_metrics"]

NO_DOCUMENT = -1.0  # the relevance of what fills up a row with fewer documents


@dataclass(frozen=True)
class RelevanceTarget(Target):
    """The relevance of each document of a row as float32 ``(B, C)``, -1 for the documents that a row lacks.

    A value is a list of numbers of at least 0, one for each document; one number for a row with one document; or, as
    for multiple choice, the number from 0, the letter or the text of the one that is relevant.

    Args:
        most: The highest relevance there may be; None for no limit.
    """

    most: float | None = None

    def find_labels(self, values: Iterable[Any]) -> None:
        """Relevance has no label set."""

    def encode(
        self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None
    ) -> list[float]:
        """The relevance of each of the row's documents; ``example`` has them as ``choices``.

        Raises:
            HeadsetError: There is another number of them, or one is no number in the range.
        """
        documents = (example or {}).get("choices", ())
        if isinstance(value, list | tuple):
            if len(value) != len(documents):
                raise HeadsetError(f"{len(value)} numbers for the relevance of {len(documents)} documents.")
            return [self._number(one) for one in value]
        if len(documents) == 1:
            return [self._number(value)]
        right = ChoiceTarget().encode(value, labels, example)
        return [float(index == right) for index in range(len(documents))]

    def _number(self, value: Any) -> float:
        number = number_in(float(value) if isinstance(value, bool) else value)
        if number < 0 or (self.most is not None and number > self.most):
            limits = "of at least 0" if self.most is None else f"from 0 to {self.most:g}"
            raise HeadsetError(f"expected the relevance of a document, a number {limits}, got {value!r}.")
        return number

    def collate(self, encoded: list[Any], length: int, padding_side: str = "right") -> Tensor:
        """The rows, filled up to as many documents as the longest has."""
        most = max(map(len, encoded))
        return torch.tensor([row + [NO_DOCUMENT] * (most - len(row)) for row in encoded])


def query_numbers(queries: Iterable[str]) -> Tensor:
    """A number for each query, int64 ``(B,)``, the same in all batches and processes."""
    digests = (hashlib.blake2b(query.encode(), digest_size=7).digest() for query in queries)
    return torch.tensor([int.from_bytes(digest) for digest in digests])


class _MRR(RetrievalMRR):
    """The mean reciprocal rank of the first document with a relevance above 0."""

    def update(self, preds: Tensor, target: Tensor, indexes: Tensor) -> None:
        """Take scores, relevance, and the number of the query, each ``(N,)``."""
        super().update(preds, target > 0, indexes)


class _MAP(RetrievalMAP):
    """The mean over queries of average precision, where a relevance above 0 is relevant."""

    def update(self, preds: Tensor, target: Tensor, indexes: Tensor) -> None:
        """Take scores, relevance, and the number of the query, each ``(N,)``."""
        super().update(preds, target > 0, indexes)


def ranking_metrics() -> MetricCollection:
    """MRR, nDCG of the first 10 documents, and mean average precision, over the queries with a relevant document."""
    return MetricCollection(
        {
            "mrr": _MRR(empty_target_action="skip"),
            "ndcg@10": RetrievalNormalizedDCG(empty_target_action="skip", top_k=10),
            "map": _MAP(empty_target_action="skip"),
        },
        compute_groups=False,
    )
