"""From questions and contexts to windows of tokens, and from these to a padded batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from backbones.errors import HeadsetError
from heads.answers import NOWHERE
from headset.checks import RowError, check_text
from headset.text_encoder import TextEncoder

__all__ = ["QuestionEncoder"]

DEFAULT_STRIDE = 128


@dataclass(frozen=True)
class QuestionEncoder(TextEncoder):
    """Tokenises questions with their contexts, long contexts in overlapping windows, as run_qa.py of transformers does.

    The question comes first; with a tokenizer that pads on the left, the context does.

    Args:
        stride: How many tokens of the context a window has in common with the next one; by default 128, or half of
            ``max_length`` where that is less.

    Raises:
        HeadsetError: The tokenizer cannot tell the characters of a token, or a number does not fit it.
    """

    stride: int | None = None

    splits: ClassVar[tuple[str, ...]] = ("train",)
    samples: ClassVar[Sequence[Any]] = (
        ("Who?", "Ann lives in Oslo, and Ben, who is her brother, in Bergen."),
        ("Where is Ben?", "In Bergen."),
    )

    def __post_init__(self) -> None:
        """Check tokenizer, length and stride."""
        if not self.tokenizer.is_fast:
            raise HeadsetError(
                f"{type(self.tokenizer).__name__} cannot tell which characters a token stands for, so it cannot find "
                "answers. Use a model whose tokenizer has a tokenizer.json."
            )
        super().__post_init__()
        if self.room < 2:
            raise HeadsetError(
                f"Invalid max_length: {self.length} tokens leave no place for a question and its context."
            )
        if not 0 <= self.overlap < self.room:
            raise HeadsetError(
                f"Invalid stride: {self.stride}. Windows of {self.length} tokens, {self.length - self.room} of them "
                f"special ones, can have from 0 to {self.room - 1} in common."
            )

    @property
    def room(self) -> int:
        """The most tokens of question and context in a window."""
        return self.length - int(self.tokenizer.num_special_tokens_to_add(pair=True))

    @property
    def overlap(self) -> int:
        """How many tokens of the context two windows have in common."""
        return min(DEFAULT_STRIDE, self.length // 2) if self.stride is None else self.stride

    def columns(self, inputs: Sequence[Any]) -> list[Sequence[Any]]:
        """Pairs of a question and its context, as two columns.

        Raises:
            HeadsetError: They are something else, or a question is too long.
        """
        for row, pair in enumerate(inputs):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise HeadsetError(
                    "predict takes pairs of a question and its context: [(question, context), ...]; "
                    f"input {row} is {repr(pair)[:60]}."
                )
        questions, contexts = ([pair[side] for pair in inputs] for side in (0, 1))
        try:
            for name, column in {"question": questions, "context": contexts}.items():
                for row, text in enumerate(column):
                    self.check(row, name, text)
            self._check_questions(questions, contexts)
        except RowError as error:
            raise HeadsetError(f"input {error.row}: {error.message}") from error
        return [questions, contexts]

    def check(self, row: int, column: str, value: Any) -> None:
        """Check that a question or a context is a string that is not blank."""
        check_text(row, column, value)
        if not isinstance(value, str):
            raise RowError(row, f"column {column!r}: expected a text, got {repr(value)[:60]}.")

    def encode(self, columns: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
        """Tokenise B questions with their contexts.

        Args:
            columns: B questions, and B contexts.

        Returns:
            For each row a list with an item for each of its windows: what the tokenizer gives; ``offsets``, for each
            token from which to which character of the context it goes, twice -1 for what is not of the context; and
            ``no_answer``, the token that stands for no answer: that of the whole input, or else the first of the
            question.
            Beside these ``context``, the text.

        Raises:
            RowError: A question is too long; the row is counted in ``columns``.
        """
        questions, contexts = columns
        self._check_questions(questions, contexts)
        first = self.padding_side == "right"
        pair = [[question.lstrip() for question in questions], list(contexts)]
        encoded = self.tokenizer(
            *(pair if first else reversed(pair)),
            truncation="only_second" if first else "only_first",
            max_length=self.length,
            stride=self.overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            padding=False,
            verbose=False,
        )
        rows = encoded["overflow_to_sample_mapping"]
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        outputs: dict[str, list[Any]] = {name: [[] for _ in questions] for name in [*names, "offsets", "no_answer"]}
        for window, row in enumerate(rows):
            for name in names:
                outputs[name][row].append(encoded[name][window])
            texts = encoded.sequence_ids(window)  # of each token: 0, 1, or None
            outputs["offsets"][row].append(
                [
                    list(characters) if text == int(first) else [NOWHERE, NOWHERE]
                    for characters, text in zip(encoded["offset_mapping"][window], texts, strict=True)
                ]
            )
            outputs["no_answer"][row].append(self._no_answer(encoded["input_ids"][window], texts, int(not first)))
        return outputs | {"context": list(contexts)}

    def parts(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Each window as an example, with all that its row has but the context."""
        windows = [(row, place) for row, ids in enumerate(examples["input_ids"]) for place in range(len(ids))]
        split = {*self.tokenizer.model_input_names, "offsets", "no_answer"}
        return {
            name: [[values[row][place]] if name in split else values[row] for row, place in windows]
            for name, values in examples.items()
            if name != "context"
        }

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Pad the windows of some rows to the longest and stack them.

        Args:
            examples: Rows as ``encode`` gives them; their ``row`` is their number in the table.

        Returns:
            The model inputs ``(F, T)`` for F windows. ``meta`` holds ``rows``, where the examples have them;
            ``windows``, the number of them in each row; ``offsets`` ``(F, T, 2)`` and ``no_answer`` ``(F,)``;
            ``contexts``, B texts, where the examples have them; and ``attention_mask`` ``(F, T)``, where the model
            takes none.
        """
        names = [name for name in self.tokenizer.model_input_names if name in examples[0]]
        inputs = [
            dict(zip(names, window, strict=True)) for window in zip(*(_flat(examples, n) for n in names), strict=True)
        ]
        batch = super().collate(inputs)
        sizes = torch.tensor([len(row["input_ids"]) for row in inputs])
        before = batch["input_ids"].shape[1] - sizes if self.padding_side == "left" else torch.zeros_like(sizes)
        offsets = torch.full((*batch["input_ids"].shape, 2), NOWHERE)
        for window, characters in enumerate(_flat(examples, "offsets")):
            start = int(before[window])
            offsets[window, start : start + len(characters)] = torch.from_numpy(np.asarray(characters))
        meta = batch["meta"] | {"windows": [len(example["input_ids"]) for example in examples], "offsets": offsets}
        meta["no_answer"] = torch.tensor([int(token) for token in _flat(examples, "no_answer")]) + before
        for name, key in {"row": "rows", "context": "contexts"}.items():
            if name in examples[0]:
                meta[key] = [example[name] for example in examples]
        return {**batch, "meta": meta}

    def identity(self) -> list[str]:
        """The settings, and the tokenizer."""
        return [repr((self.overlap, self.padding_side)), *super().identity()]

    def _no_answer(self, ids: Sequence[int], texts: Sequence[int | None], question: int) -> int:
        for special in (self.tokenizer.cls_token_id, self.tokenizer.bos_token_id):
            if special in ids:
                return ids.index(special)
        return texts.index(question) if question in texts else 0

    def _check_questions(self, questions: Sequence[str], contexts: Sequence[str]) -> None:
        """Check that windows can go through the context beside each question."""
        sizes = self._sizes([question.lstrip() for question in questions])
        for row, size in enumerate(sizes):
            left = self.room - size
            if left <= self.overlap and self._sizes([contexts[row]])[0] > left:
                raise RowError(
                    row,
                    f"the question has {size} tokens, which leaves {max(left, 0)} of {self.length} for its context, "
                    f"and windows have {self.overlap} in common. Set a larger data.max_length or a smaller "
                    "data.stride, or shorten the question.",
                )

    def _sizes(self, texts: list[str]) -> list[int]:
        settings: dict[str, Any] = {"add_special_tokens": False, "padding": False, "verbose": False}
        return [len(ids) for ids in self.tokenizer(texts, **settings)["input_ids"]] if texts else []


def _flat(examples: Sequence[Mapping[str, Any]], name: str) -> Iterator[Any]:
    """What all windows have under a name."""
    return (item for example in examples for item in example[name])
