"""Checks of tables and their rows before anything is trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from backbones.errors import HeadsetError, did_you_mean
from heads.base import Head
from heads.targets import PairTarget

__all__ = ["RowError", "check_columns", "check_lengths", "check_pairs", "check_text", "reads_separately"]


class RowError(HeadsetError):
    """A fault in one row, counted from 0; whoever knows the file says where that is."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(row, message)
        self.row = row
        self.message = message


def check_text(row: int, column: str, text: Any) -> None:
    """Check that a text is a string, or a list of words, and not blank.

    Raises:
        RowError: It is not.
    """
    wrong = ""
    if text is None:
        wrong = "the text is missing (null)."
    elif isinstance(text, str):
        wrong = "" if text.strip() else "the text is blank."
    elif not isinstance(text, list):
        wrong = f"expected a text or a list of words, got {text!r}."
    elif not text:
        wrong = "the list of words is empty."
    else:
        odd = [word for word in text if not isinstance(word, str) or not word.strip()]
        wrong = f"expected words, got {odd[0]!r} among them." if odd else ""
    if wrong:
        raise RowError(row, f"column {column!r}: {wrong}")


def check_lengths(words: Sequence[Any], tags: Sequence[Any], column: str) -> None:
    """Check that there is one tag for each word.

    Raises:
        HeadsetError: There is not.
    """
    if len(words) != len(tags):
        raise HeadsetError(f"{len(tags)} labels for the {len(words)} words in column {column!r}.")


def check_columns(rows: Dataset, columns: Sequence[str], place: str) -> None:
    """Check that a table has the columns.

    Raises:
        HeadsetError: It lacks some.
    """
    for column in columns:
        if column not in rows.column_names:
            raise HeadsetError(
                f"{place}: there is no column {column!r}.{did_you_mean(column, rows.column_names)} "
                f"Columns: {', '.join(map(repr, rows.column_names))}. Name others with data.text and data.labels."
            )


def reads_separately(heads: Mapping[str, Head], text: Sequence[str]) -> bool:
    """Whether two texts of a row are two inputs; the heads have to agree.

    Raises:
        HeadsetError: They do not, or there are more than two columns.
    """
    if not 1 <= len(text) <= 2:
        raise HeadsetError(f"data.text names {len(text)} columns. Give one, or two for pairs of texts.")
    joint = [name for name, head in heads.items() if head.texts == "joint"]
    separate = [name for name in heads if name not in joint]
    if len(text) == 2 and joint and separate:
        raise HeadsetError(
            f"Two texts of a row are one input for some heads ({', '.join(joint)}) and two inputs for others "
            f"({', '.join(separate)}). Train them in different runs."
        )
    return bool(separate) and len(text) == 2


def check_pairs(heads: Mapping[str, Head], text: Sequence[str]) -> None:
    """Check that heads that learn from pairs get two texts.

    Raises:
        HeadsetError: They get one.
    """
    for name, head in heads.items():
        if isinstance(head.target(), PairTarget) and len(text) == 1:
            raise HeadsetError(
                f"The head {name!r} learns from pairs of texts, and data.text names one column. Name two: "
                f"[{text[0]}, OTHER]."
            )
