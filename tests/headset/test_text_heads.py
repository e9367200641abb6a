"""Text heads from tables to batches and predictions: documents for queries, and triples with hard negatives."""

import json

import pytest
from lightning.pytorch import Trainer, seed_everything
from transformers import AutoTokenizer

from backbones import HeadsetError
from heads import HierarchicalClassification, Pooling, Reranking
from headset import LitHeadset, TextData

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
TEXTS = ["the film was very good", "a bad book", "not a good film", "the book is good and it was not very bad"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with rows of queries with lists of documents, of pairs, and of triples."""
    monkeypatch.chdir(tmp_path)
    lists = [
        {"query": text, "documents": TEXTS[: 1 + row], "relevance": [1] + [0] * row} for row, text in enumerate(TEXTS)
    ]
    pairs = [
        {"query": row["query"], "document": document, "relevance": relevance}
        for row in lists
        for document, relevance in zip(row["documents"], row["relevance"], strict=True)
    ]
    triples = [{"a": text, "b": text, "c": TEXTS[row - 1]} for row, text in enumerate(TEXTS)]
    for name, rows in {"lists": lists, "pairs": pairs, "triples": triples}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def run(folder, tiny_bert, head, **settings):
    """The module after an epoch, and the metrics of its validation."""
    trainer = Trainer(default_root_dir=folder, max_epochs=1, **QUIET)
    module = LitHeadset(str(tiny_bert), {"head": head}, learning_rate=1e-3)
    trainer.fit(module, datamodule=TextData(batch_size=2, **settings))
    return module, {name.rpartition("/")[2]: value.item() for name, value in trainer.callback_metrics.items()}


def test_reranking_in_lists_and_in_pairs_measures_the_same_queries(folder, tiny_bert):
    files = {"train": "lists.jsonl", "validation": "lists.jsonl", "text": "query", "choices": "documents"}
    module, found = run(folder, tiny_bert, Reranking(), labels="relevance", **files)
    again = {"validation": "pairs.jsonl", "text": ["query", "document"], "labels": "relevance"}
    [pairs] = Trainer(**QUIET).validate(module, datamodule=TextData(batch_size=3, **again), verbose=False)
    for name in ("mrr", "ndcg@10", "map"):
        assert pairs[f"val/head/{name}"] == pytest.approx(found[name], abs=1e-5), name
    data = TextData(predict="lists.jsonl", text="query", choices="documents", batch_size=3)
    answers = [row for batch in Trainer(**QUIET).predict(module, datamodule=data) for row in batch["head"]]
    rows = [(text, TEXTS[: 1 + row]) for row, text in enumerate(TEXTS)]
    alone = module.built.predict(rows)["head"]
    assert [answer["ranking"] for answer in answers] == [answer["ranking"] for answer in alone]
    assert [len(answer["scores"]) for answer in answers] == [1, 2, 3, 4]


def test_triples_have_hard_negatives(folder, tiny_bert):
    module, found = run(
        folder, tiny_bert, Pooling(), train="triples.jsonl", validation="triples.jsonl", text=["a", "b", "c"]
    )
    assert 0 <= found["accuracy"] <= 1
    answers = module.built.predict([("a film", "a good film", "a book")])["head"]
    assert len(answers[0]["vectors"]) == 3 and -1 <= answers[0]["similarity"] <= 1


def test_paths_in_one_column_or_in_several(folder, tiny_bert):
    paths = [("sport", "chess"), ("sport", None), ("politics", None), ("sport", "golf")]
    rows = [
        {"text": text, "path": "/".join(filter(None, path)), "coarse": path[0], "fine": path[1]}
        for text, path in zip(TEXTS, paths, strict=True)
    ]
    (folder / "paths.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = []
    for labels in ("path", ["coarse", "fine"]):
        seed_everything(0)
        files = {"train": "paths.jsonl", "validation": "paths.jsonl"}
        module, metrics = run(folder, tiny_bert, HierarchicalClassification(), labels=labels, **files)
        assert module.labels["head"] == ("politics", "sport", "sport/chess", "sport/golf")
        found.append(metrics)
    assert found[0] == found[1] and {"accuracy_level_1", "accuracy_level_2", "hierarchical_f1"} <= found[0].keys()


@pytest.mark.parametrize(
    ("head", "settings", "message"),
    [
        (Reranking(), {"text": "query"}, r"each row has a query and documents\. Name the query with data\.text"),
        (Reranking(), {"text": ["query", "document"], "choices": "documents"}, "each row has a query and documents"),
        (
            Pooling(objective="similarity"),
            {"text": ["a", "b", "c"]},
            "learns scores of pairs, and data.text names 3 columns",
        ),
        (
            Pooling(),
            {"text": ["a", "b", "c", "d"]},
            "data.text names 4 columns. .*or three, of which the last does not",
        ),
    ],
)
def test_wrong_columns_are_refused(folder, tiny_bert, head, settings, message):
    data = TextData(train="lists.jsonl", **settings)
    data.connect(AutoTokenizer.from_pretrained(tiny_bert), {"head": head}, {})
    with pytest.raises(HeadsetError, match=message):
        data.setup("fit")
