from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, SequentialSampler

from backbones.errors import HeadsetError
from headset.loader import ResumableLoader
from headset.orders import Filler, RowOrder, TokenOrder, WindowOrder
from headset.sampler import SourceBatches, check_sampling, source_shares

SIZES = {"rows": st.integers(1, 60), "batch_size": st.integers(1, 9), "world": st.integers(1, 5)}
SEVERAL = {
    "sizes": st.lists(st.integers(5, 40), min_size=1, max_size=4),
    "batch_size": st.integers(1, 9),
    "world": st.integers(1, 5),
    "epoch": st.integers(0, 3),
}


def steps(sizes, batch_size, world=1, shuffle=True, sampling="size", seed=0, epoch=0):
    """The steps of every process, for sources called by their place; the batch sizes of sources differ."""
    orders = {str(place): RowOrder(size, batch_size + place) for place, size in enumerate(sizes)}
    samplers = [SourceBatches(orders, shuffle, sampling, seed, world, rank) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    assert {len(sampler) for sampler in samplers} == {len(list(sampler)) for sampler in samplers}
    return [list(sampler) for sampler in samplers]


def counted(rows):
    """The rows of a batch that count."""
    return [] if isinstance(rows, Filler) else rows


def batches(rows, batch_size, world, shuffle=False, seed=0, epoch=0):
    """The batches of every process, of one source."""
    ranks = steps([rows], batch_size, world, shuffle, "size", seed, epoch)
    return [[its for _, its in rank] for rank in ranks]


@given(**SEVERAL)
def test_every_row_of_every_source_once_and_the_same_source_in_all_processes(sizes, batch_size, world, epoch):
    ranks = steps(sizes, batch_size, world, epoch=epoch)
    assert len({tuple(name for name, _ in rank) for rank in ranks}) == 1
    seen = Counter((name, row) for rank in ranks for name, rows in rank for row in counted(rows))
    assert seen == {(str(place), row): 1 for place, size in enumerate(sizes) for row in range(size)}
    assert all(rows for rank in ranks for _, rows in rank)


@given(temperature=st.floats(1, 10), **SEVERAL)
def test_drawn_sources_are_the_same_in_all_processes_and_use_all_rows_before_any_comes_again(
    sizes, batch_size, world, epoch, temperature
):
    ranks = steps(sizes, batch_size, world, sampling=temperature, epoch=epoch)
    assert len({tuple(name for name, _ in rank) for rank in ranks}) == 1
    assert len(ranks[0]) == len(steps(sizes, batch_size, world)[0])
    seen = Counter((name, row) for rank in ranks for name, rows in rank for row in counted(rows))
    for place, size in enumerate(sizes):
        counts = [seen[str(place), row] for row in range(size)]
        assert max(counts) - min(counts) <= 1


@given(**SEVERAL)
def test_all_has_a_batch_of_every_source_in_each_step(sizes, batch_size, world, epoch):
    ranks = steps(sizes, batch_size, world, sampling="all", epoch=epoch)
    apart = [len(steps([size], batch_size + place, world)[0]) for place, size in enumerate(sizes)]
    for rank in ranks:
        assert len(rank) == max(apart)
        assert all([name for name, _ in step] == [str(place) for place in range(len(sizes))] for step in rank)
    seen = Counter((name, row) for rank in ranks for step in rank for name, rows in step for row in counted(rows))
    for place, size in enumerate(sizes):
        counts = [seen[str(place), row] for row in range(size)]
        assert min(counts) >= max(apart) // apart[place] and max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (1, [1000 / 1110, 100 / 1110, 10 / 1110]),
        (2, [1000**0.5, 100**0.5, 10**0.5]),
        (5, [1000**0.2, 100**0.2, 10**0.2]),
        ({"0": 1, "1": 3, "2": 4.0}, [1 / 8, 3 / 8, 4 / 8]),
    ],
)
def test_frequencies_are_those_of_the_formula(sampling, expected):
    sizes = {"0": 1000, "1": 100, "2": 10}
    expected = [share / sum(expected) for share in expected]
    assert list(source_shares(sizes, sampling).values()) == pytest.approx(expected)
    drawn = Counter(
        name for seed in range(10) for name, _ in steps(sizes.values(), 1, sampling=sampling, seed=100 * seed)[0]
    )
    total = drawn.total()
    for name, share in zip(sizes, expected, strict=True):
        assert abs(drawn[name] / total - share) < 4 * (share * (1 - share) / total) ** 0.5


def test_sources_are_mixed_unless_in_order():
    mixed = [name for name, _ in steps([40, 40], 2)[0]]
    assert mixed != sorted(mixed) and mixed != [name for name, _ in steps([40, 40], 2, epoch=1)[0]]
    for sampling in ("size", 2.0):
        assert [name for name, _ in steps([40, 40], 2, shuffle=False, sampling=sampling)[0]] == sorted(mixed)


