"""Full, read-only and vanishing disks, and memory that runs out: one clear error; what was there before is whole."""

import errno
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml

from backbones.errors import HeadsetError
from headset.checkpoint import read_checkpoint
from headset.environment import environment, machine_error
from headset.main import main

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_bert, small_csv):
    """A working directory with a configuration, its data and its model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    shutil.copytree(tiny_bert, "model")
    config = {
        "model": {"backbone": "model", "heads": {"mood": {"class_path": "SequenceClassification"}}},
        "data": {"train": "small.csv", "validation": "small.csv", "batch_size": 4},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    Path("run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture
def trained(folder):
    assert main(["fit", "-c", "run.yaml", *QUIET]) == 0
    shutil.copy("lightning_logs/version_0/checkpoints/last.ckpt", "a.ckpt")
    return folder


@pytest.fixture
def disk(tmp_path):
    """Mounts a small file system of its own; skips where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", place], capture_output=True)
        if done.returncode != 0:
            pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
        return place

    yield mount
    subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)


def files(place):
    return sorted(str(path.relative_to(place)) for path in Path(place).rglob("*") if path.is_file())


def fails(capsys, *arguments):
    """The one line that a command ends with."""
    capsys.readouterr()
    assert main(arguments) == 1
    output = capsys.readouterr().err
    lines = [line for line in output.splitlines() if line.startswith("headset: error: ")]
    assert len(lines) == 1 and output.rstrip().endswith(lines[0]) and "Traceback" not in output
    return lines[0]


def test_a_full_disk_in_training_leaves_earlier_checkpoints(folder, disk, capsys):
    assert main(["fit", "-c", "run.yaml", *QUIET]) == 0
    size = Path("lightning_logs/version_0/checkpoints/last.ckpt").stat().st_size
    place = disk(f"size={int(size * 1.5)}")
    run = ["fit", "-c", "run.yaml", "--trainer.max_epochs", "3", "--trainer.default_root_dir", str(place), *QUIET]
    error = fails(capsys, *run)
    assert "the disk is full" in error and "checkpoints" in error
    written = [file for file in files(place) if "checkpoints" in file]
    assert written and all(file.endswith(".ckpt") for file in written)
    for file in written:
        assert read_checkpoint(str(place / file))["epoch"] == 0
    assert main(["test", "--ckpt_path", str(place / written[0]), "--data.test", "small.csv", *QUIET]) == 0


def test_a_full_disk_under_the_log(folder, disk, capsys):
    place = disk("size=64k")
    run = ["fit", "-c", "run.yaml", "--trainer.default_root_dir", str(place), "--trainer.log_every_n_steps", "1"]
    run += ["--trainer.enable_checkpointing", "false", *QUIET]
    (place / "rest").write_bytes(bytes(2**16 - 4096))  # one block for folders and config.yaml is all there is
    error = fails(capsys, *run)
    assert "the disk is full" in error and str(place) in error


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_full_disk_under_predictions(trained, disk, capsys, suffix):
    place = disk("size=8k")
    Path("many.csv").write_text("text\n" + "the film was very good\n" * 2000)
    output = str(place / f"out.{suffix}")
    run = ["predict", "--ckpt_path", "a.ckpt", "--data.predict", "many.csv", "--data.eval_batch_size", "64"]
    error = fails(capsys, *run, "--output", output, *QUIET)
    assert f"While writing predictions to {output}: the disk is full. Free some space" in error
    assert not (place / f"out.{suffix}").exists()


def test_a_full_disk_under_an_export_and_a_merge(trained, disk, capsys):
    place = disk("size=96k")
    error = fails(capsys, "export", "--ckpt_path", "a.ckpt", "--output_dir", f"{place}/out")
    assert f"While writing {place}/out/mood: the disk is full" in error
    assert files(place) == []
    error = fails(capsys, "merge", "--ckpt_paths", "a.ckpt", "--output", f"{place}/both.ckpt")
    assert f"While writing {place}/both.ckpt: the" in error and "disk" in error
    assert files(place) == []


