"""Two processes by DistributedDataParallel on CPU: metrics of one process, and disjoint parts of one prediction."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TAGS = ["O", "B-PER", "I-PER", "B-LOC"]


def headset(folder: Path, *arguments: str) -> str:
    """Run the command line as a user does; what it prints."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "headset", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_bert):
    """A run with a tagger, trained for a few steps in two processes, on 7 sentences of different lengths."""
    folder = tmp_path_factory.mktemp("run")
    words = ["the", "film", "was", "very", "good", "a", "bad", "book"]
    sentences = [[(words[(i * j) % 8], TAGS[(i + j) % 4]) for j in range(2 + i)] for i in range(7)]
    (folder / "data.conll").write_text("\n".join("".join(f"{w} {t}\n" for w, t in rows) for rows in sentences))
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    settings = {
        "model": {"backbone": str(tiny_bert), "heads": {"tags": "TokenClassification", "words": "MaskedLM"}},
        "data": {
            **{split: "data.conll" for split in ("train", "validation", "test", "predict")},
            "text": "tokens",
            "labels": "tags",
            "batch_size": 2,
        },
        "trainer": {"max_epochs": 4, "enable_progress_bar": False, "accelerator": "cpu"},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    headset(folder, "fit", "-c", "config.yaml", *two)
    [checkpoint] = folder.glob("**/last.ckpt")
    return folder, str(checkpoint), two


def measured(folder: Path, *arguments: str) -> dict[str, float]:
    printed = headset(folder, "test", *arguments, "--trainer.enable_progress_bar", "false")
    rows = [line.split("│")[1:3] for line in printed.splitlines() if line.strip().startswith("│")]
    return {name.strip(): float(value) for name, value in rows}


def test_metrics_of_two_processes_are_those_of_one(run):
    folder, checkpoint, two = run
    one = measured(folder, "--ckpt_path", checkpoint, "--trainer.accelerator", "cpu")
    both = measured(folder, "--ckpt_path", checkpoint, *two)
    names = [f"test/tags/{metric}" for metric in ("f1", "precision", "recall", "accuracy")]
    for name in [*names, "test/words/accuracy", "test/words/perplexity"]:
        assert both[name] == pytest.approx(one[name], rel=1e-5), name
    for name in ("test/tags/loss", "test/words/loss", "test/loss"):
        assert both[name] == pytest.approx(one[name], rel=1e-5), name


def test_each_process_writes_its_own_part_of_the_predictions(run):
    folder, checkpoint, two = run
    headset(folder, "predict", "--ckpt_path", checkpoint, "--output", "whole.csv", "--trainer.accelerator", "cpu")
    headset(folder, "predict", "--ckpt_path", checkpoint, "--output", "parts.csv", *two)
    assert sorted(path.name for path in folder.glob("parts*")) == [
        "parts-00000-of-00002.csv",
        "parts-00001-of-00002.csv",
    ]
    rows = [row for path in folder.glob("parts*") for row in csv.DictReader(path.open())]
    whole = list(csv.DictReader((folder / "whole.csv").open()))
    assert [row["row"] for row in whole] == [str(number) for number in range(1, 8)]
    by_row = {row["row"]: row["tags.tags"] for row in rows}
    assert len(rows) == 7
    assert by_row == {row["row"]: row["tags.tags"] for row in whole}