def test_sources_of_one_size_have_orders_of_their_own():
    drawn = steps([40, 40], 40)[0]
    assert drawn[0][1] != drawn[1][1]
    turns = steps([40, 400], 40, sampling="all")[0]
    assert turns[0][0] != turns[1][0]  # the smaller source again, in another order


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ("sise", "Did you mean 'size'?"),
        (0.5, "Give a temperature of at least 1"),
        (True, "Give a temperature of at least 1"),
        (float("inf"), "Give a temperature of at least 1"),
        ({"a": 1}, "no weight for the source 'b'. Give a number above 0"),
        ({"a": 1, "b": 0}, "data.sampling has 0 for the source 'b'. Give a number above 0"),
        ({"a": 1, "b": "x"}, "data.sampling has 'x' for the source 'b'"),
        ({"a": 1, "b": 1, "c": 1}, "'c'. Valid"),
    ],
)
def test_sampling_that_cannot_be(sampling, message):
    with pytest.raises(HeadsetError) as caught:
        check_sampling(sampling, ["a", "b"])
    assert message in str(caught.value)


@given(shuffle=st.booleans(), **SIZES)
def test_every_row_once_and_equally_many_batches(rows, batch_size, world, shuffle):
    if rows < world:
        with pytest.raises(HeadsetError, match=f"{rows} rows of 0 cannot be shared among {world} processes"):
            batches(rows, batch_size, world)
        return
    ranks = batches(rows, batch_size, world, shuffle)
    assert len({len(rank) for rank in ranks}) == 1
    assert all(batch for rank in ranks for batch in rank)
    assert sorted(chain.from_iterable(counted(batch) for rank in ranks for batch in rank)) == list(range(rows))


@given(rows=st.integers(1, 60), batch_size=st.integers(1, 9))
def test_one_process_has_the_batches_of_torch(rows, batch_size):
    expected = list(BatchSampler(SequentialSampler(range(rows)), batch_size, drop_last=False))
    assert batches(rows, batch_size, 1) == [expected]


@given(rows=st.integers(2, 60), batch_size=st.integers(1, 9), epoch=st.integers(0, 3))
def test_two_processes_have_the_batches_of_one_twice_as_large(rows, batch_size, epoch):
    one = batches(rows, 2 * batch_size, 1, True, epoch=epoch)[0]
    two = batches(rows, batch_size, 2, True, epoch=epoch)
    together = [sorted(counted(left) + counted(right)) for left, right in zip(*two, strict=True)]
    assert together == [sorted(batch) for batch in one]
    assert [rows for batches in two for rows in batches if isinstance(rows, Filler)] == (
        [one[-1]] if len(one[-1]) == 1 else []
    )


def test_order_by_seed_and_epoch():
    first = batches(50, 8, 1, True, seed=1)
    assert first == batches(50, 8, 1, True, seed=1)
    assert first != batches(50, 8, 1, True, seed=2)
    assert first != batches(50, 8, 1, True, seed=1, epoch=1)


def test_processes_are_asked_for_when_batches_are_made(monkeypatch):
    sampler = SourceBatches({"a": RowOrder(10, 2)})
    assert len(sampler) == 5
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert len(sampler) == 3
    assert [rows for _, rows in sampler] == [[1, 3], [5, 7], [9]]


LENGTHS = st.lists(st.integers(1, 40), min_size=5, max_size=120)
TOKENS = {"lengths": LENGTHS, "budget": st.integers(40, 200), "world": st.integers(1, 4), "epoch": st.integers(0, 3)}


def measure(lengths, inputs=None):
    """What `Sizes` gives of rows with such lengths."""
    lengths = np.array(lengths)
    return lambda start, end: (lengths[start:end], np.array(inputs or [1] * len(lengths))[start:end])


