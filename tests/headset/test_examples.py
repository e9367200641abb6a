import logging
from pathlib import Path

import pytest
from datasets import Dataset

from headset import examples

TRAIN = "text,label\nthe film was good,b\na bad book,a\nvery good,b\nthe book,c\nnot good,a\n"


def test_truncation_is_counted_and_reported(make, caplog):
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    data = make(train=TRAIN, max_length=5)
    data.setup("fit")
    logger.removeHandler(caplog.handler)
    assert "train: 5 rows" in caplog.text
    assert "1 of them cut to 5 tokens" in caplog.text


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """A function that tells how many rows were tokenised since it was called last."""
    original, calls = examples.ExampleMaker.__call__, []

    def call(self, rows, indices):
        calls.append(len(indices))
        return original(self, rows, indices)

    monkeypatch.setattr(examples.ExampleMaker, "__call__", call)

    def count():
        total = sum(calls)
        calls.clear()
        return total

    return count


def test_tokenised_once_and_again_after_a_change(make, counted, tokenizer):
    def run(train=TRAIN, **settings):
        data = make(train=train, **settings)
        data.setup("fit")
        list(data.train_dataloader())
        return counted()

    assert run() == 5
    tokenizer(["a text"], truncation=True, max_length=3, padding="max_length")
    assert run() == 0
    assert run(batch_size=1, seed=9, validation=0.4) == 0
    assert run(max_length=7) == 5
    assert run(known={"topic": ["c", "b", "a"]}) == 5
    assert run(TRAIN.replace("very", "VERY")) == 5
    assert run() == 0
    tokenizer.add_tokens(["zzz"])
    assert run() == 5


def test_several_processes_use_the_cache_too(make, cache):
    def run():
        data = make(train=TRAIN, num_proc=2)
        data.setup("fit")
        assert data.examples("train")["row"][:] == [0, 1, 2, 3, 4]
        return {path: path.stat().st_mtime_ns for path in cache.rglob("*.arrow")}

    assert run() == run()


@pytest.mark.parametrize("num_proc", [None, 2])
def test_damaged_examples_are_made_anew(make, cache, num_proc):
    def run():
        data = make(train=TRAIN, num_proc=num_proc)
        data.setup("fit")
        return data.examples("train")["row"][:]

    run()
    for file in cache.rglob("*.arrow"):
        file.unlink()  # the rows of the first run are still mapped
        file.write_bytes(b"")
    assert run() == [0, 1, 2, 3, 4]


def test_saved_folders_are_not_written_to(make, tmp_path):
    Dataset.from_dict({"text": ["x", "y"], "label": ["a", "b"]}).save_to_disk(tmp_path / "saved")
    before = sorted(Path(tmp_path / "saved").iterdir())
    make(train=str(tmp_path / "saved")).setup("fit")
    assert sorted(Path(tmp_path / "saved").iterdir()) == before
