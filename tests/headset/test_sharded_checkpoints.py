"""Checkpoints that FSDP2 writes in parts: any number of processes goes on from them, predicts, and exports."""

import csv
import ctypes
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import distributed

from backbones.errors import HeadsetError
from headset import Headset, LitHeadset
from headset.checkpoint import read_checkpoint
from headset.info import describe_path
from headset.sharded_files import open_folder, write_folder

WORDS = ["film", "book", "good", "bad", "very"]


def headset(folder, *arguments, status=0):
    """Run the command line as a user does; what it prints."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "headset", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory, still_bert):
    """A run of two processes, with a checkpoint in parts after every second of its 6 steps of 8 rows; 23 rows."""
    folder = tmp_path_factory.mktemp("run")
    rows = [{"text": " ".join(WORDS[(i * j) % 5] for j in range(1 + i % 4)), "label": WORDS[i % 3]} for i in range(23)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    head = {"class_path": "SequenceClassification", "init_args": {"pooling": "mean", "dropout": 0.0}}
    saves = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 2, "save_top_k": -1}}
    settings = {
        "model": {"backbone": str(still_bert), "heads": {"kind": head}, "learning_rate": 1e-3, "layer_decay": 0.9},
        "data": {"train": "rows.jsonl", "validation": "rows.jsonl", "batch_size": 4},
        "trainer": {
            "max_epochs": 2,
            "enable_progress_bar": False,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "callbacks": [saves],
        },
    }
    (folder / "run.yaml").write_text(json.dumps(settings))
    strategy = {"class_path": "headset.FSDP2Strategy", "init_args": {"save_distributed_checkpoint": True}}
    (folder / "two.yaml").write_text(json.dumps({"trainer": {"devices": 2, "strategy": strategy}}))
    headset(folder, "fit", "-c", "run.yaml", "-c", "two.yaml", "--trainer.default_root_dir", "whole")
    return folder


def checkpoint(folder, name, step):
    [path] = (folder / name).glob(f"**/*step={step}.ckpt")
    return path


def test_other_numbers_of_processes_go_on_in_the_middle_of_an_epoch(run):
    expected = read_checkpoint(str(checkpoint(run, "whole", 6)))
    [log] = (run / "whole").glob("**/metrics.csv")
    losses = {row["step"]: row["train/loss"] for row in csv.DictReader(log.open()) if row["train/loss"]}
    ways = {
        "alone": (4, ["--data.batch_size", "8"]),
        "ddp": (2, ["--trainer.devices", "2", "--trainer.strategy", "ddp"]),
    }
    for name, (step, arguments) in ways.items():
        path = checkpoint(run, "whole", step)
        arguments = ["--ckpt_path", str(path), "--trainer.default_root_dir", name, *arguments]
        headset(run, "fit", "-c", "run.yaml", *arguments)
        found = torch.load(checkpoint(run, name, 6), weights_only=True)
        for key, value in expected["state_dict"].items():
            torch.testing.assert_close(found["state_dict"][key], value, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")
        [theirs], [ours] = expected["optimizer_states"], found["optimizer_states"]
        assert ours["param_groups"] == theirs["param_groups"]
        assert ours["state"].keys() == set(theirs["state"])
        for number, state in ours["state"].items():
            for key, value in state.items():
                torch.testing.assert_close(value, theirs["state"][number][key], rtol=1e-3, atol=1e-7)
        [log] = (run / name).glob("**/metrics.csv")
        own = {row["step"]: row["train/loss"] for row in csv.DictReader(log.open()) if row["train/loss"]}
        assert own.keys() == {key for key in losses if int(key) >= step}
        for key, loss in own.items():
            assert float(loss) == pytest.approx(float(losses[key]), rel=1e-4)


def test_rows_that_would_come_twice_are_refused(run):
    path = checkpoint(run, "whole", 4)
    told = headset(run, "fit", "-c", "run.yaml", "--ckpt_path", str(path), status=1)
    [error] = [line for line in told.splitlines() if "headset: error" in line]
    assert "8 rows in a step (2 x data.batch_size: 4)" in error and "Set data.batch_size: 8" in error


def test_heads_are_merged_from_it(run):
    path = checkpoint(run, "whole", 6)
    headset(run, "merge", "--ckpt_paths", str(path), "--output", "merged.ckpt")
    expected = read_checkpoint(str(path))["state_dict"]
    merged = read_checkpoint(str(run / "merged.ckpt"))["state_dict"]
    assert merged.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in merged.items())


def test_in_mixed_precision_losses_stay_near(run):
    arguments = ["-c", "run.yaml", "-c", "two.yaml", "--trainer.precision", "bf16-mixed"]
    headset(run, "fit", *arguments, "--trainer.default_root_dir", "mixed")
    losses = {}
    for name in ("whole", "mixed"):
        [log] = (run / name).glob("**/metrics.csv")
        losses[name] = [float(row["train/loss"]) for row in csv.DictReader(log.open()) if row["train/loss"]]
    assert losses["mixed"] == pytest.approx(losses["whole"], rel=0.02) and losses["mixed"] != losses["whole"]
    assert {its.dtype for its in read_checkpoint(str(checkpoint(run, "mixed", 6)))["state_dict"].values()} == {
        torch.float32
    }


def test_one_process_predicts_and_exports(run, tmp_path):
    path = checkpoint(run, "whole", 6)
    headset(
        run,
        "predict",
        "--ckpt_path",
        str(path),
        "--data.predict",
        "rows.jsonl",
        "--output",
        "one.jsonl",
        "--trainer.precision",
        "32-true",
    )
    rows = [json.loads(line) for line in (run / "one.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(1, 24))
    model = Headset.from_checkpoint(str(path))
    for row, answer in zip(rows, model.predict([row["text"] for row in rows])["kind"], strict=True):
        assert row["kind"]["scores"] == pytest.approx(answer["scores"], rel=1e-5)
    assert LitHeadset.load_from_checkpoint(str(path)).headset.states == {"kind": "trained"}
    assert describe_path(str(path))["kind"] == "checkpoint, epoch 1, step 6"
    assert model.export(str(tmp_path / "out"))["kind"] == str(tmp_path / "out" / "kind")


@pytest.fixture
def copied(run, tmp_path):
    """A copy of a checkpoint, to damage."""
    path = tmp_path / "copy.ckpt"
    path.mkdir()
    for file in checkpoint(run, "whole", 4).iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


@pytest.mark.parametrize("name", ["__0_0.distcp", "__1_0.distcp", "meta.pt", ".metadata"])
def test_a_byte_that_has_changed_is_told(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(HeadsetError, match=re.escape(name) + " is damaged"):
        read_checkpoint(str(copied))


@pytest.mark.parametrize("name", ["__1_0.distcp", "meta.pt", ".metadata"])
def test_a_file_that_is_missing_is_told(copied, name):
    (copied / name).unlink()
    with pytest.raises(HeadsetError, match=r"is no whole checkpoint|is damaged"):
        read_checkpoint(str(copied))


class Attack:
    """What a pickle can run."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_nothing_in_it_is_run(copied, tmp_path):
    mark = tmp_path / "run"
    (copied / "digests.json").unlink()
    index = (copied / ".metadata").read_bytes()
    (copied / ".metadata").write_bytes(pickle.dumps(Attack(mark)))
    with pytest.raises(HeadsetError, match="unsafe"):
        read_checkpoint(str(copied))
    (copied / ".metadata").write_bytes(index)
    torch.save({"hyper_parameters": Attack(mark)}, copied / "meta.pt")
    with pytest.raises(HeadsetError, match="unsafe"):
        read_checkpoint(str(copied))
    assert not mark.exists()


