"""Batches for some heads, and rows with labels for some heads: what learns, what is measured, and what stays."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.nn import functional as F

from backbones import BackboneOptions
from heads import SequenceClassification, TokenClassification
from headset import LitHeadset

IDS = torch.tensor([[2, 60, 61, 3], [2, 62, 3, 0], [2, 63, 64, 3], [2, 65, 3, 0]])
TAGS = torch.tensor([[-100, 0, 1, -100], [-100, 2, -100, -100], [-100, 1, 1, -100], [-100, 0, -100, -100]])
TOPICS = torch.tensor([0, 1, 1, 0])


def batch(*heads, rows=range(4), **labelled):
    rows = list(rows)
    given = {"topic": TOPICS, "tags": TAGS}
    labels = {
        name: given[name][rows][labelled[name]] if name in labelled else given[name][rows]
        for name in heads
        if name in given
    }
    inputs = {"input_ids": IDS[rows], "attention_mask": (IDS[rows] > 0).long(), "labels": labels}
    return {**inputs, "meta": {"heads": list(heads), "labelled": labelled, "rows": rows}}


def module(backbone, **settings):
    heads = {"topic": SequenceClassification(), "tags": TokenClassification(native=False)}
    heads |= settings.pop("more", {})
    labels = {"topic": ["a", "b"], "tags": ["x", "y", "z"], **settings.pop("labels", {})}
    return LitHeadset(backbone, heads, labels=labels, **settings)


class Weights(Callback):
    """All weights before the first step and after each."""

    def __init__(self):
        self.seen = []

    def note(self, module):
        self.seen.append({name: value.clone() for name, value in module.state_dict().items()})

    def on_train_start(self, trainer, pl_module):
        self.note(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.note(pl_module)

    def moved(self, step, part):
        before, after = self.seen[step], self.seen[step + 1]
        return {name for name in after if part in name and not torch.equal(before[name], after[name])}


def fit(folder, module, steps, **settings):
    seed_everything(0)
    weights = Weights()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=folder, max_epochs=1, callbacks=[weights], **quiet, **settings)
    trainer.fit(module, torch.utils.data.DataLoader(steps, batch_size=None, shuffle=False))
    return weights, trainer


OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.5),
}


@pytest.mark.parametrize("weights", [{}, "uncertainty", "gradnorm"], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_idle_head_does_not_move(tmp_path, tiny_bert, optimizer, weights):
    learner = module(
        str(tiny_bert), optimizer=OPTIMIZERS[optimizer], scheduler="constant", warmup=0, loss_weights=weights
    )
    steps = [batch("topic", "tags"), batch("tags"), batch("topic"), batch("topic", "tags")]
    seen, _ = fit(tmp_path, learner, steps)
    for step, idle in ((1, "topic"), (2, "tags")):
        assert not seen.moved(step, f"heads.{idle}.")
        assert not seen.moved(step, f"log_variances.{idle}")
    for step, head in ((0, "topic"), (0, "tags"), (1, "tags"), (2, "topic"), (3, "topic"), (3, "tags")):
        assert seen.moved(step, f"heads.{head}."), (step, head)
    assert not seen.moved(1, "backbone.model.pooler")  # which the topics alone go through
    assert seen.moved(2, "backbone.model.pooler")


def test_over_accumulated_batches_a_head_is_idle_only_if_it_is_in_none(tmp_path, tiny_bert):
    learner = module(str(tiny_bert), learning_rate=0.1, scheduler="constant", warmup=0)
    steps = [batch("topic", "tags"), batch("tags"), batch("tags"), batch("tags")]
    seen, _ = fit(tmp_path, learner, steps, accumulate_grad_batches=2)
    assert seen.moved(1, "heads.topic.") and not seen.moved(3, "heads.topic.")
    assert seen.moved(3, "heads.tags.")


def losses_of(learner, *batches):
    with torch.no_grad():
        return [learner._losses(one) for one in batches]


@pytest.fixture
def still(tiny_bert):
    """A module without dropout, as far as losses go: in eval mode."""
    seed_everything(0)
    learner = module(str(tiny_bert), more={"native": TokenClassification()}, labels={"native": ["x", "y", "z"]})
    learner.configure_model()
    return learner.eval()


def test_rows_without_a_label_do_not_count(still):
    whole, part = losses_of(still, batch("topic", "tags"), batch("topic", "tags", topic=[1, 3], tags=[0, 2]))
    outputs = still({"input_ids": IDS, "attention_mask": (IDS > 0).long()})
    topics, tags = outputs["topic"].logits, outputs["tags"].logits
    assert torch.allclose(whole["topic"][0], F.cross_entropy(topics, TOPICS))
    assert torch.allclose(part["topic"][0], F.cross_entropy(topics[[1, 3]], TOPICS[[1, 3]]))
    assert torch.allclose(part["tags"][0], F.cross_entropy(tags[[0, 2]].flatten(0, 1), TAGS[[0, 2]].flatten()))
    assert [float(size) for _, size in (part["topic"], part["tags"])] == [2, 4]
    assert [float(size) for _, size in (whole["topic"], whole["tags"])] == [4, 6]


def test_heads_share_the_pass_also_with_labels_on_some_rows(still, monkeypatch):
    run, calls = still.headset.backbone.run, []
    monkeypatch.setattr(still.headset.backbone, "run", lambda call: calls.append(call) or run(call))
    losses_of(still, batch("topic", "tags", topic=[1, 3]))
    assert len(calls) == 1


def test_several_batches_in_a_step_count_as_one(still):
    whole, first, second = (
        still.training_step(one, 0)
        for one in (
            batch("topic", "tags"),
            [batch("topic", "tags", rows=[0]), batch("topic", "tags", rows=[1, 2, 3])],
            [batch("topic"), batch("tags", rows=[0]), batch("tags", rows=[1, 2, 3])],
        )
    )
    assert torch.allclose(first, whole) and torch.allclose(second, whole)


def test_measures_are_means_over_what_losses_are_means_over(tmp_path, tiny_bert, still):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    parts = [batch("topic", rows=[0]), batch("tags", "topic", rows=[1, 2], tags=[0]), batch("tags", rows=[3, 0])]
    learner = module(str(tiny_bert), loss_weights={"tags": 3.0})
    learner.configure_model()
    learner.headset.load_state_dict({k: v for k, v in still.headset.state_dict().items() if "heads.native" not in k})
    loader = torch.utils.data.DataLoader(parts, batch_size=None)
    [found] = Trainer(default_root_dir=tmp_path, **quiet).validate(learner, loader, verbose=False)
    outputs = still({"input_ids": IDS, "attention_mask": (IDS > 0).long()})
    topics = F.cross_entropy(outputs["topic"].logits[:3], TOPICS[:3])
    rows = [1, 3, 0]
    tags = F.cross_entropy(outputs["tags"].logits[rows].flatten(0, 1), TAGS[rows].flatten())
    assert found["val/topic/loss"] == pytest.approx(topics.item(), rel=1e-5)
    assert found["val/tags/loss"] == pytest.approx(tags.item(), rel=1e-5)
    assert found["val/loss"] == pytest.approx(topics.item() + 3 * tags.item(), rel=1e-5)
    right = outputs["topic"].logits[:3].argmax(-1) == TOPICS[:3]
    assert found["val/topic/accuracy"] == pytest.approx(right.float().mean().item())


def test_a_batch_without_a_tag_to_learn_has_no_loss(still):
    nothing = batch("topic", "tags")
    nothing["labels"]["tags"] = torch.full_like(TAGS, -100)
    total = still.training_step(nothing, 0)
    assert torch.equal(total, still._losses(nothing)["topic"][0])
    total.backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in still.parameters())


def test_detached_and_frozen_heads(tmp_path, tiny_bert):
    def run(**settings):
        learner = module(BackboneOptions(str(tiny_bert)), learning_rate=0.1, scheduler="constant", warmup=0, **settings)
        learner._states = dict.fromkeys(settings.get("frozen_heads", ()), "trained")
        return learner, fit(tmp_path, learner, [batch("topic", "tags"), batch("tags")])[0]

    learner, seen = run(detached_heads=["tags"])
    assert seen.moved(1, "heads.tags.") and not seen.moved(1, "backbone") and seen.moved(0, "backbone")
    learner, seen = run(frozen_heads=["tags"])
    assert seen.moved(1, "backbone") and not seen.moved(0, "heads.tags.") and not seen.moved(1, "heads.tags.")
    assert not learner.headset.head("tags").scorer.dropout.training
    learner, seen = run(detached_heads=["tags", "topic"])
    assert not seen.moved(0, "backbone") and seen.moved(0, "heads.topic.")
