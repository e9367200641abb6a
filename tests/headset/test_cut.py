"""Rows set apart for validation."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from hypothesis import given
from hypothesis import strategies as st

from backbones.errors import HeadsetError
from heads.targets import ClassTarget
from headset.cut import row_groups, stratified_cut
from headset.labels import LabelColumn


def reference(groups, share, seed):
    """The same rule, group by group."""
    members = defaultdict(list)
    for row in np.random.default_rng(seed).permutation(len(groups)).tolist():
        members[groups[row]].append(row)
    wanted = {group: share * len(rows) for group, rows in members.items()}
    count = {group: min(int(wanted[group]), len(rows) - 1) for group, rows in members.items()}
    lost = [group for group, rows in members.items() if count[group] < min(wanted[group], len(rows) - 1)]
    left = max(1, round(share * len(groups))) - sum(count.values())
    for group in sorted(lost, key=lambda group: count[group] - wanted[group])[: max(left, 0)]:
        count[group] += 1
    return sorted(row for group, rows in members.items() for row in rows[: count[group]])


@given(st.lists(st.sampled_from("aaaaabbbc"), min_size=2, max_size=80), st.floats(0.05, 0.6), st.integers(0, 3))
def test_cut_keeps_shares_and_a_row_of_each_group(labels, share, seed):
    sizes = Counter(labels)
    groups = [list(sizes).index(label) for label in labels]
    if max(sizes.values()) == 1:
        with pytest.raises(HeadsetError, match="No rows of"):
            stratified_cut(groups, share, seed)
        return
    apart = np.flatnonzero(stratified_cut(groups, share, seed)).tolist()
    assert apart == reference(groups, share, seed)
    taken = Counter(labels[row] for row in apart)
    for label, size in sizes.items():
        assert taken[label] < size
        assert abs(taken[label] - share * size) < 1 or size - taken[label] == 1
    assert apart


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        (["b", "a", None, "b"], [0, 1, 2, 0]),
        ([1, 0, 1, None], [0, 1, 0, 2]),
        ([True, False, True, True], [0, 1, 0, 0]),
        ([0.5, 1.0, 0.5, 1.0], [0, 1, 0, 1]),
        ([["a"], ["b"], ["a"], []], [0, 1, 0, 2]),
    ],
)
def test_groups_are_of_equal_values(values, groups, monkeypatch):
    monkeypatch.setattr("headset.labels.PART", 3)
    rows = Dataset.from_dict({"label": values})
    assert row_groups(rows, LabelColumn(ClassTarget(), "label")).tolist() == groups
    assert row_groups(rows, None).tolist() == [0] * 4


def test_groups_of_class_numbers():
    rows = Dataset.from_dict({"label": [1, -1, 0, 1]}).cast_column("label", ClassLabel(names=["x", "y"]))
    assert row_groups(rows, LabelColumn(ClassTarget(), "label")).tolist() == [0, 1, 2, 0]