def test_nothing_outside_of_it_is_read(copied):
    (copied / "digests.json").unlink()
    (copied / "__0_0.distcp").rename(copied.parent / "outside")
    with (copied / ".metadata").open("rb") as file:
        index = pickle.load(file)
    for place in index.storage_data.values():
        place.relative_path = place.relative_path.replace("__0_0.distcp", "../outside")
    (copied / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(HeadsetError, match="is no file that belongs to it"):
        dict(read_checkpoint(str(copied))["state_dict"])


@pytest.fixture
def alone():
    """A process group of this process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("system", ["swaps", "cannot swap"])
def test_one_that_is_replaced_is_there_when_the_earlier_one_is_being_removed(alone, tmp_path, monkeypatch, system):
    if system == "cannot swap":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())
    for step in (1, 2):
        write_folder({"state_dict": {"weight": torch.full((2,), step)}, "step": step}, tmp_path / "last.ckpt", [])

    def ended(path, ignore_errors=False):
        if not ignore_errors:
            assert open_folder(path)["step"] == 2
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", ended)
    with pytest.raises(KeyboardInterrupt):
        write_folder({"state_dict": {"weight": torch.full((2,), 3)}, "step": 3}, tmp_path / "last.ckpt", [])
    content = open_folder(tmp_path / "last.ckpt")
    assert content["step"] == 3 and content["state_dict"]["weight"].tolist() == [3, 3]
