"""Gradual unfreezing: what moves when, and runs that are killed and go on, in one process and in two."""

import json
import multiprocessing
import os
import shutil
import signal
import time

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from backbones import BackboneOptions, HeadsetError
from heads import Pooling, SequenceClassification
from headset import GradualUnfreezing, LitHeadset, TextData

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
# 8 rows in batches of 2: 4 steps an epoch; of 2 layers the top one trains from step 2, the other from 5, all from 8.
STEPS = {"start": 2, "every": 3, "unit": "step"}


class Journal(Callback):
    """The rows and the loss of each step, and which parameters moved in it."""

    def __init__(self):
        self.steps = []
        self.moved = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = {name: value.detach().clone() for name, value in pl_module.headset.named_parameters()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append((trainer.global_step, tuple(batch["meta"]["rows"]), outputs["loss"].item()))
        now = pl_module.headset.named_parameters()
        self.moved.append({name for name, value in now if not torch.equal(value, self.before[name])})


def fit(folder, bert, rows, unfreezing, epochs=3, ckpt_path=None, callbacks=(), trainer=None, batch_size=2, **settings):
    seed_everything(3)
    given = {"learning_rate": 1e-2, "warmup": 0.0, "weight_decay": 0.5} | settings
    module = LitHeadset(str(bert), {"mood": SequenceClassification()}, **given)
    data = TextData(train=str(rows), batch_size=batch_size)
    journal = Journal()
    parts = [*([GradualUnfreezing(**unfreezing)] if unfreezing is not None else []), journal, *callbacks]
    run = Trainer(default_root_dir=folder, max_epochs=epochs, callbacks=parts, **(QUIET | (trainer or {})))
    run.fit(module, data, ckpt_path=ckpt_path)
    return module, journal


def every_step(folder):
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def part(name):
    """Which part of a model with two layers a parameter belongs to."""
    for place, label in {"embeddings": "embeddings", "layer.0.": "bottom", "layer.1.": "top", "pooler": "top"}.items():
        if place in name:
            return label
    return "head"


def test_what_is_frozen_does_not_move_and_the_rest_does(tmp_path, tiny_bert, small_csv):
    _, journal = fit(tmp_path, tiny_bert, small_csv, STEPS)
    seen = [{part(name) for name in moved} for moved in journal.moved]
    head, top, bottom = {"head"}, {"head", "top"}, {"head", "top", "bottom"}
    whole = bottom | {"embeddings"}
    assert seen == [head] * 2 + [top] * 3 + [bottom] * 3 + [whole] * 4
    everything = {name for name in journal.before if "embeddings" not in name}
    assert everything <= journal.moved[7]


def test_a_run_resumed_at_any_step_equals_the_uninterrupted_one(tmp_path, tiny_bert, small_csv):
    kept = every_step(tmp_path / "kept")
    whole, journal = fit(tmp_path, tiny_bert, small_csv, STEPS, callbacks=[kept])
    for step in (1, 2, 3, 4, 5, 7, 8, 10):
        path = str(tmp_path / "kept" / f"step={step}.ckpt")
        resumed, rest = fit(tmp_path, tiny_bert, small_csv, STEPS, ckpt_path=path)
        assert rest.steps == journal.steps[step:], step
        assert rest.moved == journal.moved[step:], step
        for (name, value), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
            assert torch.equal(value, other), (step, name)


def test_by_epochs_and_by_a_schedule(tmp_path, tiny_bert, small_csv):
    _, journal = fit(tmp_path, tiny_bert, small_csv, {"schedule": {0: 1, 1: "all"}}, epochs=2)
    seen = [{part(name) for name in moved} for moved in journal.moved]
    assert seen[:4] == [{"head", "top"}] * 4
    assert seen[4:] == [{"head", "top", "bottom", "embeddings"}] * 4
    _, journal = fit(tmp_path, tiny_bert, small_csv, {}, epochs=2)
    assert [{part(name) for name in moved} for moved in journal.moved] == [{"head"}] * 4 + [{"head", "top"}] * 4


def test_it_equals_training_with_the_rest_frozen(tmp_path, tiny_bert, small_csv):
    """While only the top layer trains, a run is that of backbone.freeze: 1, with weight decay and momentum."""
    one, journal = fit(tmp_path, tiny_bert, small_csv, {"schedule": {0: 1}}, epochs=1)
    seed_everything(3)
    options = BackboneOptions(str(tiny_bert), freeze=1)
    other = LitHeadset(options, {"mood": SequenceClassification()}, learning_rate=1e-2, warmup=0.0, weight_decay=0.5)
    frozen = Journal()
    Trainer(default_root_dir=tmp_path, max_epochs=1, callbacks=[frozen], **QUIET).fit(
        other, TextData(train=str(small_csv), batch_size=2)
    )
    assert frozen.steps == journal.steps
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_gradients_that_are_dropped_are_not_clipped_with_the_others(tmp_path, tiny_bert, small_csv):
    clip = {"gradient_clip_val": 0.1}
    one, _ = fit(tmp_path, tiny_bert, small_csv, STEPS, epochs=2, trainer=clip)

    class NotSingle(GradualUnfreezing):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            training = pl_module.headset.backbone.training
            pl_module.requires_grad_(True)
            pl_module.headset.backbone.train(training)

    other, _ = fit(tmp_path, tiny_bert, small_csv, None, epochs=2, trainer=clip, callbacks=[NotSingle(**STEPS)])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_afterwards_everything_trains_again(tmp_path, tiny_bert, small_csv):
    module, _ = fit(tmp_path, tiny_bert, small_csv, {"start": 90})
    assert all(parameter.requires_grad for parameter in module.headset.backbone.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unit": "epochs"}, "Did you mean 'epoch'"),
        ({"every": 0}, "Invalid start or every"),
        ({"schedule": {0: 1}, "every": 2}, "either a schedule"),
        ({"schedule": {0: "some"}}, "Invalid schedule"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(HeadsetError, match=message):
        GradualUnfreezing(**settings)


def test_more_layers_than_there_are(tmp_path, tiny_bert, small_csv):
    with pytest.raises(HeadsetError, match=r"schedule has 5 layers train: BertModel has 2"):
        fit(tmp_path, tiny_bert, small_csv, {"schedule": {0: 5}})


def test_nothing_that_could_train_at_first(tmp_path, tiny_bert):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b\nthe film,a film\nthe book,a book\n")
    module = LitHeadset(str(tiny_bert), {"vector": Pooling()})
    run = Trainer(default_root_dir=tmp_path, callbacks=[GradualUnfreezing()], **QUIET)
    with pytest.raises(HeadsetError, match="start: 0"):
        run.fit(module, TextData(train=str(pairs), text=["a", "b"]))


def test_going_on_with_another_schedule_is_told(tmp_path, tiny_bert, small_csv):
    fit(tmp_path, tiny_bert, small_csv, STEPS, epochs=1, callbacks=[every_step(tmp_path / "kept")])
    with pytest.warns(UserWarning, match="GradualUnfreezing goes on with"):
        fit(tmp_path, tiny_bert, small_csv, {"every": 7}, epochs=1, ckpt_path=str(tmp_path / "kept/step=2.ckpt"))


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_killed_in_the_middle_of_unfreezing_it_goes_on_as_if_nothing_had_been(tmp_path, tiny_bert, small_csv):
    whole, journal = fit(tmp_path, tiny_bert, small_csv, STEPS)

    class Slow(Callback):
        def on_train_batch_end(self, *_):
            time.sleep(0.3)

    def run():
        fit(tmp_path, tiny_bert, small_csv, STEPS, callbacks=[Slow(), every_step(tmp_path / "kept")])

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    while process.is_alive() and not (tmp_path / "kept/step=7.ckpt").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    resumed, rest = fit(tmp_path, tiny_bert, small_csv, STEPS, ckpt_path=str(tmp_path / "kept/step=6.ckpt"))
    assert rest.steps == journal.steps[6:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_two_processes_equal_one_and_go_on_equally(tmp_path, tiny_bert, small_csv):
    still = tmp_path / "still"  # without dropout, which processes draw on their own
    shutil.copytree(tiny_bert, still)
    content = json.loads((still / "config.json").read_text())
    content |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(content))
    # Not AdamW, whose first steps are as large for gradients of nothing but rounding.
    settings = {
        "optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1),
        **{"learning_rate": None, "weight_decay": None, "head_learning_rate": 0.2, "layer_decay": 0.8},
    }

    def run(name, **more):
        fit(tmp_path, still, small_csv, STEPS, callbacks=[every_step(tmp_path / name)], **settings, **more)
        return lambda step: weights(tmp_path / f"{name}/step={step}.ckpt")

    two = {"trainer": {"devices": 2, "strategy": "ddp_fork"}, "batch_size": 1}
    one, both = run("one"), run("two", **two)
    again = run("again", ckpt_path=str(tmp_path / "two/step=6.ckpt"), **two)
    for step in (1, 4, 7, 12):
        for (name, value), other in zip(one(step).items(), both(step).values(), strict=True):
            assert torch.allclose(value, other, atol=1e-5), (step, name)
    first, fifth = both(1), both(5)
    assert {part(name) for name in first if not torch.equal(first[name], fifth[name])} == {"head", "top"}
    for (name, value), other in zip(both(12).items(), again(12).values(), strict=True):
        assert torch.equal(value, other), name
