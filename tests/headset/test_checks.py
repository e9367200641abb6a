import pytest

from backbones.errors import HeadsetError
from heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, PairTarget, TagTarget
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
    assert "train.jsonl: column 'tokens' holds plain strings; TargetHead needs words: lists of strings" in message
    data = make({"ner": TagTarget()}, {"ner": ["O", "B-X"]}, test="tokens,tags\na b,O\n", **WORDS)
    assert "test.csv: column 'tokens' holds plain strings" in fault(data, "test")


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


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("batch_size", 0, "Invalid data.batch_size: 0. Give a whole number of at least 1."),
        ("eval_batch_size", 0, "Invalid data.eval_batch_size: 0. Give a whole number of at least 1."),
        ("num_workers", -1, "Invalid data.num_workers: -1. Give a whole number of at least 0."),
        ("num_proc", 0, "Invalid data.num_proc: 0. Give a whole number of at least 1."),
        ("seed", -1, "Invalid data.seed: -1. Give a whole number from 0 to 4294967295."),
        ("seed", 2**32, "Invalid data.seed: 4294967296."),
        ("batch_size", 2.5, "Invalid data.batch_size: 2.5."),
        ("labels", [], "data.labels is an empty list"),
        ("labels", ["a", "b", "a"], "data.labels names 'a' more than once"),
        ("labels", {"topic": ["a", "a"]}, "data.labels names 'a' more than once"),
        ("conll_columns", ["a", "a"], "data.conll_columns names 'a' more than once"),
    ],
)
def test_settings_that_cannot_be(setting, value, message):
    with pytest.raises(HeadsetError) as caught:
        TextData(train="x.csv", **{setting: value})
    assert message in str(caught.value)


@pytest.mark.parametrize("sizes", [{"batch_size": 1}, {"eval_batch_size": 1}])
def test_negatives_in_the_batch_need_a_batch(make, fault, sizes):
    pairs = "a,b,score\nx,y,1\nz,w,0\n"
    data = make({"v": PairTarget(scored=False)}, train=pairs, validation=pairs, text=["a", "b"], **sizes)
    assert f"in-batch negatives, which need a {next(iter(sizes))} of at least 2" in fault(data)
    scored = make({"v": PairTarget(scored=True)}, train=pairs, text=["a", "b"], labels="score", **sizes)
    scored.setup("fit")


@pytest.mark.parametrize(
    ("target", "rows", "message"),
    [
        (ClassTarget(), ["x", "x"], "column 'label' of {file} has one label, 'x'; at least two are needed"),
        (TagTarget(), [["O"], ["O"]], "column 'label' of {file} has one label, 'O'; at least two are needed"),
        (MultiLabelTarget(), [[], []], "column 'label' of {file} has no labels; at least two are needed"),
        (MultiLabelTarget(), [["x"], []], "column 'label' of {file} has one label, 'x'"),
    ],
)
def test_one_label_is_too_few(make, fault, target, rows, message):
    data = make({"topic": target}, train=[{"text": ["a"], "label": label} for label in rows])
    assert message.format(file=data.hparams["train"]) in fault(data)


def test_one_label_of_the_run_is_too_few(make, fault):
    data = make(known={"topic": ["a"]}, train="text,label\nx,a\n")
    assert "the run's label set for the head 'topic' has one label, 'a'; at least two are needed" in fault(data)
    assert "test.csv, row 1: column 'label': expected a label, got nothing" in fault(
        make(train="text,label\nx,a\n", test="text,label\nx,\n"), "test"
    )


def test_zeros_and_ones_without_names(make, fault):
    rows = [{"text": "x", "label": [1, 0]}, {"text": "y", "label": [0, 0]}]
    message = fault(make({"topic": MultiLabelTarget()}, train=rows))
    assert "train.jsonl: column 'label': each row is a list of 2 zeros and ones" in message
    assert "Give lists of names" in message
