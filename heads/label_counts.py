"""How often each label is in the training data, and the weights that balance labels."""

from collections.abc import Callable
from dataclasses import dataclass

from backbones.errors import HeadsetError

__all__ = ["LabelCounts"]


@dataclass(frozen=True)
class LabelCounts:
    """How often each label of a head is in the rows that it learns from.

    Args:
        labels: The label set.
        counts: The number of rows, or of words, with each label.
        total: The number of rows, or of words.
    """

    labels: tuple[str, ...]
    counts: tuple[int, ...]
    total: int

    def class_weights(self) -> list[float]:
        """``total / (number of labels * count)``, as ``compute_class_weight("balanced")`` of scikit-learn has it.

        Raises:
            HeadsetError: A label is in no row.
        """
        return self._each(lambda count: self.total / (len(self.labels) * count))

    def positive_weights(self) -> list[float]:
        """Rows without a label to rows with it, by which zeros and ones weigh the same.

        Raises:
            HeadsetError: A label is in no row.
        """
        return self._each(lambda count: (self.total - count) / count)

    def _each(self, weight: Callable[[int], float]) -> list[float]:
        lacking = [label for label, count in zip(self.labels, self.counts, strict=True) if not count]
        if lacking:
            raise HeadsetError(
                f"Weights cannot be balanced: no row of the train split has the label {', '.join(map(repr, lacking))}. "
                f"Give the weights: {{{lacking[0]}: 1.0, ...}}, or rows with it."
            )
        return [weight(count) for count in self.counts]
