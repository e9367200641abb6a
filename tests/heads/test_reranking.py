"""Reranking: the contract, losses and scores of sentence-transformers' CrossEncoder, metrics of scikit-learn."""

import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import losses
from sklearn.metrics import average_precision_score, ndcg_score
from transformers import AutoTokenizer

from backbones import Backbone, HeadsetError
from heads import HeadContext, HeadOutput, Reranking
from heads.relevance import NO_DOCUMENT, RelevanceTarget
from heads.testing import check_head
from headset import Headset
from headset.choice_encoder import ChoiceEncoder
from headset.prediction import encoder_for

QUERIES = ["a good film", "the book", "not bad"]
DOCUMENTS = [["the film was very good", "a book"], ["a book is not a film", "film", "the book was bad"], ["bad"]]
RELEVANCE = [[1.0, 0.0], [0.0, 0.5, 1.0], [1.0]]
OBJECTIVES = ("pointwise", "pairwise", "listwise")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_keeps_the_contract(objective):
    check_head(Reranking(objective))
    check_head(Reranking(objective, pooling=["attention", "cls"], hidden_layers="mix"))


def attached(folder, *arguments, **settings):
    torch.manual_seed(0)
    headset = Headset(
        Backbone.from_pretrained(str(folder)),
        {"rank": Reranking(*arguments, **settings)},
        tokenizer=AutoTokenizer.from_pretrained(folder),
    ).eval()
    headset.states["rank"] = "trained"
    return headset


def batch_of(headset, documents):
    encoder = encoder_for(headset, "rank")
    encoded = encoder.encode([QUERIES, documents])
    return encoder.collate([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)])


@pytest.fixture(scope="module")
def pair(tiny_bert, tmp_path_factory):
    """A headset, and a CrossEncoder of its export."""
    headset = attached(tiny_bert)
    torch.nn.init.normal_(headset.head("rank").scorer.task.classifier.weight, std=0.5)
    place = headset.export(str(tmp_path_factory.mktemp("out")), format="sentence-transformers")["rank"]
    return headset, CrossEncoder(place, device="cpu").eval()


def test_scores_are_those_of_a_cross_encoder(pair):
    headset, stock = pair
    rows = list(zip(QUERIES, DOCUMENTS, strict=True))
    for (query, documents), answer in zip(rows, headset.predict(rows)["rank"], strict=True):
        theirs = stock.predict([(query, document) for document in documents]).tolist()
        assert answer["scores"] == pytest.approx(theirs, abs=1e-6)
        ranked = stock.rank(query, documents)
        assert answer["ranking"] == [one["corpus_id"] for one in ranked]
        assert answer["document"] == documents[answer["ranking"][0]]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_are_those_of_sentence_transformers(pair, objective):
    headset, stock = pair
    head = Reranking(objective)
    output = headset(batch_of(headset, DOCUMENTS))["rank"]
    labels = head.target().collate(RELEVANCE, 0)
    lists = [torch.tensor(row) for row in RELEVANCE]
    if objective == "pointwise":
        pairs = [(query, one) for query, row in zip(QUERIES, DOCUMENTS, strict=True) for one in row]
        loss = losses.BinaryCrossEntropyLoss(stock)
        theirs = loss([list(column) for column in zip(*pairs, strict=True)], torch.cat(lists))
    elif objective == "pairwise":
        theirs = losses.RankNetLoss(stock, reduction_log="natural")([QUERIES, DOCUMENTS], lists)
    else:  # theirs takes the softmax of the labels, which of logarithms is their share
        theirs = losses.ListNetLoss(stock)([QUERIES, DOCUMENTS], [row.log() for row in lists])
    ours = head.loss(output, labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    parts = [(HeadOutput(output.logits[row : row + 1]), labels[row : row + 1]) for row in range(3)]
    sizes = torch.tensor([head.loss_size(*part) for part in parts])
    each = torch.stack([head.loss(*part) for part in parts])
    torch.testing.assert_close((sizes * each).sum() / sizes.sum(), ours)
    assert head.loss_size(output, labels) == {"pointwise": 6, "pairwise": 4, "listwise": 3}[objective]


@pytest.mark.parametrize("objective", ["pairwise", "listwise"])
def test_rows_without_relevant_documents_teach_nothing(objective):
    head, logits = Reranking(objective), torch.randn(2, 3, requires_grad=True)
    output, labels = HeadOutput(logits), torch.zeros(2, 3)
    assert head.loss_size(output, labels) == 0
    head.loss(output, labels).backward()
    assert logits.grad.eq(0).all()


def test_labels_of_some_rows_may_be_shorter_than_the_batch(pair):
    headset, _ = pair
    head = headset.head("rank")
    output = headset(batch_of(headset, DOCUMENTS))["rank"]
    some = head.select(output, torch.tensor([0, 2]))
    labels = head.target().collate([RELEVANCE[0], RELEVANCE[2]], 0)
    assert labels.shape == (2, 2) and some.logits.shape == (2, 3)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.cat([output.logits[0, :2], output.logits[2, :1]]), torch.tensor([1.0, 0.0, 1.0])
    )
    torch.testing.assert_close(head.loss(some, labels), wanted)


