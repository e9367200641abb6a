"""CRFTagging: the contract, its loss over words, the same data, predictions and metrics as TokenClassification."""

import pytest
import torch
from torch.nn import functional as F

from heads import CRFTagging, HeadContext, HeadOutput, TokenClassification
from heads.testing import check_head, tiny_backbone

BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.mark.parametrize("labels", [BIO, ("DET", "NOUN")], ids=["BIO", "plain"])
@pytest.mark.parametrize("layers", ["last", "mix"])
def test_it_keeps_the_contract(layers, labels):
    check_head(CRFTagging(layers), labels)


def made(labels=BIO):
    head = CRFTagging()
    head.attach(HeadContext(tiny_backbone(), labels))
    return head.eval()


@pytest.mark.parametrize("side", ["left", "right"])
def test_without_transitions_it_is_token_classification(side):
    """Plain tags, and transitions that are zero as they start: the words are independent."""
    labels = ("DET", "NOUN", "VERB")
    torch.manual_seed(0)
    head, plain = made(labels), TokenClassification()
    plain.labels = labels
    word_ids = torch.tensor([[-1, 0, 0, 1, 3, -1, -1], [-1, 0, 1, 1, 1, 1, 2]])
    gold = torch.tensor([[0, 2, 0, 1, 2, 0, 0], [0, 1, 2, 0, 0, 0, 1]])
    if side == "left":
        word_ids, gold = word_ids.roll(1, 1), gold.roll(1, 1)
        word_ids[1, 0] = -1
    output = HeadOutput(torch.randn(2, 7, 3), {"word_ids": word_ids, "words": [5, 3]})
    before = F.pad(word_ids, (1, 0), value=-1)[:, :-1]
    labels = gold.masked_fill((word_ids < 0) | (word_ids == before), -100)
    torch.testing.assert_close(head.loss(output, labels), plain.loss(output, labels))
    assert head.loss_size(output, labels) == (labels >= 0).sum()
    ours, theirs = head.predict(output), plain.predict(output)
    assert [row["tags"] for row in ours] == [row["tags"] for row in theirs]
    assert ours[0]["scores"][0] == pytest.approx(theirs[0]["scores"][0])
    metrics, others = head.metrics(), plain.metrics()
    metrics.update(*head.metric_inputs(output, labels))
    others.update(*plain.metric_inputs(output, labels))
    assert metrics.compute() == others.compute()


def test_transitions_change_tags_and_no_illegal_sequence_comes_out():
    head = made()
    scores = torch.tensor([[[2.0, 0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 5.0], [1.0, 0.0, 0.0, 0.0, 0.0]]])
    output = HeadOutput(scores, {"word_ids": torch.tensor([[0, 1, 2]])})
    [row] = head.predict(output)  # word by word: I-PER, I-LOC, O
    assert row["tags"] == ["B-LOC", "I-LOC", "O"]
    assert row["entities"] == [{"type": "LOC", "start": 0, "end": 2}]
    head.crf.transitions.data[0, 0] = 20.0
    assert head.predict(output)[0]["tags"] == ["O", "O", "O"]


def test_illegal_gold_teaches_its_entities_or_nothing():
    head = made()
    output = HeadOutput(torch.randn(2, 3, 5), {"word_ids": torch.arange(3).repeat(2, 1)})
    wrong, right = torch.tensor([[2, 2, 4], [0, 0, 3]]), torch.tensor([[1, 2, 3], [0, 0, 3]])
    assert torch.equal(head.loss(output, wrong), head.loss(output, right))
    lacking = made(("O", "I-X", "S-X"))  # what X begins with and ends with is I-X, and nothing of Y is there
    assert lacking.loss(HeadOutput(output.logits[..., :3], output.info), wrong.clamp(max=2)).isfinite()


def test_selected_rows_give_the_loss_of_these_rows():
    head = made()
    output = HeadOutput(torch.randn(3, 4, 5), {"word_ids": torch.arange(4).repeat(3, 1), "words": [4, 4, 4]})
    labels = torch.tensor([[0, 1, 2, 0], [0, 0, 0, 0], [3, 4, -100, -100]])
    rows = torch.tensor([2, 0])
    parts = [head.loss(head.select(output, row), labels[row]) * (labels[row] >= 0).sum() for row in rows.view(2, 1)]
    chosen = head.select(output, rows)
    size = head.loss_size(chosen, labels[rows])
    assert size == 6
    torch.testing.assert_close(head.loss(chosen, labels[rows]), sum(parts) / size)
