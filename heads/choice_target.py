"""The label of a row that has several choices: which of them is right."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backbones.errors import HeadsetError
from heads.targets import Target

__all__ = ["ChoiceTarget"]


@dataclass(frozen=True)
class ChoiceTarget(Target):
    """The right one of a row's choices, as int64 ``(B,)``: its number from 0, its letter from A, or its text."""

    def find_labels(self, values: Iterable[Any]) -> None:
        """Choices have no label set: each row has its own."""

    def encode(self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None) -> int:
        """The number of the right choice; ``example`` has the row's ``choices``.

        Raises:
            HeadsetError: The value is no choice of the row, or may mean several.
        """
        choices = (example or {}).get("choices", ())
        meant = _meant(value, choices)
        listed = ", ".join(map(repr, choices))
        if not meant:
            raise HeadsetError(
                f"expected one of {len(choices)} choices, as a number from 0, a letter from A, or its text; got "
                f"{'nothing (null)' if value is None else repr(value)}. Choices: {listed}."
            )
        if len(meant) > 1:
            raise HeadsetError(
                f"{value!r} may mean the choices {' and '.join(map(str, sorted(meant)))} (from 0), as a text, a letter "
                f"or a number. Give the numbers of right choices as numbers, in JSON or Parquet. Choices: {listed}."
            )
        return meant.pop()


def _meant(value: Any, choices: Sequence[str]) -> set[int]:
    """Every choice that a value may mean."""
    meant: set[int] = set()
    if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
        meant = {int(value)}
    elif isinstance(value, str):
        text = value.strip()
        meant = {index for index, choice in enumerate(choices) if choice.strip() == text}
        if re.fullmatch("[A-Z]", text):
            meant.add(ord(text) - ord("A"))
        if re.fullmatch("[0-9]+", text):
            meant.add(int(text))
    return meant & set(range(len(choices)))
