"""A prediction that was ended at any moment goes on, and comes to the same bytes."""

import json
import os
import random
import re
import signal
import time
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import distributed
from torch.utils.data import DataLoader

from backbones.errors import HeadsetError
from headset.loader import ResumableLoader
from headset.orders import WindowOrder
from headset.partial import PartialFile
from headset.writer import PredictionWriter

ROWS, WINDOW, BATCH = 90, 8, 2
LENGTHS = np.random.default_rng(0).integers(1, 50, ROWS)


class Data(LightningDataModule):
    def __init__(self, texts: str) -> None:
        super().__init__()
        self.table = Dataset.from_dict({"text": [f"{texts} {row} " + "ü\n" * (row % 5) for row in range(ROWS)]})

    def raw(self, split: str) -> Dataset:
        return self.table

    examples = raw

    def predict_dataloader(self) -> DataLoader[Any]:
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
        order = WindowOrder(ROWS, BATCH, lambda start, end: (LENGTHS[start:end], np.ones(end - start)))
        batches = [{"meta": {"rows": rows}} for rows in order.batches(world, rank)]
        loader = ResumableLoader(batches, batch_size=None)  # type: ignore[arg-type]
        loader.skip = self.begin_prediction(order)
        return loader


class Model(LightningModule):
    def __init__(self, weight: float = 1.0, delay: float = 0.0, end: int = ROWS, error: Any = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.delay, self.end, self.error = delay, end, error

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list[dict[str, Any]]]:
        time.sleep(self.delay)
        if batch_idx == self.end:
            raise self.error
        rows = batch["meta"]["rows"]
        return {"topic": [{"label": f"l{row % 3}", "score": row * float(self.weight) / 7} for row in rows]}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr("headset.orders.WINDOW", WINDOW)


def predict(output, model=None, texts="text", overwrite=False, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=[PredictionWriter(output, overwrite)], **{**quiet, **settings})
    trainer.predict(model or Model(), datamodule=Data(texts), return_predictions=False)


def killed(output, after, **settings):
    """Predict in a process group of its own, and kill it when the files have so many bytes, or a little later."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        predict(output, Model(delay=0.005), **settings)
        os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if sum(path.stat().st_size for path in output.parent.glob(".*.partial")) >= after:
            time.sleep(random.random() / 50)
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(0.001)


SEVERAL = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_killed_prediction_goes_on_to_the_same_bytes(tmp_path, suffix, processes):
    settings = SEVERAL if processes > 1 else {}
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    predict(tmp_path / "whole" / f"out.{suffix}", **settings)
    output = tmp_path / "killed" / f"out.{suffix}"
    for after in (100, 1000, 2000):
        killed(output, after, **settings)
        assert not list(output.parent.glob(f"out*.{suffix}"))
        partial = next(output.parent.glob(".*.partial"))
        with partial.open("ab") as file:
            file.write(b'{"row": 7, "te')  # torn
    predict(output, **settings)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in output.parent.iterdir()) == names and len(names) == processes
    for name in names:
        assert (output.parent / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no more"), SystemExit(143)])
def test_after_any_end_only_the_rest_is_run(tmp_path, error, caplog):
    predict(tmp_path / "whole.jsonl")
    with pytest.raises(BaseException, match=r"no more|143|1"):
        predict(tmp_path / "out.jsonl", Model(end=18, error=error))
    predict(tmp_path / "out.jsonl", Model(end=45 - 16, error=AssertionError("more than the rest")))
    assert "32 of 90 rows are in" in caplog.text
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model": Model(2.0)}, "weights"),
        ({"texts": "other"}, "rows"),
        ({"precision": "bf16-true"}, "precision"),
        ({"batch": 4}, "batch sizes"),
    ],
)
def test_what_belongs_to_something_else_is_not_gone_on_with(tmp_path, changed, told, caplog, monkeypatch):
    with pytest.raises(RuntimeError):
        predict(tmp_path / "out.jsonl", Model(end=18, error=RuntimeError()))
    monkeypatch.setitem(globals(), "BATCH", changed.pop("batch", BATCH))
    predict(tmp_path / "out.jsonl", **changed)
    assert re.search(f"is of other .*{told}.*: predictions begin anew", caplog.text)
    predict(tmp_path / "anew.jsonl", **changed)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "anew.jsonl").read_bytes()


def parts(folder, count):
    file = PartialFile(folder / "out.txt", {"of": [1, 2]})
    file.open(0)
    for part in range(count):
        file.write(f"part {part}\n" * 5)
        file.end_part()
    file.close()
    return file


def test_whole_parts_are_told_from_damaged_ones(tmp_path):
    file = parts(tmp_path, 4)
    content, journal = file.partial.read_bytes(), file.journal.read_bytes()
    for size in range(len(content)):
        file.partial.write_bytes(content[:size])
        assert PartialFile(file.path, {"of": [1, 2]}).found() == size // 35
    for place in range(0, len(content), 3):
        file.partial.write_bytes(content[:place] + b"x" + content[place + 1 :])
        assert PartialFile(file.path, {"of": [1, 2]}).found() == place // 35
    file.partial.write_bytes(content + b"torn")
    for size in range(len(journal)):
        file.journal.write_bytes(journal[:size])
        assert PartialFile(file.path, {"of": [1, 2]}).found() == max(0, journal[:size].count(b"\n") - 1)
    file.journal.write_bytes(journal)
    assert PartialFile(file.path, {"of": [1, 3]}).found() == 0
    assert PartialFile(file.path, {"of": [1, 3]}).other() == ["of"]
    again = PartialFile(file.path, {"of": [1, 2]})
    again.open(3)
    again.close()
    assert file.partial.read_bytes() == content[:105] and again.found() == 3


def test_a_kill_while_files_get_their_names(tmp_path):
    output = tmp_path / "out.jsonl"
    predict(tmp_path / "whole.jsonl", **SEVERAL)
    names = ["out-00000-of-00002.jsonl", "out-00001-of-00002.jsonl"]
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        PartialFile.finish = first_alone(PartialFile.finish)  # type: ignore[method-assign]
        predict(output, **SEVERAL)
        os._exit(0)
    while not (output.with_name(names[0]).exists() and output.with_name(f".{names[1]}.partial").exists()):
        time.sleep(0.01)
    time.sleep(0.3)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not output.with_name(names[1]).exists()
    predict(output, **SEVERAL)
    for name in names:
        whole = tmp_path / name.replace("out", "whole")
        assert output.with_name(name).read_bytes() == whole.read_bytes()
    with pytest.raises(HeadsetError, match="is there already"):
        predict(output, **SEVERAL)
    assert len(list(tmp_path.iterdir())) == 4


def first_alone(finish):
    def finish_first(self, content=None):
        if "-00000-" not in self.path.name:
            time.sleep(60)
        finish(self, content)

    return finish_first


def test_rows_are_in_order(tmp_path):
    predict(tmp_path / "out.jsonl")
    rows = [json.loads(line)["row"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows == list(range(1, ROWS + 1))
