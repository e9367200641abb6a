"""SpanClassification: the contract, scores and loss span by span, what stays, metrics against sets and seqeval."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from torch.nn import functional as F
from transformers.utils.generic import ModelOutput

from backbones.errors import HeadsetError
from heads import HeadContext, HeadOutput, SpanClassification
from heads.span_metrics import SpanScores
from heads.span_target import SpanTarget
from heads.testing import check_head, tiny_backbone


@pytest.mark.parametrize(
    "head", [SpanClassification(), SpanClassification(2, False, 16, "mix")], ids=["default", "flat, mix"]
)
@pytest.mark.parametrize("labels", [("LOC", "PER"), ("X",)])
def test_it_keeps_the_contract(head, labels):
    check_head(type(head)(**head.spec()["init_args"]), labels)


def made(**arguments):
    torch.manual_seed(0)
    head = SpanClassification(**arguments)
    head.attach(HeadContext(tiny_backbone(), ("LOC", "PER")))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head.eval()


WORDS = [[-1, 0, 0, 1, 3, 3, -1, -1], [-1, 0, 1, 1, 2, 3, 4, -1], [-1, 0, -1, -1, -1, -1, -1, -1]]


@pytest.mark.parametrize("side", ["right", "left"])
def test_scores_and_loss_are_those_of_each_span(side):
    head, ids, hidden = made(max_width=3), torch.tensor(WORDS), torch.randn(3, 8, 32)
    if side == "left":
        ids, hidden = ids.roll(1, 1), hidden.roll(1, 1)
    gold = {0: {(0, 2): 1, (3, 4): 0}, 1: {(1, 4): 0, (1, 2): 1, (0, 5): 1}, 2: {}}
    labels = SpanTarget().collate([[[*span, label] for span, label in row.items()] for row in gold.values()], 8)
    output = head(ModelOutput(last_hidden_state=hidden), {"meta": {"word_ids": ids}})
    total, words = 0.0, 0
    for row, spans in gold.items():
        present = sorted(set(ids[row].tolist()) - {-1})
        words += len(present)
        for first, last in itertools.combinations_with_replacement(range(len(present)), 2):
            if last - first >= 3:
                continue
            start = ids[row].tolist().index(present[first])
            end = 7 - ids[row].flip(0).tolist().index(present[last])
            projected = head.scorer.linear(hidden[row])
            vector = projected[start, :150] + projected[end, 150:] + head.widths.weight[last - first]
            wanted = head.score(F.gelu(vector))
            torch.testing.assert_close(output.logits[row, start, last - first], wanted)
            label = 1 + spans.get((present[first], present[last] + 1), -1)
            total += F.cross_entropy(wanted, torch.tensor(label)).item()
    assert head.loss_size(output, labels) == words == 9
    assert head.loss(output, labels).item() == pytest.approx(total / words, rel=1e-4)
    rows = torch.tensor([2, 0])
    chosen = head.select(output, rows)
    assert head.loss_size(chosen, labels[rows]) == 4
    assert len(head.predict(chosen)) == 2
    found, true = head.metric_inputs(output, labels)
    assert true == [{(*span, label) for span, label in row.items()} for row in gold.values()]
    assert [{(one["start"], one["end"]) for one in row["entities"]} for row in head.predict(output)] == [
        {span[:2] for span in row} for row in found
    ]


def answer(scores, words=6, **arguments):
    """What is found where each of some spans has a score for PER."""
    head = SpanClassification(**arguments)
    head.labels = ("LOC", "PER")
    logits = torch.zeros(1, words, 6, 3)
    logits[..., 0] = 1.0
    for (start, end), score in scores.items():
        logits[0, start, end - start - 1, 2] = score
    spans = torch.arange(words).view(1, -1, 1) + torch.arange(6) < words
    ends = (torch.arange(words).view(1, -1, 1) + torch.arange(6)).clamp(max=words - 1)
    output = HeadOutput(logits, {"word_ids": torch.arange(words).view(1, -1), "spans": spans, "ends": ends})
    return [(one["start"], one["end"]) for one in head.predict(output)[0]["entities"]]


def test_the_better_of_two_spans_that_cross_stays_and_nested_ones_do():
    scores = {(0, 4): 5.0, (1, 3): 4.0, (3, 5): 3.0, (4, 6): 2.0}
    assert answer(scores) == [(0, 4), (1, 3), (4, 6)]
    assert answer(scores, nested=False) == [(0, 4), (4, 6)]
    assert answer({(0, 4): 0.5}) == []


spans = st.sets(st.tuples(st.integers(0, 4), st.integers(5, 8), st.integers(0, 1)), max_size=6)


@given(st.lists(st.tuples(spans, spans), min_size=1, max_size=5))
@settings(deadline=None)
def test_metrics_equal_counts_of_sets(rows):
    metric = SpanScores()
    for predicted, true in rows:
        metric.update([predicted], [true])
    found, gold = ({(row, *span) for row, pair in enumerate(rows) for span in pair[part]} for part in (0, 1))
    scores = {key: value.item() for key, value in metric.compute().items()}
    right = len(found & gold)
    assert scores["precision"] == pytest.approx(right / max(len(found), 1))
    assert scores["recall"] == pytest.approx(right / max(len(gold), 1))
    assert scores["f1"] == pytest.approx(2 * right / max(len(found) + len(gold), 1))


tags = st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), min_size=4, max_size=4)


@given(st.lists(st.tuples(tags, tags), min_size=1, max_size=4))
@settings(deadline=None)
def test_on_flat_entities_the_metrics_are_those_of_seqeval(rows):
    metric, target = SpanScores(), SpanTarget()
    for pair in rows:
        predicted, true = ({tuple(s) for s in target.encode(row, ("X", "Y"), {"words": 4})} for row in pair)
        metric.update([predicted], [true])
    predicted, true = ([pair[part] for pair in rows] for part in (0, 1))
    for name, score in {"precision": precision_score, "recall": recall_score, "f1": f1_score}.items():
        assert metric.compute()[name].item() == pytest.approx(float(score(true, predicted, zero_division=0)))


def test_the_target_reads_lists_of_spans_columns_of_them_and_tags():
    target, row = SpanTarget(), [{"start": 0, "end": 2, "label": "PER"}, {"start": 1, "end": 2, "type": "LOC"}]
    wanted = [[0, 2, 1], [1, 2, 0]]
    assert target.find_labels([row, ["B-ORG", "I-ORG"], [], None]) == ("LOC", "ORG", "PER")
    assert target.encode(row, ("LOC", "PER"), {"words": 3}) == wanted
    columns = {"start": [0, 1], "end": [2, 2], "label": ["PER", "LOC"]}
    assert target.encode(columns, ("LOC", "PER"), {"words": 3}) == wanted
    assert target.encode(["O", "B-LOC", "I-LOC"], ("LOC", "PER"), {"words": 3}) == [[1, 3, 0]]
    assert target.encode([], ("LOC", "PER"), {"words": 3}) == []
    assert target.collate([wanted, []], 5).tolist() == [wanted, [[-1] * 3] * 2]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "expected a list of spans"),
        ([{"start": 0, "end": 4, "label": "PER"}], "not within the 3 words"),
        ([{"start": 2, "end": 2, "label": "PER"}], "not within the 3 words"),
        ([{"start": 0, "label": "PER"}], "expected a list of spans"),
        ([{"start": 0, "end": 1, "label": "PRE"}], "unknown label 'PRE'. Did you mean 'PER'"),
        (
            [{"start": 0, "end": 1, "label": "PER"}, {"start": 0, "end": 1, "label": "LOC"}],
            "two spans from word 0 to 1",
        ),
        (["O", "NOUN", "O"], "expected a list of spans"),
        (["O", "B-PER"], "2 tags for 3 words"),
    ],
)
def test_what_is_no_span_is_said(value, message):
    with pytest.raises(HeadsetError, match=message):
        SpanTarget().encode(value, ("LOC", "PER"), {"words": 3})
    with pytest.raises(HeadsetError, match="spans are of words"):
        SpanTarget().encode([], ("LOC", "PER"), {})
