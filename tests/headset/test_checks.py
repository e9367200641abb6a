import pytest

from backbones.errors import HeadsetError
from heads.targets import ClassTarget, NumberTarget, TagTarget
from headset.data import TextData

WORDS = {"text": "tokens", "labels": "tags"}
TRAIN = "text,label\nthe film was good,b\na bad book,a\nvery good,b\nthe book,c\nnot good,a\n"


LACK = "unknown label 'd'. Known labels: a, b, c. The label set comes from"


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"train": "text,lable\nx,a\n"},
            "train.csv: there is no column 'label'. Did you mean 'lable'? Columns: 'text',",
        ),
        ({"train": "txet,label\nx,a\n"}, "train.csv: there is no column 'text'. Did you mean 'txet'?"),
        ({"train": "text,label\n"}, "train.csv is empty"),
        ({"train": "text,label\nx,a\n,b\n"}, "train.csv, row 2: column 'text': the text is missing (null)"),
        ({"train": "text,label\nx,a\n  ,b\n"}, "train.csv, row 2: column 'text': the text is blank"),
        ({"train": "text,label\nx,a\ny,\n"}, "train.csv, row 2: column 'label': expected a label, got nothing (null)"),
        ({"train": TRAIN, "validation": "text,label\nx,a\ny,d\n"}, f"validation.csv, row 2: column 'label': {LACK}"),
        (
            {"train": TRAIN, "validation": [{"text": "x", "label": "d"}]},
            f"validation.jsonl, line 1: column 'label': {LACK}",
        ),
        ({"train": [{"text": 5, "label": "a"}]}, "line 1: column 'text': expected a text or a list of words, got 5"),
        ({"train": [{"text": [], "label": "a"}]}, "line 1: column 'text': the list of words is empty"),
        (
            {"train": [{"text": ["a", None], "label": "a"}]},
            "line 1: column 'text': expected words, got None among them",
        ),
        ({"train": "no/such.csv"}, "there is no file no/such.csv"),
        ({}, "data.train is not set"),
        ({"train": TRAIN, "max_length": 65}, "at most 64, the limit of this tokenizer"),
    ],
)
def test_faults(make, splits, message, fault):
    found = fault(make(**splits))
    assert message in found
    if "validation" in splits:
        assert "train.csv" in found


def test_a_label_of_the_test_that_train_lacks(make, fault):
    message = fault(make(train=TRAIN, test="text,label\nx,d\n"), "test")
    assert "test.csv, row 1: column 'label': unknown label 'd'. Known labels: a, b, c." in message
    assert "train.csv" in message


def test_words_and_tags_of_different_lengths(make, fault):
    rows = [{"tokens": ["a", "b"], "tags": ["O", "O"]}, {"tokens": ["a", "b"], "tags": ["O"]}]
    message = fault(make({"ner": TagTarget()}, train=rows, **WORDS))
    assert "train.jsonl, line 2: column 'tags': 1 labels for the 2 words in column 'tokens'" in message


def test_tags_need_words(make, fault):
    message = fault(make({"ner": TagTarget()}, train=[{"tokens": "a b", "tags": ["O", "O"]}], **WORDS))
    assert "line 1: column 'tags': tags belong to words" in message


@pytest.mark.parametrize("num_proc", [None, 2])
def test_faults_in_worker_processes(make, num_proc, fault):
    rows = "text,label\n" + "x,a\n" * 50 + ",a\n"
    assert "train.csv, row 51: column 'text'" in fault(make(train=rows, num_proc=num_proc))


@pytest.mark.parametrize(
    ("heads", "labels", "message"),
    [
        ({"a": ClassTarget(), "b": ClassTarget()}, "label", "2 heads need labels"),
        ({"a": ClassTarget(), "b": ClassTarget()}, {"a": "label"}, "The head 'b' needs labels"),
        ({"topic": ClassTarget()}, {"topci": "label"}, "Did you mean 'topic'?"),
        ({"topic": ClassTarget()}, ["label", "text"], "takes one column of labels"),
        ({"a": NumberTarget(2)}, ["text"], "gives 2 numbers, and data.labels names 1 columns"),
    ],
)
def test_columns_that_do_not_suit_the_heads(make, heads, labels, message, fault):
    assert message in fault(make(heads, train=TRAIN, labels=labels))


@pytest.mark.parametrize("share", [0.0, 1.0, 5])
def test_shares_that_cannot_be(share):
    with pytest.raises(HeadsetError, match="Give a share between 0 and 1"):
        TextData(train="x.csv", validation=share)
