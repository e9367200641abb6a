"""From a text and its choices to token ids: the text beside each choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from backbones.errors import HeadsetError
from headset.checks import RowError, check_text
from headset.text_encoder import TextEncoder

__all__ = ["ChoiceEncoder", "PairEncoder"]

FORM = "(text, [choice, choice, ...])"


@dataclass(frozen=True)
class ChoiceEncoder(TextEncoder):
    """Tokenises a text with each of its choices, as transformers' example for multiple choice does.

    What is too long is cut token by token from the longer of the two, which is the text as a rule.

    Args:
        texts: How many columns come before the choices: with two, the second is how each choice begins.
        ranked: Whether the texts are queries and the choices documents to rank: a row may have only one then, and
            ``meta["queries"]`` holds the queries.
    """

    texts: int = 1
    ranked: bool = False

    samples: ClassVar[Sequence[Any]] = (
        ("A short text.", ["A choice.", "Another one, which is longer."]),
        ("Another text, which is a little longer than the first.", ["Yes.", "No: 3."]),
    )

    def columns(self, inputs: Sequence[Any]) -> list[Sequence[Any]]:
        """Texts with their choices, ``(text, [choice, choice, ...])``, as two columns.

        Raises:
            HeadsetError: They are nothing of that kind.
        """
        told = "queries with documents, (query, [document, ...])" if self.ranked else f"texts with choices, {FORM}"
        for row in inputs:
            text, choices = row if isinstance(row, tuple) and len(row) == 2 else (None, None)
            if not (isinstance(text, str) and isinstance(choices, list) and all(isinstance(it, str) for it in choices)):
                raise HeadsetError(f"predict takes {told}; got {row!r}.")
            if len(choices) < self.least:
                raise HeadsetError(f"At least {self._least_told} needed, {told.partition(', ')[2]}; got {row!r}.")
        return list(zip(*inputs, strict=True))

    @property
    def _least_told(self) -> str:
        return "one document is" if self.ranked else "two choices are"

    @property
    def stock(self) -> TextEncoder:
        """Documents are ranked by a model of pairs of texts."""
        return PairEncoder(self.tokenizer, self.max_length) if self.ranked else self

    @property
    def least(self) -> int:
        """The fewest choices of a row."""
        return 1 if self.ranked else 2

    def check(self, row: int, column: str, value: Any) -> None:
        """Check that a text is not blank, and that of choices there are two at least."""
        if not isinstance(value, list):
            check_text(row, column, value)
            return
        if len(value) < self.least:
            raise RowError(row, f"column {column!r}: at least {self._least_told} needed, got {value!r}.")
        for choice in value:
            if not isinstance(choice, str) or not choice.strip():
                raise RowError(row, f"column {column!r}: expected texts to choose from, got {choice!r} among them.")

    def encode(self, columns: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
        """Tokenise B rows.

        Args:
            columns: The texts, how the choices begin if there is such a column, and the choices: a column with lists of
                them, or several columns.

        Returns:
            What the tokenizer gives, for each row a list with an item for each choice; ``choices``, their texts;
            ``query``, where they are ranked; and ``truncated``, whether one was cut.
        """
        texts, rest = columns[: self.texts], columns[self.texts :]
        choices = [_listed(row) for row in (rest[0] if len(rest) == 1 else zip(*rest, strict=True))]
        rows = list(zip(*texts, choices, strict=True))
        first = [text for text, *_, row in rows for _ in row]
        second = [" ".join([*begin, choice]) for _, *begin, row in rows for choice in row]
        flat = self._encode([first, second])
        encoded: dict[str, list[Any]] = {key: [] for key in flat}
        start = 0
        for row in choices:
            for key, values in flat.items():
                encoded[key].append(values[start : start + len(row)])
            start += len(row)
        encoded |= {"choices": choices, "truncated": [any(row) for row in encoded["truncated"]]}
        return encoded | ({"query": list(texts[0])} if self.ranked else {})

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Pad rows to the longest input and to the most choices, and stack them.

        Returns:
            The model inputs ``(B, C, T)``; a row with fewer than C choices repeats its last one. ``meta`` holds the
            texts of the ``choices`` of each row, ``queries`` where these are ranked; else what `TextEncoder.collate`
            says, tensors as ``(B, C, T)``.
        """
        most = max(len(example["choices"]) for example in examples)
        flat = [
            {key: example[key][min(index, len(example["choices"]) - 1)] for key in example if key in self._names}
            for example in examples
            for index in range(most)
        ]
        batch = super().collate(flat)
        meta = {key: _apart(value, most) for key, value in batch.pop("meta").items()}
        meta["choices"] = [example["choices"] for example in examples]
        for name, key in {"row": "rows", "query": "queries"}.items():
            if name in examples[0]:
                meta[key] = [example[name] for example in examples]
        return {**{key: _apart(value, most) for key, value in batch.items()}, "meta": meta}

    @property
    def _names(self) -> list[str]:
        names: list[str] = self.tokenizer.model_input_names
        return ["input_ids", *names]

    def identity(self) -> list[str]:
        """The settings, and the tokenizer."""
        return [repr((self.texts, self.ranked)), *super().identity()]


@dataclass(frozen=True)
class PairEncoder(TextEncoder):
    """Tokenises pairs of texts, each as one input."""

    samples: ClassVar[Sequence[Any]] = (
        ("A query?", "A short text."),
        (
            "Another query, which is longer.",
            "Another one, which is a little longer than the first, and has 2 numbers: 3.",
        ),
    )


def _apart(value: Any, choices: int) -> Any:
    """A tensor ``(B * C, T)`` as ``(B, C, T)``; all else as it is."""
    return value.view(-1, choices, value.shape[-1]) if isinstance(value, Tensor) else value


def _listed(choices: Any) -> list[str]:
    """The choices of a row; a text is the only one."""
    return [choices] if isinstance(choices, str) else list(choices)
