"""Signals and processes that die, by the command line as a user runs it, in one process and in two."""

import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from heads import SequenceClassification
from headset import LitHeadset, TextData
from headset.checkpoint import read_checkpoint

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
WORDS = ["the", "good", "bad", "film", "book", "was"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_bert):
    """A folder with a run that is long."""
    folder = tmp_path_factory.mktemp("run")
    dice = random.Random(0)
    rows = [f"{' '.join(dice.choices(WORDS, k=5))},{'ab'[number % 2]}" for number in range(4000)]
    (folder / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (folder / "few.csv").write_text("\n".join(["text,label", *rows[:8]]) + "\n")
    settings = {
        "model": {"backbone": str(tiny_bert), "heads": {"mood": "SequenceClassification"}},
        "data": {"train": "rows.csv", "validation": "few.csv", "batch_size": 2},
        "trainer": {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"},
    }
    (folder / "run.yaml").write_text(json.dumps(settings))
    return folder


def start(folder, name, *arguments):
    """Start a run, and wait until it trains: the process, and the file that it prints to."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    output = folder / f"{name}.txt"
    command = [sys.executable, "-m", "headset", "fit", "-c", "run.yaml", *arguments]
    command += ["--trainer.default_root_dir", name, "--trainer.log_every_n_steps", "1"]
    with output.open("w") as file:
        run = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True)
    deadline = time.monotonic() + 200
    while not list((folder / name).rglob("config.yaml")) or "head mood" not in output.read_text():
        assert run.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)
    time.sleep(2)
    return run, output


def group(run):
    """The processes of a run that live."""
    listed = subprocess.run(["ps", "-eo", "pid,pgid,stat"], capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in listed.splitlines()[1:]]
    return [int(pid) for pid, pgid, state in lines if int(pgid) == run.pid and not state.startswith("Z")]


def gone(run):
    deadline = time.monotonic() + 30
    while group(run) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not group(run)


def test_sigterm_to_all_of_the_group_saves_and_the_run_can_go_on(folder):
    run, output = start(folder, "term", "--data.num_workers", "1")
    os.killpg(run.pid, signal.SIGTERM)
    assert run.wait(60) == 143, output.read_text()
    told = re.search(r"after step (\d+), with a checkpoint. To go on:\n  headset (fit .*)", output.read_text())
    path = folder / told[2].split()[-1]
    assert read_checkpoint(str(path))["global_step"] == int(told[1]) > 0
    assert (folder / "term/lightning_logs/version_0/checkpoints/last.ckpt").resolve().samefile(path)
    assert gone(run)
    command = [sys.executable, "-m", "headset", *told[2].split(), "--trainer.max_steps", str(int(told[1]) + 1)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_comes_to_the_second_of_two_processes_ends_both(folder, number):
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    run, output = start(folder, f"two-{number}", *two)
    second = max(group(run))
    os.kill(second, number)
    assert run.wait(60) == (130 if number == signal.SIGINT else 1), output.read_text()
    assert gone(run)
    if number == signal.SIGINT:
        assert read_checkpoint(str(folder / output.read_text().split()[-1]))["global_step"] > 0
    else:
        assert "Another process of the run has died" in output.read_text()


class At(Callback):
    """Sends its own process a signal when something happens for the n-th time."""

    def __init__(self, number, what, count):
        self.number, self.what, self.left = number, what, count

    def _note(self, what):
        if what == self.what:
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(self.number)

    def on_train_batch_start(self, *_):
        self._note("batch")

    def on_validation_batch_start(self, *_):
        self._note("validation")


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.seen.append((trainer.global_step, outputs["loss"].item()))

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.seen.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))


def fit(folder, bert, rows, callbacks, ckpt_path=None, **trainer):
    seed_everything(2)
    losses = Losses()
    module = LitHeadset(str(bert), {"mood": SequenceClassification()}, learning_rate=1e-2)
    kept = ModelCheckpoint(folder / "kept", save_last="link")
    parts = [EMAWeightAveraging(decay=0.7), losses, *callbacks, kept]
    run = Trainer(default_root_dir=folder, max_epochs=2, callbacks=parts, **(QUIET | trainer))
    data = TextData(train=str(rows), validation=str(rows), batch_size=2, eval_batch_size=3)
    try:
        run.fit(module, data, ckpt_path=ckpt_path)
        return 0, losses.seen, module.state_dict()
    except SystemExit as error:
        return error.code, losses.seen, module.state_dict()


@pytest.mark.parametrize(
    ("number", "what", "count"),
    [(signal.SIGTERM, "batch", 3), (signal.SIGINT, "batch", 6), (signal.SIGTERM, "validation", 4)],
)
def test_a_run_that_was_ended_goes_on_as_if_it_had_not_been(tmp_path, tiny_bert, small_csv, number, what, count):
    before = signal.getsignal(number)
    settings = {"accumulate_grad_batches": 2, "num_sanity_val_steps": 0, "val_check_interval": 0.5}
    _, whole, weights = fit(tmp_path / "whole", tiny_bert, small_csv, [], **settings)
    code, first, _ = fit(tmp_path / "part", tiny_bert, small_csv, [At(number, what, count)], **settings)
    assert code == 128 + number and signal.getsignal(number) is before
    path = str(tmp_path / "part/kept/last.ckpt")
    code, rest, again = fit(tmp_path / "part", tiny_bert, small_csv, [], path, **settings)
    assert code == 0 and first + rest == whole
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_before_the_first_step_there_is_nothing_to_save(tmp_path, tiny_bert, small_csv):
    code, seen, _ = fit(tmp_path, tiny_bert, small_csv, [At(signal.SIGTERM, "validation", 1)])
    assert (code, seen, list(tmp_path.rglob("*.ckpt"))) == (143, [], [])


def test_the_signal_before_a_requeue_saves_and_requeues_as_lightning_does(tmp_path, tiny_bert, small_csv, monkeypatch):
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/scontrol"
    command.write_text(f"#!/bin/sh\necho $@ > {tmp_path}/asked\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    for name, value in {"JOB_ID": "77", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    plugins = [SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1)]
    signalled = At(signal.SIGUSR1, "batch", 3)
    settings = {"plugins": plugins, "accumulate_grad_batches": 2}
    code, seen, _ = fit(tmp_path / "run", tiny_bert, small_csv, [signalled], **settings)
    assert code == 0 and len(seen) == 10
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert read_checkpoint(str(tmp_path / "run/hpc_ckpt_1.ckpt"))["global_step"] == 2
