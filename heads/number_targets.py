"""Targets without a label set: numbers, and pairs of texts with or without a number."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from backbones.errors import HeadsetError
from heads.target import Target, number_in, shown

__all__ = ["NumberTarget", "PairTarget"]


@dataclass(frozen=True)
class NumberTarget(Target):
    """One number a row, float32 ``(B,)``, or a list of ``size`` numbers, float32 ``(B, size)``."""

    size: int = 1

    def find_labels(self, values: Iterable[Any]) -> None:
        """Numbers have no label set."""

    def encode(
        self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None
    ) -> float | list[float]:
        """The number, or the list of numbers.

        Raises:
            HeadsetError: A value is not a finite number, or there are not ``size`` of them.
        """
        if self.size == 1 and not isinstance(value, list):
            return number_in(value)
        if not isinstance(value, list) or len(value) != self.size:
            raise HeadsetError(f"expected {self.size} number{'s' * (self.size > 1)}, got {shown(value)}.")
        numbers = [number_in(item) for item in value]
        return numbers if self.size > 1 else numbers[0]

    def join(self, values: Mapping[str, Any]) -> list[Any]:
        """The values in the order of the columns."""
        return list(values.values())


@dataclass(frozen=True)
class PairTarget(Target):
    """Two texts that belong together, with how similar they are as float32 ``(B,)`` or with no label at all.

    Args:
        scored: Whether a column holds the similarity of the two texts.
    """

    scored: bool

    @property
    def column_needed(self) -> bool:
        """Only scores stand in a column."""
        return self.scored

    def find_labels(self, values: Iterable[Any]) -> None:
        """Pairs have no label set."""

    def encode(self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None) -> float:
        """The similarity.

        Raises:
            HeadsetError: The value is not a finite number.
        """
        return number_in(value)
