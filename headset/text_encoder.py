"""From texts to token ids, and from token ids to a padded batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from backbones.errors import HeadsetError
from heads.targets import pad_rows
from headset.checks import check_text
from headset.columns import plain
from headset.encoders import Encoder

__all__ = ["DEFAULT_LENGTH", "TextEncoder"]

DEFAULT_LENGTH = 512
NO_WORD = -1
PADDING = PreTrainedTokenizerBase.pad, PreTrainedTokenizerBase._pad


@dataclass(frozen=True)
class TextEncoder(Encoder):
    """Tokenises texts and pads them into batches, in the same way for training and for prediction.

    Args:
        tokenizer: Any tokenizer of transformers that has a padding token.
        max_length: The most tokens of an input; the rest is cut off. None takes the tokenizer's own limit, at most 512.
        separate: Whether two texts of a row are two inputs, and not one input with both.
        split_words: Whether plain strings are split into words, where there is white space.
        word_ids: Whether to say which word a token is of also in plain strings, whose words the tokenizer knows.

    Raises:
        HeadsetError: ``max_length`` is more than the tokenizer allows, or leaves no place for a text.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    separate: bool = False
    split_words: bool = False
    word_ids: bool = False

    samples: ClassVar[Sequence[Any]] = (
        "A short text.",
        "Another one, which is a little longer than the first, and has 2 numbers: 3.",
        "?",
    )

    def __post_init__(self) -> None:
        """Check the length."""
        limit = self.tokenizer.model_max_length
        special = self.tokenizer.num_special_tokens_to_add()
        if self.max_length is not None and not special < self.max_length <= limit:
            most = f"at most {limit}, the limit of this tokenizer" if limit < 10**9 else "no upper limit here"
            raise HeadsetError(
                f"Invalid max_length: {self.max_length}. Give a number of tokens of at least {special + 1} "
                f"({special} of them are special tokens), {most}."
            )

    @property
    def padding_side(self) -> str:
        """The side on which the tokenizer pads."""
        side: str = self.tokenizer.padding_side
        return side

    @property
    def length(self) -> int:
        """The most tokens of an input."""
        return self.max_length or min(self.tokenizer.model_max_length, DEFAULT_LENGTH)

    def columns(self, inputs: Sequence[Any]) -> list[Sequence[Any]]:
        """Texts, pairs of texts (tuples), or texts split into words (lists), as one column or several.

        Raises:
            HeadsetError: They are none of these, or not all of one kind.
        """
        kinds = {type(text) for text in inputs}
        lengths = {len(text) for text in inputs if isinstance(text, tuple)}
        known = lengths <= {2} or (self.separate and lengths == {3})
        if len(kinds) > 1 or not kinds <= {str, tuple, list} or not known:
            raise HeadsetError(
                "predict takes texts (strings), or pairs of texts (tuples of two), or texts split into words (lists), "
                f"all of one kind; got {', '.join(sorted(kind.__name__ for kind in kinds))}."
            )
        return list(zip(*inputs, strict=True)) if kinds == {tuple} else [inputs]

    def check(self, row: int, column: str, value: Any) -> None:
        """Check that a text is a string, or a list of words, and not blank."""
        check_text(row, column, value)

    def encode(self, columns: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
        """Tokenise B rows.

        Args:
            columns: One or two lists of B texts, or with ``separate`` more; a text is a string, or a list of the words
                that it is split into.

        Returns:
            What the tokenizer gives, a list of B items each, without ``attention_mask``: no token is padding yet.
            ``truncated``, whether a row was cut. For texts that are split into words also ``words``, how many there are
            in the first text, and ``word_ids``: each token's word, None for special tokens and for a second text in the
            same input. In plain strings the second text's words are numbered from 0 too. With ``separate`` and several
            columns each item is a list with one for each.

        Raises:
            HeadsetError: Words matter, and the tokenizer cannot tell which token is of which word.
        """
        if self.split_words:
            columns = [[text.split() if isinstance(text, str) else text for text in column] for column in columns]
        if not self.separate or len(columns) == 1:
            return self._encode(columns)
        parts = [self._encode([column]) for column in columns]
        rows = {key: [list(row) for row in zip(*(part[key] for part in parts), strict=True)] for key in parts[0]}
        return rows | {"truncated": [any(row) for row in rows["truncated"]]}

    def _encode(self, columns: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
        encoded = self._tokenise(columns, truncation=True, max_length=self.length)
        outputs: dict[str, list[Any]] = dict(encoded.data)
        if encoded.encodings is None:
            full = self._tokenise(columns)["input_ids"]
            outputs["truncated"] = [len(ids) > self.length for ids in full]
        else:
            outputs["truncated"] = [bool(encoding.overflowing) for encoding in encoded.encodings]
        if _are_words(columns):
            outputs["words"] = [len(text) for text in columns[0]]
        if _are_words(columns) or self.word_ids:
            outputs["word_ids"] = self._words(columns, encoded)
        return outputs

    def _tokenise(self, columns: Sequence[Sequence[Any]], **settings: Any) -> BatchEncoding:
        """Call the tokenizer."""
        words = _are_words(columns)
        if (words or self.word_ids) and not self.tokenizer.is_fast:
            raise HeadsetError(
                f"Words matter here, and {type(self.tokenizer).__name__} cannot tell which token belongs to which "
                "word. Use a model whose tokenizer has a tokenizer.json."
            )
        if self.word_ids and not words and self.tokenizer.backend_tokenizer.pre_tokenizer is None:
            raise HeadsetError(
                f"Words matter here, and {type(self.tokenizer).__name__} takes a text for one word. Give lists."
            )
        texts = [list(column) for column in columns]
        settings |= {"is_split_into_words": words, "padding": False, "return_attention_mask": False, "verbose": False}
        encoded: BatchEncoding = self.tokenizer(*texts, **settings)
        return encoded

    def _words(self, columns: Sequence[Sequence[Any]], encoded: BatchEncoding) -> list[list[int | None]]:
        """The word of each token, None for none."""
        encodings = encoded.encodings or []
        if not _are_words(columns):
            return [list(encoding.word_ids) for encoding in encodings]
        return [
            [word if text == 0 else None for word, text in zip(e.word_ids, e.sequence_ids, strict=True)]
            for e in encodings
        ]

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Pad rows to the longest and stack them.

        Args:
            examples: Rows as ``encode`` gives them; their ``row`` is their number in the table.

        Returns:
            The model inputs ``(B, T)``, or ``(2B, T)`` for separate texts: the first texts of all rows, then the second
            ones. ``meta`` holds ``texts``, how many a row has; ``rows``, where the examples have them; where texts are
            split into words ``words``, the number of them in each input, also of those cut off; where words matter
            ``word_ids`` ``(B, T)``, with -1 at special tokens and padding; and ``attention_mask`` ``(B, T)``, where the
            model takes none.
        """
        first = examples[0]["input_ids"]
        texts = len(first) if isinstance(first, list) and first and not isinstance(first[0], int) else 1
        inputs = [_one_text(example, text) for text in range(texts) for example in examples] if texts > 1 else examples
        names = [name for name in self.tokenizer.model_input_names if name in inputs[0]]
        batch = self._padded({name: [row[name] for row in inputs] for name in names})
        meta: dict[str, Any] = {"texts": texts}
        if "row" in examples[0]:
            meta["rows"] = [example["row"] for example in examples]
        length, side = batch["input_ids"].shape[1], self.tokenizer.padding_side
        if "attention_mask" not in batch:
            kept = batch if "attention_mask" in self.tokenizer.model_input_names else meta
            kept["attention_mask"] = _mask([len(row["input_ids"]) for row in inputs], length, side)
        if "words" in inputs[0]:
            meta["words"] = [int(row["words"]) for row in inputs]
        if "word_ids" in inputs[0]:
            words = (row["word_ids"] for row in inputs)
            known = (
                ids if isinstance(ids, np.ndarray) else [NO_WORD if it is None else it for it in ids] for ids in words
            )
            meta["word_ids"] = pad_rows(known, NO_WORD, length, side)
        return {**batch, "meta": meta}

    def _padded(self, columns: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        """What ``tokenizer.pad`` gives, without its detours."""
        tokenizer = self.tokenizer
        fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        own = type(tokenizer).pad, type(tokenizer)._pad
        if own != PADDING or not columns.keys() <= fill.keys() or tokenizer.pad_token_id is None:
            return dict(tokenizer.pad({name: plain(rows) for name, rows in columns.items()}, return_tensors="pt"))
        length = max(map(len, columns["input_ids"]))
        side = tokenizer.padding_side
        return {name: pad_rows(rows, fill[name], length, side) for name, rows in columns.items()}

    def identity(self) -> list[str]:
        """The settings, and the tokenizer."""
        settings = (self.length, self.separate, self.split_words, self.word_ids)
        return [repr(settings), *_tokenizer_identity(self.tokenizer)]


def _are_words(columns: Sequence[Sequence[Any]]) -> bool:
    """Whether the texts are split into words."""
    return bool(columns[0]) and isinstance(columns[0][0], list)


def _mask(lengths: list[int], length: int, padding_side: str) -> Tensor:
    """Which tokens of padded rows are real: int64 ``(B, length)``."""
    places = np.arange(length) if padding_side == "right" else np.arange(length)[::-1]
    return torch.from_numpy((places < np.array(lengths)[:, None]).astype(np.int64))


def _one_text(example: Mapping[str, Any], text: int) -> dict[str, Any]:
    """One of the two texts of a row, as a row of its own."""
    return {key: value[text] for key, value in example.items() if isinstance(value, list | np.ndarray)}


def _tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokenizer, without what each call changes in it (truncation, padding) and where it was loaded from."""
    settings = (
        type(tokenizer).__qualname__,
        tokenizer.truncation_side,
        tokenizer.model_input_names,
    )
    if tokenizer.is_fast:
        text = tokenizer.backend_tokenizer.to_str()
        return [repr(settings), text[text.index('"added_tokens"') :]]  # before it stand truncation and padding
    options = {key: value for key, value in tokenizer.init_kwargs.items() if key not in ("name_or_path", "vocab_file")}
    return [repr(settings), repr(sorted(tokenizer.get_vocab().items())), repr(sorted(options.items()))]
