"""From long texts to overlapping windows of tokens, and from these to a padded batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backbones.errors import HeadsetError
from headset.text_encoder import TextEncoder

__all__ = ["DocumentEncoder"]

DEFAULT_STRIDE = 128


@dataclass(frozen=True)
class DocumentEncoder(TextEncoder):
    """Tokenises texts in windows of ``max_length`` tokens, of which a text has as many as it needs.

    Windows are those of transformers' tokenizers with ``return_overflowing_tokens``: each has the special tokens, and
    the next one begins ``stride`` tokens before its end. A text that fits is one window, as `TextEncoder` makes it.

    Args:
        stride: How many tokens a window has in common with the next one; by default 128, or half of ``max_length``
            where that is less.
        max_windows: The most windows of a text; the rest is cut off. None takes all.

    Raises:
        HeadsetError: The tokenizer makes no windows, or a number does not fit it.
    """

    stride: int | None = None
    max_windows: int | None = None

    def __post_init__(self) -> None:
        """Check tokenizer, length and stride."""
        if not self.tokenizer.is_fast:
            raise HeadsetError(
                f"{type(self.tokenizer).__name__} makes no windows of long texts. Use a model whose tokenizer has a "
                "tokenizer.json, or leave out windows on the head."
            )
        super().__post_init__()
        room = self.length - self.tokenizer.num_special_tokens_to_add()
        if not 0 <= self.overlap < room:
            raise HeadsetError(
                f"Invalid stride: {self.overlap}. Windows of {self.length} tokens, {self.length - room} of them "
                f"special ones, can have from 0 to {room - 1} in common."
            )

    @property
    def overlap(self) -> int:
        """How many tokens two windows have in common."""
        return min(DEFAULT_STRIDE, self.length // 2) if self.stride is None else self.stride

    @property
    def limit(self) -> str:
        """Where longer texts are cut, in words."""
        return f"{self.max_windows} windows of {self.length} tokens" if self.max_windows else "nothing"

    def encode(self, columns: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
        """Tokenise B rows.

        Args:
            columns: One list of B texts, or several, each of which is windows by itself.

        Returns:
            What the tokenizer gives: for each row a list with an item for each text, which is a list with one for each
            window. ``truncated``: whether a text has more windows than ``max_windows``.
        """
        texts = [self._windows(column) for column in columns]
        names = [name for name in self.tokenizer.model_input_names if name in texts[0][0][0]] if texts[0] else []
        rows = list(zip(*texts, strict=True))
        kept = slice(self.max_windows)
        encoded: dict[str, list[Any]] = {
            name: [[[window[name] for window in windows[kept]] for windows in row] for row in rows] for name in names
        }
        encoded["truncated"] = [any(len(windows) > len(windows[kept]) for windows in row) for row in rows]
        return encoded

    def _windows(self, column: Sequence[Any]) -> list[list[dict[str, list[int]]]]:
        """The windows of each text of a column."""
        settings = {"truncation": True, "max_length": self.length, "stride": self.overlap}
        encoded = self._tokenise([column], return_overflowing_tokens=True, **settings)
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        windows: list[list[dict[str, list[int]]]] = [[] for _ in column]
        for place, row in enumerate(encoded["overflow_to_sample_mapping"]):
            windows[row].append({name: encoded[name][place] for name in names})
        return windows

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Pad all windows to the longest and stack them.

        Returns:
            The model inputs ``(N, T)`` for N windows: those of the first texts of all rows, then those of the second
            ones. ``meta`` holds ``windows``, how many each text has; ``texts``, how many a row has; ``rows``, where the
            examples have them; and ``attention_mask`` ``(N, T)``, where the model takes none.
        """
        names = [name for name in self.tokenizer.model_input_names if name in examples[0]]
        count = len(examples[0]["input_ids"])
        texts = [{name: example[name][text] for name in names} for text in range(count) for example in examples]
        windows = [
            {name: text[name][place] for name in names} for text in texts for place in range(len(text["input_ids"]))
        ]
        batch = super().collate(windows)
        batch["meta"] |= {"windows": [len(text["input_ids"]) for text in texts], "texts": count}
        if "row" in examples[0]:
            batch["meta"]["rows"] = [example["row"] for example in examples]
        return batch

    def identity(self) -> list[str]:
        """The settings, and the tokenizer."""
        return [repr((self.overlap, self.max_windows)), *super().identity()]
