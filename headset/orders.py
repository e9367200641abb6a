"""How the rows of a source become batches: as they come or at random, sorted in windows, or by the number of tokens."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from backbones.errors import HeadsetError

__all__ = ["Filler", "Order", "RowOrder", "TokenOrder", "WindowOrder"]

WINDOW = 2048  # rows that are sorted at a time
WIDTH = 0.9  # the shortest rows that are shuffled with others, as a share of the longest

Measure = Callable[[int, int], tuple[np.ndarray, np.ndarray]]  # as `Sizes`


class Filler(list[int]):
    """The row of a process for which none is left in a batch: one of another process, which counts for nothing."""


class Order(ABC):
    """The batches of one source. W processes share each, as large as W of one process."""

    rows: int

    @abstractmethod
    def count(self, world: int) -> int:
        """The number of batches, the same in every epoch and process."""

    @abstractmethod
    def batches(self, world: int, rank: int, generator: torch.Generator | None = None) -> Iterator[list[int]]:
        """The rows of each batch for one process; in an order drawn from the generator, where there is one."""


@dataclass(frozen=True)
class RowOrder(Order):
    """Batches of so many rows, at random or as they come.

    Args:
        rows: The number of all rows.
        size: The rows of a batch, in each process.
    """

    rows: int
    size: int

    def count(self, world: int) -> int:
        """The number of batches."""
        return -(-self.rows // (self.size * world))

    def batches(self, world: int, rank: int, generator: torch.Generator | None = None) -> Iterator[list[int]]:
        """Rows as they come, or all of them at random."""
        order = None if generator is None else torch.randperm(self.rows, generator=generator).numpy()
        size = self.size * world
        for start in range(0, self.rows, size):
            rows = np.arange(start, min(start + size, self.rows))
            yield _dealt(rows if order is None else order[rows], world, rank)


@dataclass(frozen=True)
class WindowOrder(Order):
    """Batches of so many rows, of which each window is sorted by length, the longest first, so that little is padded.

    Args:
        rows: The number of all rows.
        size: The rows of a batch, in each process.
        measure: Gives the lengths; without it rows stay in order, and each batch is a window.
    """

    rows: int
    size: int
    measure: Measure | None = None

    def count(self, world: int) -> int:
        """The number of batches, as many as there would be in order."""
        return RowOrder(self.rows, self.size).count(world)

    def per_window(self, world: int) -> int:
        """The batches of a window: whole ones."""
        return 1 if self.measure is None else max(1, WINDOW // (self.size * world))

    def ends(self, world: int) -> list[int]:
        """Up to which row each window goes."""
        span = self.per_window(world) * self.size * world
        windows = -(-self.count(world) // self.per_window(world))
        return [*range(span, windows * span, span), self.rows]

    def batches(self, world: int, rank: int, generator: torch.Generator | None = None) -> Iterator[list[int]]:
        """Rows window by window; what is drawn does not matter."""
        start, size = 0, self.size * world
        for end in self.ends(world):
            rows = np.arange(start, end)
            if self.measure is not None:
                tokens, inputs = self.measure(start, end)
                rows = rows[np.lexsort((-inputs, -tokens))]
            for first in range(0, len(rows), size):
                yield _dealt(rows[first : first + size], world, rank)
            start = end


@dataclass(frozen=True)
class TokenOrder(Order):
    """Batches of at most so many tokens, counted with padding, of rows of similar length.

    All rows are sorted by length, rows of one length at random. Those within a tenth of the longest are a group: a
    whole number of batches, but for the last one. Each group is shuffled, and then all batches are. Where groups and
    batches begin follows from the lengths alone, so all epochs have as many batches, which schedules and resumed runs
    count on.

    Args:
        rows: The number of all rows.
        tokens: The most tokens of a batch in a process. Of a batch for W processes, of at most W times as many, each
            has rows by turns from the longest on: up to one row more than another.
        measure: Gives the lengths.
        source: The name of the source, for messages.
    """

    rows: int
    tokens: int
    measure: Measure
    source: str = ""
    _cuts: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict, compare=False, repr=False)

    def count(self, world: int) -> int:
        """The number of batches.

        Raises:
            HeadsetError: A row alone has more tokens.
        """
        return len(self._cut(world)[1])

    def batches(self, world: int, rank: int, generator: torch.Generator | None = None) -> Iterator[list[int]]:
        """Batches at random; without a generator from the longest rows to the shortest."""
        groups, starts = self._cut(world)
        key = self._key(*self.measure(0, self.rows))
        drawn = np.arange(self.rows) if generator is None else _drawn(self.rows, generator)
        order = drawn[np.argsort(-key[drawn], kind="stable")]
        if generator is not None:
            for start, end in pairwise([*groups, self.rows]):
                order[start:end] = order[start:end][_drawn(end - start, generator)]
        ends = [*starts[1:], self.rows]
        for batch in range(len(starts)) if generator is None else _drawn(len(starts), generator).tolist():
            rows = order[starts[batch] : ends[batch]]
            yield _dealt(rows[np.argsort(-key[rows], kind="stable")], world, rank)

    def _cut(self, world: int) -> tuple[list[int], list[int]]:
        """Where among the rows from the longest on groups begin, and where batches do."""
        if world not in self._cuts:
            tokens, inputs = self.measure(0, self.rows)
            self._check(tokens, inputs)
            order = np.argsort(-self._key(tokens, inputs), kind="stable")
            groups = list(_groups(tokens[order], inputs[order], self.tokens * world))
            starts = [start for group, end, size in groups for start in range(group, end, size)]
            self._cuts[world] = [group for group, *_ in groups], starts
        return self._cuts[world]

    @staticmethod
    def _key(tokens: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """What rows are sorted by: tokens, and then inputs."""
        key: np.ndarray = tokens.astype(np.int64) * (int(inputs.max()) + 1) + inputs
        return key

    def _check(self, tokens: np.ndarray, inputs: np.ndarray) -> None:
        most = tokens.astype(np.int64) * inputs
        row = int(most.argmax())
        if most[row] > self.tokens:
            setting = f"data.sources.{self.source}" if self.source else "data"
            several = f", {inputs[row]} inputs of up to {tokens[row]}" if inputs[row] > 1 else ""
            raise HeadsetError(
                f"{setting}.batch_tokens is {self.tokens}, and one row alone has {most[row]} tokens{several}. Set it "
                f"to at least {most[row]}, or cut inputs earlier: {setting}.max_length."
            )


def _dealt(rows: np.ndarray, world: int, rank: int) -> list[int]:
    """The rows of one process."""
    return rows[rank::world].tolist() or Filler([int(rows[0])])


def _drawn(count: int, generator: torch.Generator) -> np.ndarray:
    order: np.ndarray = torch.randperm(count, generator=generator).numpy()
    return order


def _groups(tokens: np.ndarray, inputs: np.ndarray, most: int) -> Iterator[tuple[int, int, int]]:
    """Groups of rows from the longest on: where each begins and ends, and the rows of its batches."""
    start, rows = 0, len(tokens)
    while start < rows:
        longest = int(tokens[start])
        widest = np.maximum.accumulate(inputs[start : start + most // longest]).astype(np.int64)
        size = int(np.count_nonzero(widest * np.arange(1, len(widest) + 1) * longest <= most))
        end = int(np.searchsorted(-tokens, -WIDTH * longest, side="right"))
        other = (inputs[start:end] > widest[min(size, len(widest)) - 1]) | (inputs[start:end] < WIDTH * inputs[start])
        alike = int(other.argmax()) if other.any() else end - start
        stop = min(rows, start + max(1, alike // size) * size)
        yield start, stop, size
        start = stop