def test_metrics_are_over_queries_in_lists_or_in_rows_of_one_document():
    torch.manual_seed(0)
    head = Reranking("listwise")
    scores, relevance = torch.randn(6, 12), torch.randint(4, (6, 12)).float() * (torch.rand(6, 12) > 0.5)
    relevance[5] = 0  # not counted
    ndcg = [ndcg_score(relevance[row : row + 1], scores[row : row + 1], k=10) for row in range(5)]
    found = [average_precision_score(relevance[row] > 0, scores[row]) for row in range(5)]
    ranks = [(relevance[row][scores[row].argsort(descending=True)] > 0).int().argmax().item() + 1 for row in range(5)]
    wanted = {"ndcg@10": sum(ndcg) / 5, "map": sum(found) / 5, "mrr": sum(1 / rank for rank in ranks) / 5}
    queries = [f"query {row}" for row in range(6)]
    lists, single = head.metrics(), head.metrics()
    lists.update(*head.metric_inputs(HeadOutput(scores, {"queries": queries}), relevance))
    for part in torch.randperm(72).split(10):
        rows, columns = part // 12, part % 12
        output = HeadOutput(scores[rows, columns].unsqueeze(1), {"queries": [queries[row] for row in rows]})
        single.update(*head.metric_inputs(output, relevance[rows, columns].unsqueeze(1)))
    for metrics in (lists, single):
        assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("value", "documents", "relevance"),
    [
        ([0, 1, 0.5], 3, [0.0, 1.0, 0.5]),
        ([True, False], 2, [1.0, 0.0]),
        (1, 1, [1.0]),
        ("0.25", 1, [0.25]),
        (2, 3, [0.0, 0.0, 1.0]),
        ("B", 3, [0.0, 1.0, 0.0]),
        ("one", 2, [0.0, 1.0]),
    ],
)
def test_relevance_is_numbers_or_the_right_document(value, documents, relevance):
    texts = {"choices": ["zero", "one", "two"][:documents]}
    assert RelevanceTarget(1.0).encode(value, None, texts) == relevance


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 0], "2 numbers for the relevance of 3 documents"),
        ([1, 0, -1], "from 0 to 1, got -1"),
        ([1, 0, 2], "from 0 to 1, got 2"),
        ([1, 0, None], r"expected a number, got nothing \(null\)"),
        (None, "expected one of 3 choices"),
    ],
)
def test_what_is_no_relevance_is_refused(value, message):
    with pytest.raises(HeadsetError, match=message):
        RelevanceTarget(1.0).encode(value, None, {"choices": ["zero", "one", "two"]})


def test_graded_relevance_is_for_lists():
    assert Reranking("listwise").target().encode([3, 0], None, {"choices": ["a", "b"]}) == [3.0, 0.0]
    assert RelevanceTarget().collate([[1.0], [2.0, 0.0]], 0).tolist() == [[1.0, NO_DOCUMENT], [2.0, 0.0]]


def test_rows_of_one_document_are_read_as_pairs(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    encoder = ChoiceEncoder(tokenizer, ranked=True)
    encoded = encoder.encode([QUERIES, [row[0] for row in DOCUMENTS]])
    stock = tokenizer(QUERIES, [row[0] for row in DOCUMENTS])
    assert encoded["input_ids"] == [[ids] for ids in stock["input_ids"]] and encoded["query"] == QUERIES
    with pytest.raises(HeadsetError, match="At least one document is needed"):
        encoder.columns([("a query", [])])


def test_a_context_of_its_own(tiny_bert):
    head = Reranking(pooling="mean")
    head.attach(HeadContext(Backbone.from_pretrained(str(tiny_bert))))
    assert head.auto_class is None and head.scorer.linear.out_features == 1
    with pytest.raises(HeadsetError, match=r"Invalid objective: 'pairwize'\. .*Did you mean 'pairwise'"):
        Reranking("pairwize")
