"""Thresholds against scikit-learn's curves and all thresholds there are; temperatures against scipy's optimum."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import f1_score, precision_recall_curve
from torch.nn import functional as F

from backbones import HeadsetError
from heads import HeadContext, HeadOutput, SequenceClassification
from heads.testing import check_head, tiny_backbone
from heads.tuning import best_temperature, best_thresholds

LABELS = ("x", "y", "z")
MULTI = "multi_label_classification"


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_have_the_best_f1_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    # Few distinct probabilities, so that there are ties.
    probabilities = torch.rand(30, 4, generator=generator).mul(12).round() / 12
    labels = (torch.rand(30, 4, generator=generator) < probabilities * 0.7).float()
    found = best_thresholds(probabilities, labels)
    for label in range(4):
        chances, truth = probabilities[:, label].double().numpy(), labels[:, label].numpy()
        got = f1_score(truth, chances >= found[label].item())
        precision, recall, _ = precision_recall_curve(truth, chances)
        curve = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        every = [f1_score(truth, chances >= cut) for cut in np.unique(chances)]
        assert got == pytest.approx(curve.max()) and got == pytest.approx(max(every))
        # No better one is nearer to one half: the best cuts lie half way between neighbours.
        cuts = np.unique(np.append(chances, 0.0))
        halves = (cuts[1:] + cuts[:-1]) / 2
        best = [cut for cut in halves if f1_score(truth, chances >= cut) > got - 1e-12]
        assert abs(found[label] - 0.5) == pytest.approx(min(abs(cut - 0.5) for cut in best))


def test_a_tie_goes_to_the_higher_threshold_and_a_label_of_no_row_keeps_one_half():
    # {0.7} and all three have an F1 of 2/3 and lie equally far from one half.
    probabilities = torch.tensor([[0.75, 0.3], [0.5, 0.9], [0.5, 0.2], [0.5, 0.1]]).double()
    labels = torch.tensor([[1.0, 0], [1, 0], [0, 0], [0, 0]])
    assert best_thresholds(probabilities, labels).tolist() == [0.625, 0.5]


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_is_the_optimum_that_scipy_finds(scale):
    torch.manual_seed(0)
    logits = torch.randn(200, 5)
    labels = torch.distributions.Categorical(logits=logits).sample()
    logits = (logits * scale).double()

    def likelihood(log_t):
        return F.cross_entropy(logits / np.exp(log_t), labels).item()

    wanted = np.exp(minimize_scalar(likelihood, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}).x)
    assert best_temperature(logits, labels).item() == pytest.approx(wanted, rel=1e-4)


def test_the_temperature_has_bounds_where_all_rows_are_right():
    assert best_temperature(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])).item() == pytest.approx(0.01)


def built(*args, **kwargs):
    head = SequenceClassification(*args, **kwargs)
    head.attach(HeadContext(tiny_backbone(), LABELS))
    return head


@pytest.mark.parametrize(
    "head",
    [
        SequenceClassification(MULTI, threshold="tuned"),
        SequenceClassification(MULTI, threshold={"y": 0.2}),
        SequenceClassification(temperature="tuned"),
        SequenceClassification(temperature=2.0),
    ],
)
def test_it_keeps_the_contract(head):
    check_head(head, LABELS)


def test_tuned_thresholds_are_used_stored_and_exported():
    head = built(MULTI, threshold="tuned")
    logits = torch.tensor([[2.0, -1.0, 0.0], [1.0, -2.0, 0.0], [-1.0, -3.0, 1.0]])
    head.tune(logits, torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1]]))
    assert [row["labels"] for row in head.predict(HeadOutput(logits))] == [["x", "y"], ["y"], ["z"]]
    decisions, _ = head.metric_inputs(HeadOutput(logits), torch.zeros(3, 3))
    assert decisions.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    again = built(MULTI, threshold="tuned")
    again.load_state_dict(head.state_dict())
    assert again.predict(HeadOutput(logits)) == head.predict(HeadOutput(logits))
    assert list(again.export_settings()["thresholds"]) == list(LABELS)
    assert again.export_settings()["thresholds"]["y"] == pytest.approx(
        torch.tensor([-2.0, -3.0]).sigmoid().mean().item()
    )


def test_given_thresholds_are_by_label():
    head = built(MULTI, threshold={"y": 0.2})
    [row] = head.predict(HeadOutput(torch.tensor([[-0.1, -1.0, 0.1]])))
    assert row["labels"] == ["y", "z"]
    assert head.export_settings() == {"thresholds": pytest.approx({"x": 0.5, "y": 0.2, "z": 0.5})}
    with pytest.raises(HeadsetError, match="Invalid label with a threshold: 'w'"):
        built(MULTI, threshold={"w": 0.2})


def test_a_tuned_temperature_is_used_and_leaves_scores_as_they_are():
    torch.manual_seed(0)
    head = built(temperature="tuned")
    logits, labels = 5 * torch.randn(50, 3), torch.randint(3, (50,))
    head.tune(logits, labels)
    temperature = head.export_settings()["calibration_temperature"]
    assert temperature == pytest.approx(best_temperature(logits, labels).item()) and temperature > 1.5
    wanted = (logits / temperature).softmax(-1)
    got = head.predict(HeadOutput(logits))
    torch.testing.assert_close(torch.tensor([list(row["scores"].values()) for row in got]), wanted)
    assert [row["label"] for row in got] == [LABELS[best] for best in logits.argmax(-1)]
    metrics = head.metrics()
    metrics.update(*head.metric_inputs(HeadOutput(logits), labels))
    confidence, right = wanted.max(-1).values, (wanted.argmax(-1) == labels).float()
    bins = (confidence * 15).ceil().long() - 1
    error = sum(
        (bins == it).float().mean() * (confidence[bins == it].mean() - right[bins == it].mean()).abs()
        for it in bins.unique()
    )
    assert metrics.compute()["ece"].item() == pytest.approx(error.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": "tuned"}, "threshold: tuned is for multi_label_classification"),
        ({"problem_type": MULTI, "threshold": "tune"}, "Give a number, or tuned"),
        ({"problem_type": MULTI, "temperature": "tuned"}, "temperature: tuned is for single_label"),
        ({"temperature": 0.0}, "Give a number above 0"),
    ],
)
def test_wrong_settings_are_clear_errors(arguments, message):
    with pytest.raises(HeadsetError, match=message):
        SequenceClassification(**arguments)
