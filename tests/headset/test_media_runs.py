"""Whole runs on images and on sounds: fit, test, predict, export; stock pipelines give the same labels and scores."""

import importlib
import json
import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest
import soundfile
import yaml
from transformers import pipeline

from backbones import Backbone
from heads import AudioClassification, ImageClassification
from headset import Headset
from headset.main import main
from headset.processors import load_processor

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
EXACT = ["--trainer.precision", "32-true"]  # some machines predict in bfloat16 unless told
HEADS = {"image": ImageClassification, "audio": AudioClassification}
LABELS = ["first", "second"]
OWN_HEAD = """
from torch import nn
from heads import Head, HeadOutput

class MeanOfPatches(Head):
    reads = "image"
    def build(self, context):
        self.score = nn.Linear(context.spec.hidden_size, len(context.labels))
    def forward(self, features, batch):
        return HeadOutput(self.score(features.last_hidden_state.mean(1)))
    def loss(self, output, labels):
        return nn.functional.cross_entropy(output.logits, labels)
"""


@pytest.fixture(params=["image", "audio"])
def reads(request):
    return request.param


@pytest.fixture
def place(reads, tmp_path, monkeypatch, tiny_models, picture, sound):
    """A working directory with a model, data in folders of splits and labels, and a configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning logs to the standard error of its import
    shutil.copytree(tiny_models[reads], "model")
    for split, count in (("train", 4), ("validation", 2), ("test", 2)):
        for label in LABELS:
            for index in range(count):
                seed = len(split) * 10 + index
                path = Path("data", split, label, f"{index}")
                if reads == "image":
                    picture(path.with_suffix(".png"), seed, (200, 60, 60) if label == "first" else (60, 60, 200))
                else:
                    sound(path.with_suffix(".wav"), seed, 300 if label == "first" else 3000)
    settings = {
        "model": {"backbone": "model", "heads": {"side": HEADS[reads].__name__}, "learning_rate": 5e-3},
        "data": {split: "data" for split in ("train", "validation", "test")} | {"batch_size": 4},
        "trainer": {"max_epochs": 3, "accelerator": "cpu"},
    }
    Path("run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def by_label(answer):
    return {row["label"]: row["score"] for row in answer}


def test_from_files_to_a_stock_pipeline(place, reads, capsys):
    assert main(["fit", "-c", "run.yaml", *QUIET]) == 0
    shutil.copy("lightning_logs/version_0/checkpoints/last.ckpt", "a.ckpt")
    shutil.rmtree("model")  # the checkpoint has all that is needed, the processor too
    capsys.readouterr()
    assert main(["test", "--ckpt_path", "a.ckpt", *QUIET]) == 0
    shown = capsys.readouterr().out
    assert "test/side/accuracy" in shown and "test/side/f1" in shown

    paths = [str(path.resolve()) for path in sorted(Path("data/test").rglob("*.*"))]
    Path("table.csv").write_text("\n".join([reads, *paths]))
    records = {}
    for source, output in {"data/test": "p.jsonl", "table.csv": "p.csv", "data/test/": "p.parquet"}.items():
        given = ["--ckpt_path", "a.ckpt", "--data.predict", source, "--output", output, *QUIET, *EXACT]
        assert main(["predict", *given]) == 0
    records["p.jsonl"] = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    records["p.csv"] = pd.read_csv("p.csv").to_dict("records")
    records["p.parquet"] = pd.read_parquet("p.parquet").to_dict("records")
    assert all([row[reads] for row in rows] == paths for rows in records.values())
    assert [row["label"] for row in records["p.jsonl"]] == [row["label"] for row in records["p.parquet"]]
    assert [row["label"] for row in records["p.jsonl"]] == ["first", "first", "second", "second"]
    answers = [row["side"]["label"] for row in records["p.jsonl"]]
    assert answers == [row["side.label"] for row in records["p.csv"]]
    assert answers == [row["side"]["label"] for row in records["p.parquet"]]
    if reads == "image":
        assert answers == ["first", "first", "second", "second"]  # red and blue

    assert main(["export", "--ckpt_path", "a.ckpt", "--output_dir", "out"]) == 0
    stock = pipeline(f"{reads}-classification", "out/side")
    given = paths if reads == "image" else [soundfile.read(path, dtype="float32")[0] for path in paths]
    trained = Headset.from_checkpoint("a.ckpt")
    trained.save_pretrained("whole")
    imported = Headset.from_transformers("out/side", "side")
    for headset in (trained, Headset.from_pretrained("whole"), imported):
        for path, one, row in zip(paths, given, records["p.jsonl"], strict=True):
            [ours] = headset.predict([path])["side"]
            assert ours["scores"] == pytest.approx(by_label(stock(one)), abs=1e-5)
            assert ours["label"] == row["side"]["label"]
            assert ours["scores"] == pytest.approx(row["side"]["scores"], abs=1e-5)


def test_damaged_files_stop_a_run_before_it_begins(place, reads, capsys):
    damaged = sorted(Path("data/validation").rglob("*.*"))[2]
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    assert main(["fit", "-c", "run.yaml", *QUIET]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("headset: error")]
    assert f"validation: data, row 3: column '{reads}': " in line and str(damaged) in line
    assert not Path("lightning_logs").exists()


def test_heads_share_a_pass_and_the_type_of_the_backbone(place, reads):
    backbone = Backbone.from_pretrained("model", dtype="bfloat16")
    heads = {name: HEADS[reads]() for name in ("side", "other")}
    headset = Headset(backbone, heads, dict.fromkeys(heads, LABELS), processor=load_processor("model", heads))
    calls = []
    backbone.model.register_forward_hook(lambda *_: calls.append(1))
    answers = headset.predict([str(path) for path in Path("data/test").rglob("*.*")], allow_untrained=True)
    assert len(calls) == 1 and {name: len(rows) for name, rows in answers.items()} == {"side": 4, "other": 4}


def test_several_labels_and_numbers(place, reads):
    names = sorted(path.relative_to("data").as_posix() for path in Path("data/train").rglob("*.*"))
    rows = [f"{name},{'first|loud' if index % 2 else ''},{index / 4}" for index, name in enumerate(names)]
    Path("data/table.csv").write_text("\n".join([f"{reads},tags,size", *rows]))
    heads = {
        "tags": {"class_path": HEADS[reads].__name__, "init_args": {"problem_type": "multi_label_classification"}},
        "size": {"class_path": HEADS[reads].__name__, "init_args": {"problem_type": "regression"}},
    }
    settings = yaml.safe_load(Path("run.yaml").read_text())
    settings["model"]["heads"] = heads
    settings["data"] = {"train": "data/table.csv", "labels": {"tags": "tags", "size": "size"}, "batch_size": 4}
    Path("both.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "-c", "both.yaml", "--trainer.max_epochs", "1", *QUIET]) == 0
    trained = Headset.from_checkpoint("lightning_logs/version_0/checkpoints/last.ckpt")
    path = f"data/{names[0]}"
    given = path if reads == "image" else soundfile.read(path, dtype="float32")[0]
    answers = trained.predict([path])
    for name in heads:
        trained.head(name).scorer.whole(trained.backbone).save_pretrained(name)
        trained.processor.save_pretrained(name)
    stock = by_label(pipeline(f"{reads}-classification", "tags")(given))
    assert answers["tags"][0]["scores"] == pytest.approx(stock, abs=1e-5) and stock.keys() == {"first", "loud"}
    [number] = pipeline(f"{reads}-classification", "size")(given)
    assert answers["size"][0]["value"] == pytest.approx(number["score"], abs=1e-5)


def test_a_head_of_ones_own_goes_out_with_its_code(tmp_path, monkeypatch, tiny_models, picture):
    (tmp_path / "own_media.py").write_text(OWN_HEAD)
    monkeypatch.syspath_prepend(tmp_path)
    head = importlib.import_module("own_media").MeanOfPatches()
    backbone = Backbone.from_pretrained(str(tiny_models["image"]))
    processor = load_processor(str(tiny_models["image"]), {"side": head})
    headset = Headset(backbone, {"side": head}, {"side": LABELS}, processor=processor)
    folder = headset.export(str(tmp_path / "out"), allow_untrained=True)["side"]
    stock = pipeline("image-classification", folder, trust_remote_code=True)
    path = str(picture(tmp_path / "a.png"))
    [ours] = headset.predict([path], allow_untrained=True)["side"]
    assert ours["scores"] == pytest.approx(by_label(stock(path)), abs=1e-5)
