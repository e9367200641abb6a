"""Checks of tables and their rows before anything is trained."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from datasets import Dataset, Features, LargeList, List, Value

from backbones.errors import HeadsetError, did_you_mean
from heads.base import Head
from heads.targets import PairTarget

__all__ = [
    "RowError",
    "check_choice_columns",
    "check_choices",
    "check_columns",
    "check_lengths",
    "check_pairs",
    "check_settings",
    "check_text",
    "check_text_columns",
    "check_words",
    "is_text",
    "needs_words",
]

LEAST = {
    "stride": 0,
    "max_windows": 1,
    "batch_size": 1,
    "batch_tokens": 1,
    "eval_batch_size": 1,
    "num_workers": 0,
    "num_proc": 1,
    "seed": 0,
}
PAIRS = ("pair", "documents")
MOST = {"seed": 2**32 - 1}  # what numpy and Lightning take


class RowError(HeadsetError):
    """A fault in one row, counted from 0; whoever knows the file says where that is."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(row, message)
        self.row = row
        self.message = message


def check_settings(settings: Mapping[str, Any], place: str = "data") -> None:
    """Check what can be checked of the arguments of ``TextData`` without data.

    Args:
        settings: The arguments.
        place: What the settings are of, for messages.

    Raises:
        HeadsetError: A number is out of range, or a list of columns is empty or has a name twice.
    """
    share = settings["validation"]
    if isinstance(share, int | float) and not 0 < share < 1:
        raise HeadsetError(f"Invalid validation: {share!r}. Give a share between 0 and 1, or where the rows are.")
    for name, least in LEAST.items():
        value, most = settings[name], MOST.get(name)
        if value is None:
            continue
        if not isinstance(value, Integral) or int(value) < least or (most is not None and int(value) > most):
            limits = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise HeadsetError(f"Invalid {place}.{name}: {value!r}. Give a whole number {limits}.")
    _check_names(f"{place}.choices", settings["choices"])
    labels = settings["labels"]
    for columns in labels.values() if isinstance(labels, dict) else (labels,):
        _check_names(f"{place}.labels", columns)
    _check_names(f"{place}.conll_columns", settings["conll_columns"])


def _check_names(setting: str, names: Any) -> None:
    if not isinstance(names, list | tuple):
        return
    if not names:
        raise HeadsetError(f"{setting} is an empty list. Name at least one column.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise HeadsetError(f"{setting} names {', '.join(map(repr, twice))} more than once: {list(names)}.")


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
                f"Columns: {', '.join(map(repr, rows.column_names))}. "
                "Name others with data.text, data.choices, data.image or data.audio, and with data.labels."
            )


def check_text_columns(text: Sequence[str], reads: str) -> None:
    """Check the number of columns with texts.

    Raises:
        HeadsetError: There is none, or there are too many, or not the two that a question is.
    """
    if reads == "question" and len(text) != 2:
        raise HeadsetError(
            f"The heads read a question and its context, and data.text is {' '.join(text)}. Name both columns: "
            "data.text: [question, context]."
        )
    if reads == "document" and len(text) != 1:
        raise HeadsetError(
            f"The heads read a text in windows, and data.text names {len(text)} columns. Give one, or leave out "
            "windows on the head, which makes one input of two texts."
        )
    if not 1 <= len(text) <= (3 if reads in PAIRS else 2):
        more = "; or three, of which the last does not belong to the first" if reads in PAIRS else ""
        raise HeadsetError(f"data.text names {len(text)} columns. Give one, or two for pairs of texts{more}.")


def check_choices(heads: Sequence[str], reads: str, choices: Sequence[str], text: Sequence[str]) -> None:
    """Check that columns with choices are named where heads choose, and only there.

    Raises:
        HeadsetError: It is not so.
    """
    if reads == "candidates":
        if bool(choices) == (len(text) == 2):
            raise HeadsetError(
                f"{', '.join(heads)}: each row has a query and documents. Name the query with data.text and the column "
                "with lists of documents with data.choices; or, for rows with one document each, both columns with "
                "data.text: [query, document]."
            )
        return
    if reads == "choices" and not choices:
        raise HeadsetError(
            f"{', '.join(heads)}: each row has several choices. Name the column that holds lists of them, or several "
            "columns: data.choices: [ending0, ending1, ...]"
        )
    if choices and reads != "choices":
        raise HeadsetError(f"data.choices is for heads that choose; {', '.join(heads)} does not. Take it out.")


def check_choice_columns(text: Sequence[str], choices: Sequence[str], features: Features, place: str) -> None:
    """Check that columns hold what choices are made of: one column lists of strings, several plain strings.

    Raises:
        HeadsetError: They hold something else.
    """
    lists, plain = (choices, text) if len(choices) == 1 else ((), (*text, *choices))
    for column in lists:
        feature = features[column]
        if not (isinstance(feature, List | LargeList) and is_text(feature.feature)):
            raise HeadsetError(
                f"{place}: column {column!r} has to hold lists of strings, the choices of a row; it holds {feature!r}. "
                "Name a column with lists, or one for each choice."
            )
    for column in plain:
        if not is_text(features[column]):
            raise HeadsetError(f"{place}: column {column!r} has to hold plain strings; it holds {features[column]!r}.")


def is_text(feature: Any) -> bool:
    """Whether a column holds plain strings, and not lists of words."""
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def needs_words(head: Head) -> bool:
    """Whether a head has labels of words."""
    target = head.target()
    return target is not None and (target.per_word or target.by_words)


def check_words(heads: Mapping[str, Head], text: Sequence[str], features: Features, place: str) -> None:
    """Check that heads with labels of words get words.

    Raises:
        HeadsetError: They get plain strings.
    """
    for head in heads.values():
        if needs_words(head) and is_text(features[text[0]]):
            raise HeadsetError(
                f"{place}: column {text[0]!r} holds plain strings; {type(head).__name__} needs words: lists of strings."
            )


def check_pairs(heads: Mapping[str, Head], text: Sequence[str], batch_sizes: Mapping[str, int]) -> None:
    """Check that heads that learn from pairs get two texts, and those that have no scores several rows at a time.

    Args:
        heads: The heads by name.
        text: The columns with texts.
        batch_sizes: The rows of a batch, by the name of the setting.

    Raises:
        HeadsetError: They do not.
    """
    for name, head in heads.items():
        target = head.target()
        if not isinstance(target, PairTarget):
            continue
        for setting, size in batch_sizes.items():
            if not target.scored and size < 2:
                raise HeadsetError(
                    f"The head {name!r} learns from in-batch negatives, which need a {setting} of at least 2; "
                    f"data.{setting} is {size}."
                )
        if target.scored and len(text) > 2:
            raise HeadsetError(f"The head {name!r} learns scores of pairs, and data.text names {len(text)} columns.")
        if len(text) == 1:
            raise HeadsetError(
                f"The head {name!r} learns from pairs of texts, and data.text names one column. Name two: "
                f"[{text[0]}, OTHER]."
            )
