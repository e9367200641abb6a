"""Features of a frozen backbone: the same runs as with the backbone, and never the features of anything else."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from transformers import BertModel, BertTokenizer, FNetConfig, FNetModel

from backbones.backbone import Backbone, BackboneOptions
from backbones.errors import HeadsetError
from heads import (
    AudioClassification,
    ImageClassification,
    MaskedLM,
    Pooling,
    SequenceClassification,
    TokenClassification,
)
from headset import LitHeadset, TextData, feature_key
from headset.feature_store import FeatureWriter

EPOCHS = 3


class Steps(Callback):
    """Keeps the loss of each step and the metrics of each validation."""

    def __init__(self):
        self.losses, self.metrics = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.losses.append(outputs["loss"].item())

    def on_validation_end(self, trainer, module):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items() if "val" in name})


@pytest.fixture
def passes(monkeypatch):
    """The shapes of the inputs that went through a backbone."""
    found = []
    run = Backbone.run

    def counted(self, call):
        found.append(tuple(next(value.shape for value in call.kwargs.values() if isinstance(value, torch.Tensor))))
        return run(self, call)

    monkeypatch.setattr(Backbone, "run", counted)
    return found


@pytest.fixture
def fit(tmp_path, tiny_bert):
    """Trains heads on a tiny frozen BERT, and gives the losses of all steps and the metrics of all validations."""

    def fit(data, heads, epochs=EPOCHS, options=None, ckpt=None, **settings):
        seed_everything(0, verbose=False)
        options = {"path": str(tiny_bert), "freeze": "all"} | (options or {})
        module = LitHeadset(BackboneOptions(**options), heads, learning_rate=0.01, **settings)
        steps = Steps()
        trainer = Trainer(
            max_epochs=epochs,
            callbacks=[*fit.callbacks, steps],
            default_root_dir=tmp_path,
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
        )
        trainer.fit(module, TextData(**data) if isinstance(data, dict) else data, ckpt_path=ckpt)
        fit.module, fit.trainer = module, trainer
        return steps

    fit.callbacks = []
    return fit


@pytest.fixture
def texts(tmp_path):
    """A table with texts of many lengths for training, and another one for validation."""
    words = "the good bad film book was is not very".split()
    files = {}
    for split, rows in {"train": 40, "validation": 13}.items():
        lines = [
            {
                "text": " ".join(words[(row * 7 + place) % 9] for place in range(1 + row * 5 % 11)),
                "label": "ab"[row % 2],
            }
            for row in range(rows)
        ]
        files[split] = str(tmp_path / f"{split}.jsonl")
        with open(files[split], "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return files | {"batch_size": 8}


def folders():
    return sorted(Path(datasets.config.HF_DATASETS_CACHE, "headset").glob("*.features"))


def close(one, other):
    torch.testing.assert_close(torch.tensor(one.losses), torch.tensor(other.losses), rtol=1e-4, atol=1e-5)
    assert len(one.metrics) == len(other.metrics)
    for here, there in zip(one.metrics, other.metrics, strict=True):
        assert here == pytest.approx(there, rel=1e-3, abs=1e-5)


HEADS = {
    "native": lambda: SequenceClassification(),
    "mean": lambda: SequenceClassification(pooling="mean"),
    "layers": lambda: SequenceClassification(pooling=["max", "attention"], hidden_layers=[0, 1]),
    "mix": lambda: SequenceClassification(pooling="last", hidden_layers="mix"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_run_is_the_one_with_the_backbone(fit, texts, passes, kind):
    """All losses and metrics are those of a run of the backbone; and no row goes through it in training."""
    truth = fit(texts, {"topic": HEADS[kind]()}, cache_features=False)
    assert len(passes) == EPOCHS * 7
    passes.clear()
    first = fit(texts, {"topic": HEADS[kind]()})
    assert sum(shape[0] for shape in passes) < 53 + 80  # each row once, and some to compare
    passes.clear()
    again = fit(texts, {"topic": HEADS[kind]()})
    assert sum(shape[0] for shape in passes) < 80
    close(first, truth)
    assert first.losses == again.losses
    assert first.metrics == again.metrics


def table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def words(row, most=11):
    some = "the good bad film book was is not very".split()
    return [some[(row * 7 + place) % 9] for place in range(1 + row * 5 % most)]


def test_heads_for_words_with_other_heads_on_two_tables(fit, tmp_path, passes):
    """Heads of two sources, one of which has its own inputs each time: the others do without the backbone."""
    tags = [{"tokens": words(row), "tags": ["AB"[place % 2] for place in range(len(words(row)))]} for row in range(21)]
    topics = [{"text": " ".join(words(row)), "label": "ab"[row % 2]} for row in range(30)]
    validation = table(tmp_path / "v.jsonl", topics[:7])
    sources = {
        "first": {"train": table(tmp_path / "f.jsonl", tags), "text": "tokens", "labels": {"tag": "tags", "lm": None}},
        "second": {
            "train": table(tmp_path / "s.jsonl", topics),
            "labels": {"topic": "label"},
            "validation": validation,
        },
    }
    heads = {
        "tag": lambda: TokenClassification(),
        "lm": lambda: MaskedLM(),
        "topic": lambda: SequenceClassification(),
    }
    data = {"sources": sources, "batch_size": 8, "sampling": "all"}
    truth = fit(data, {name: head() for name, head in heads.items()}, cache_features=False)
    fit(data, {name: head() for name, head in heads.items()})
    passes.clear()
    close(fit(data, {name: head() for name, head in heads.items()}), truth)
    assert len(passes) <= 4 * EPOCHS + 10  # of the masked texts alone, and to compare


def test_pairs_and_documents(fit, tmp_path, passes):
    """Rows that are several sequences: two texts, and windows of long ones."""
    rows = [{"a": " ".join(words(row)), "b": " ".join(words(row + 3, 7)), "label": row / 30} for row in range(30)]
    pairs = {"train": table(tmp_path / "p.jsonl", rows), "text": ["a", "b"], "batch_size": 7}
    rows = [{"text": " ".join(words(row, 29)), "label": "ab"[row % 2]} for row in range(30)]
    long = {"train": table(tmp_path / "l.jsonl", rows), "batch_size": 7, "max_length": 10, "stride": 2}
    for data, head in (
        (pairs, lambda: Pooling(projection=8, objective="similarity")),
        (long, lambda: SequenceClassification(pooling="mean", windows="attention")),
    ):
        truth = fit(data, {"one": head()}, cache_features=False)
        passes.clear()
        close(fit(data, {"one": head()}), truth)
        passes.clear()
        close(fit(data, {"one": head()}), truth)
        assert len(passes) <= 3


def test_worker_processes(fit, texts):
    """Loaders in processes of their own read the same features."""
    plain = fit(texts, {"topic": SequenceClassification(pooling="mean")})
    assert fit(texts | {"num_workers": 2}, {"topic": SequenceClassification(pooling="mean")}).losses == plain.losses


def test_a_resumed_run_equals_the_whole_one(fit, texts, tmp_path):
    whole = fit(texts, {"topic": SequenceClassification()}, epochs=4)

    class Killed(Exception):
        pass

    class Kill(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if trainer.global_step == 12:
                trainer.save_checkpoint(tmp_path / "killed.ckpt")
                raise Killed

    fit.callbacks = [Kill()]
    with pytest.raises(Killed):
        fit(texts, {"topic": SequenceClassification()}, epochs=4)
    fit.callbacks = []
    rest = fit(texts, {"topic": SequenceClassification()}, epochs=4, ckpt=str(tmp_path / "killed.ckpt"))
    assert rest.losses == whole.losses[12:]


def test_a_backbone_that_moves_after_all_is_run(fit, texts, passes):
    """Something else unfreezes it, or writes to its weights: features are no longer used."""

    class Unfreeze(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                module.headset.backbone.requires_grad_(True)

    class Write(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                with torch.no_grad():
                    next(module.headset.backbone.parameters()).mul_(1.5)

    class Sneak(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                next(module.headset.backbone.parameters()).data.mul_(1.5)

    for callback in (Unfreeze, Write):
        fit.callbacks = [callback()]
        truth = fit(texts, {"topic": SequenceClassification()}, cache_features=False)
        with pytest.warns(UserWarning, match="not frozen any more"):
            here = fit(texts, {"topic": SequenceClassification()})
        close(here, truth)
    fit.callbacks = [Sneak()]
    with pytest.raises(HeadsetError, match="wrote to the weights of the frozen backbone"):
        fit(texts, {"topic": SequenceClassification()})


def test_features_that_padding_changes_are_not_kept(fit, texts, tmp_path, tiny_tokenizer, passes):
    """FNet mixes all positions of a batch, those of padding too."""
    tokenizer = BertTokenizer.from_pretrained(tiny_tokenizer)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "max_position_embeddings": 64}
    FNetModel(FNetConfig(vocab_size=len(tokenizer), **size)).save_pretrained(tmp_path / "fnet")
    tokenizer.save_pretrained(tmp_path / "fnet")
    path = {"path": str(tmp_path / "fnet")}
    truth = fit(texts, {"topic": SequenceClassification(pooling="mean")}, options=path, cache_features=False)
    here = fit(texts, {"topic": SequenceClassification(pooling="mean")}, options=path)
    assert here.losses == truth.losses


@pytest.mark.parametrize("reads", ["image", "audio"])
def test_images_and_sounds(fit, tmp_path, tiny_models, picture, sound, passes, reads):
    for place in range(12):
        label = "ab"[place % 2]
        if reads == "image":
            picture(tmp_path / "data" / label / f"{place}.png", place)
        else:
            sound(tmp_path / "data" / label / f"{place}.wav", place, seconds=0.1 + place / 50)
    head = ImageClassification if reads == "image" else AudioClassification
    data = {"train": {"path": f"{reads}folder", "data_dir": str(tmp_path / "data")}, "batch_size": 5}
    truth = fit(data, {"one": head()}, options={"path": str(tiny_models[reads])}, cache_features=False)
    close(fit(data, {"one": head()}, options={"path": str(tiny_models[reads])}), truth)
    passes.clear()
    close(fit(data, {"one": head()}, options={"path": str(tiny_models[reads])}), truth)
    assert len(passes) <= 3
    if reads == "image":  # the same size, and the same time
        file = next((tmp_path / "data" / "a").iterdir())
        stat, before = file.stat(), len(folders())
        file.write_bytes(next((tmp_path / "data" / "b").iterdir()).read_bytes())
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        fit(data, {"one": head()}, options={"path": str(tiny_models[reads])})
        assert len(folders()) > before


def test_another_ingredient_has_other_features(fit, texts, tmp_path, tiny_bert, monkeypatch):
    """One bit of one weight, one text, the order of rows, the layer, the type, a version: none finds what is there."""
    known = set()

    def new(data=texts, options=None, pooling="cls", **head):
        fit(data, {"topic": SequenceClassification(pooling=pooling, **head)}, epochs=2, options=options)
        found = set(folders()) - known
        known.update(found)
        return len(found)

    def changed(change):
        lines = Path(texts["train"]).read_text().splitlines(keepends=True)
        (tmp_path / "changed.jsonl").write_text("".join(change(lines)))
        return texts | {"train": str(tmp_path / "changed.jsonl")}

    def copied(name, change):
        model, tokenizer = BertModel.from_pretrained(tiny_bert), BertTokenizer.from_pretrained(tiny_bert)
        with torch.no_grad():
            tokenizer = change(model, tokenizer) or tokenizer
        for each in (model, tokenizer):
            each.save_pretrained(tmp_path / name)
        return {"path": str(tmp_path / name)}

    def one_ulp(model, tokenizer):
        weight = model.encoder.layer[0].output.dense.bias
        weight[3] = torch.nextafter(weight[3], torch.tensor(1.0))

    def other_words(model, tokenizer):
        vocab = tokenizer.get_vocab()
        return BertTokenizer(vocab=vocab | {"good": vocab["bad"], "bad": vocab["good"]}, model_max_length=64)

    assert (new(), new()) == (2, 0)
    assert new(options=copied("same", lambda *_: None)) == 0
    assert new(texts | {"batch_size": 4}) == 0
    assert new(hidden_layers=1) == 2
    assert new(hidden_layers=0) == 2
    assert new(options=copied("ulp", one_ulp)) == 2
    assert new(options={"dtype": "bfloat16"}) == 2
    assert new(options={"attn_implementation": "eager"}) == 2
    assert new(texts | {"max_length": 8}) == 2
    assert new(options=copied("words", other_words)) == 2
    assert new(changed(lambda lines: [lines[0].replace("good", "bad").replace("the", "not"), *lines[1:]])) == 1
    assert new(changed(lambda lines: [lines[1], lines[0], *lines[2:]])) == 1
    assert new(changed(lambda lines: [*lines[:-1], lines[-1].replace('"label": "b"', '"label": "a"')])) == 0
    monkeypatch.setattr(feature_key, "_version", lambda package: "0.0" if package == "torch" else "")
    assert new() == 2


@pytest.mark.parametrize("name", ["0", "lengths.npy", "counts.npy", "index.json"])
def test_damaged_files_are_made_anew(fit, texts, name, passes):
    whole = fit(texts, {"topic": SequenceClassification(pooling="mean")}, epochs=2)
    contents = [(folder / name).read_bytes() for folder in folders()]
    damages = {
        "cut": lambda content: content[: len(content) // 2],
        "empty": lambda content: b"",
        "a bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    }
    for kind, damage in damages.items():
        for folder, content in zip(folders(), contents, strict=True):
            (folder / name).write_bytes(damage(content))
        assert fit(texts, {"topic": SequenceClassification(pooling="mean")}, epochs=2).losses == whole.losses, kind
        assert [(folder / name).read_bytes() for folder in folders()] == contents, kind
    assert not list(folders()[0].parent.glob("*.unfinished"))


def test_a_run_that_is_killed_while_it_writes_leaves_nothing_that_is_read(fit, texts, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(self):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "close", killed)
        with pytest.raises(Killed):
            fit(texts, {"topic": SequenceClassification()}, epochs=2)
    assert not folders()
    assert len(list(Path(datasets.config.HF_DATASETS_CACHE, "headset").glob("*.unfinished"))) == 1
    truth = fit(texts, {"topic": SequenceClassification()}, epochs=2, cache_features=False)
    close(fit(texts, {"topic": SequenceClassification()}, epochs=2), truth)


def test_without_room_the_backbone_is_run(fit, texts, monkeypatch):
    truth = fit(texts, {"topic": SequenceClassification()}, epochs=2, cache_features=False)

    def full(self, *arguments):
        raise OSError(28, "No space left on device")

    for owner, name, value in (
        (shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9)),
        (FeatureWriter, "write", full),
    ):
        with monkeypatch.context() as patch, pytest.warns(UserWarning, match="could not be kept"):
            patch.setattr(owner, name, value)
            assert fit(texts, {"topic": SequenceClassification()}, epochs=2).losses == truth.losses
        assert not list(Path(datasets.config.HF_DATASETS_CACHE, "headset").glob("*.*feature*"))


def test_one_epoch_and_a_backbone_that_learns_keep_nothing(fit, texts):
    fit(texts, {"topic": SequenceClassification()}, epochs=1)
    fit(texts, {"topic": SequenceClassification()}, options={"freeze": 1})
    assert not folders()


def test_a_teacher_reads_with_its_own_backbone(fit, texts, tmp_path):
    fit(texts, {"topic": SequenceClassification()}, options={"freeze": None}, epochs=2)
    fit.trainer.save_checkpoint(tmp_path / "teacher.ckpt")
    taught = {"distillation": {"teacher": str(tmp_path / "teacher.ckpt")}}
    truth = fit(texts, {"topic": SequenceClassification()}, epochs=2, cache_features=False, **taught)
    close(fit(texts, {"topic": SequenceClassification()}, epochs=2, **taught), truth)


def test_two_processes_make_one_set_of_features(tmp_path, texts, tiny_bert):
    """Each runs its share of rows, and the losses of all steps are those of two processes with the backbone."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    arguments = [json.dumps(texts), str(tiny_bert), str(tmp_path / "results.json")]
    command = [sys.executable, str(Path(__file__).with_name("features_run.py")), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": tmp_path}
    ranks = [subprocess.Popen(command, env=os.environ | shared | {"LOCAL_RANK": rank}, **pipes) for rank in "01"]
    told = [process.communicate(timeout=500)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(told)
    truth, first, again = json.loads((tmp_path / "results.json").read_text())
    assert first["losses"] == pytest.approx(truth["losses"], rel=1e-4)
    assert first["metrics"] == pytest.approx(truth["metrics"], rel=1e-4)
    assert first["losses"] == again["losses"]
    assert truth["passes"] == 3 * 4
    assert again["passes"] <= 5
    assert len(list((tmp_path / "cache" / "headset").glob("*.features"))) == 2
