"""What heads that tag words have in common: which token a word is read at, what a user reads, and metrics."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from heads.base import attention_mask
from heads.entities import entities, entity_metrics, is_bio
from heads.targets import IGNORE

__all__ = ["packed", "tag_metrics", "tag_predictions", "word_ids", "word_lasts", "word_starts"]


def word_ids(batch: Mapping[str, Any], logits: Tensor) -> Tensor:
    """The word of each token ``(B, T)``, -1 for none; every real token is a word where the batch does not say."""
    given: Tensor | None = batch.get("meta", {}).get("word_ids")
    if given is not None:
        return given
    mask = attention_mask(batch, logits)
    return (mask.long().cumsum(-1) - 1).masked_fill(~mask, -1)


def word_starts(word_ids: Tensor) -> Tensor:
    """Where a word's first subword is, as bool ``(B, T)`` or ``(T,)``."""
    before = F.pad(word_ids, (1, 0), value=-1)[..., :-1]
    return (word_ids >= 0) & (word_ids != before)


def word_lasts(word_ids: Tensor) -> Tensor:
    """Where a word's last subword is, as bool ``(B, T)``."""
    after = F.pad(word_ids, (0, 1), value=-1)[..., 1:]
    return (word_ids >= 0) & (word_ids != after)


def packed(kept: Tensor) -> tuple[Tensor, Tensor]:
    """The places of the tokens that are kept, those of each row moved to its front.

    Args:
        kept: Which tokens of each row are kept, bool ``(B, T)``.

    Returns:
        Places int64 ``(B, W)`` for the W tokens of the row that keeps most, at least 1; and which are real, bool
        ``(B, W)``.
    """
    counts = kept.sum(-1, keepdim=True)
    width = max(int(counts.max()), 1)
    places = kept.long().argsort(dim=-1, descending=True, stable=True)[:, :width]
    return places, torch.arange(width, device=kept.device) < counts


def tag_predictions(
    tags: Tensor, scores: Tensor, info: Mapping[str, Any], labels: tuple[str, ...]
) -> list[dict[str, Any]]:
    """``{"tags", "scores"}``, one a word; with BIO tags also ``"entities"``, whose ``end`` is exclusive.

    A word that was cut off, or that the tokenizer leaves nothing of, has the tag None. Entities count in words.

    Args:
        tags: The best tag of each token ``(B, T)``.
        scores: Their probabilities ``(B, T)``.
        info: ``word_ids`` ``(B, T)``, and ``words``, the number of words of each row, if it is known.
        labels: The names of the tags.
    """
    ids: Tensor = info["word_ids"]
    words = info.get("words") or (ids.amax(-1) + 1).tolist()
    return [_row(*values, labels) for values in zip(tags, scores, ids, words, strict=True)]


def tag_metrics(labels: tuple[str, ...]) -> MetricCollection:
    """Accuracy over words; precision, recall and F1 of entities with BIO tags, else macro F1 over tags."""
    accuracy = MulticlassAccuracy(len(labels), average="micro", ignore_index=IGNORE)
    if is_bio(labels):
        return MetricCollection({"accuracy": accuracy, **entity_metrics(labels)})
    f1 = MulticlassF1Score(len(labels), average="macro", ignore_index=IGNORE)
    return MetricCollection({"accuracy": accuracy, "f1": f1})


def _row(tags: Tensor, best: Tensor, ids: Tensor, size: int, labels: tuple[str, ...]) -> dict[str, Any]:
    words: list[str | None] = [None] * size
    scores: list[float | None] = [None] * size
    starts = word_starts(ids)
    found = zip(ids[starts].tolist(), tags[starts].tolist(), best[starts].tolist(), strict=True)
    for word, tag, score in found:
        words[word], scores[word] = labels[tag], score
    row: dict[str, Any] = {"tags": words, "scores": scores}
    if is_bio(labels):
        spans = entities([word or "O" for word in words])
        row["entities"] = [{"type": kind, "start": start, "end": end + 1} for kind, start, end in spans]
    return row
