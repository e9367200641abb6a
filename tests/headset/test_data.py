from itertools import chain

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from backbones.errors import HeadsetError
from heads.targets import ClassTarget, NumberTarget, PairTarget, TagTarget
from headset.data import TextData

TRAIN = "text,label\nthe film was good,b\na bad book,a\nvery good,b\nthe book,c\nnot good,a\n"


def test_batches(make, tokenizer):
    data = make(train=TRAIN, validation="text,label\nthe film,c\n", test="text,label\nbad,a\n", batch_size=2)
    data.setup("fit")
    data.setup("test")
    assert data.label_sets == {"topic": ("a", "b", "c")}
    assert len(data.train_dataloader()) == 3
    seen = list(data.train_dataloader())
    assert sorted(chain.from_iterable(batch["meta"]["rows"] for batch in seen)) == [0, 1, 2, 3, 4]
    for batch in seen:
        raw = data.raw("train")[batch["meta"]["rows"]]
        expected = tokenizer(raw["text"], padding=True, return_tensors="pt")
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert [data.label_sets["topic"][index] for index in batch["labels"]["topic"]] == raw["label"]
    assert next(iter(data.val_dataloader()))["labels"]["topic"].tolist() == [2]
    assert next(iter(data.test_dataloader()))["labels"]["topic"].tolist() == [0]


def test_prediction_needs_no_labels(make):
    data = make(predict="text,id\nthe film,1\na book,2\n")
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert batch["labels"] == {}
    assert batch["meta"]["rows"] == [0, 1]
    assert data.raw("predict")[1] == {"text": "a book", "id": "2"}


def test_prediction_of_tags_splits_strings_into_words(make):
    heads, known = {"ner": TagTarget()}, {"ner": ["O", "B-X"]}
    strings = make(heads, known, predict="text,id\n the film  was,1\nbook,2\n")
    words = make(heads, known, predict=[{"text": ["the", "film", "was"]}, {"text": ["book"]}])
    batches = []
    for data in (strings, words):
        data.setup("predict")
        batches.append(next(iter(data.predict_dataloader())))
    assert batches[0]["meta"]["words"] == batches[1]["meta"]["words"] == [3, 1]
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(batches[0][name], batches[1][name])
    assert torch.equal(batches[0]["meta"]["word_ids"], batches[1]["meta"]["word_ids"])


def test_order_by_seed(make):
    def order(seed):
        data = make(train=TRAIN, batch_size=1, seed=seed)
        data.setup("fit")
        return [batch["meta"]["rows"] for batch in data.train_dataloader()]

    assert order(1) == order(1)
    assert len({str(order(seed)) for seed in range(5)}) > 1


def test_worker_processes_give_the_same(make):
    batches = []
    for workers in (0, 2):
        data = make(train=TRAIN, batch_size=2, num_workers=workers)
        data.setup("fit")
        batches.append([batch["input_ids"].tolist() for batch in data.train_dataloader()])
    assert batches[0] == batches[1]


def test_pairs(make, batch_of):
    train = "a,b,score\nthe film,good,0.5\na book was bad,is,1\n"
    joint = make({"same": NumberTarget()}, train=train, text=["a", "b"], labels="score")
    joint.setup("fit")
    batch = batch_of(joint, [0, 1])
    assert batch["token_type_ids"].sum(1).tolist() == [2, 2]
    vectors = PairTarget(scored=True)
    data = make({"vectors": vectors}, train=train, text=["a", "b"], labels="score")
    data.setup("fit")
    batch = batch_of(data, [0, 1])
    assert batch["input_ids"].shape == (4, 6)
    assert batch["meta"] == {"texts": 2, "rows": [0, 1]}
    assert batch["labels"]["vectors"].tolist() == [0.5, 1.0]


def test_pairs_without_labels(make, fault):
    heads = {"vectors": PairTarget(scored=False)}
    data = make(heads, train="a,b\nthe film,good\n", text=["a", "b"])
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["labels"] == {}
    assert "learns from pairs of texts" in fault(make(heads, train="a,b\nx,y\n", text="a"))
    assert "in different runs" in fault(make(heads | {"topic": ClassTarget()}, train="a,b\nx,y\n", text=["a", "b"]))


def test_share_for_validation(make):
    train = "text,label\n" + "".join(f"{'x' * (i % 5 + 1)},{'aab'[i % 3]}\n" for i in range(60)) + "alone,c\n"
    data = make(train=train, validation=0.2, seed=3)
    data.setup("fit")
    parts = [data.examples(split)["row"][:] for split in ("train", "validation")]
    assert sorted(parts[0] + parts[1]) == list(range(61))
    labels = [data.raw("validation")[row]["label"] for row in parts[1]]
    assert (labels.count("a"), labels.count("b"), labels.count("c")) == (8, 4, 0)
    again = make(train=train, validation=0.2, seed=3)
    again.setup("validate")
    assert again.examples("validation")["row"][:] == parts[1]
    other = make(train=train, validation=0.2, seed=4)
    other.setup("fit")
    assert other.examples("validation")["row"][:] != parts[1]


