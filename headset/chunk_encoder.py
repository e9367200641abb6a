"""Long texts in parts, for heads that learn from every part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from headset.text_encoder import TextEncoder

__all__ = ["ChunkEncoder"]


@dataclass(frozen=True)
class ChunkEncoder(TextEncoder):
    """Tokenises texts as `TextEncoder` does, but one that is too long becomes several examples instead of being cut.

    Pairs of texts are cut.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")

    def encode(self, columns: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
        """Tokenise B rows.

        Returns:
            ``parts``: for each row a list of examples.

        Raises:
            HeadsetError: Words matter, and the tokenizer cannot tell which token is of which word.
        """
        if len(columns) > 1:
            return {"parts": [[row] for row in _rows(super().encode(columns))]}
        if not self.tokenizer.is_fast:
            bare = self._tokenise(columns, add_special_tokens=False)
            return {"parts": list(map(self._slowly, bare["input_ids"]))}
        encoded = self._tokenise(columns, truncation=True, max_length=self.length, return_overflowing_tokens=True)
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        inputs = {name: encoded[name] for name in names}
        if self.word_ids:
            inputs["word_ids"] = self._words(columns, encoded)
        parts: list[list[dict[str, Any]]] = [[] for _ in columns[0]]
        for row, part in zip(encoded["overflow_to_sample_mapping"], _rows(inputs), strict=True):
            parts[row].append(part)
        return {"parts": parts}

    def parts(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Each part as an example, with what else its row has."""
        rest = {key: values for key, values in examples.items() if key != "parts"}
        joined = [part | row for row, parts in zip(_rows(rest), examples["parts"], strict=True) for part in parts]
        return {key: [example[key] for example in joined] for key in joined[0]}

    def _slowly(self, ids: list[int]) -> list[dict[str, Any]]:
        """The parts of a text, of a tokenizer that gives no more than the first."""
        room = self.length - self.tokenizer.num_special_tokens_to_add()
        starts = range(0, max(len(ids), 1), room)
        parts = (ids[start : start + room] for start in starts)
        return [dict(self.tokenizer.prepare_for_model(part, return_attention_mask=False)) for part in parts]


def _rows(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
