"""Several sources in one run: which heads each is for, whose labels are whose, and rows without some of them."""

import json
from itertools import chain

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from backbones.errors import HeadsetError
from heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, PairTarget, TagTarget
from headset.data import TextData

MOODS = "text,label\nthe film was good,b\na bad book,a\nvery good,b\nthe book,c\nnot good,a\n"
NAMES = [{"tokens": ["the", "film"], "tags": ["O", "B-X"]}, {"tokens": ["good"], "tags": ["O"]}]


@pytest.fixture
def several(tmp_path, make):
    """Makes a TextData of several sources, whose files are given by their contents."""

    def several(heads, sources, known=None, **settings):
        given = {}
        for name, source in sources.items():
            its = dict(source)
            for split in ("train", "validation", "test"):
                if isinstance(its.get(split), list) or "\n" in str(its.get(split)):
                    suffix = "csv" if isinstance(its[split], str) else "jsonl"
                    lines = its[split] if suffix == "csv" else "\n".join(map(json.dumps, its[split]))
                    its[split] = tmp_path / f"{name}.{split}.{suffix}"
                    its[split].write_text(lines)
            given[name] = its
        return make(heads, known, sources=given, **settings)

    return several


def by_source(loader):
    """The row numbers of all batches, by source."""
    seen = {}
    for batch in loader:
        seen.setdefault(batch["meta"]["source"], []).append(batch["meta"]["rows"])
    return seen


def test_each_batch_is_of_one_source_and_for_its_heads(several, tokenizer):
    heads = {"mood": ClassTarget(), "size": NumberTarget(), "tags": TagTarget(), "free": None}
    data = several(
        heads,
        {
            "moods": {"train": MOODS, "labels": {"mood": "label"}, "validation": MOODS},
            "names": {"train": NAMES, "text": "tokens", "labels": {"tags": "tags", "free": None}, "test": NAMES},
            "size": {"train": "text,label\nx,1\ny,2\n", "validation": "text,label\nz,5\n"},
        },
        batch_size=2,
    )
    data.setup("fit")
    assert data.label_sets == {"mood": ("a", "b", "c"), "size": None, "tags": ("O", "B-X"), "free": None}
    seen = by_source(data.train_dataloader())
    assert {name: sorted(chain(*rows)) for name, rows in seen.items()} == {
        "moods": [0, 1, 2, 3, 4],
        "names": [0, 1],
        "size": [0, 1],
    }
    for batch in data.train_dataloader():
        source = batch["meta"]["source"]
        assert batch["meta"]["heads"] == {"moods": ["mood"], "names": ["tags", "free"], "size": ["size"]}[source]
        assert list(batch["labels"]) == {"moods": ["mood"], "names": ["tags"], "size": ["size"]}[source]
        assert "labelled" not in batch["meta"]
        raw = data.raw("train", source)[batch["meta"]["rows"]]
        words = {"is_split_into_words": True, "text": raw["tokens"]} if source == "names" else {"text": raw["text"]}
        assert torch.equal(batch["input_ids"], tokenizer(**words, padding=True, return_tensors="pt")["input_ids"])
        if source == "moods":
            assert [data.label_sets["mood"][index] for index in batch["labels"]["mood"]] == raw["label"]
    assert by_source(data.val_dataloader()) == {"moods": [[0, 1], [2, 3], [4]], "size": [[0]]}
    data.setup("test")
    assert by_source(data.test_dataloader()) == {"names": [[0, 1]]}


def test_settings_at_the_top_are_those_of_every_source(several):
    rows = "body,label\n" + "x,a\ny,b\n" * 10
    data = several(
        {"one": ClassTarget(), "two": ClassTarget()},
        {"one": {"train": rows}, "two": {"train": rows, "validation": None, "batch_size": 4, "max_length": 2 + 1}},
        text="body",
        validation=0.2,
        batch_size=5,
    )
    data.setup("fit")
    sizes = {name: len(data.examples("train", name)) for name in ("one", "two")}
    assert sizes == {"one": 16, "two": 20}
    assert set(by_source(data.val_dataloader())) == {"one"}
    assert {name: max(map(len, rows)) for name, rows in by_source(data.train_dataloader()).items()} == {
        "one": 5,
        "two": 4,
    }
    assert all(len(ids) == 3 for ids in data.examples("train", "two")["input_ids"])


