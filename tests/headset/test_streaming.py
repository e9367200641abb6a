"""Training on streams: every row once, in an order of seed and epoch, shared by processes and workers."""

import functools
import http.server
import json
import threading

import pytest
import torch
from datasets import ClassLabel, Dataset
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from backbones.errors import HeadsetError
from heads import MaskedLM, SequenceClassification
from heads.targets import ClassTarget, NumberTarget
from headset import streaming
from headset.data import TextData
from headset.module import LitHeadset

LABELS = ("good", "bad")


@pytest.fixture
def stream(tmp_path):
    """Writes rows to files, and gives the settings that stream them."""

    def stream(rows, files=1):
        paths = [tmp_path / f"{number}.jsonl" for number in range(files)]
        for number, path in enumerate(paths):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows[number::files]))
        return {"path": "json", "data_files": list(map(str, paths)), "streaming": True}

    return stream


def numbered(count):
    return [{"text": f"book {row}", "label": LABELS[row % 2]} for row in range(count)]


def texts(loader, tokenizer):
    """The texts of each batch, by which rows are known."""
    return [
        [] if "filler" in batch["meta"] else tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        for batch in loader
    ]


def names(batches):
    return [text.replace(" ", "") for batch in batches for text in batch]


def test_every_row_once_in_another_order_each_epoch(make, stream, tokenizer, monkeypatch):
    monkeypatch.setattr(streaming, "BUFFER", 10)
    monkeypatch.setattr(streaming, "PART", 7)
    data = make(known={"topic": LABELS}, train=stream(numbered(30), files=3), batch_size=4, seed=1)
    data.setup("fit")
    loader = data.train_dataloader()
    first = texts(loader, tokenizer)
    assert [len(batch) for batch in first] == [4] * 7 + [2]
    assert sorted(names(first)) == sorted(f"book{row}" for row in range(30))
    assert texts(loader, tokenizer) == first
    loader.set_epoch(1)
    second = texts(loader, tokenizer)
    assert sorted(names(second)) == sorted(names(first)) and second != first
    data.num_workers = 3
    assert texts(data.train_dataloader(), tokenizer) == first
    data.epoch, data.done = 1, 5
    resumed = data.train_dataloader()
    assert texts(resumed, tokenizer) == second[5:]
    assert texts(resumed, tokenizer) == second
    data.seed = 2
    data.epoch, data.done = 0, 0
    assert texts(data.train_dataloader(), tokenizer) != first


def test_workers_agree_on_the_order_of_every_epoch(make, stream, tokenizer):
    data = make(known={"topic": LABELS}, train=stream(numbered(12), files=3), batch_size=4, seed=1)
    data.setup("fit")
    alone = data.train_dataloader()
    data.num_workers = 4
    together = data.train_dataloader()
    for epoch in range(10):
        for loader in (alone, together):
            loader.set_epoch(epoch)
        expected = texts(alone, tokenizer)
        # Not by the loader before, which has set the epoch of the rows that both read.
        alone.set_epoch(epoch + 50)
        next(iter(alone))
        assert texts(together, tokenizer) == expected


@pytest.mark.parametrize("count", [2, 7, 8, 9, 12, 17])
def test_processes_share_the_batches_of_one(make, stream, tokenizer, count):
    rows = stream(numbered(count))
    data = make(known={"topic": LABELS}, train=rows, batch_size=4)
    data.setup("fit")
    of_one = data.train_dataloader()
    whole = names(texts(of_one, tokenizer))
    shares = []
    for rank in range(2):
        data.sources[""].settings.__dict__["batch_size"] = 2
        data.datasets["train"][""].batch_size = 2
        loader = data.train_dataloader()
        loader.stream.processes = (2, rank)
        shares.append(texts(loader, tokenizer))
    assert len(shares[0]) == len(shares[1])
    assert sorted(names(shares[0]) + names(shares[1])) == sorted(whole)
    for one, other in zip(*shares, strict=True):
        assert abs(len(one) - len(other)) <= 1


def test_long_texts_become_several_examples(stream, tokenizer):
    data = TextData(train=stream([{"text": "film " * 20}, {"text": "book " * 3}]), batch_size=2, max_length=12)
    data.connect(tokenizer, {"words": MaskedLM()}, {})
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(batch["input_ids"]) for batch in batches] == [2, 1]
    assert sum((batch["input_ids"] == tokenizer.convert_tokens_to_ids("film")).sum() for batch in batches) == 20


def test_rows_without_labels_are_left_out(make, stream, tokenizer):
    rows = [row | ({} if place % 3 else {"label": None}) for place, row in enumerate(numbered(9))]
    data = make(known={"topic": LABELS}, train=stream(rows), batch_size=4, missing_labels=True)
    data.setup("fit")
    assert sorted(names(texts(data.train_dataloader(), tokenizer))) == [f"book{row}" for row in (1, 2, 4, 5, 7, 8)]


