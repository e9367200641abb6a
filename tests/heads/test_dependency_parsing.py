"""DependencyParsing: the contract, scores and loss by the formulas of the paper, decoding, attachment scores, data."""

import pytest
import torch
from torch.nn import functional as F
from transformers.utils.generic import ModelOutput

from backbones.errors import HeadsetError
from heads import DependencyParsing, HeadContext
from heads.attachment_scores import AttachmentScores
from heads.dependency_target import DependencyTarget
from heads.testing import check_head, tiny_backbone

RELATIONS = ("det", "nsubj", "root")


@pytest.mark.parametrize(
    "head", [DependencyParsing(), DependencyParsing("greedy", 16, 8, "mix")], ids=["tree", "greedy, mix"]
)
def test_it_keeps_the_contract(head):
    check_head(head, RELATIONS)


def made(**arguments):
    torch.manual_seed(0)
    head = DependencyParsing(arc_size=6, relation_size=4, **arguments)
    head.attach(HeadContext(tiny_backbone(), RELATIONS))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head.eval()


WORDS = torch.tensor([[-1, 0, 0, 1, 2, 2, 3, -1, -1], [-1, 0, 1, -1, -1, -1, -1, -1, -1]])
GOLD = {0: [(2, 0), (3, 1), (0, 2), (3, 1)], 1: [(0, 2), (1, 0)]}


def answered(head, side):
    ids, hidden = WORDS, torch.randn(2, 9, 32)
    if side == "left":
        ids, hidden = ids.roll(1, 1), hidden.roll(1, 1)
    labels = torch.full((2, 9, 2), -100)
    for row, pairs in GOLD.items():
        for word, pair in enumerate(pairs):
            labels[row, ids[row].tolist().index(word)] = torch.tensor(pair)
    return ids, hidden, labels, head(ModelOutput(last_hidden_state=hidden), {"meta": {"word_ids": ids}})


@pytest.mark.parametrize("side", ["right", "left"])
def test_scores_and_loss_are_those_of_the_formulas(side):
    head = made()
    ids, hidden, labels, output = answered(head, side)
    total = 0.0
    one = torch.ones(1)
    for row, pairs in GOLD.items():
        places = [ids[row].tolist().index(word) for word in range(len(pairs))]
        vectors = [F.leaky_relu(head.scorer.linear(hidden[row, place]), 0.1) for place in places]
        below, above = [v[:10] for v in vectors], [head.root, *(v[10:] for v in vectors)]
        for word, (gold, relation) in enumerate(pairs):
            arcs = torch.stack([torch.cat([below[word][:6], one]) @ head.arcs.weight[0] @ it[:6] for it in above])
            torch.testing.assert_close(output.logits[row, places[word]][[0, *(p + 1 for p in places)]], arcs)
            arcs[word + 1] = -torch.inf
            x, y = torch.cat([below[word][6:], one]), torch.cat([above[gold][6:], one])
            relations = torch.stack([x @ weight @ y for weight in head.relations.weight])
            total += F.cross_entropy(arcs, torch.tensor(gold)) + F.cross_entropy(relations, torch.tensor(relation))
    assert head.loss_size(output, labels) == 6
    torch.testing.assert_close(head.loss(output, labels), total / 6)
    chosen, rows = head.select(output, torch.tensor([1])), labels[[1]]
    assert head.loss_size(chosen, rows) == 2
    assert head.predict(chosen) == head.predict(output)[1:]


@pytest.mark.parametrize("side", ["right", "left"])
def test_predictions_are_trees_of_words_and_metrics_count_them(side):
    head, greedy = made(), made(decoding="greedy")
    _, _, labels, output = answered(head, side)
    rows = head.predict(output)
    assert [len(row["head"]) for row in rows] == [4, 2]
    assert all(row["head"].count(0) == 1 for row in rows)
    pairs = [
        (*pair, *gold)
        for row, golds in zip(rows, GOLD.values(), strict=True)
        for pair, gold in zip(zip(row["head"], row["deprel"], strict=True), golds, strict=True)
    ]
    metrics = head.metrics()
    metrics.update(*head.metric_inputs(output, labels))
    right = [head_ == gold for head_, _, gold, _ in pairs]
    both = [ok and RELATIONS.index(name) == relation for ok, (_, name, _, relation) in zip(right, pairs, strict=True)]
    assert metrics.compute()["uas"].item() == pytest.approx(sum(right) / 6)
    assert metrics.compute()["las"].item() == pytest.approx(sum(both) / 6)
    output.info["words"] = [6, 2]  # two that were cut off
    assert head.predict(output)[0]["head"] == [*rows[0]["head"], None, None]
    best = [max(range(5), key=lambda h, w=w: -99 if h == w + 1 else columns(output, 0)[w][h]) for w in range(4)]
    assert greedy.predict(output)[0]["head"][:4] == best


def columns(output, row):
    ids = output.info["word_ids"][row].tolist()
    places = [ids.index(word) for word in range(4)]
    return output.logits[row][places][:, [0, *(place + 1 for place in places)]].tolist()


def test_attachment_scores_count_words():
    metric = AttachmentScores()
    target = torch.tensor([[[2, 0], [0, 2], [-100, -100]], [[0, 1], [-100, -100], [1, 1]]])
    metric.update(torch.tensor([[[2, 0], [0, 1], [-100, -100]], [[2, 1], [0, 0], [1, 1]]]), target)
    metric.update(torch.tensor([[[1, 1]]]), torch.tensor([[[0, 1]]]))
    assert {key: value.item() for key, value in metric.compute().items()} == pytest.approx({"uas": 0.6, "las": 0.4})


EXAMPLE = {"words": 3, "word_ids": [None, 0, 0, 1, 2, None]}


def test_the_target_reads_heads_and_relations():
    target = DependencyTarget()
    value = target.join({"head": ["2", "3", "0"], "deprel": ["det", "nsubj", "root"]})
    assert target.find_labels([value, None, (None, None)]) == RELATIONS
    none = [-100, -100]
    encoded = target.encode(value, RELATIONS, EXAMPLE)
    assert encoded == [none, [2, 0], none, [3, 1], [0, 2], none]
    assert target.collate([encoded, encoded[:2]], 7, "left")[1].tolist() == [none] * 6 + [[2, 0]]


@pytest.mark.parametrize(
    ("heads", "relations", "message"),
    [
        (["2", "3"], ["det"] * 3, "2 heads for 3 words"),
        ([2, 3, 0], ["det"] * 2, "2 relations for 3 words"),
        ([2, 4, 0], ["det"] * 3, "word 2: expected the number of its head, another word from 1 to 3, or 0"),
        ([1, 3, 0], ["det"] * 3, "word 1: expected"),
        (["2", "_", "0"], ["det"] * 3, "word 2: expected the number of its head.*got '_'"),
        ([2, 1, 0], ["det"] * 3, "in a circle: 1 <- 2"),
        ([2, 3, 0], ["det", "nsubjj", "root"], "unknown label 'nsubjj'. Did you mean 'nsubj'"),
        (None, ["det"] * 3, "expected lists with a head and a relation for each word, got nothing"),
    ],
)
def test_what_is_no_tree_is_said(heads, relations, message):
    with pytest.raises(HeadsetError, match=message):
        DependencyTarget().encode((heads, relations), RELATIONS, EXAMPLE)
