"""The target of heads that tag words."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from backbones.errors import HeadsetError, invalid_choice
from heads.target import IGNORE, Target, in_order, label_index, label_name, pad_rows, shown

__all__ = ["TagTarget"]


@dataclass(frozen=True)
class TagTarget(Target):
    """One tag a word: int64 ``(B, T)``, -100 at every token that is not scored.

    Args:
        subwords: ``first`` scores the first token of a word; ``all`` scores the later ones too, with the word's tag,
            where ``B-X`` goes on as ``I-X`` if the label set has it.
    """

    per_word: ClassVar[bool] = True

    subwords: Literal["first", "all"] = "first"

    def __post_init__(self) -> None:
        """Check the setting."""
        if self.subwords not in ("first", "all"):
            raise invalid_choice("value of subwords", self.subwords, ("first", "all"))

    def find_labels(self, values: Iterable[Any]) -> tuple[str, ...]:
        """The distinct tags, sorted, ``O`` first."""
        names = (label_name(tag) for value in values if isinstance(value, list) for tag in value)
        tags = in_order({name for name in names if name is not None})
        return tuple(sorted(tags, key=lambda tag: tag != "O"))

    def encode(self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None) -> list[int]:
        """The index of a tag for each token.

        Raises:
            HeadsetError: The value is not a list, the text is not split into words, or a tag is unknown.
        """
        if not isinstance(value, list):
            raise HeadsetError(f"expected a list with one tag for each word, got {shown(value)}.")
        word_ids = (example or {}).get("word_ids")
        if word_ids is None:
            raise HeadsetError(
                "tags belong to words, and the text is one string. Give a column that holds lists of words."
            )
        indices = [label_index(tag, labels) for tag in value]
        encoded, previous = [], None
        for word in word_ids:
            if word is None:
                encoded.append(IGNORE)
            elif word != previous:
                encoded.append(indices[word])
            else:
                encoded.append(self._later(indices[word], labels or ()))
            previous = word
        return encoded

    def _later(self, index: int, labels: tuple[str, ...]) -> int:
        """The tag of a word's tokens after the first."""
        if self.subwords == "first":
            return IGNORE
        inside = re.sub("^B-", "I-", labels[index])
        return labels.index(inside) if inside in labels else index

    def collate(self, encoded: list[Any], length: int, padding_side: str = "right") -> Tensor:
        """The tags as int64 ``(B, T)``, padded with -100 on the side where the tokens are padded."""
        return pad_rows(encoded, IGNORE, length, padding_side)
