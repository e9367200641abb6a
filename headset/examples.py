"""From the rows of a table to tokenised examples with encoded labels, each row checked on the way."""

import inspect
import json
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import datasets
import transformers
from datasets import Dataset, Features
from transformers import PreTrainedTokenizerBase

from backbones.errors import HeadsetError
from headset.batches import LABEL, TextEncoder
from headset.checks import RowError, check_lengths, check_text, is_text
from headset.labels import LabelColumn
from headset.readers import cache_file, cached

__all__ = ["ExampleMaker", "make_examples"]

QUIET_ROWS = 20_000  # fewer rows take no time worth a progress bar


@dataclass(frozen=True)
class ExampleMaker:
    """What ``Dataset.map`` calls: rows in, examples out.

    Args:
        encoder: Makes tokens of texts.
        text: The column with the texts, or the two columns.
        labels: For each head that needs labels, where they are; empty for prediction.
        features: The columns of the table.
        split_words: Whether plain strings are split into words, where there is white space.
    """

    encoder: TextEncoder
    text: tuple[str, ...]
    labels: Mapping[str, LabelColumn]
    features: Features
    split_words: bool = False

    @property
    def columns(self) -> list[str]:
        """Every column that is read."""
        return list(dict.fromkeys([*self.text, *(name for label in self.labels.values() for name in label.names)]))

    def __call__(self, rows: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """Check and tokenise some rows.

        Raises:
            RowError: A text or a label is missing or wrong.
        """
        for column in self.text:
            for row, text in zip(indices, rows[column], strict=True):
                check_text(row, column, text)
        examples = self.encoder.encode([self._words(column, rows[column]) for column in self.text])
        examples["row"] = indices
        for head, label in self.labels.items():
            words = rows[self.text[0]] if label.target.per_word else None
            examples[LABEL + head] = list(self._encoded(label, rows, indices, words, examples.get("word_ids")))
        return examples

    def _words(self, column: str, texts: list[Any]) -> list[Any]:
        return [text.split() for text in texts] if self.split_words and is_text(self.features[column]) else texts

    def _encoded(
        self,
        label: LabelColumn,
        rows: Mapping[str, list[Any]],
        indices: list[int],
        words: list[Any] | None,
        word_ids: list[Any] | None,
    ) -> Iterator[Any]:
        values = label.values(rows, self.features)
        for position, row in enumerate(indices):
            try:
                value = next(values)
                if words is not None and isinstance(value, list) and isinstance(words[position], list):
                    check_lengths(words[position], value, self.text[0])
                yield label.target.encode(value, label.labels, word_ids[position] if word_ids else None)
            except HeadsetError as error:
                origin = "" if label.labels is None else f" The label set comes from {label.origin}"
                raise RowError(row, f"{label}: {error}{origin}") from error


def make_examples(rows: Dataset, maker: ExampleMaker, num_proc: int | None) -> Dataset:
    """Tokenise a table, or take the result from the cache of ``datasets``.

    Args:
        rows: The table.
        maker: What makes examples of rows; together with the rows it is the key in the cache.
        num_proc: The number of processes; None is this one alone.

    Raises:
        RowError: A row is at fault.
    """
    target = cache_file([rows._fingerprint, *_identity(maker)])
    for part in target.parent.glob(f"{target.stem}*.arrow"):
        if cached(part) is None:
            part.unlink()
    with _quiet(len(rows) < QUIET_ROWS):
        return rows.select_columns(maker.columns).map(
            maker,
            with_indices=True,
            batched=True,
            remove_columns=maker.columns,
            num_proc=num_proc,
            cache_file_name=str(target),
            new_fingerprint=target.stem,
            load_from_cache_file=True,
            desc="Tokenising",
        )


def _identity(maker: ExampleMaker) -> list[str]:
    """Whatever the examples depend on beside the rows: settings, tokenizer, and the code that makes them."""
    modules = {
        type(thing).__module__ for thing in (maker, maker.encoder, *(label.target for label in maker.labels.values()))
    }
    return [
        repr((maker.encoder.length, maker.encoder.separate, maker.text, sorted(maker.labels.items()))),
        repr((maker.features, maker.split_words)),
        *_tokenizer_identity(maker.encoder.tokenizer),
        *map(_code, sorted(modules)),
    ]


def _tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokenizer, without what each call changes in it (truncation, padding) and where it was loaded from."""
    settings = (
        type(tokenizer).__qualname__,
        tokenizer.truncation_side,
        tokenizer.model_input_names,
        transformers.__version__,
    )
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        return [repr(settings), json.dumps(backend | {"truncation": None, "padding": None})]
    options = {key: value for key, value in tokenizer.init_kwargs.items() if key not in ("name_or_path", "vocab_file")}
    return [repr(settings), repr(sorted(tokenizer.get_vocab().items())), repr(sorted(options.items()))]


def _code(module: str) -> str:
    """The source of a module, so that changed code makes examples anew; where it has none, they always are."""
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError):
        return uuid.uuid4().hex


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """Without the progress bars of ``datasets``."""
    change = wanted and not datasets.are_progress_bars_disabled()
    if change:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if change:
            datasets.enable_progress_bars()
