"""Encoders: from what the rows of a table hold to model inputs, in the same way for training and for prediction."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from backbones.errors import HeadsetError
from heads.base import Head

__all__ = ["ONE_TEXT", "RAW", "Encoder", "reading"]

APART = "Give each a source of its own (data.sources), predict with one (--heads), or train them in different runs."
ONE_TEXT = {"pair": "text", "documents": "document"}  # what reads a row of one text as if it read one
RAW = "raw"  # the name of the inputs of a lazy encoder


class Encoder(ABC):
    """Makes model inputs of what heads read: of texts, of questions, of images.

    Encoders are small frozen dataclasses: they are pickled to worker processes.
    """

    # Whether inputs are made when a batch is, from the columns as they are, because they are too large to keep: pixels.
    lazy: ClassVar[bool] = False
    # Where a row may become several examples, the parts of a long one: of ``train``, ``validation``, ``test``.
    splits: ClassVar[tuple[str, ...]] = ()
    # What `Headset.sample` encodes.
    samples: ClassVar[Sequence[Any]] = ()

    @property
    def length(self) -> int:
        """The most tokens of an input; 0 where inputs are no tokens."""
        return 0

    @property
    def limit(self) -> str:
        """Where longer inputs are cut, in words."""
        return f"{self.length} tokens"

    @property
    def padding_side(self) -> str:
        """The side on which tokens are padded."""
        return "right"

    @property
    def stock(self) -> "Encoder":
        """What makes the inputs of the exported model: itself for most."""
        return self

    @abstractmethod
    def columns(self, inputs: Sequence[Any]) -> list[Sequence[Any]]:
        """What a user gives to ``predict``, as columns of a table.

        Raises:
            HeadsetError: It is nothing that this encoder reads.
        """

    @abstractmethod
    def check(self, row: int, column: str, value: Any) -> None:
        """Check the value of one row in one column.

        Raises:
            RowError: It is missing, or nothing that this encoder reads.
        """

    @abstractmethod
    def encode(self, columns: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
        """Encode B rows.

        Args:
            columns: The columns that are read, each a list of B values.

        Returns:
            Lists of B items, by name.

        Raises:
            RowError: A row cannot be encoded; it is counted in ``columns``.
        """

    def parts(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The examples of a split in ``splits``: what ``encode`` gave, with ``row`` and labels, taken apart."""
        return examples

    @abstractmethod
    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch of rows as ``encode`` gives them; ``meta`` holds what is not for the model, such as ``rows``."""

    @abstractmethod
    def identity(self) -> list[str]:
        """What the encoded rows depend on beside the rows, as a key for the cache."""


def reading(heads: Mapping[str, Head], columns: Sequence[str] = ()) -> str:
    """What the heads of a source read a row as; they have to agree.

    With one column of texts, ``pair`` is ``text``, and ``documents`` are ``document``.

    Raises:
        HeadsetError: They do not agree.
    """
    groups: dict[str, list[str]] = {}
    for name, head in heads.items():
        reads = ONE_TEXT.get(head.reads, head.reads) if len(columns) < 2 else head.reads
        groups.setdefault(reads, []).append(name)
    if groups.keys() == {"text", "pair"}:
        raise HeadsetError(
            f"Two texts of a row are one input for some heads ({', '.join(groups['text'])}) and two inputs for others "
            f"({', '.join(groups['pair'])}). {APART}"
        )
    if len(groups) > 1:
        told = "; ".join(f"{', '.join(names)} as {reads}" for reads, names in groups.items())
        raise HeadsetError(f"The heads read a row in different ways: {told}. {APART}")
    return next(iter(groups))
