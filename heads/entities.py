"""Entities in tag sequences, and how well they are found: counted as seqeval and conlleval count them."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from heads.target import IGNORE

__all__ = ["EntityF1", "EntityPrecision", "EntityRecall", "entities", "entity_metrics", "is_bio"]

PREFIXES = "BIESLU"
BILOU = {"L": "E", "U": "S"}  # last and unit: what IOBES calls end and single


def is_bio(labels: Iterable[str]) -> bool:
    """Whether the tags mark entities: every one is ``O``, or a chunk prefix with or without a type.

    >>> is_bio(["O", "B-PER", "I-PER"]), is_bio(["NOUN", "VERB"])
    (True, False)
    """
    return all(label in ("O", *PREFIXES) or (label[:1] in PREFIXES and label[1:2] == "-") for label in labels)


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of one sentence, read leniently: an I- that continues nothing begins an entity.

    Reads IOB1, IOB2, IOBES and BILOU alike, as ``seqeval.metrics.sequence_labeling.get_entities`` does (which lacks
    BILOU) and the CoNLL-2000 script conlleval before it.

    Args:
        tags: The tags of one sentence, such that ``is_bio(tags)``.

    Returns:
        Entities as ``(type, first index, last index)``, in order. The type of a bare prefix is ``_``.

    >>> entities(["B-PER", "I-PER", "O", "I-LOC"])
    [('PER', 0, 1), ('LOC', 3, 3)]
    """
    found = []
    previous, kind, start = "O", "", 0
    for index, tag in enumerate([*tags, "O"]):
        prefix, new_kind = BILOU.get(tag[0], tag[0]), tag[2:] or "_"
        inside = previous != "O"
        begins = prefix != "O" and (not inside or prefix in "BS" or previous in "ES" or new_kind != kind)
        if inside and (begins or prefix == "O"):
            found.append((kind, start, index - 1))
        if begins:
            start = index
        previous, kind = prefix, new_kind
    return found


class EntityScore(Metric):
    """Counts entities over all batches and processes; what is made of the counts is up to the subclass.

    Args:
        labels: The tags, in the order of the head's outputs.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    predicted: Tensor
    true: Tensor

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = tuple(labels)
        for state in ("correct", "predicted", "true"):
            self.add_state(state, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the entities of a batch.

        Args:
            preds: Scores ``(B, T, C)`` or tag numbers ``(B, T)``.
            target: Tag numbers ``(B, T)``; positions of -100 are left out before entities are read.
        """
        ids = preds.argmax(dim=-1) if preds.dim() > target.dim() else preds
        for row, answer, kept in zip(ids.tolist(), target.tolist(), (target != IGNORE).tolist(), strict=True):
            predicted = self._read(row, kept)
            true = self._read(answer, kept)
            self.correct += len(predicted & true)
            self.predicted += len(predicted)
            self.true += len(true)

    def _read(self, ids: list[int], kept: list[bool]) -> set[tuple[str, int, int]]:
        return set(entities([self.labels[tag] for tag, keep in zip(ids, kept, strict=True) if keep]))

    @abstractmethod
    def compute(self) -> Tensor:
        """The score of all entities together (micro average); 0 where it is undefined, as in seqeval."""


class EntityPrecision(EntityScore):
    """The share of predicted entities whose boundaries and type are right."""

    def compute(self) -> Tensor:
        """Correct over predicted, a scalar."""
        return self.correct / self.predicted.clamp(min=1)


class EntityRecall(EntityScore):
    """The share of true entities that are predicted with the right boundaries and type."""

    def compute(self) -> Tensor:
        """Correct over true, a scalar."""
        return self.correct / self.true.clamp(min=1)


class EntityF1(EntityScore):
    """The harmonic mean of entity precision and recall."""

    def compute(self) -> Tensor:
        """Twice correct over predicted and true, a scalar."""
        return 2 * self.correct / (self.predicted + self.true).clamp(min=1)


def entity_metrics(labels: Sequence[str]) -> dict[str, Metric]:
    """Micro ``precision``, ``recall`` and ``f1`` of entities, equal to seqeval's, as members of a MetricCollection.

    The three share one count there: a MetricCollection updates metrics of equal states once.

    Args:
        labels: The tags, in the order of the head's outputs.
    """
    return {"precision": EntityPrecision(labels), "recall": EntityRecall(labels), "f1": EntityF1(labels)}