def test_a_full_disk_under_the_cache(folder, disk, capsys, monkeypatch):
    place = disk("size=128k")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place)
    Path("many.csv").write_text("text,label\n" + "the film was very good,good\na bad film,bad\n" * 4000)
    error = fails(capsys, "fit", "-c", "run.yaml", "--data.train", "many.csv", *QUIET)
    assert "the disk is full" in error and f"the cache, {place}" in error
    assert [file for file in files(place) if file.endswith(".arrow")] == []
    shutil.rmtree(place / "headset")
    Path("fewer.csv").write_text("text,label\n" + "the film was very good,good\na bad film,bad\n" * 1000)
    error = fails(capsys, "fit", "-c", "run.yaml", "--data.train", "fewer.csv", *QUIET)
    assert "While writing encoded rows to the cache" in error and "the disk is full" in error
    assert all(file.endswith(".arrow") for file in files(place))


def test_a_read_only_disk(trained, disk, capsys):
    place = disk("ro", "size=1m")
    export = fails(capsys, "export", "--ckpt_path", "a.ckpt", "--output_dir", f"{place}/out")
    merge = fails(capsys, "merge", "--ckpt_paths", "a.ckpt", "--output", f"{place}/out.ckpt")
    predict = ["predict", "--ckpt_path", "a.ckpt", "--data.predict", "small.csv", *QUIET]
    written = fails(capsys, *predict, "--output", f"{place}/out.csv")
    fit = fails(capsys, "fit", "-c", "run.yaml", "--trainer.default_root_dir", str(place), *QUIET)
    for error in (export, merge, written, fit):
        assert str(place) in error and "read-only" in error.lower()


def test_a_limit_on_the_size_of_files(folder):
    size = 20_000  # less than the weights
    code = (
        "import resource, sys\nfrom headset.main import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\nsys.exit(main())"
    )
    assert main(["fit", "-c", "run.yaml", "--trainer.enable_checkpointing", "false", *QUIET]) == 0  # fills the cache
    command = [sys.executable, "-c", code, "fit", "-c", "run.yaml", "--trainer.default_root_dir", "logs", *QUIET]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("headset: error: ") and ("larger than is allowed" in last or "disk full?" in last)
    assert not [file for file in files("logs") if file.endswith(".ckpt")]


def test_memory_that_runs_out(folder):
    used = (
        "import resource, sys\nfrom headset.main import main\nimport headset.cli, torch\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (now + {2**28}, now + {2**28}))\nsys.exit(main())"
    )
    Path("many.csv").write_text("text,label\n" + f"{'very good ' * 20},positive\nbad,negative\na,neutral\n" * 3000)
    command = [sys.executable, "-c", used, "fit", "-c", "run.yaml", "--data.train", "many.csv", *QUIET]
    done = subprocess.run([*command, "--data.batch_size", "8000"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "the memory ran out" in last and "data.batch_size" in last and "accumulate_grad_batches" in last


def test_an_image_that_vanishes_in_a_worker(tmp_path):
    message = (
        "Caught HeadsetError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in y\n    raise HeadsetError("a")\n'
        "backbones.errors.HeadsetError: there is no file a.png.\n"
    )
    assert str(machine_error(HeadsetError(message), "running headset fit")) == "there is no file a.png."


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "x", "a"), r"While writing b: the disk is full \(a\)\. Free"),
        (OSError(errno.EROFS, "x", "a"), "read-only"),
        (OSError(errno.EDQUOT, "x"), "quota"),
        (OSError(errno.EFBIG, "x"), "ulimit -f"),
        (OSError(errno.EMFILE, "x"), "ulimit -n"),
        (FileNotFoundError(errno.ENOENT, "x", "c.arrow"), r"not there \(c.arrow\)"),
        (OSError(errno.ENOTDIR, "x", "a"), "Not a directory"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (RuntimeError("unexpected pos 64 vs 0"), "the file could not be written to its end"),
        (MemoryError(), "the memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB."), r"ran out \(2.50 GiB more"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "the memory ran out"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "/dev/shm"),
    ],
)
def test_what_is_told(error, told):
    with pytest.raises(HeadsetError, match=told), environment("writing b"):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2"), OSError("a message"), KeyError("a"), ZeroDivisionError()]
)
def test_errors_of_the_code_stay_what_they_are(error):
    with pytest.raises(type(error)), environment("writing b"):
        raise error
