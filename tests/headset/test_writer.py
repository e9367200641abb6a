import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import distributed
from torch.utils.data import DataLoader

from backbones.errors import HeadsetError
from headset.loader import ResumableLoader
from headset.orders import Filler, WindowOrder
from headset.writer import PredictionWriter

ROWS = 7
BATCH = 2
LENGTHS = np.array([3, 1, 4, 1, 5, 9, 2])
TEXTS = [f'text "{row}", with\nlines: ü' for row in range(ROWS)]
COLUMNS = {"text": TEXTS, "topic": ["a"] * ROWS, "tokens": [["x"] * row for row in range(ROWS)]}


class Data(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.table = Dataset.from_dict(COLUMNS)

    def raw(self, split: str) -> Dataset:
        assert split == "predict"
        return self.table

    examples = raw

    def predict_dataloader(self) -> DataLoader[Any]:
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
        order = WindowOrder(ROWS, BATCH, lambda start, end: (LENGTHS[start:end], LENGTHS[start:end] * 0 + 1))
        batches = [
            {"meta": {"rows": rows, **({"filler": True} if isinstance(rows, Filler) else {})}}
            for rows in order.batches(world, rank)
        ]
        loader = ResumableLoader(batches, batch_size=None)  # type: ignore[arg-type]
        loader.skip = self.begin_prediction(order)
        return loader


class Model(LightningModule):
    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()
        self.fail_at = fail_at

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list[dict[str, Any]]]:
        if batch_idx == self.fail_at:
            raise RuntimeError("no more")
        rows = batch["meta"]["rows"]
        return {"topic": [prediction(row) for row in rows], "ner": [entities(row) for row in rows]}


def prediction(row: int) -> dict[str, Any]:
    return {"label": f"l{row}", "score": row / 8, "scores": {"a": row / 8, "b": 1 - row / 8}}


def entities(row: int) -> dict[str, Any]:
    """No entities in the first batch, as often in real data."""
    return {"entities": [{"text": "x", "score": 0.5}] * (row // 3)}


def predict(output: Path, model: Model | None = None, overwrite: bool = False, **settings: Any) -> None:
    writer = PredictionWriter(output, overwrite)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=[writer], **{**quiet, **settings})
    trainer.predict(model or Model(), datamodule=Data(), return_predictions=False)


def nested(row: int) -> dict[str, Any]:
    inputs = {"text": TEXTS[row], "input.topic": "a", "tokens": ["x"] * row}
    return {"row": row + 1, **inputs, "topic": prediction(row), "ner": entities(row)}


def test_json_lines(tmp_path: Path) -> None:
    predict(tmp_path / "new" / "out.jsonl")
    lines = (tmp_path / "new" / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [nested(row) for row in range(ROWS)]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["out.jsonl"]
    table = load_dataset("json", data_files=str(tmp_path / "new" / "out.jsonl"), split="train")
    assert table["text"] == TEXTS and table[4]["topic"]["label"] == "l4"


def test_contents_of_files_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = {"picture": [{"bytes": b"PNG", "path": None}] * ROWS, "sound": [b"RIFF"] * ROWS}
    monkeypatch.setitem(globals(), "COLUMNS", COLUMNS | pictures)
    predict(tmp_path / "out.csv")
    assert "PNG" not in (tmp_path / "out.csv").read_text() and "RIFF" not in (tmp_path / "out.csv").read_text()


def test_csv(tmp_path: Path) -> None:
    predict(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == TEXTS
    assert [json.loads(row["ner.entities"]) for row in rows] == [entities(row)["entities"] for row in range(ROWS)]
    table = pd.read_csv(tmp_path / "out.csv")
    assert table["topic.score"].tolist() == [row / 8 for row in range(ROWS)]
    assert table.columns.tolist()[:4] == ["row", "text", "input.topic", "tokens"]


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headset.result_files.ROWS_AT_ONCE", 2)
    predict(tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [nested(row) for row in range(ROWS)]
    assert [file.name for file in tmp_path.iterdir()] == ["out.parquet"]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    old = tmp_path / "out.jsonl"
    old.write_text("old")
    with pytest.raises(HeadsetError, match=r"out\.jsonl is there already.*--overwrite true"):
        predict(old)
    with pytest.raises(RuntimeError, match="no more"):
        predict(old, Model(fail_at=1), overwrite=True)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("out.jsonl", "old")]
    predict(old, overwrite=True)
    assert len(old.read_text().splitlines()) == ROWS
    with pytest.raises(HeadsetError, match=r"Invalid suffix of --output: '\.json'.*\.jsonl, \.csv, \.parquet"):
        predict(tmp_path / "out.json")


def test_processes_write_parts_of_one_result(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("old")
    predict(tmp_path / "out.jsonl", overwrite=True, devices=2, strategy="ddp_fork", use_distributed_sampler=False)
    names = ["out-00000-of-00002.jsonl", "out-00001-of-00002.jsonl"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    rows = [[json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in names]
    assert sorted(rows[0] + rows[1], key=lambda record: record["row"]) == [nested(row) for row in range(ROWS)]
    with pytest.raises(HeadsetError, match="is there already"):
        predict(tmp_path / "out.jsonl")
