"""Answers in a context: as SQuAD writes them, as tokens of windows, and as the best span of what a head scores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backbones.errors import HeadsetError
from heads.targets import Target

__all__ = ["AnswerTarget", "best_answers", "token_positions"]

NOWHERE = -1  # the characters of what is not in the context
EXPECTED = "expected answers as SQuAD has them, {'text': ['Oslo'], 'answer_start': [17]}"


@dataclass(frozen=True)
class AnswerTarget(Target):
    """The answers to a question as int64 ``(B, A, 2)``: from which to which character of the context each goes.

    A value is ``{"text": [...], "answer_start": [...]}`` as in SQuAD, the same with one text and one number, or a list
    of such answers. None and empty lists say that the context has no answer. Rows are filled up with -1.

    Args:
        no_answer: Whether a question may be without an answer.
    """

    no_answer: bool = False

    def find_labels(self, values: Iterable[Any]) -> None:
        """Answers have no label set."""

    def encode(
        self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None
    ) -> list[list[int]]:
        """Where each answer begins and ends in ``example["context"]``.

        Raises:
            HeadsetError: The value has another form, an answer does not stand where it says, or there is none.
        """
        context = (example or {}).get("context")
        if context is None:
            raise HeadsetError("answers belong to a context, and the input has none. Read a question and its context.")
        answers = _answers(value)
        if not answers and not self.no_answer:
            raise HeadsetError(
                "there is no answer. If questions may have none, as in SQuAD 2.0, set no_answer: true on the head."
            )
        return [_span(text, start, context) for text, start in answers] or [[NOWHERE, NOWHERE]]

    def collate(self, encoded: list[Any], length: int, padding_side: str = "right") -> Tensor:
        """The answers of all rows, filled up to as many as the longest row has."""
        most = max(map(len, encoded))
        return torch.tensor([row + [[NOWHERE, NOWHERE]] * (most - len(row)) for row in encoded])


def token_positions(spans: Tensor, offsets: Tensor, no_answer: Tensor) -> Tensor:
    """The first and the last token of an answer in each window.

    As in the question answering example of transformers, but that where several tokens stand for one character, all of
    them are the answer's.

    Args:
        spans: From which to which character the answer goes, ``(F, 2)``; -1 if there is none.
        offsets: The characters of each token, ``(F, T, 2)``; -1 for what is not of the context.
        no_answer: The token that stands for no answer in the window, ``(F,)``.

    Returns:
        int64 ``(F, 2)``; twice ``no_answer`` for a window that does not have the whole answer.
    """
    first, last = spans[:, :1], spans[:, 1:]
    starts, ends = offsets.unbind(-1)
    context = starts != NOWHERE
    whole = (first[:, 0] != NOWHERE) & (context & (starts <= first)).any(-1) & (context & (ends >= last)).any(-1)
    inside = (context & (starts < last) & (ends > first)).int()
    found = torch.stack([inside.argmax(-1), inside.shape[1] - 1 - inside.flip(-1).argmax(-1)], dim=-1)
    return torch.where(whole.unsqueeze(-1), found, no_answer.unsqueeze(-1))


def best_answers(
    logits: Tensor,
    mask: Tensor,
    meta: Mapping[str, Any],
    n_best: int,
    max_answer_length: int,
    threshold: float | None,
) -> list[dict[str, Any]]:
    """The best span of each row, over all of its windows.

    As ``postprocess_qa_predictions`` in the question answering example of transformers: the ``n_best`` starts and ends
    of each window are combined, and its probability is that among the ``n_best`` spans of a row. Where none of these
    is a span of the context, all starts and ends are.

    Args:
        logits: Scores of starts and ends ``(F, T, 2)``.
        mask: Which tokens are real ``(F, T)``.
        meta: ``windows``, the number of them in each of B rows; ``contexts``, B texts; ``offsets`` ``(F, T, 2)`` and
            ``no_answer`` ``(F,)`` as `token_positions` takes them.
        n_best: How many starts, ends and spans are considered.
        max_answer_length: The most tokens of an answer.
        threshold: By how much no answer has to score better than the best span to be chosen; None always takes a span.

    Returns:
        B dictionaries: ``answer`` is ``context[start:end]``; it is empty where there is none.
    """
    scores = logits.float().masked_fill(~mask.unsqueeze(-1), -torch.inf).cpu()
    offsets, no_answer = meta["offsets"].cpu(), meta["no_answer"].cpu()
    nulls = scores.gather(1, no_answer.view(-1, 1, 1).expand(-1, -1, 2)).sum((1, 2))
    answers = []
    windows = zip(*(part.split(meta["windows"]) for part in (scores, offsets, nulls)), strict=True)
    for context, (row, characters, null) in zip(meta["contexts"], windows, strict=True):
        values, spans = _spans(row, characters, n_best, max_answer_length)
        if values[0] == -torch.inf:
            values, spans = _spans(row, characters, row.shape[1], max_answer_length)
        kept = values[:n_best] if threshold is None else torch.cat([values[:n_best], null.amin(0, keepdim=True)])
        chances = kept.softmax(0)
        nothing = values[0] == -torch.inf or (threshold is not None and bool(null.min() - values[0] > threshold))
        if nothing:
            score = chances[-1].nan_to_num().item()
            answers.append({"answer": "", "score": score, "start": 0, "end": 0})
        else:
            answers.append(_trimmed(context, spans[0].tolist(), chances[0].item()))
    return answers


def _spans(scores: Tensor, offsets: Tensor, n_best: int, max_answer_length: int) -> tuple[Tensor, Tensor]:
    """The spans of a row from the ``n_best`` starts and ends of its windows, best first: scores, and characters."""
    size = min(n_best, scores.shape[1])
    (starts, ends), places = zip(*(scores[..., side].topk(size, dim=-1) for side in (0, 1)), strict=True)
    (first, _), (_, last) = (offsets.gather(1, place.unsqueeze(-1).expand(-1, -1, 2)).unbind(-1) for place in places)
    length = places[1].unsqueeze(1) - places[0].unsqueeze(2) + 1
    valid = (length >= 1) & (length <= max_answer_length)
    valid &= (first != NOWHERE).unsqueeze(2) & (last != NOWHERE).unsqueeze(1) & (first.unsqueeze(2) < last.unsqueeze(1))
    values = (starts.unsqueeze(2) + ends.unsqueeze(1)).masked_fill(~valid, -torch.inf)
    spans = torch.stack(torch.broadcast_tensors(first.unsqueeze(2), last.unsqueeze(1)), dim=-1)
    values, order = values.flatten().sort(descending=True, stable=True)
    return values, spans.flatten(0, 2)[order]


def _trimmed(context: str, span: list[int], score: float) -> dict[str, Any]:
    """A span without the white space at its ends, which some tokenizers count to a word."""
    start, end = span
    answer = context[start:end]
    start += len(answer) - len(answer.lstrip())
    answer = answer.strip()
    return {"answer": answer, "score": score, "start": start, "end": start + len(answer)}


def _answers(value: Any) -> list[tuple[str, int]]:
    """The answers in any of the forms that they come in: texts, and where they begin."""
    if value is None:
        return []
    if isinstance(value, list):
        return [answer for item in value for answer in _answers(item)]
    if isinstance(value, str):
        raise HeadsetError(f"{EXPECTED}, got {value[:60]!r}. CSV files cannot hold them: use JSON lines or Parquet.")
    if not isinstance(value, Mapping) or not {"text", "answer_start"} <= value.keys():
        raise HeadsetError(f"{EXPECTED}, got {repr(value)[:80]}.")
    texts, starts = (_listed(value[key]) for key in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise HeadsetError(f"there are {len(texts)} texts and {len(starts)} starts of answers: {repr(value)[:80]}.")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or type(start) is not int:
            raise HeadsetError(f"{EXPECTED}, got the text {text!r} and the start {start!r}.")
    return list(zip(texts, starts, strict=True))


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _span(text: str, start: int, context: str) -> list[int]:
    """The characters of an answer, which must be what the context has there."""
    if not text.strip():
        raise HeadsetError("an answer is blank. Where there is no answer, give empty lists.")
    end = start + len(text)
    there = context[start:end] if start >= 0 else ""
    if there != text:
        place = context.find(text)
        stands = f"there stands {there[:60]!r}" if there else f"the context has {len(context)} characters"
        found = f"The answer stands at {place}" if place >= 0 else "The context does not have the answer"
        raise HeadsetError(f"the answer {text[:60]!r} does not begin at {start}: {stands}. {found}.")
    return [start, end]
