"""The target of heads that find spans: which words belong together, and what they are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backbones.errors import HeadsetError
from heads.entities import entities, is_bio
from heads.target import Target, in_order, label_index, label_name, shown

__all__ = ["NO_SPAN", "SpanTarget"]

NO_SPAN = -1
EXPECTED = "expected a list of spans such as {'start': 0, 'end': 2, 'label': 'PER'}, or one BIO tag for each word"


@dataclass(frozen=True)
class SpanTarget(Target):
    """Any number of spans a row, also within each other: int64 ``(B, S, 3)``, filled up with -1.

    Each is its first word, the word after its last, and its label. A value is a list of ``{"start", "end", "label"}``
    (``"type"`` does for ``"label"``, as predictions have it), or a list with a BIO tag for each word.
    """

    by_words: ClassVar[bool] = True

    def find_labels(self, values: Iterable[Any]) -> tuple[str, ...]:
        """The distinct labels of spans, sorted."""
        names: set[str | None] = set()
        for value in values:
            try:
                names.update(label_name(label) for _, _, label in _spans(value))
            except HeadsetError:
                continue  # encode complains of it, where the row is known
        return in_order({name for name in names if name is not None})

    def encode(
        self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None
    ) -> list[list[int]]:
        """First word, word after the last, and label of each span.

        Raises:
            HeadsetError: The value has another form, a span is not within the text or is there twice, a label is
                unknown, or the text is not split into words.
        """
        size = (example or {}).get("words")
        if size is None:
            raise HeadsetError(
                "spans are of words, and the text is one string. Give a column that holds lists of words."
            )
        if isinstance(value, list) and value and isinstance(value[0], str) and len(value) != size:
            raise HeadsetError(f"{len(value)} tags for {size} words.")
        found: dict[tuple[int, int], list[int]] = {}
        for start, end, label in _spans(value):
            if not 0 <= start < end <= size:
                raise HeadsetError(
                    f"the span from word {start} to {end} is not within the {size} words: 0 <= start < end <= {size}, "
                    "where end is the word after the last."
                )
            if (start, end) in found:
                raise HeadsetError(f"there are two spans from word {start} to {end}; each has one label.")
            found[start, end] = [start, end, label_index(label, labels)]
        return list(found.values())

    def collate(self, encoded: list[Any], length: int, padding_side: str = "right") -> Tensor:
        """The spans of all rows, filled up to as many as the fullest row has, at least one."""
        most = max(1, *map(len, encoded))
        return torch.tensor([row + [[NO_SPAN] * 3] * (most - len(row)) for row in encoded])


def _spans(value: Any) -> list[tuple[int, int, Any]]:
    """Start, end and label of each span, in any form that they come in."""
    if isinstance(value, Mapping):  # as datasets has had lists of dictionaries
        value = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise HeadsetError(f"{EXPECTED}, got {shown(value)}. A row without any has an empty list.")
    if value and all(isinstance(item, str) for item in value):
        if not all(value) or not is_bio(value):
            raise HeadsetError(f"{EXPECTED}, got {shown(value)}.")
        return [(start, end + 1, kind) for kind, start, end in entities(value)]
    return [_span(item) for item in value]


def _span(item: Any) -> tuple[int, int, Any]:
    if not isinstance(item, Mapping):
        raise HeadsetError(f"{EXPECTED}, got {shown(item)} in the list.")
    start, end, label = item.get("start"), item.get("end"), item.get("label", item.get("type"))
    if type(start) is not int or type(end) is not int or label is None:
        raise HeadsetError(f"{EXPECTED}, got {shown(dict(item))} in the list.")
    return start, end, label
