"""A DataLoader that a resumed run goes on with in the middle of an epoch."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

__all__ = ["ResumableLoader", "position"]


class _Rest:
    """What a sampler gives after the first ones; as long as the sampler, since epochs are measured by it."""

    def __init__(self, sampler: Any, skip: int) -> None:
        self.sampler = sampler
        self.skip = skip

    def __iter__(self) -> Iterator[Any]:
        # Once, when it is asked for its first: worker processes that persist begin anew with the same sampler.
        skip, self.skip = self.skip, 0
        yield from islice(iter(self.sampler), skip, None)

    def __len__(self) -> int:
        return len(self.sampler)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that leaves out the first ``skip`` batches, once.

    They are not read, only their row numbers are drawn. How many they are is for Lightning's progress to tell, and not
    for a state of the loader, which Lightning does not restore when the length of the run was asked for before.
    """

    skip = 0

    @property
    def _index_sampler(self) -> Any:
        sampler = super()._index_sampler
        return _Rest(sampler, self.skip) if self.skip else sampler

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches of an epoch, or those that are left of it."""
        batches = super().__iter__()
        self.skip = 0
        return batches

    def state_dict(self) -> dict[str, int]:
        """Nothing; that it is here tells Lightning that an epoch can be resumed."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing."""


def position(loop: Mapping[str, Any]) -> tuple[int, int]:
    """The epoch in which a resumed run goes on, and how many of its batches are done, from the state of a fit loop."""
    epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
    finished: int = epochs["processed"]
    return finished, 0 if finished == epochs["ready"] else batches["current"]["processed"]