def test_words_and_texts_on_one_table(make, batch_of):
    rows = [{"tokens": ["the", "films"], "tags": ["O", "B-X"], "topic": "b"}, {"tokens": ["x"], "tags": ["O"]}]
    rows[1]["topic"] = "a"
    heads = {"topic": ClassTarget(), "tags": TagTarget()}
    data = make(heads, train=rows, text="tokens", labels={"topic": "topic", "tags": "tags"})
    data.setup("fit")
    batch = batch_of(data, [0, 1])
    assert "heads" not in batch["meta"] and "source" not in batch["meta"]
    assert batch["labels"]["topic"].tolist() == [1, 0]
    assert batch["labels"]["tags"].tolist() == [[-100, 0, 1, -100, -100], [-100, 0, -100, -100, -100]]


def test_a_head_of_several_sources_has_the_labels_of_all(several, fault, tmp_path):
    first = {"train": MOODS, "labels": {"mood": "label"}}
    second = {"train": "text,feeling\nx,d\ny,a\n", "labels": {"mood": "feeling"}}
    heads = {"mood": ClassTarget()}
    data = several(heads, {"first": first, "second": second})
    data.setup("fit")
    assert data.label_sets == {"mood": ("a", "b", "c", "d")}
    again = several(heads, {"second": second, "first": first})
    again.setup("fit")
    assert again.label_sets == data.label_sets
    message = fault(several(heads, {"first": first | {"validation": "text,label\nx,e\n"}, "second": second}))
    assert "first.validation.csv, row 1: column 'label': unknown label 'e'. Known labels: a, b, c, d." in message
    assert "first.train.csv and " in message and "second.train.csv" in message
    features = Features({"text": Value("string"), "label": ClassLabel(names=["z", "b"])})
    Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features).save_to_disk(tmp_path / "saved")
    data = several(heads, {"saved": {"train": tmp_path / "saved", "labels": {"mood": "label"}}, "first": first})
    data.setup("fit")
    assert data.label_sets == {"mood": ("z", "b", "a", "c")}


def test_one_source_with_a_name_is_as_one_without(several, make):
    named = several({"topic": ClassTarget(), "free": None}, {"only": {"train": MOODS}}, batch_size=2, seed=3)
    plain = make({"topic": ClassTarget(), "free": None}, train=MOODS, batch_size=2, seed=3)
    for data in (named, plain):
        data.setup("fit")
    for one, other in zip(named.train_dataloader(), plain.train_dataloader(), strict=True):
        assert one["meta"].pop("source") == "only"
        assert one["meta"] == other["meta"]
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["labels"]["topic"], other["labels"]["topic"])


def test_rows_without_some_labels(make, caplog):
    rows = [
        {"text": "the film", "topic": None, "score": 1.5, "tags": ["p", "q"]},
        {"text": "a book", "topic": "b"},
        {"text": "x", "topic": "a", "score": None, "tags": []},
        {"text": "y", "score": None},
        {"text": "z", "score": 2.0},
    ]
    heads = {"topic": ClassTarget(), "score": NumberTarget(), "tags": MultiLabelTarget()}
    labels = {name: name for name in heads}
    data = make(heads, train=rows, validation=rows, labels=labels, missing_labels=True, batch_size=8)
    data.setup("fit")
    assert data.label_sets == {"topic": ("a", "b"), "score": None, "tags": ("p", "q")}
    [batch] = data.val_dataloader()
    assert batch["meta"]["rows"] == [0, 1, 2, 4]  # row 3 has no label at all
    assert batch["meta"]["heads"] == ["topic", "score", "tags"]
    assert batch["meta"]["labelled"] == {"topic": [1, 2], "score": [0, 3], "tags": [0, 2]}
    assert batch["labels"]["topic"].tolist() == [1, 0]
    assert batch["labels"]["score"].tolist() == [1.5, 2.0]
    assert batch["labels"]["tags"].tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert sorted(chain(*(batch["meta"]["rows"] for batch in data.train_dataloader()))) == [0, 1, 2, 4]
    loader = data.train_dataloader()
    batch = loader.collate_fn(loader.dataset["", [1]])
    assert batch["meta"]["heads"] == ["topic"] and list(batch["labels"]) == ["topic"]
    assert "labelled" not in batch["meta"]