def by_tokens(lengths, budget, world=1, epoch=0, inputs=None):
    """The batches of every process, of one source."""
    order = TokenOrder(len(lengths), budget, measure(lengths, inputs))
    samplers = [SourceBatches({"": order}, True, "size", 7, world, rank) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    assert (
        {len(sampler) for sampler in samplers} == {len(list(sampler)) for sampler in samplers} == {order.count(world)}
    )
    return [[rows for _, rows in sampler] for sampler in samplers]


def padded(rows, lengths):
    return len(rows) * max(lengths[row] for row in rows)


@given(**TOKENS)
def test_by_tokens_every_row_once_within_the_budget_and_alike_in_all_processes(lengths, budget, world, epoch):
    ranks = by_tokens(lengths, budget, world, epoch)
    counts = [[counted(rows) for rows in rank] for rank in ranks]
    assert sorted(chain.from_iterable(chain.from_iterable(counts))) == list(range(len(lengths)))
    for step in zip(*counts, strict=True):
        rows = list(chain.from_iterable(step))
        longest = max(lengths[row] for row in rows)
        assert padded(rows, lengths) <= budget * world
        assert max(map(len, step)) - min(map(len, step)) <= 1
        assert all(padded(rank, lengths) <= budget + longest for rank in step if rank)
        sums = [sum(lengths[row] for row in rank) for rank in step]
        assert max(sums) - min(sums) <= longest


@given(**TOKENS)
def test_by_tokens_processes_share_the_batches_of_one_with_as_many_tokens(lengths, budget, world, epoch):
    one = by_tokens(lengths, budget * world, 1, epoch)[0]
    several = [
        sorted(chain.from_iterable(map(counted, step)))
        for step in zip(*by_tokens(lengths, budget, world, epoch), strict=True)
    ]
    assert several == [sorted(batch) for batch in one]


@given(lengths=LENGTHS, budget=st.integers(40, 200), inputs=st.lists(st.integers(1, 4), min_size=120, max_size=120))
def test_rows_of_several_inputs_count_with_all_of_them(lengths, budget, inputs):
    for rows in by_tokens(lengths, budget * 4, inputs=inputs)[0]:
        assert padded(rows, lengths) * max(inputs[row] for row in rows) <= budget * 4


@given(epoch=st.integers(1, 5), **{name: TOKENS[name] for name in ("lengths", "budget", "world")})
def test_every_epoch_has_other_batches_and_as_many(lengths, budget, world, epoch):
    first, other = by_tokens(lengths, budget, world), by_tokens(lengths, budget, world, epoch)
    assert first == by_tokens(lengths, budget, world)
    assert len(first[0]) == len(other[0])


def test_batches_by_tokens_are_drawn_anew_and_little_is_padded():
    lengths = np.random.default_rng(0).integers(5, 60, 2000).tolist()
    batches = by_tokens(lengths, 512)[0]
    assert sum(padded(rows, lengths) for rows in batches) < 1.1 * sum(lengths)
    assert sum(map(len, batches)) / len(batches) * 60 > 512  # as many short rows as fit
    assert not {frozenset(rows) for rows in batches} & {frozenset(rows) for rows in by_tokens(lengths, 512, epoch=1)[0]}
    assert [max(lengths[row] for row in rows) for rows in batches] != sorted(lengths, reverse=True)[: len(batches)]


def test_a_row_of_too_many_tokens_is_told():
    with pytest.raises(
        HeadsetError, match=r"batch_tokens is 99, and one row alone has 100 tokens, 2 inputs of up to 50"
    ):
        by_tokens([20, 50, 30], 99, inputs=[1, 2, 1])


@given(rows=st.integers(1, 90), batch_size=st.integers(1, 9), world=st.integers(1, 4), data=st.data())
def test_windows_are_sorted_and_hold_the_same_rows(rows, batch_size, world, data):
    if rows < world:
        return
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=rows, max_size=rows))
    order = WindowOrder(rows, batch_size, measure(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headset.orders.WINDOW", 20)
        ranks = [list(order.batches(world, rank)) for rank in range(world)]
        ends, per_window = order.ends(world), order.per_window(world)
    assert [len(rank) for rank in ranks] == [order.count(world)] * world
    assert all(batch for rank in ranks for batch in rank)
    steps = [list(chain.from_iterable(map(counted, step))) for step in zip(*ranks, strict=True)]
    start = 0
    for window, end in enumerate(ends):
        batches = steps[window * per_window : (window + 1) * per_window]
        assert sorted(chain.from_iterable(batches)) == list(range(start, end))
        found = [lengths[row] for batch in batches for row in sorted(batch, key=lambda row: -lengths[row])]
        assert found == sorted(found, reverse=True)
        start = end
    assert start == rows and len(steps) <= len(ends) * per_window


@given(skip=st.integers(0, 8), **TOKENS)
def test_a_resumed_epoch_is_the_rest_of_it(skip, lengths, budget, world, epoch):
    orders = {"a": TokenOrder(len(lengths), budget, measure(lengths)), "b": RowOrder(30, 4)}
    for sampling in ("size", "all", 2.0):
        samplers = [SourceBatches(orders, True, sampling, 1, world, world - 1) for _ in range(2)]
        loaders = [ResumableLoader(range(1), batch_size=None, sampler=sampler) for sampler in samplers]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        loaders[1].skip = skip
        whole, rest = (list(loader._index_sampler) for loader in loaders)
        assert rest == whole[skip:]
