"""What is whole before it is damaged: a model, a trained checkpoint, a saved headset, a fine-tuned stock model."""

import contextlib
import functools
import io
import os
import string
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

__all__ = ["CONFIG", "QUIET", "TABLE", "content", "material"]

TABLE = "text,label\ngood,yes\nbad,no\nvery good,yes\nso bad,no\n"
CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "model": {
        "backbone": {"path": "model", "freeze": 1},
        "heads": {
            "mood": {"class_path": "SequenceClassification", "init_args": {"pooling": "mean", "dropout": 0.1}},
        },
        "scheduler": "linear",
        "warmup": 0.1,
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        "parameter_groups": [{"pattern": "*bias*", "weight_decay": 0.0}],
    },
    "data": {
        "sources": {"one": {"train": "table.csv", "labels": {"mood": "label"}, "text": "text"}},
        "validation": 0.5,
        "batch_size": 2,
        "max_length": 16,
        "sampling": "size",
    },
    "trainer": {"max_epochs": 1, "max_steps": 1, "accelerator": "cpu", "default_root_dir": "runs", "callbacks": None},
}
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")


@functools.cache
def material() -> Path:
    """A folder with ``model``, ``table.csv``, ``run.ckpt``, ``saved`` and ``tuned``, made once in a process."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

    from headset import Headset
    from headset.main import main

    place = Path(_kept().name)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    words += [f"##{letter}" for letter in string.ascii_lowercase]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=32)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)
    torch.manual_seed(0)
    tuned = BertForSequenceClassification(BertConfig.from_dict({**config.to_dict(), "id2label": {0: "no", 1: "yes"}}))
    for name, model in (("model", BertModel(config)), ("tuned", tuned)):
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    (place / "table.csv").write_text(TABLE)
    (place / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    here = Path.cwd()
    try:
        os.chdir(place)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            assert main(["fit", "-c", "run.yaml", *QUIET]) == 0, said.getvalue()
    finally:
        os.chdir(here)
    [found] = {path.resolve() for path in place.rglob("*.ckpt")}
    found.rename(place / "run.ckpt")
    Headset.from_checkpoint(str(place / "run.ckpt")).save_pretrained(str(place / "saved"))
    return place


@functools.cache
def content() -> dict[str, Any]:
    """What the checkpoint holds."""
    found: dict[str, Any] = torch.load(material() / "run.ckpt", weights_only=True)
    return found


@functools.cache
def _kept() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="fuzz-material-")
