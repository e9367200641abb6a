"""Ordinal objectives against the formulas of the papers, written out, and metrics against scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, cohen_kappa_score

from backbones import HeadsetError
from heads import HeadContext, HeadOutput, SequenceClassification
from heads.ordinal import Coral, Corn
from heads.testing import check_head, tiny_backbone

GRADES = ("bad", "poor", "fair", "good")


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


@pytest.fixture
def rows():
    torch.manual_seed(0)
    return 2 * torch.randn(9, 3), torch.tensor([0, 1, 2, 3, 3, 0, 1, 2, 3])


@pytest.mark.parametrize("objective", ["coral", "corn"])
def test_it_keeps_the_contract(objective):
    check_head(SequenceClassification(objective=objective, pooling="mean"), GRADES)


def test_coral_is_the_loss_of_the_paper(rows):
    ranks, labels = rows
    total = 0.0
    for row, label in zip(ranks.tolist(), labels.tolist(), strict=True):
        for rank, score in enumerate(row):
            total -= math.log(sigmoid(score)) if label > rank else math.log(1 - sigmoid(score))
    assert Coral(4).loss(ranks, labels).item() == pytest.approx(total / len(ranks), rel=1e-5)


def test_corn_is_the_loss_of_the_paper(rows):
    ranks, labels = rows
    total, size = 0.0, 0
    for rank in range(3):  # learnt from the rows that are at this class or above
        for row, label in zip(ranks.tolist(), labels.tolist(), strict=True):
            if label >= rank:
                total -= math.log(sigmoid(row[rank])) if label > rank else math.log(1 - sigmoid(row[rank]))
                size += 1
    scale = Corn(4)
    assert scale.loss(ranks, labels).item() == pytest.approx(total / size, rel=1e-5)
    assert scale.loss_size(labels) == size


def test_classes_and_probabilities_are_those_of_the_papers(rows):
    scores = rows[0]
    coral, corn = Coral(4), Corn(4)
    torch.testing.assert_close(coral.ranks(scores[:, :1]), scores[:, :1] + torch.tensor([1.0, 2 / 3, 1 / 3]))
    with torch.no_grad():  # biases that are not in falling order
        coral.biases.copy_(torch.tensor([0.2, 0.9, -1.0]))
    shared = coral.ranks(scores[:, :1])
    for scale, ranks, above in (
        (coral, shared, shared.sigmoid()),
        (corn, scores, scores.sigmoid().cumprod(-1)),
    ):
        assert scale.classify(ranks).equal((above > 0.5).sum(-1))
        falling = torch.cat([torch.ones(9, 1), above.sort(-1, descending=True).values, torch.zeros(9, 1)], -1)
        chances = scale.log_probabilities(ranks).exp()
        torch.testing.assert_close(chances, falling[:, :-1] - falling[:, 1:], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(chances.sum(-1), torch.ones(9))


def test_extreme_scores_stay_finite():
    for scale in (Coral(4), Corn(4)):
        ranks = torch.tensor([[300.0, 300.0, 300.0], [-300.0, -300.0, -300.0]], requires_grad=True)
        chances = scale.log_probabilities(ranks)
        (scale.loss(ranks, torch.tensor([3, 0])) + chances.mean()).backward()
        assert chances.isfinite().all() and ranks.grad.isfinite().all()
        assert scale.classify(ranks).tolist() == [3, 0]


@pytest.mark.parametrize("objective", ["coral", "corn"])
def test_metrics_equal_scikit_learn_and_predictions_say_labels(objective):
    head = SequenceClassification(objective=objective, pooling="mean")
    head.attach(HeadContext(tiny_backbone(), GRADES))
    torch.manual_seed(0)
    ranks, labels = torch.randn(40, 3) + torch.tensor([1.0, 0.0, -1.0]), torch.randint(4, (40,))
    output = HeadOutput(head.scale.log_probabilities(ranks), {"ranks": ranks})
    metrics = head.metrics()
    metrics.update(*head.metric_inputs(output, labels))
    got = {key: value.item() for key, value in metrics.compute().items()}
    answers = head.predict(output)
    chosen = torch.tensor([GRADES.index(row["label"]) for row in answers])
    assert len(chosen.unique()) > 1
    assert got["accuracy"] == pytest.approx(accuracy_score(labels, chosen))
    assert got["mae"] == pytest.approx((labels - chosen).abs().float().mean().item())
    assert got["kappa"] == pytest.approx(cohen_kappa_score(labels, chosen, weights="quadratic"), abs=1e-5)
    for row in answers:
        assert row["score"] == row["scores"][row["label"]]
        assert sum(row["scores"].values()) == pytest.approx(1)
    some = head.select(output, torch.tensor([1, 3]))
    assert head.loss(some, labels[[1, 3]]).isfinite() and head.predict(some) == [answers[1], answers[3]]


def test_native_scores_cannot_be_ordinal():
    with pytest.raises(HeadsetError, match="no modules of transformers can learn by it"):
        SequenceClassification(objective="coral")


def test_no_temperature_for_ranks():
    with pytest.raises(HeadsetError, match="an ordinal objective has scores of ranks"):
        SequenceClassification(objective="corn", pooling="mean", temperature="tuned")
