import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import LabelEncoder, MultiLabelBinarizer

from backbones.errors import HeadsetError
from heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, PairTarget, TagTarget, pad_rows

NAMES = st.text("abcXYZ -", min_size=1, max_size=6).filter(str.strip)


@given(st.lists(NAMES, min_size=1))
def test_classes_are_those_of_scikit_learn(values):
    target, truth = ClassTarget(), LabelEncoder()
    indices = truth.fit_transform(values)
    labels = target.find_labels(values)
    assert list(labels) == truth.classes_.tolist()
    batch = target.collate([target.encode(value, labels) for value in values], 1)
    assert batch.dtype == torch.int64
    assert batch.tolist() == indices.tolist()


@given(st.lists(st.lists(st.text("abc", min_size=1, max_size=2), unique=True), min_size=1))
def test_several_labels_are_those_of_scikit_learn(rows):
    target, truth = MultiLabelTarget(), MultiLabelBinarizer()
    expected = truth.fit_transform(rows)
    labels = target.find_labels(rows)
    assert list(labels) == truth.classes_.tolist()
    for values in (rows, ["|".join(row) for row in rows]):
        batch = target.collate([target.encode(value, labels) for value in values], 1)
        assert batch.dtype == torch.float32
        assert batch.tolist() == expected.tolist()


def test_label_order():
    assert ClassTarget().find_labels(["10", "9", None, "2"]) == ("2", "9", "10")
    assert ClassTarget().find_labels([10, 9.0, True]) == ("10", "9", "True")
    assert ClassTarget().find_labels(["b", "B", "a"]) == ("B", "a", "b")
    assert TagTarget().find_labels([["B-X", "O"], ["A-X", None]]) == ("O", "A-X", "B-X")
    assert NumberTarget().find_labels([1.0]) is None
    assert PairTarget(scored=True).find_labels([1.0]) is None


@pytest.mark.parametrize(
    ("target", "value", "message"),
    [
        (ClassTarget(), "spotr", "unknown label 'spotr'. Did you mean 'sport'\\? Known labels: news, sport."),
        (ClassTarget(), None, "expected a label, got nothing"),
        (ClassTarget(), " ", "expected a label, got ' '"),
        (ClassTarget(), 0.5, "expected a label, got 0.5"),
        (ClassTarget(), ["news"], "expected a label, got \\['news'\\]"),
        (MultiLabelTarget(), None, "expected a list of labels"),
        (MultiLabelTarget(), "news|spotr", "Did you mean 'sport'"),
        (NumberTarget(), "much", "expected a number, got 'much'"),
        (NumberTarget(), math.nan, "expected a number, got nan"),
        (NumberTarget(), True, "expected a number, got True"),
        (NumberTarget(2), [1.0], "expected 2 numbers, got \\[1.0\\]"),
        (PairTarget(scored=True), None, "expected a number, got nothing"),
        (TagTarget(), "news", "expected a list"),
        (TagTarget(), ["news"], "tags belong to words"),
    ],
)
def test_wrong_values(target, value, message):
    with pytest.raises(HeadsetError, match=message):
        target.encode(value, ("news", "sport"))


@pytest.mark.parametrize("rows", [[[1, 0], [0, 0]], [[True, False, True]], [["1", "0"]], [[1.0, 0.0]]])
def test_zeros_and_ones_have_no_names(rows):
    with pytest.raises(HeadsetError, match="zeros and ones, which does not say what the labels are called"):
        MultiLabelTarget().find_labels(rows)


@pytest.mark.parametrize("rows", [[[1], [0]], [[0, 1], [1]], [["a", "b"]], [[0, 2]], ["0|1"], [[]]])
def test_numbers_that_are_names(rows):
    MultiLabelTarget().find_labels(rows)


def test_numbers():
    assert NumberTarget().collate([NumberTarget().encode(value, None) for value in ("-1.5", 2)], 1).tolist() == [
        -1.5,
        2.0,
    ]
    assert NumberTarget(2).collate([NumberTarget(2).encode(["1", 2.5], None)], 1).shape == (1, 2)
    assert NumberTarget(1).encode([3], None) == 3.0


def test_columns_together():
    assert MultiLabelTarget().join({"a": "1", "b": 0, "c": True, "d": 1.0}) == ["a", "c", "d"]
    assert NumberTarget(2).join({"a": 1, "b": 2}) == [1, 2]
    with pytest.raises(HeadsetError, match="expected 0 or 1 in column 'a', got '2'"):
        MultiLabelTarget().join({"a": "2"})
    with pytest.raises(HeadsetError, match="ClassTarget takes one column"):
        ClassTarget().join({"a": 1, "b": 2})


def test_which_need_a_column():
    assert PairTarget(scored=True).column_needed
    assert not PairTarget(scored=False).column_needed
    assert ClassTarget().column_needed


EXAMPLE = {"word_ids": [None, 0, 0, 1, 2, 2, None]}  # [CLS] New ##er York O ##k [SEP]
LABELS = ("O", "B-LOC", "I-LOC", "B-PER")


def test_tags_on_the_first_subword():
    assert TagTarget().encode(["B-LOC", "I-LOC", "O"], LABELS, EXAMPLE) == [-100, 1, -100, 2, 0, -100, -100]


def test_tags_on_all_subwords():
    target = TagTarget("all")
    assert target.encode(["B-LOC", "I-LOC", "O"], LABELS, EXAMPLE) == [-100, 1, 2, 2, 0, 0, -100]
    assert target.encode(["B-PER", "O", "B-LOC"], LABELS, EXAMPLE) == [-100, 3, 3, 0, 1, 2, -100]


def test_words_that_were_cut_off_have_no_tag():
    assert TagTarget().encode(["O", "B-LOC", "B-PER"], LABELS, {"word_ids": [None, 0, None]}) == [-100, 0, -100]


def test_wrong_setting():
    with pytest.raises(HeadsetError, match=r"Invalid value of subwords: 'frist'.*Did you mean 'first'"):
        TagTarget("frist")


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1), st.sampled_from(["left", "right"]))
def test_padding_of_tags(rows, side):
    padded = TagTarget().collate(rows, 7, side)
    assert padded.shape == (len(rows), 7)
    assert padded.dtype == torch.int64
    for row, result in zip(rows, padded.tolist(), strict=True):
        rest = [-100] * (7 - len(row))
        assert result == (rest + row if side == "left" else row + rest)
    assert pad_rows(rows, -1, 7, side).eq(-1).equal(padded.eq(-100))