def test_settings_are_plain_values(make, tmp_path):
    data = make(train=tmp_path / "x.csv", validation=0.1, labels={"topic": "label"})
    torch.save(dict(data.hparams), tmp_path / "settings.pt")
    loaded = torch.load(tmp_path / "settings.pt", weights_only=True)
    assert loaded["train"] == str(tmp_path / "x.csv")
    assert TextData(**loaded).hparams == data.hparams


class Recorder(LightningModule):
    """A module that learns nothing and notes the rows that it sees."""

    def __init__(self, tokenizer, heads):
        super().__init__()
        self.processor, self.heads, self.labels = tokenizer, heads, {}
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "validation": [], "test": [], "predict": []}

    def note(self, batch, split):
        self.seen[split].append(batch["meta"]["rows"])
        return self.weight * 0.0

    def training_step(self, batch):
        return self.note(batch, "train")

    def validation_step(self, batch):
        self.note(batch, "validation")

    def test_step(self, batch):
        self.note(batch, "test")

    def predict_step(self, batch):
        return self.note(batch, "predict")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())


def trainer(tmp_path, **settings):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, num_sanity_val_steps=0, **quiet, **settings)


def test_with_a_trainer(tmp_path, tokenizer, target_head, make):
    hparams = make(train=TRAIN, validation=TRAIN, test=TRAIN, predict=TRAIN).hparams
    files = {split: hparams[split] for split in ("train", "validation", "test", "predict")}
    module = Recorder(tokenizer, {"topic": target_head(ClassTarget())})
    data = TextData(**files, batch_size=2)
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
    trainer(tmp_path).test(module, datamodule=data, verbose=False)
    trainer(tmp_path).predict(module, datamodule=data)
    first, second = module.seen["train"][:3], module.seen["train"][3:]
    assert sorted(chain(*first)) == sorted(chain(*second)) == [0, 1, 2, 3, 4]
    assert first != second
    assert module.seen["validation"] == 2 * [[0, 1], [2, 3], [4]]
    assert module.seen["test"] == module.seen["predict"] == [[0, 1], [2, 3], [4]]
    assert data.label_sets == {"topic": ("a", "b", "c")}


def test_without_validation_and_overfitting(tmp_path, tokenizer, target_head, make):
    module = Recorder(tokenizer, {"topic": target_head(ClassTarget())})
    data = TextData(train=make(train=TRAIN).hparams["train"], batch_size=2)
    trainer(tmp_path, max_epochs=2, overfit_batches=1).fit(module, datamodule=data)
    assert module.seen["train"] == [[0, 1], [0, 1]]


LENGTHS = [1 + 7 * row % 13 for row in range(60)]
ROWS = [{"text": "good " * length, "other": "bad", "label": "ab"[row % 2]} for row, length in enumerate(LENGTHS)]


def test_batches_by_tokens(make):
    data = make(train=ROWS, batch_tokens=64, batch_size=7)
    data.setup("fit")
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(loader) == len(batches) < 60 * 15 / 64
    assert sorted(chain.from_iterable(batch["meta"]["rows"] for batch in batches)) == list(range(60))
    assert all(batch["input_ids"].numel() <= 64 for batch in batches)
    data.done = 4
    rest = list(data.train_dataloader())
    assert [batch["meta"]["rows"] for batch in rest] == [batch["meta"]["rows"] for batch in batches[4:]]
    small = {"train": data.hparams["train"], "labels": {"topic": "label"}, "batch_tokens": 9}
    alike = make(sources={"a": small})
    with pytest.raises(HeadsetError, match=r"data.sources.a.batch_tokens is 9, and one row alone has 15 tokens"):
        alike.setup("fit")
        len(alike.train_dataloader())


def test_evaluation_is_sorted_by_length_unless_rows_are_compared_with_those_beside_them(make):
    data = make(train=ROWS, validation=ROWS, test=ROWS, predict=ROWS, eval_batch_size=7)
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        rows = list(chain.from_iterable(batch["meta"]["rows"] for batch in loader))
        assert sorted(rows) == list(range(60))
        assert [LENGTHS[row] for row in rows] == sorted(LENGTHS, reverse=True)
    assert [row for batch in data.predict_dataloader() for row in batch["meta"]["rows"]] == list(range(60))
    pairs = make(
        {"vector": PairTarget(scored=False)},
        train=ROWS,
        validation=ROWS,
        text=["text", "other"],
        labels={"vector": None},
    )
    pairs.setup("fit")
    assert [row for batch in pairs.val_dataloader() for row in batch["meta"]["rows"]] == list(range(60))
