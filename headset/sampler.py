"""Which rows of which source make up a batch, in one process or several."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DistributedSampler, SequentialSampler

from backbones.errors import HeadsetError, invalid_choice

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

    With W processes a batch of ``batch_size * W`` rows of a source is dealt out among them, so that two processes of b
    rows train on what one process of 2b rows would. All processes have a batch of the same source in a step, and
    equally many batches: where the last rows are too few to give each process one, they join the batch before.

    Args:
        sizes: The number of rows of each source.
        batch_sizes: The rows of one batch in one process, by source.
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
        sizes: Mapping[str, int],
        batch_sizes: Mapping[str, int],
        shuffle: bool = False,
        sampling: Sampling = "size",
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        rows: Any = range(sum(sizes.values()))
        super().__init__(rows, num_replicas or 1, rank or 0, shuffle, seed)
        self.sizes = dict(sizes)
        self.batch_sizes = dict(batch_sizes)
        self.sampling = sampling
        self.fixed = num_replicas is not None

    def processes(self) -> tuple[int, int]:
        """The number of processes and the number of this one."""
        if self.fixed or not (distributed.is_available() and distributed.is_initialized()):
            return self.num_replicas, self.rank
        return distributed.get_world_size(), distributed.get_rank()

    def starts(self, source: str) -> list[int]:
        """Where in the order of a source each batch of all processes begins.

        Raises:
            HeadsetError: There are fewer rows than processes.
        """
        world, _ = self.processes()
        rows = self.sizes[source]
        if rows < world:
            of = f" of {source}" if source else ""
            raise HeadsetError(f"{rows} rows{of} cannot be shared among {world} processes. Use at most {rows} devices.")
        starts = list(range(0, rows, self.batch_sizes[source] * world))
        return starts[:-1] if rows - starts[-1] < world else starts

    def __iter__(self) -> Iterator[Any]:
        """The batches of this process."""
        streams = {name: self._stream(place, name) for place, name in enumerate(self.sizes)}
        for names in self._steps():
            batches = [(name, next(streams[name])) for name in names]
            yield batches if self.sampling == "all" else batches[0]

    def __len__(self) -> int:
        """The number of batches of an epoch, the same in every process."""
        counts = [len(self.starts(name)) for name in self.sizes]
        return max(counts) if self.sampling == "all" else sum(counts)

    def _steps(self) -> list[list[str]]:
        """The sources of each step."""
        counts = {name: len(self.starts(name)) for name in self.sizes}
        if self.sampling == "all":
            return [list(counts)] * max(counts.values())
        steps = [[name] for name, count in counts.items() for _ in range(count)]
        if not self.shuffle or len(counts) == 1:
            return steps
        generator = self._generator(len(self.sizes), 0)
        if self.sampling == "size":
            return [steps[place] for place in torch.randperm(len(steps), generator=generator).tolist()]
        shares = source_shares(self.sizes, self.sampling)
        drawn = torch.multinomial(torch.tensor([*shares.values()]), len(steps), True, generator=generator)
        return [[list(shares)[place]] for place in drawn.tolist()]

    def _stream(self, place: int, source: str) -> Iterator[list[int]]:
        """The batches of a source for this process, without an end: each time round in another order."""
        rows = self.sizes[source]
        world, rank = self.processes()
        starts = self.starts(source)
        turn = 0
        while True:
            generator = self._generator(place, turn)
            order = torch.randperm(rows, generator=generator).tolist() if self.shuffle else list(range(rows))
            for start, end in zip(starts, [*starts[1:], rows], strict=True):
                yield order[start:end][rank::world]
            turn += 1

    def _generator(self, place: int, turn: int) -> torch.Generator:
        """What an order comes from: another one in each epoch, source and turn, the same in all processes."""
        return torch.Generator().manual_seed(self.seed + self.epoch + 1_000_003 * place + 998_244_353 * turn)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
