"""TokenClassification: the contract, the loss of transformers, entity F1 of seqeval, words out of subwords."""

from itertools import chain

import pytest
import torch
from seqeval.metrics import f1_score, precision_score, recall_score
from sklearn.metrics import accuracy_score
from sklearn.metrics import f1_score as sklearn_f1
from transformers import BertConfig, BertForTokenClassification

from heads import HeadOutput, TokenClassification
from heads.testing import check_head

BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.mark.parametrize(
    "head",
    [TokenClassification(), TokenClassification("all"), TokenClassification(native=False, hidden_layers="mix")],
    ids=["native", "all subwords", "mix"],
)
def test_it_keeps_the_contract(head):
    check_head(head, BIO)


def test_the_loss_is_that_of_transformers():
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_labels=5)
    labels = torch.randint(5, (3, 6)).masked_fill(torch.rand(3, 6) > 0.5, -100)
    theirs = BertForTokenClassification(config).eval()(torch.randint(5, 90, (3, 6)), labels=labels)
    assert torch.equal(TokenClassification().loss(HeadOutput(theirs.logits), labels), theirs.loss)


def words_and_tokens(seed):
    """Random rows: word ids with words of 1 to 3 subwords, special tokens around and padding behind."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        torch.randint(1, 4, (int(torch.randint(1, 6, (1,), generator=generator)),), generator=generator)
        for _ in range(4)
    ]
    word_ids = [[-1, *(w for w, n in enumerate(row.tolist()) for _ in range(n)), -1] for row in rows]
    width = max(map(len, word_ids))
    ids = torch.tensor([row + [-1] * (width - len(row)) for row in word_ids])
    gold = torch.randint(5, ids.shape, generator=generator)
    return ids, gold, torch.randn(*ids.shape, 5, generator=generator)


@pytest.mark.parametrize("subwords", ["first", "all"])
def test_metrics_are_over_words_whatever_learns(subwords):
    head = TokenClassification(subwords)
    head.labels = BIO
    metrics = head.metrics()
    gold_words, answers = [], []
    for seed in range(5):
        word_ids, gold, logits = words_and_tokens(seed)
        first = (word_ids >= 0) & (word_ids != torch.nn.functional.pad(word_ids, (1, 0), value=-1)[:, :-1])
        labels = gold.masked_fill(~first if subwords == "first" else word_ids < 0, -100)
        metrics.update(*head.metric_inputs(HeadOutput(logits, {"word_ids": word_ids}), labels))
        for row in range(len(gold)):
            gold_words.append([BIO[tag] for tag in gold[row][first[row]]])
        answers += [row["tags"] for row in head.predict(HeadOutput(logits, {"word_ids": word_ids}))]
    got = {key: value.item() for key, value in metrics.compute().items()}
    assert got["f1"] == pytest.approx(f1_score(gold_words, answers))
    assert got["precision"] == pytest.approx(precision_score(gold_words, answers))
    assert got["recall"] == pytest.approx(recall_score(gold_words, answers))
    assert got["accuracy"] == pytest.approx(accuracy_score(list(chain(*gold_words)), list(chain(*answers))))


def test_tags_without_bio_have_an_f1_over_tags():
    head = TokenClassification()
    head.labels = ("DET", "NOUN", "VERB", "X", "Y")
    word_ids, gold, logits = words_and_tokens(0)
    labels = gold.masked_fill(word_ids < 0, -100)
    metrics = head.metrics()
    metrics.update(*head.metric_inputs(HeadOutput(logits, {"word_ids": word_ids}), labels))
    tags = list(chain(*(row["tags"] for row in head.predict(HeadOutput(logits, {"word_ids": word_ids})))))
    first = (word_ids >= 0) & (word_ids != torch.nn.functional.pad(word_ids, (1, 0), value=-1)[:, :-1])
    gold_tags = [head.labels[tag] for tag in gold[first]]
    assert metrics.compute()["f1"].item() == pytest.approx(sklearn_f1(gold_tags, tags, average="macro"))


def test_predictions_are_by_word_with_entities():
    head = TokenClassification()
    head.labels = BIO
    word_ids = torch.tensor([[-1, 0, 0, 1, 3, -1]])
    tags = torch.tensor([[0, 1, 4, 2, 3, 0]])
    logits = torch.nn.functional.one_hot(tags, 5) * 20.0
    [row] = head.predict(HeadOutput(logits, {"word_ids": word_ids}))
    assert row["tags"] == ["B-PER", "I-PER", None, "B-LOC"]
    assert row["entities"] == [{"type": "PER", "start": 0, "end": 2}, {"type": "LOC", "start": 3, "end": 4}]
