from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, SequentialSampler

from backbones.errors import HeadsetError
from headset.sampler import RowBatches, stratified_cut

SIZES = {"rows": st.integers(1, 60), "batch_size": st.integers(1, 9), "world": st.integers(1, 5)}


def batches(rows, batch_size, world, shuffle=False, seed=0, epoch=0):
    """The batches of every process."""
    samplers = [RowBatches(range(rows), batch_size, shuffle, seed, world, rank) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    assert {len(sampler) for sampler in samplers} == {len(list(sampler)) for sampler in samplers}
    return [list(sampler) for sampler in samplers]


@given(shuffle=st.booleans(), **SIZES)
def test_every_row_once_and_equally_many_batches(rows, batch_size, world, shuffle):
    if rows < world:
        with pytest.raises(HeadsetError, match=f"{rows} rows cannot be shared among {world} processes"):
            batches(rows, batch_size, world)
        return
    ranks = batches(rows, batch_size, world, shuffle)
    assert len({len(rank) for rank in ranks}) == 1
    assert all(batch for rank in ranks for batch in rank)
    assert sorted(chain.from_iterable(chain.from_iterable(ranks))) == list(range(rows))


@given(rows=st.integers(1, 60), batch_size=st.integers(1, 9))
def test_one_process_has_the_batches_of_torch(rows, batch_size):
    expected = list(BatchSampler(SequentialSampler(range(rows)), batch_size, drop_last=False))
    assert batches(rows, batch_size, 1) == [expected]


@given(rows=st.integers(2, 60), batch_size=st.integers(1, 9), epoch=st.integers(0, 3))
def test_two_processes_have_the_batches_of_one_twice_as_large(rows, batch_size, epoch):
    one = batches(rows, 2 * batch_size, 1, True, epoch=epoch)[0]
    two = batches(rows, batch_size, 2, True, epoch=epoch)
    together = [sorted(left + right) for left, right in zip(*two, strict=True)]
    if len(one[-1]) == 1 and len(one) > 1:  # too few rows for two processes: they join the batch before
        one = [*one[:-2], one[-2] + one[-1]]
    assert together == [sorted(batch) for batch in one]


def test_order_by_seed_and_epoch():
    first = batches(50, 8, 1, True, seed=1)
    assert first == batches(50, 8, 1, True, seed=1)
    assert first != batches(50, 8, 1, True, seed=2)
    assert first != batches(50, 8, 1, True, seed=1, epoch=1)


def test_processes_are_asked_for_when_batches_are_made(monkeypatch):
    sampler = RowBatches(range(10), 2)
    assert len(sampler) == 5
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert list(sampler) == [[1, 3], [5, 7], [9]] if len(sampler) == 3 else False


@given(st.lists(st.sampled_from("aaaaabbbc"), min_size=2, max_size=80), st.floats(0.05, 0.6), st.integers(0, 3))
def test_cut_keeps_shares_and_a_row_of_each_group(groups, share, seed):
    sizes = Counter(groups)
    if max(sizes.values()) == 1:
        with pytest.raises(HeadsetError, match="No rows of"):
            stratified_cut(groups, share, seed)
        return
    kept, apart = stratified_cut(groups, share, seed)
    assert sorted(kept + apart) == list(range(len(groups)))
    assert (kept, apart) == stratified_cut(groups, share, seed)
    taken = Counter(groups[row] for row in apart)
    for group, size in sizes.items():
        assert taken[group] < size
        assert abs(taken[group] - share * size) < 1 or size - taken[group] == 1
    assert apart
