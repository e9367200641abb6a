"""Losses against torch, scikit-learn, transformers' label smoother, and the formulas of the papers written out."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from transformers.trainer_pt_utils import LabelSmoother

from backbones import HeadsetError
from heads import HeadContext, HeadOutput, ImageClassification, SequenceClassification, TokenClassification
from heads.label_counts import LabelCounts
from heads.testing import check_head, tiny_backbone

LABELS = ("x", "y", "z")
MULTI = "multi_label_classification"
WEIGHTS = {"x": 0.5, "z": 3.0}
VALUES = torch.tensor([0.5, 1.0, 3.0])
OBJECTIVES = [
    ("single_label_classification", "cross_entropy"),
    ("single_label_classification", {"label_smoothing": 0.1, "class_weights": "balanced"}),
    ("single_label_classification", {"loss": "focal", "gamma": 1.5, "class_weights": WEIGHTS}),
    ("single_label_classification", {"soft_labels": True, "class_weights": WEIGHTS}),
    (MULTI, {"label_smoothing": 0.1, "positive_weights": "balanced"}),
    (MULTI, {"loss": "focal", "positive_weights": WEIGHTS}),
    ("regression", "l1"),
    ("regression", {"loss": "huber", "delta": 0.7}),
]


def built(objective, problem_type="single_label_classification", labels=LABELS, counts=None):
    head = SequenceClassification(problem_type, objective=objective)
    names = None if problem_type == "regression" else labels
    head.attach(HeadContext(tiny_backbone(), names, label_counts=counts))
    return head


def loss_of(head, logits, labels):
    return head.loss(HeadOutput(logits), labels)


@pytest.fixture
def rows():
    torch.manual_seed(0)
    return 3 * torch.randn(8, 3), torch.tensor([0, 1, 2, 2, 2, 1, 0, 2])


@pytest.mark.parametrize("pooling", ["native", "mean"])
@pytest.mark.parametrize(("problem_type", "objective"), OBJECTIVES)
def test_it_keeps_the_contract(problem_type, objective, pooling):
    check_head(SequenceClassification(problem_type, objective=objective, pooling=pooling), LABELS)


def test_images_have_objectives_too():
    check_head(ImageClassification(objective={"loss": "focal", "class_weights": "balanced"}), LABELS)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("objective", [{"label_smoothing": 0.1, "class_weights": "balanced"}, "focal"])
def test_tags_have_objectives_too(objective, native):
    check_head(TokenClassification(objective=objective, native=native), LABELS)


def test_tokens_without_a_tag_do_not_count(rows):
    logits, tags = rows[0].view(2, 4, 3), torch.tensor([[0, 2, -100, 1], [-100, 2, -100, -100]])
    some = tags != -100
    for objective in ({"class_weights": WEIGHTS, "label_smoothing": 0.2}, {"loss": "focal", "class_weights": WEIGHTS}):
        head = TokenClassification(objective=objective)
        head.attach(HeadContext(tiny_backbone(), LABELS))
        got, size = loss_of(head, logits, tags), head.loss_size(HeadOutput(logits), tags)
        torch.testing.assert_close(got, loss_of(built(objective), logits[some], tags[some]))
        assert size == VALUES[tags[some]].sum()


def test_rows_of_no_weight_teach_nothing():
    logits = torch.randn(2, 3, requires_grad=True)
    for objective in ({"class_weights": {"x": 0.0}}, {"loss": "focal", "class_weights": {"x": 0.0}}):
        loss = loss_of(built(objective), logits, torch.tensor([0, 0]))
        loss.backward()
        assert loss == 0 and logits.grad.eq(0).all()


def test_cross_entropy_is_that_of_torch(rows):
    head = built({"label_smoothing": 0.2, "class_weights": WEIGHTS})
    wanted = F.cross_entropy(*rows, weight=VALUES, label_smoothing=0.2)
    torch.testing.assert_close(loss_of(head, *rows), wanted)


def test_label_smoothing_is_that_of_the_trainer_of_transformers(rows):
    logits, labels = rows
    wanted = LabelSmoother(epsilon=0.1)({"logits": logits}, labels.unsqueeze(-1))
    torch.testing.assert_close(loss_of(built({"label_smoothing": 0.1}), logits, labels), wanted)


def test_the_focal_loss_is_the_formula_of_the_paper(rows):
    logits, labels = rows
    total, weights = 0.0, 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        chance = math.exp(row[label]) / sum(map(math.exp, row))
        total -= VALUES[label].item() * (1 - chance) ** 1.5 * math.log(chance)
        weights += VALUES[label].item()
    head = built({"loss": "focal", "gamma": 1.5, "class_weights": WEIGHTS})
    assert loss_of(head, logits, labels).item() == pytest.approx(total / weights, rel=1e-5)
    plain = built({"loss": "focal", "gamma": 0.0, "class_weights": WEIGHTS})
    torch.testing.assert_close(loss_of(plain, logits, labels), F.cross_entropy(logits, labels, weight=VALUES))


def test_the_focal_loss_has_finite_gradients_where_rows_are_certain():
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss_of(built({"loss": "focal", "gamma": 0.5}), logits, torch.tensor([0])).backward()
    assert logits.grad.isfinite().all()


def sigmoid_focal_loss(inputs, targets, gamma):
    """As torchvision.ops.sigmoid_focal_loss, with alpha off and the mean taken."""
    p = torch.sigmoid(inputs)
    ce_loss = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    return (ce_loss * ((1 - p_t) ** gamma)).mean()


def test_losses_of_several_labels_are_those_of_torch_and_torchvision(rows):
    logits, labels = rows[0], (torch.arange(24).view(8, 3) % 5 < 2).float()
    weighted = built({"positive_weights": WEIGHTS}, MULTI)
    wanted = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=VALUES)
    torch.testing.assert_close(loss_of(weighted, logits, labels), wanted)
    smooth = built({"label_smoothing": 0.2}, MULTI)
    wanted = F.binary_cross_entropy_with_logits(logits, torch.where(labels > 0, 0.9, 0.1))
    torch.testing.assert_close(loss_of(smooth, logits, labels), wanted)
    focal = built({"loss": "focal", "gamma": 1.5}, MULTI)
    torch.testing.assert_close(loss_of(focal, logits, labels), sigmoid_focal_loss(logits, labels, 1.5))


@pytest.mark.parametrize(("objective", "function"), [("mse", F.mse_loss), ("l1", F.l1_loss)])
def test_losses_of_numbers_are_those_of_torch(objective, function):
    numbers, labels = torch.randn(5, 1), torch.randn(5)
    torch.testing.assert_close(
        loss_of(built(objective, "regression"), numbers, labels), function(numbers[:, 0], labels)
    )


def test_the_huber_loss_is_that_of_torch():
    numbers, labels = 3 * torch.randn(9, 1), torch.randn(9)
    got = loss_of(built({"loss": "huber", "delta": 0.7}, "regression"), numbers, labels)
    torch.testing.assert_close(got, F.huber_loss(numbers[:, 0], labels, delta=0.7))


def test_soft_labels_are_those_of_torch_and_a_certain_one_is_a_class(rows):
    logits, labels = rows
    soft = torch.rand(8, 3).softmax(-1)
    head = built({"soft_labels": True})
    torch.testing.assert_close(loss_of(head, logits, soft), F.cross_entropy(logits, soft))
    divergence = F.kl_div(logits.log_softmax(-1), soft, reduction="batchmean")
    entropy = -(soft * soft.log()).sum(-1).mean()
    torch.testing.assert_close(loss_of(head, logits, soft), divergence + entropy)
    torch.testing.assert_close(loss_of(head, logits, F.one_hot(labels, 3).float()), F.cross_entropy(logits, labels))
    assert head.metric_inputs(HeadOutput(logits), F.one_hot(labels, 3).float())[1].equal(labels)


def test_balanced_weights_are_those_of_scikit_learn(rows):
    labels = rows[1]
    counts = LabelCounts(LABELS, tuple(labels.bincount().tolist()), len(labels))
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    head = built({"class_weights": "balanced"}, counts=counts)
    torch.testing.assert_close(head.weights.value, torch.tensor(wanted, dtype=torch.float32))
    several = built({"positive_weights": "balanced"}, MULTI, counts=LabelCounts(LABELS, (1, 2, 4), 8))
    assert several.weights.value.tolist() == [7.0, 3.0, 1.0]


@pytest.mark.parametrize(("problem_type", "objective"), [("single_label_classification", None), *OBJECTIVES])
def test_two_batches_weighed_by_their_sizes_are_one(problem_type, objective):
    torch.manual_seed(0)
    head = built(objective, problem_type, counts=LabelCounts(LABELS, (1, 2, 4), 8))
    logits = torch.randn(8, 1 if problem_type == "regression" else 3)
    labels = {"regression": torch.randn(8), MULTI: torch.randint(2, (8, 3)).float()}.get(problem_type)
    if labels is None:
        soft = head.learning.soft_labels
        labels = torch.rand(8, 3).softmax(-1) if soft else torch.tensor([0, 0, 1, 2, 2, 2, 1, 0])
    parts = [(HeadOutput(logits[part]), labels[part]) for part in (slice(0, 3), slice(3, 8))]
    sizes = torch.tensor([float(head.loss_size(*part)) for part in parts])
    losses = torch.stack([head.loss(*part) for part in parts])
    torch.testing.assert_close((losses * sizes).sum() / sizes.sum(), head.loss(HeadOutput(logits), labels))


def test_weights_are_in_checkpoints_and_keep_their_precision():
    head = built({"class_weights": "balanced"}, counts=LabelCounts(LABELS, (3, 5, 7), 15))
    again = built({"class_weights": "balanced"})  # made again without the data
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.to(torch.bfloat16).weights.value, torch.tensor([15 / 9, 1.0, 15 / 21]))


def test_balanced_weights_without_a_train_split_are_a_clear_error(rows):
    with pytest.raises(HeadsetError, match="come from the train split"):
        loss_of(built({"class_weights": "balanced"}), *rows)
    with pytest.raises(HeadsetError, match="no row of the train split has the label 'y'"):
        built({"class_weights": "balanced"}, counts=LabelCounts(LABELS, (3, 0, 1), 4))


def test_labels_that_are_numbers_in_yaml_are_names():
    head = SequenceClassification(objective={"class_weights": {0: 1.0, 1: 4.0}})
    assert head.spec()["init_args"]["objective"] == {"class_weights": {"0": 1.0, "1": 4.0}}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("focl", "Did you mean 'focal'"),
        ("mse", "Invalid objective of single_label_classification: 'mse'. Valid"),
        ({"loss": "focal", "label_smoothing": 0.1}, "Invalid setting of the objective focal: 'label_smoothing'"),
        ({"label_smoothing": 1.0}, "Give a number from 0 to below 1"),
        ({"loss": "focal", "gamma": "two"}, "Invalid gamma: 'two'"),
        ({"class_weights": "balance"}, "Give balanced, or a weight by label"),
        ({"soft_labels": True, "class_weights": "balanced"}, "Balanced weights count labels"),
        ({"class_weights": {"w": 2.0}}, "Invalid label in the weights: 'w'"),
    ],
)
def test_wrong_objectives_are_clear_errors(objective, message):
    with pytest.raises(HeadsetError, match=message):
        built(objective)
