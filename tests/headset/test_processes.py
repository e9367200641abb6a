"""Two processes by DistributedDataParallel on CPU: metrics of one process, and disjoint parts of one prediction."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TAGS = ["O", "B-PER", "I-PER", "B-LOC"]


def headset(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run the command line as a user does; what it prints."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "headset", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_bert):
    """A run with a tagger, trained for a few steps in two processes, on 9 sentences: one is left over."""
    folder = tmp_path_factory.mktemp("run")
    words = ["the", "film", "was", "very", "good", "a", "bad", "book"]
    sentences = [[(words[(i * j) % 8], TAGS[(i + j) % 4]) for j in range(2 + i)] for i in range(9)]
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
    assert [row["row"] for row in whole] == [str(number) for number in range(1, 10)]
    by_row = {row["row"]: row["tags.tags"] for row in rows}
    assert len(rows) == 9
    assert by_row == {row["row"]: row["tags.tags"] for row in whole}


HEADS = {
    "kind": ("a", {"class_path": "SequenceClassification", "init_args": {"pooling": "mean", "dropout": 0.0}}),
    "pairs": (["a", "b"], {"class_path": "Pooling", "init_args": {"pooling": "mean"}}),
}


# Of 17 rows two processes of 2 have one row left; three of 1 have two, so that the third has one of them once more.
@pytest.mark.parametrize(
    ("strategy", "name", "processes", "size"),
    [
        ("ddp", "kind", 2, 2),
        ("ddp", "kind", 3, 1),
        ("ddp", "pairs", 2, 2),
        ("fsdp2", "kind", 2, 2),
    ],
)
def test_rows_that_are_left_over_are_learnt_from_as_in_one_process(
    tmp_path, still_bert, strategy, name, processes, size
):
    words = ["good", "bad", "film", "book", "very"]
    rows = [
        {
            "a": " ".join(words[(i * j) % 5] for j in range(1 + i % 4)),
            "b": " ".join(words[(i + j) % 5] for j in range(1 + i % 3)),
            "label": words[i % 2],
        }
        for i in range(17)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text, head = HEADS[name]
    settings = {
        "model": {
            "backbone": str(still_bert),
            "heads": {name: head},
            # Adam moves by rounding where there is no gradient.
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
        },
        "data": {"train": "rows.jsonl", "validation": "rows.jsonl", "text": text},
        "trainer": {"max_epochs": 2, "enable_progress_bar": False, "accelerator": "cpu", "log_every_n_steps": 1},
    }
    settings["data"] |= {"labels": "label"} if name == "kind" else {}
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    runs = {
        "one": ["--data.batch_size", str(processes * size)],
        "all": ["--data.batch_size", str(size), "--trainer.devices", str(processes), "--trainer.strategy", strategy],
    }
    weights, logs = {}, {}
    for run, arguments in runs.items():
        headset(tmp_path, "fit", "-c", "run.yaml", "--trainer.default_root_dir", run, *arguments)
        [path] = (tmp_path / run).glob("**/last.ckpt")
        weights[run] = torch.load(path, weights_only=True)["state_dict"]
        [path] = (tmp_path / run).glob("**/metrics.csv")
        logs[run] = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(path.open())]
    assert max(row["step"] for row in logs["one"]) == 2 * math.ceil(17 / (processes * size)) - 1
    for key, value in weights["one"].items():
        torch.testing.assert_close(weights["all"][key], value, rtol=1e-3, atol=1e-5, msg=key)
    for one, several in zip(logs["one"], logs["all"], strict=True):
        assert several == pytest.approx(one, rel=1e-3, abs=1e-5)


def test_processes_that_need_different_passes_are_refused_where_weights_are_in_parts(tmp_path, tiny_bert):
    rows = [{"text": "a good film", "label": "ab"[i % 4 // 2] if i % 3 else None} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {
        "model": {"backbone": str(tiny_bert), "heads": {"kind": "SequenceClassification", "words": "MaskedLM"}},
        "data": {"train": "rows.jsonl", "labels": {"kind": "label"}, "missing_labels": True, "batch_size": 1},
        "trainer": {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu", "devices": 2},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    headset(tmp_path, "fit", "-c", "run.yaml", "--trainer.strategy", "ddp")
    told = headset(tmp_path, "fit", "-c", "run.yaml", "--trainer.strategy", "fsdp2", code=1)
    assert "run the backbone equally often" in told and "trainer.strategy: ddp" in told
