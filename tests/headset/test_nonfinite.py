"""Losses and gradients that are no numbers: what moves, what is told, and that the run goes on as without the step."""

import itertools

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn

from backbones import HeadsetError
from heads import Head, HeadOutput
from headset import LitHeadset, TextData, nonfinite

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
BAD = "a film"  # the text in row 7


class Fragile(Head):
    """A head that makes of one text a loss or a gradient that is no number."""

    def __init__(self, how="loss"):
        super().__init__()
        self.how = how

    def build(self, context):
        self.score = nn.Linear(context.spec.hidden_size, len(context.labels))

    def forward(self, features, batch):
        bad = (batch["attention_mask"].sum(1) == 4)[:, None]  # of these texts one has two words
        logits = self.score(features.last_hidden_state[:, 0])
        if self.how == "loss":
            return HeadOutput(logits * torch.where(bad, torch.nan, 1.0))
        return HeadOutput(logits + torch.where(bad, logits * 0, 1.0).sqrt())

    def loss(self, output, labels):
        return nn.functional.cross_entropy(output.logits, labels)


class Weights(Callback):
    def __init__(self):
        self.after = []

    def on_train_batch_end(self, trainer, module, *_):
        moments = [value.clone() for state in trainer.optimizers[0].state.values() for value in state.values()]
        self.after.append([*(each.detach().clone() for each in module.parameters()), *moments])


@pytest.fixture
def rows(tmp_path):
    texts = ["the film was very good", "a bad old book", "not a good film", "the book is good", "very very bad film"]
    file = tmp_path / "rows.csv"
    lines = [f"{text},{'ab'[number % 2]}" for number, text in enumerate([*texts, texts[0], BAD, texts[1]])]
    file.write_text("\n".join(["text,label", *lines]) + "\n")
    return file


def fit(folder, bert, rows, how, action="stop", **trainer):
    seed_everything(1)
    module = LitHeadset(str(bert), {"mood": Fragile(how)}, learning_rate=1e-2, nonfinite_loss=action, warmup=0.0)
    weights = Weights()
    run = Trainer(default_root_dir=folder, max_epochs=1, callbacks=[weights], **(QUIET | trainer))
    run.weights = weights
    run.module = module
    return run, lambda: run.fit(module, TextData(train=str(rows), batch_size=2))


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_the_run_stops_before_a_weight_moves_and_names_the_row(tmp_path, tiny_bert, rows, how):
    run, go = fit(tmp_path, tiny_bert, rows, how)
    what = "The loss of mood is" if how == "loss" else "gradients are"
    with pytest.raises(HeadsetError, match=rf"{what} not finite in step \d+: {rows}, row 7\. The weights"):
        go()
    assert all(torch.isfinite(each).all() for each in run.module.parameters())
    steps = len(run.weights.after)
    if steps:
        assert all(torch.equal(a, b) for a, b in zip(run.module.parameters(), run.weights.after[-1], strict=False))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_skip_leaves_the_step_out_and_counts_it(tmp_path, tiny_bert, rows, accumulate):
    run, go = fit(tmp_path, tiny_bert, rows, "loss", "skip", accumulate_grad_batches=accumulate)
    with pytest.warns(UserWarning, match=r"Step \d is left out, 1 so far.*row 7"):
        go()
    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["callbacks"]["NonFinite"] == {"skipped": 1}
    every = [run.weights.after[number] for number in range(accumulate - 1, 4, accumulate)]
    still = [
        all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
        for before, now in itertools.pairwise(every)
        if len(before) == len(now)
    ]
    assert all(torch.isfinite(each).all() for each in run.module.parameters())
    assert sum(still) <= 1 and run.global_step == 4 // accumulate


class Now:
    def synchronize(self):
        """There it is."""


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_told_a_step_later_as_on_a_gpu_it_is_the_same(tmp_path, tiny_bert, rows, how, monkeypatch):
    """The kernel of the fused optimizer is told, also on CPU; what it did is looked at a step later."""
    at_once, go = fit(tmp_path, tiny_bert, rows, how, "skip")
    go()
    monkeypatch.setattr(nonfinite, "_can_wait", lambda bad, optimizer: True)
    monkeypatch.setattr(nonfinite, "_on_its_way", lambda bad: (Now(), bad.clone()))
    later, go = fit(tmp_path, tiny_bert, rows, how, "skip")
    with pytest.warns(UserWarning, match=r"Step \d is left out, 1 so far.*row 7"):
        go()
    for one, two in zip(at_once.weights.after, later.weights.after, strict=True):
        number = min(len(one), len(two))  # a first step that is left out makes moments of zeros
        assert all(torch.equal(a, b) for a, b in zip(one[:number], two[:number], strict=True))
    stopped, go = fit(tmp_path, tiny_bert, rows, how, "stop")
    with pytest.raises(HeadsetError, match=rf"not finite in step \d: {rows}, row 7\."):
        go()
    weights = stopped.weights.after
    assert len(weights) < 2 or all(torch.equal(a, b) for a, b in zip(weights[-1], weights[-2], strict=False))
    assert all(torch.isfinite(each).all() for each in stopped.module.parameters())


def test_another_action_is_refused():
    with pytest.raises(HeadsetError, match="Did you mean 'skip'"):
        LitHeadset("no/such", {"mood": Fragile()}, nonfinite_loss="skipp")
