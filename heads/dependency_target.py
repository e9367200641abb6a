"""The target of heads that parse: the head of each word, and its relation to it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backbones.errors import HeadsetError
from heads.target import IGNORE, Target, in_order, label_index, label_name, pad_rows, shown
from heads.trees import cycle_in

__all__ = ["DependencyTarget"]


@dataclass(frozen=True)
class DependencyTarget(Target):
    """A head and a relation for each word: int64 ``(B, T, 2)`` at a word's first token, -100 elsewhere.

    Two columns hold them, as in CoNLL-U: ``head``, the number of a word from 1, or 0 for the root, and ``deprel``.
    """

    by_words: ClassVar[bool] = True

    def join(self, values: Mapping[str, Any]) -> tuple[Any, Any]:
        """The values of the columns with the heads and with the relations."""
        heads, relations = values.values()
        return heads, relations

    def find_labels(self, values: Iterable[Any]) -> tuple[str, ...]:
        """The distinct relations, sorted."""
        rows = (value[1] for value in values if value is not None)
        names = (label_name(name) for row in rows if isinstance(row, list) for name in row)
        return in_order({name for name in names if name is not None})

    def encode(
        self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None
    ) -> list[list[int]]:
        """The number of the head, and the relation, at each token.

        Raises:
            HeadsetError: There is not one of each for every word, a head is no word of the sentence, words are heads of
                each other in a circle, a relation is unknown, or the text is not split into words.
        """
        words, ids = ((example or {}).get(key) for key in ("words", "word_ids"))
        if words is None or ids is None:
            raise HeadsetError("heads are words, and the text is one string. Give a column that holds lists of words.")
        for name, part in zip(("heads", "relations"), value, strict=True):
            if not isinstance(part, list):
                raise HeadsetError(f"expected lists with a head and a relation for each word, got {shown(part)}.")
            if len(part) != words:
                raise HeadsetError(f"{len(part)} {name} for {words} words.")
        heads = [_head(number, head, words) for number, head in enumerate(value[0], 1)]
        circle = cycle_in([0, *heads])
        if circle:
            raise HeadsetError(f"words are heads of each other in a circle: {' <- '.join(map(str, circle))}.")
        relations = [label_index(relation, labels) for relation in value[1]]
        pairs = [list(pair) for pair in zip(heads, relations, strict=True)]
        before = [None, *ids]
        return [
            [IGNORE, IGNORE] if word is None or word == last else pairs[word]
            for word, last in zip(ids, before, strict=False)
        ]

    def collate(self, encoded: list[Any], length: int, padding_side: str = "right") -> Tensor:
        """Heads and relations, padded with -100 on the side where the tokens are padded."""
        parts = [[[pair[part] for pair in row] for row in encoded] for part in (0, 1)]
        return torch.stack([pad_rows(part, IGNORE, length, padding_side) for part in parts], dim=-1)


def _head(number: int, value: Any, words: int) -> int:
    """The head of a word, which is another word or the root."""
    try:
        head = int(value)
    except (TypeError, ValueError):
        head = -1
    if isinstance(value, float | bool) or not 0 <= head <= words or head == number:
        raise HeadsetError(
            f"word {number}: expected the number of its head, another word from 1 to {words}, or 0 for the root; got "
            f"{shown(value)}."
        )
    return head
