"""Learned weights of losses, against their formulas by autograd; and where they live."""

import math

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from backbones import BackboneOptions, HeadsetError
from heads import SequenceClassification
from headset import Headset, LitHeadset, TextData, balancing
from headset.balancing import GradNorm, Uncertainty

HEADS = {"topic": SequenceClassification(), "mark": SequenceClassification("regression")}


def test_uncertainty_is_kendalls_formula():
    weights = Uncertainty(HEADS)
    with torch.no_grad():
        weights.log_variances["topic"].fill_(0.7)
        weights.log_variances["mark"].fill_(-0.4)
    losses = {"topic": torch.tensor(1.3), "mark": torch.tensor(2.1)}
    present = {name: torch.tensor(1.0) for name in losses}
    total = sum(weights.weight(name) * loss for name, loss in losses.items()) + weights.penalty(present)
    total.backward()
    variances = torch.tensor([math.exp(0.7), math.exp(-0.4)], requires_grad=True)
    # Equation 10 of the paper: L1 / sigma ** 2 of classes, L2 / (2 sigma ** 2) of numbers, and log sigma of each.
    wanted = 1.3 / variances[0] + 2.1 / (2 * variances[1]) + variances.sqrt().log().sum()
    wanted.backward()
    assert torch.allclose(total, wanted)
    slopes = torch.stack([weights.log_variances[name].grad for name in losses])
    assert torch.allclose(slopes, variances.grad * variances.detach())


def test_a_head_that_no_process_has_leaves_its_uncertainty_alone():
    weights = Uncertainty(HEADS)
    weights.penalty({"topic": torch.tensor(1.0), "mark": torch.tensor(0.0)}).backward()
    assert weights.log_variances["topic"].grad == 0.5 and weights.log_variances["mark"].grad == 0


def reference(weights, first, slopes, losses, alpha, rate):
    """A step of GradNorm (algorithm 1 of the paper) by autograd: in logarithms, distances relative to the mean norm."""
    logs = weights.log().requires_grad_()
    norms = torch.stack([(weight * slope).norm() for weight, slope in zip(logs.exp(), slopes, strict=True)])
    mean = norms.mean().detach()
    left = losses / first
    wanted = mean * (left / left.mean()) ** alpha
    ((norms - wanted).abs().sum() / mean).backward()
    moved = (logs - rate * logs.grad).detach().exp()
    return moved * len(moved) / moved.sum()


def test_gradnorm_is_its_algorithm(monkeypatch):
    shared = torch.nn.Parameter(torch.tensor([[0.5, -1.0], [2.0, 0.3]]))
    monkeypatch.setattr(balancing, "last_shared_weight", lambda backbone: shared)
    inputs = [torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 0.5]), torch.tensor([0.2, 0.1])]
    names = ["a", "b", "c"]
    weights = GradNorm(names, alpha=1.5, learning_rate=0.02)
    expected, first = torch.ones(3), None
    for step in range(4):
        with torch.no_grad():
            shared.mul_(0.8)
        losses = [((shared @ x) ** 2).sum() * (1 + step * number) for number, x in enumerate(inputs)]
        means = torch.stack(losses).detach()
        first = means if first is None else first
        slopes = [torch.autograd.grad(loss, shared, retain_graph=True)[0] for loss in losses]
        expected = reference(expected, first, slopes, means, 1.5, 0.02)
        weights.learn(dict(zip(names, losses, strict=True)), dict(zip(names, means, strict=True)), None)
        assert torch.allclose(weights.weights, expected, atol=1e-6), step
    assert not torch.allclose(expected, torch.ones(3), atol=0.05)


