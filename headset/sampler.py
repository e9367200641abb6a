"""Which rows of which source make up a batch, in one process or several."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, repeat
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DistributedSampler, SequentialSampler

from backbones.errors import HeadsetError, invalid_choice
from headset.orders import Order

__all__ = ["Sampling", "SourceBatches", "check_sampling", "source_shares"]

Sampling = float | dict[str, float] | str
Batch = tuple[str, list[int]]

NAMES = ("size", "all")


def check_sampling(sampling: Sampling, sources: Sequence[str]) -> None:
    """Check how sources are chosen.

    Raises:
        HeadsetError: It is neither a temperature of at least 1, nor a weight for each source, nor a known name.
    """
    if isinstance(sampling, str):
        if sampling not in NAMES:
            raise invalid_choice("value of data.sampling", sampling, [*NAMES, "a temperature", "{SOURCE: WEIGHT}"])
    elif isinstance(sampling, Mapping):
        for name in [*sampling, *sources]:
            if name not in sources:
                raise invalid_choice("source in data.sampling", name, sources)
            if not (_is_number(sampling.get(name)) and 0 < sampling[name] < float("inf")):
                told = repr(sampling[name]) if name in sampling else "no weight"
                raise HeadsetError(f"data.sampling has {told} for the source {name!r}. Give a number above 0.")
    elif not (_is_number(sampling) and 1 <= sampling < float("inf")):
        raise HeadsetError(f"Invalid data.sampling: {sampling!r}. Give a temperature of at least 1.")


def source_shares(sizes: Mapping[str, int], sampling: Sampling) -> dict[str, float]:
    """How probable each source is in a step, where sources are drawn by temperature or by weights.

    With a temperature T a source of n rows has a share proportional to n^(1/T): 1 keeps to the sizes, a large one makes
    all sources alike (Devlin et al., multilingual BERT; Arivazhagan et al. 2019, https://arxiv.org/abs/1907.05019).
    """
    weights = {
        name: sampling[name] if isinstance(sampling, Mapping) else size ** (1 / float(sampling))
        for name, size in sizes.items()
    }
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


# Lightning leaves a DistributedSampler alone under DDP and a SequentialSampler alone under overfit_batches; it would
# put a sampler of single rows in the place of any other.
class SourceBatches(DistributedSampler[Any], SequentialSampler):
    """The batches of each step: the name of a source and numbers of rows in it, or a list of such, one of each source.

    With W processes a batch of W times as many rows, or tokens, of a source is dealt out among them, so that two
    processes of b rows train on what one process of 2b rows would. All processes have a batch of the same source in a
    step, and equally many batches: where the last rows are too few to give each process one, some have a `Filler`.

    Args:
        orders: How the rows of each source become batches.
        shuffle: Whether each epoch has its own order; if not, sources come one after the other.
        sampling: ``size`` takes every batch of every source once an epoch. A temperature or weights draw as many
            batches, each from a source drawn by `source_shares`. With ``all`` a step has a batch of every source, and
            an epoch as many as the source with the most. A source that has given all of its rows begins anew.
        seed: With the epoch, what orders and draws come from.
        num_replicas: The number of processes, W; None asks ``torch.distributed`` when the batches are made.
        rank: The number of this process; None likewise.
    """

    def __init__(
        self,
        orders: Mapping[str, Order],
        shuffle: bool = False,
        sampling: Sampling = "size",
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        rows: Any = range(sum(order.rows for order in orders.values()))
        super().__init__(rows, num_replicas or 1, rank or 0, shuffle, seed)
        self.orders = dict(orders)
        self.sampling = sampling
        self.fixed = num_replicas is not None

    def processes(self) -> tuple[int, int]:
        """The number of processes and the number of this one."""
        if self.fixed or not (distributed.is_available() and distributed.is_initialized()):
            return self.num_replicas, self.rank
        return distributed.get_world_size(), distributed.get_rank()

    def counts(self) -> dict[str, int]:
        """How many batches each source has.

        Raises:
            HeadsetError: A source has fewer rows than there are processes.
        """
        world, _ = self.processes()
        for source, order in self.orders.items():
            if order.rows < world:
                of = f" of {source}" if source else ""
                raise HeadsetError(
                    f"{order.rows} rows{of} cannot be shared among {world} processes. Use at most {order.rows} devices."
                )
        return {source: order.count(world) for source, order in self.orders.items()}

    def __iter__(self) -> Iterator[Any]:
        """The batches of this process."""
        streams = {name: self._stream(place, name) for place, name in enumerate(self.orders)}
        for names in self._steps(self.counts()):
            batches = [(name, next(streams[name])) for name in names]
            yield batches if self.sampling == "all" else batches[0]

    def __len__(self) -> int:
        """The number of batches of an epoch, the same in every process."""
        counts = self.counts().values()
        return max(counts) if self.sampling == "all" else sum(counts)

    def _steps(self, counts: Mapping[str, int]) -> Iterator[list[str]]:
        """The sources of each step."""
        names, numbers = list(counts), list(counts.values())
        if self.sampling == "all":
            yield from repeat(names, max(numbers))
            return
        steps = torch.arange(len(names)).repeat_interleave(torch.tensor(numbers))
        if self.shuffle and len(names) > 1:
            generator = self._generator(len(names), 0)
            if self.sampling == "size":
                steps = steps[torch.randperm(len(steps), generator=generator)]
            else:
                shares = source_shares({name: order.rows for name, order in self.orders.items()}, self.sampling)
                steps = torch.multinomial(torch.tensor([*shares.values()]), len(steps), True, generator=generator)
        yield from ([names[place]] for place in steps.numpy())

    def _stream(self, place: int, source: str) -> Iterator[list[int]]:
        """The batches of a source for this process, without an end: each time round in another order."""
        for turn in count():
            generator = self._generator(place, turn) if self.shuffle else None
            yield from self.orders[source].batches(*self.processes(), generator)

    def _generator(self, place: int, turn: int) -> torch.Generator:
        """What an order comes from: another one in each epoch, source and turn, the same in all processes."""
        return torch.Generator().manual_seed(self.seed + self.epoch + 1_000_003 * place + 998_244_353 * turn)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