def test_labels_are_those_of_a_class_column(make, tmp_path):
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}).cast_column("label", ClassLabel(names=["x", "y"]))
    rows.to_parquet(tmp_path / "a.parquet")
    train = {"path": "parquet", "data_files": str(tmp_path / "a.parquet"), "streaming": True}
    data = make(train=train)
    data.setup("fit")
    assert data.label_sets == {"topic": ("x", "y")}
    [batch] = data.train_dataloader()
    assert sorted(batch["labels"]["topic"].tolist()) == [0, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_wrong_row_is_told(make, stream, workers):
    rows = numbered(20)
    rows[13]["label"] = "god"
    data = make(known={"topic": LABELS}, train=stream(rows), batch_size=4, num_workers=workers)
    data.setup("fit")
    with pytest.raises(HeadsetError, match=r"0\.jsonl.*, row 14 of the stream: column 'label': unknown label 'god'"):
        list(data.train_dataloader())


def test_what_cannot_be(make, stream, tmp_path, fault):
    rows = stream(numbered(4))
    wrong = {
        "no share of a stream": {"train": rows, "validation": 0.5},
        "only data.train can be one": {"test": rows},
        "rows of like length": {"train": rows, "batch_tokens": 100},
        "only source": {"sources": {"a": {"train": rows}, "b": {"train": "b.csv"}}},
    }
    for message, settings in wrong.items():
        with pytest.raises(HeadsetError, match=message):
            TextData(**settings)
    assert "model.labels: {topic: [...]}" in fault(make(train=rows))
    assert "no column 'txt'" in fault(make(known={"topic": LABELS}, train=rows, text="txt"))
    gone = rows | {"data_files": str(tmp_path / "gone.jsonl")}
    assert "gone.jsonl" in fault(make(known={"topic": LABELS}, train=gone))
    (tmp_path / "0.jsonl").write_text("")
    assert fault(make(known={"topic": LABELS}, train=rows))
    (tmp_path / "0.jsonl").write_text('{"text": "a"')
    assert "cannot be read on: ArrowInvalid: JSON parse error" in fault(make(known={"topic": LABELS}, train=rows))


def test_weights_by_counts_are_refused(tokenizer, stream):
    data = TextData(train=stream(numbered(4)))
    data.connect(
        tokenizer, {"topic": SequenceClassification(objective={"class_weights": "balanced"})}, {"topic": LABELS}
    )
    with pytest.raises(HeadsetError, match="balances its labels"):
        data.setup("fit")


def test_numbers_need_no_labels(make, stream):
    data = make({"stars": NumberTarget()}, train=stream([{"text": "a", "label": 1.5}, {"text": "b", "label": 2}]))
    data.setup("fit")
    [batch] = data.train_dataloader()
    assert sorted(batch["labels"]["stars"].flatten().tolist()) == [1.5, 2]


def test_a_remote_file(make, tmp_path, tokenizer):
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "a.csv").write_text("text,label\nbook,good\nfilm,bad\n")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "remote"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.csv"
        data = make(
            {"topic": ClassTarget()}, {"topic": LABELS}, train={"path": "csv", "data_files": url, "streaming": True}
        )
        data.setup("fit")
        [batch] = data.train_dataloader()
        server.shutdown()
    assert sorted(tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)) == ["book", "film"]


class Stop(Callback):
    """Ends a run after some steps, without a word, and writes down the losses."""

    def __init__(self, after=None):
        self.after = after
        self.losses = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses[trainer.global_step] = outputs["loss"].item()
        if trainer.global_step == self.after:
            raise KeyboardInterrupt


def test_a_run_goes_on_to_the_bit(tiny_bert, tmp_path, stream):
    rows = stream(numbered(20), files=2)

    def run(folder, after=None, checkpoint=None):
        torch.manual_seed(0)
        stop = Stop(after)
        callbacks = [ModelCheckpoint(folder, every_n_train_steps=1, save_last=True), stop]
        trainer = Trainer(
            max_steps=9, max_epochs=-1, callbacks=callbacks, logger=False, enable_progress_bar=False, accelerator="cpu"
        )
        model = LitHeadset(str(tiny_bert), {"topic": SequenceClassification()}, labels={"topic": list(LABELS)})
        data = TextData(train=rows, batch_size=4, num_workers=2)
        try:
            trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        except (KeyboardInterrupt, SystemExit):
            assert after
        return stop.losses, model.state_dict()

    losses, weights = run(tmp_path / "whole")
    before, _ = run(tmp_path / "cut", after=7)
    later, resumed = run(tmp_path / "cut", checkpoint=str(tmp_path / "cut" / "last.ckpt"))
    assert len(losses) == 9 and before | later == losses
    assert list(before) + list(later) == [*range(1, 8), *range(min(later), 10)]
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