def test_gradnorm_settles_where_gradients_are_very_unlike(monkeypatch):
    shared = torch.nn.Parameter(torch.ones(2, 2))
    monkeypatch.setattr(balancing, "last_shared_weight", lambda backbone: shared)
    weights, seen = GradNorm(["loud", *"abcdef"]), []
    for _ in range(300):
        losses = {name: shared.sum() * (200.0 if name == "loud" else 1.0) for name in weights.names}
        weights.learn(losses, {name: loss.detach() for name, loss in losses.items()}, None)
        seen.append(weights.weights.clone())
    changes = (torch.stack(seen[1:]) / torch.stack(seen[:-1])).log().abs()
    assert changes.max() < 0.2  # no head is switched on and off
    norms = seen[-1] * torch.tensor([200.0, *[1.0] * 6])
    assert norms[0] / norms.mean() < 2 and seen[0][0] > 0.8


def test_gradnorm_leaves_heads_alone_that_teach_the_backbone_nothing(monkeypatch):
    shared = torch.nn.Parameter(torch.ones(2, 2))
    monkeypatch.setattr(balancing, "last_shared_weight", lambda backbone: shared)
    weights = GradNorm(["a", "b", "detached"], learning_rate=0.1)
    losses = {"a": shared.sum() * 5, "b": shared.sum(), "detached": torch.tensor(3.0, requires_grad=True) * 1}
    weights.learn(losses, {name: loss.detach() for name, loss in losses.items()}, None)
    assert weights.weight("detached") == 1 and weights.weight("a") < 1 < weights.weight("b")
    assert weights.weights.sum() == pytest.approx(3)


def fit(folder, backbone, data, weights, max_epochs=2, ckpt_path=None):
    seed_everything(3)
    heads = {"one": SequenceClassification(), "two": SequenceClassification(pooling="mean")}
    module = LitHeadset(str(backbone), heads, learning_rate=0.01, weight_decay=0.5, loss_weights=weights)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    keep = ModelCheckpoint(save_top_k=-1, filename="{epoch}")
    trainer = Trainer(default_root_dir=folder, max_epochs=max_epochs, callbacks=[keep], **quiet)
    labels = {"one": "label", "two": "label"}
    trainer.fit(module, TextData(train=str(data), labels=labels, batch_size=3), ckpt_path=ckpt_path)
    return module, trainer


@pytest.mark.parametrize("weights", ["uncertainty", "gradnorm"])
def test_learned_weights_live_in_the_checkpoint_and_nowhere_else(tmp_path, tiny_bert, small_csv, weights):
    module, trainer = fit(tmp_path / "whole", tiny_bert, small_csv, weights)
    learned = {key: value for key, value in module.state_dict().items() if key.startswith("loss_weights.")}
    assert learned and {"train/one/weight", "train/two/weight"} <= trainer.callback_metrics.keys()
    assert not math.isclose(float(trainer.callback_metrics["train/one/weight"]), 1.0, abs_tol=1e-4)
    [first] = (tmp_path / "whole").rglob("epoch=0.ckpt")
    resumed, _ = fit(tmp_path / "rest", tiny_bert, small_csv, weights, ckpt_path=str(first))
    for name, value in module.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert not any("loss_weights" in name for name in Headset.from_checkpoint(str(first)).state_dict())
    again = LitHeadset.load_from_checkpoint(str(first))
    assert learned.keys() <= again.state_dict().keys()
    if weights == "uncertainty":
        ids = {id(weight) for weight in module.loss_weights.parameters()}
        groups = [group for group in trainer.optimizers[0].param_groups if ids & {id(one) for one in group["params"]}]
        assert [group["weight_decay"] for group in groups] == [0.0]


@pytest.mark.parametrize(
    ("weights", "freeze", "message"),
    [
        ("uncertanty", None, "Did you mean 'uncertainty'"),
        ("gradnorm", "all", "leaves it nothing to learn"),
        ({"ton": 2.0}, None, "Invalid head in loss_weights"),
        ({"topic": -1.0}, None, "Invalid weight of 'topic' in loss_weights: -1.0"),
        ({"topic": math.nan}, None, "Invalid weight of 'topic' in loss_weights: nan"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights, freeze, message):
    with pytest.raises(HeadsetError, match=message):
        LitHeadset(BackboneOptions("nowhere", freeze=freeze), dict(HEADS), loss_weights=weights)