def test_a_first_thousand_rows_without_a_label(make):
    rows = [{"text": "x", "a": "p" if row % 2 else "q", "tags": None} for row in range(1100)]
    rows[1050]["tags"] = ["s", "t"]
    heads = {"a": ClassTarget(), "tags": MultiLabelTarget()}
    data = make(heads, train=rows, labels={"a": "a", "tags": "tags"}, missing_labels=True)
    data.setup("fit")
    values = data.examples("train")["label:tags"][:]
    assert values[1050] == [1.0, 1.0] and values.count(None) == 1099


def test_empty_cells_of_csv_are_none_of_the_labels_or_no_label(make):
    train = "text,tags\nx,p|q\ny,\n"
    for missing, rows in ((False, [0, 1]), (True, [0])):
        data = make({"tags": MultiLabelTarget()}, train=train, labels="tags", missing_labels=missing)
        data.setup("fit")
        assert data.examples("train")["row"][:] == rows


def test_flags_and_words_may_lack_labels(make):
    rows = [
        {"text": ["the", "film"], "z": 1, "b": 0, "tags": None},
        {"text": ["x"], "z": None, "b": None, "tags": ["O"]},
        {"text": ["y"], "z": 0, "b": 1, "tags": ["B-X"]},
    ]
    heads = {"flags": MultiLabelTarget(), "tags": TagTarget()}
    data = make(heads, train=rows, labels={"flags": ["z", "b"], "tags": "tags"}, missing_labels=True)
    data.setup("fit")
    loader = data.train_dataloader()
    batch = loader.collate_fn(loader.dataset["", [0, 1, 2]])
    assert batch["meta"]["labelled"] == {"flags": [0, 2], "tags": [1, 2]}
    assert batch["labels"]["flags"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert batch["labels"]["tags"].tolist() == [[-100, 0, -100, -100], [-100, 1, -100, -100]]


def test_missing_labels_have_to_be_meant(make, fault):
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": None}]
    message = fault(make(train=rows))
    assert "train.jsonl, line 2: column 'label': expected a label, got nothing (null)" in message
    assert "set data.missing_labels: true" in message
    none = [{"text": "x", "a": "p", "b": None}, {"text": "y", "a": "q", "b": None}]
    data = make({"a": ClassTarget(), "b": NumberTarget()}, train=none, labels={"a": "a", "b": "b"}, missing_labels=True)
    assert "column 'b': no row has a label for the head 'b'" in fault(data)


HEADS = {"mood": ClassTarget(), "tags": TagTarget()}
MOOD = {"train": MOODS, "labels": {"mood": "label"}}
TAGS = {"train": NAMES, "text": "tokens", "labels": {"tags": "tags"}}


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"m": MOOD}, "The head 'tags' needs labels. Add it to a source: data.sources.m.labels: {tags: COLUMN}"),
        ({"m": MOOD, "t": {**TAGS, "labels": {"tgas": "tags"}}}, "head in data.sources.t.labels: 'tgas'"),
        ({"m": MOOD, "t": {**TAGS, "labels": "tags"}}, "2 heads need labels, and data.sources.t.labels is 'tags'"),
        ({"m": MOOD, "t": {**TAGS, "labels": {}}}, "The source 't' is for no head"),
        ({"m": MOOD, "t": {**TAGS, "labels": {"tags": None}}}, "data.sources.t.labels names no column"),
        ({"m": MOOD, "t": {**TAGS, "train": None}}, "data.sources.t.train is not set"),
        ({"m": MOOD, "t": {**TAGS, "text": "words"}}, "t.train.jsonl: there is no column 'words'"),
        ({"m": MOOD, "t": {**TAGS, "text": ["a", "b", "c"]}}, "data.sources.t: data.text names 3 columns"),
        ({"m": MOOD, "t": {**TAGS, "max_length": 99}}, "data.sources.t: Invalid max_length: 99"),
    ],
)
def test_faults(several, fault, sources, message):
    assert message in fault(several(HEADS, sources))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": {}}, "data.sources is empty"),
        ({"sources": {"a": "x.csv"}}, "data.sources.a is 'x.csv'. Give what it has by name"),
        ({"sources": {"a": {"trian": "x.csv"}}}, "Did you mean 'train'?"),
        ({"sources": {"a": {"predict": "x.csv"}}}, "setting in data.sources.a: 'predict'"),
        ({"sources": {"a": {"train": 5}}}, "Invalid data.sources.a.train: 5. Give a string or a dictionary"),
        ({"sources": {"a": {"missing_labels": "x"}}}, "data.sources.a.missing_labels: 'x'. Give true or false"),
        ({"sources": {"a": {"batch_size": 0}}}, "Invalid data.sources.a.batch_size: 0"),
        ({"sources": {"a": {"batch_size": True}}}, "Invalid data.sources.a.batch_size: True"),
        ({"sources": {"a": {"validation": 2}}}, "Give a share between 0 and 1"),
        ({"sources": {"a": {"labels": {"h": ["x", "x"]}}}}, "data.sources.a.labels names 'x' more than once"),
        ({"sources": {"a": {}}, "train": "x.csv"}, "data.train is given beside data.sources"),
        ({"sources": {"a": {}}, "sampling": {"b": 1}}, "source in data.sampling: 'b'"),
        ({"train": "x.csv", "sampling": "some"}, "data.sampling: 'some'"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(HeadsetError) as caught:
        TextData(**settings)
    assert message in str(caught.value)


def test_heads_that_are_not_trained_need_no_source(several):
    data = several(HEADS, {"m": MOOD}, known={"tags": ["O", "B-X"]})
    data.idle = {"tags"}
    data.setup("fit")
    assert {tuple(batch["meta"]["heads"]) for batch in data.train_dataloader()} == {("mood",)}
    assert data.label_sets == {"mood": ("a", "b", "c"), "tags": ("O", "B-X")}


def test_sources_may_be_read_in_different_ways(several, fault):
    heads = {"mood": ClassTarget(), "vector": PairTarget(scored=False)}
    pairs = {"train": "a,b\nthe film,good\na book,bad\n", "text": ["a", "b"], "labels": {"vector": None}}
    data = several(heads, {"moods": MOOD, "pairs": pairs})
    data.setup("fit")
    texts = {batch["meta"]["source"]: batch["meta"]["texts"] for batch in data.train_dataloader()}
    assert texts == {"moods": 1, "pairs": 2}
    together = {**pairs, "train": "a,b,label\nx,y,p\nz,w,q\n", "labels": {"mood": "label", "vector": None}}
    assert "Give each a source of its own" in fault(several(heads, {"moods": MOOD, "pairs": together}))


def test_a_step_of_all_sources(several):
    data = several(HEADS, {"m": MOOD, "t": TAGS}, sampling="all", batch_size=2)
    data.setup("fit")
    steps = list(data.train_dataloader())
    assert [[batch["meta"]["source"] for batch in step] for step in steps] == 3 * [["m", "t"]]
    assert sorted(chain(*(step[0]["meta"]["rows"] for step in steps))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("asked", "settings", "column"),
    [
        (["mood"], {}, "text"),
        (["tags"], {}, "tokens"),
        (["mood", "tags"], {"text": "body"}, "body"),
        (["tags"], {"text": "body"}, "body"),
    ],
)
def test_rows_to_predict_are_read_as_the_sources_of_the_heads(several, tmp_path, target_head, asked, settings, column):
    (tmp_path / "new.csv").write_text(f"id,{column}\n1,the film\n")
    given = {"text": "text"} if settings else {}
    sources = {"m": MOOD | given, "t": TAGS}
    data = several(HEADS, sources, predict=str(tmp_path / "new.csv"), **settings)
    data.connect(data.processor, {name: target_head(HEADS[name]) for name in asked}, {})
    data.setup("predict")
    [batch] = data.predict_dataloader()
    assert batch["meta"]["rows"] == [0] and batch["labels"] == {}
    assert batch["input_ids"].shape == (1, 4)
    assert data.raw("predict")[0]["id"] == "1"


def test_rows_to_predict_that_sources_read_differently(several, fault):
    message = fault(several(HEADS, {"m": MOOD, "t": TAGS}, predict="id,text\n1,x\n"), "predict")
    assert "The sources have different text: text, tokens." in message
    assert "--data.text text; or predict with some of the heads: --heads NAME" in message


def test_settings_are_plain_values(several, tmp_path):
    data = several(HEADS, {"m": MOOD, "t": TAGS}, sampling={"m": 1, "t": 2.5}, missing_labels=True)
    torch.save(dict(data.hparams), tmp_path / "settings.pt")
    loaded = torch.load(tmp_path / "settings.pt", weights_only=True)
    assert loaded["sources"]["m"]["train"] == str(tmp_path / "m.train.csv")
    assert TextData(**loaded).hparams == data.hparams
