"""The part of a context that answers a question."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall
from backbones.errors import HeadsetError
from heads.answers import NOWHERE, AnswerTarget, best_answers, token_positions
from heads.base import Head, HeadContext, HeadOutput, attention_mask
from heads.native import NativeModel
from heads.outputs import head_output, stock_loss
from heads.squad import SquadScores
from heads.targets import IGNORE, Target
from heads.task_models import label_settings

__all__ = ["QuestionAnswering"]

OUTPUTS = ("start", "end")


class QuestionAnswering(Head):
    """A question and a context to the part of the context that answers it: extractive question answering.

    The scores come from the very modules that ``AutoModelForQuestionAnswering`` has for the architecture. A long
    context is read in overlapping windows; the answer is the best span over all of them.

    Args:
        no_answer: Whether a question may have no answer in its context, as in SQuAD 2.0.
        null_threshold: By how much no answer has to score better than the best span to be given, with ``no_answer``.
        max_answer_length: The most tokens of an answer that is given.
        n_best: How many starts and ends of each window are considered for one.

    Raises:
        HeadsetError: A number is less than 1.

    Example:
        >>> QuestionAnswering(no_answer=True).spec()["init_args"]["max_answer_length"]
        30
    """

    reads = "question"

    def __init__(
        self, no_answer: bool = False, null_threshold: float = 0.0, max_answer_length: int = 30, n_best: int = 20
    ) -> None:
        super().__init__()
        for name, value in {"max_answer_length": max_answer_length, "n_best": n_best}.items():
            if value < 1:
                raise HeadsetError(f"Invalid {name}: {value}. Give a number of at least 1.")
        self.no_answer = no_answer
        self.null_threshold = null_threshold
        self.max_answer_length = max_answer_length
        self.n_best = n_best

    @property
    def auto_class(self) -> str:
        """The task in transformers."""
        return "AutoModelForQuestionAnswering"

    def build(self, context: HeadContext) -> None:
        """Make the native scorer."""
        settings = label_settings(OUTPUTS, len(OUTPUTS))
        self.scorer = NativeModel(self.auto_class, context.backbone, **settings)

    def unused(self, backbone: Backbone) -> set[str]:
        """What the scorer does without."""
        return self.scorer.unused(backbone)

    def target(self) -> Target:
        """The answers of a row, by their characters in the context."""
        return AnswerTarget(self.no_answer)

    def prepare(self, batch: Mapping[str, Any], labels: Tensor) -> tuple[Mapping[str, Any], Tensor]:
        """The first answer as tokens of each window.

        Args:
            batch: F windows of B rows.
            labels: The answers as characters of the context ``(B, A, 2)``; of the rows that have some.

        Returns:
            The batch, and the positions of starts and ends ``(F, 2)``, in the windows of these rows.
        """
        meta = batch["meta"]
        asked = meta if "labelled" not in meta else _rows_of(meta, meta["labelled"])
        windows = torch.tensor(asked["windows"], device=labels.device)
        first = labels[:, 0].repeat_interleave(windows, dim=0)
        positions = token_positions(first, asked["offsets"], asked["no_answer"])
        return {**batch, "meta": {**meta, "answers": labels}}, positions

    def request(self, batch: Mapping[str, Any]) -> BackboneCall | None:
        """The scorer's own call; the loss of transformers is over all tokens of a row, also those at padding."""
        call = self.scorer.request(_with_positions(batch))
        return call and replace(call, padded=batch.get("labels") is not None)

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """Scores of starts and ends ``(F, T, 2)``, for F windows; ``info`` says which tokens are of which context."""
        given = _with_positions(batch)
        output = head_output(self.scorer(features, given), given)
        known = {"mask": attention_mask(batch, output.logits), "meta": batch.get("meta", {})}
        return HeadOutput(output.logits, output.info | known)

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """The mean of the cross entropies of starts and ends, as transformers has it.

        Args:
            output: Scores ``(F, T, 2)``; or ``(F, C)``, of an architecture that chooses among answers of its own.
            labels: Positions ``(F, 2)``, of which those outside of the window are passed over; or choices ``(F,)``.
        """
        known = stock_loss(output, labels)
        if known is not None:
            return known
        if labels.dim() == 1:
            return F.cross_entropy(output.logits, labels)
        outside = output.logits.shape[1]
        losses = [
            F.cross_entropy(scores, positions.clamp(0, outside), ignore_index=outside)
            for scores, positions in zip(output.logits.unbind(-1), labels.unbind(-1), strict=True)
        ]
        return (losses[0] + losses[1]) / 2

    def loss_size(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """The number of windows that have their answer inside, of starts and ends on average; or of choices."""
        if labels.dim() == 1:
            return (labels != IGNORE).sum()
        return (labels < output.logits.shape[1]).sum() / labels.shape[-1]

    def select(self, output: HeadOutput, rows: Tensor) -> HeadOutput:
        """The scores of the windows of some rows, with the answers that ``prepare`` was given for these."""
        meta, numbers = output.info["meta"], rows.tolist()
        windows = _windows(meta, numbers)
        chosen = _rows_of(meta, numbers)
        if "answers" in meta and "labelled" not in meta:
            chosen["answers"] = meta["answers"][rows]
        return HeadOutput(output.logits[windows], {"mask": output.info["mask"][windows], "meta": chosen})

    def predict(self, output: HeadOutput) -> list[dict[str, Any]]:
        """``{"answer", "score", "start", "end"}`` of each row: ``answer`` is ``context[start:end]``, empty for none.

        Raises:
            HeadsetError: The batch does not say what the context is.
        """
        meta = output.info["meta"]
        if "contexts" not in meta:
            raise HeadsetError(
                "The batch does not say which of its tokens are of the context. Have it made of questions and "
                "contexts: headset.predict([(question, context), ...])."
            )
        threshold = self.null_threshold if self.no_answer else None
        return best_answers(output.logits, output.info["mask"], meta, self.n_best, self.max_answer_length, threshold)

    def metrics(self) -> MetricCollection:
        """Exact match and F1 in percent, as the evaluation scripts of SQuAD give them."""
        return MetricCollection({"squad": SquadScores(self.no_answer)})

    def metric_inputs(self, output: HeadOutput, labels: Tensor) -> tuple[list[str], list[list[str]]]:
        """The answer to each question, and all those that are right."""
        meta = output.info["meta"]
        right = [
            [context[start:end] for start, end in spans if start != NOWHERE]
            for context, spans in zip(meta["contexts"], meta["answers"].tolist(), strict=True)
        ]
        return [row["answer"] for row in self.predict(output)], right


def _windows(meta: Mapping[str, Any], rows: Sequence[int]) -> list[int]:
    """The numbers of the windows of some rows."""
    counts = meta["windows"]
    return [index for row in rows for index in range(sum(counts[:row]), sum(counts[: row + 1]))]


def _rows_of(meta: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """What ``meta`` says of some rows and of their windows."""
    windows = _windows(meta, rows)
    by_row = {key: [meta[key][row] for row in rows] for key in ("windows", "rows", "contexts") if key in meta}
    return {**meta, **by_row, **{key: meta[key][windows] for key in ("offsets", "no_answer") if key in meta}}


def _with_positions(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """The batch, without labels that are characters of the context: a task model takes positions of tokens."""
    labels = batch.get("labels")
    return {**batch, "labels": None} if isinstance(labels, Tensor) and labels.dim() == 3 else batch
