"""Runs on several sources: idle heads, metrics over all sources, resuming within an epoch, settings and cards."""

import json

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from heads import MaskedLM, SequenceClassification, TokenClassification
from headset import Headset, LitHeadset, TextData
from headset.source_settings import whole_sources

WORDS = ["the", "film", "was", "very", "good", "a", "bad", "book"]


@pytest.fixture
def sources(tmp_path):
    """Two tables for one head, one of them with labels of a second head on some rows; and words with tags."""
    tables = {
        "reviews": [
            {"text": " ".join(WORDS[row % 5 : row % 5 + 3]), "mood": "ab"[row % 2], "topic": "xyz"[row % 3]}
            for row in range(11)
        ],
        "notes": [{"text": " ".join(WORDS[row % 4 :]), "mood": "abc"[row % 3]} for row in range(7)],
        "names": [{"tokens": WORDS[row % 3 : row % 3 + 4], "tags": ["O", "B-X", "I-X", "O"]} for row in range(5)],
    }
    for row in tables["reviews"][::2]:
        del row["topic"]
    settings = {}
    for name, rows in tables.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        settings[name] = {split: str(path) for split in ("train", "validation", "test")}
    settings["reviews"] |= {"labels": {"mood": "mood", "topic": "topic"}, "missing_labels": True}
    settings["notes"] |= {"labels": {"mood": "mood"}}
    settings["names"] |= {"labels": {"tags": "tags", "words": None}, "text": "tokens"}
    return settings


class Steps(Callback):
    """Notes what each step was of, and its loss."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        batches = batch if isinstance(batch, list) else [batch]
        of = [(one["meta"]["source"], one["meta"]["rows"]) for one in batches]
        self.seen.append((trainer.current_epoch, of, outputs["loss"].item()))


def run(folder, backbone, sources, ckpt_path=None, callbacks=(), epochs=1, **settings):
    seed_everything(7)
    heads = {
        "mood": SequenceClassification(),
        "topic": SequenceClassification(pooling="mean"),
        "tags": TokenClassification(),
        "words": MaskedLM(),
    }
    module = LitHeadset(str(backbone), heads, learning_rate=1e-2)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=folder, max_epochs=epochs, callbacks=list(callbacks), **quiet)
    trainer.fit(module, TextData(sources=sources, batch_size=3, **settings), ckpt_path=ckpt_path)
    return module, trainer


def test_metrics_are_over_the_rows_of_all_sources(tmp_path, tiny_bert, sources):
    module, trainer = run(tmp_path, tiny_bert, sources)
    assert module.labels == {
        "mood": ("a", "b", "c"),
        "topic": ("x", "y", "z"),
        "tags": ("O", "B-X", "I-X"),
        "words": None,
    }
    measured = trainer.test(module, TextData(sources=sources, batch_size=3), verbose=False)[0]
    tables = {name: [json.loads(line) for line in open(its["test"])] for name, its in sources.items()}
    for head, names in {"mood": ("reviews", "notes"), "topic": ("reviews",)}.items():
        rows = [row for name in names for row in tables[name] if head in row]
        answers = module.headset.predict([row["text"] for row in rows], heads=[head])[head]
        right = [answer["label"] == row[head] for answer, row in zip(answers, rows, strict=True)]
        losses = [-torch.tensor(answer["scores"][row[head]]).log() for answer, row in zip(answers, rows, strict=True)]
        assert measured[f"test/{head}/accuracy"] == pytest.approx(sum(right) / len(rows))
        assert measured[f"test/{head}/loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


@pytest.mark.parametrize("sampling", ["size", 3.0, "all"])
def test_an_epoch_goes_on_where_it_was_interrupted(tmp_path, tiny_bert, sources, sampling):
    whole, rest = Steps(), Steps()
    keep = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    straight, _ = run(tmp_path, tiny_bert, sources, callbacks=[whole, keep], epochs=2, sampling=sampling)
    per_epoch = len(whole.seen) // 2
    step = per_epoch + 2  # in the second epoch
    resumed, _ = run(
        tmp_path / "b", tiny_bert, sources, str(tmp_path / f"step={step}.ckpt"), [rest], epochs=2, sampling=sampling
    )
    assert rest.seen == whole.seen[step:]
    for (name, value), other in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_heads_of_other_sources_do_not_move(tmp_path, tiny_bert, sources):
    class Idle(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = {name: value.clone() for name, value in pl_module.headset.heads.named_parameters()}

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            for name, value in pl_module.headset.heads.named_parameters():
                trained = name.split(".")[0] in batch["meta"]["heads"]
                assert trained or torch.equal(value, self.before[name]), name
                moved.update([name.split(".")[0]] if not torch.equal(value, self.before[name]) else [])

    moved = set()
    run(tmp_path, tiny_bert, sources, callbacks=[Idle()], epochs=2)
    assert moved == {"mood", "topic", "tags", "words"}


def test_checkpoints_and_cards_know_the_sources_of_each_head(tmp_path, tiny_bert, sources):
    _, trainer = run(tmp_path, tiny_bert, sources, sampling=2.0)
    path = trainer.checkpoint_callback.best_model_path
    content = torch.load(path, weights_only=True)
    assert content["datamodule_hyper_parameters"]["sources"] == sources
    data = content["hyper_parameters"]["run"]["data"]
    assert data["mood"] == {split: "reviews.jsonl; notes.jsonl" for split in ("train", "validation")}
    assert data["words"] == {split: "names.jsonl" for split in ("train", "validation")}
    folder = Headset.from_checkpoint(path).export(str(tmp_path / "out"), head="mood")["mood"]
    card = open(f"{folder}/README.md").read()
    assert "| train | reviews.jsonl; notes.jsonl |" in card and "| sampling | 2 |" in card
    assert "names.jsonl" not in card


def test_a_setting_of_one_source_leaves_its_others_on_the_command_line():
    sources = {"a": {"train": "a.csv", "labels": {"x": "p", "y": "q"}}, "b": {"train": "b.csv"}}
    given = ["--data.sources.a.test", "t.csv", "--data.seed", "3", "--data.sources.a.labels.x=z", "--print_config"]
    asked = []

    def parse(arguments):
        asked.append(arguments)
        return sources

    whole = whole_sources([*given, "--data.sources.a.max_length", "8", "--data.sources.c.train", "c.csv"], parse)
    assert asked == [["--data.seed", "3"]]
    assert whole[:3] == ["--data.seed", "3", "--print_config"]
    assert dict(zip(whole[3::2], map(json.loads, whole[4::2]), strict=True)) == {
        "--data.sources.a": {"train": "a.csv", "labels": {"x": "z", "y": "q"}, "test": "t.csv", "max_length": 8},
        "--data.sources.c": {"train": "c.csv"},
    }
    assert whole_sources(["--data.seed", "3"], parse) == ["--data.seed", "3"] and len(asked) == 1
