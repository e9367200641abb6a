"""Heads for words in one run, on rows of which some lack labels: trained, measured, predicted."""

import json

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from heads import CRFTagging, DependencyParsing, SpanClassification
from headset import Headset, LitHeadset, TextData

WORDS = ["the", "film", "was", "very", "good"]
ROW = {
    "words": WORDS,
    "tags": ["O", "B-X", "O", "O", "B-Y"],
    "spans": [{"start": 0, "end": 2, "label": "X"}, {"start": 1, "end": 2, "label": "Y"}],
    "head": [2, 5, 5, 5, 0],
    "deprel": ["det", "nsubj", "cop", "advmod", "root"],
}
LABELS = {"tags": "tags", "spans": "spans", "tree": ["head", "deprel"]}
LACKING = [{}, {"tags": None}, {"spans": None}, {"head": None, "deprel": None}, {"tags": None, "spans": None}]


@pytest.fixture
def trained(tmp_path, tiny_bert):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(ROW | lacks) for lacks in LACKING * 4), encoding="utf-8")
    heads = {"tags": CRFTagging(), "spans": SpanClassification(3), "tree": DependencyParsing(arc_size=16)}
    seed_everything(0)
    module = LitHeadset(str(tiny_bert), heads, learning_rate=1e-2, warmup=0.0)
    data = TextData(
        train=str(path), validation=str(path), text="words", labels=LABELS, missing_labels=True, batch_size=4
    )
    trainer = Trainer(
        max_epochs=12,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    return trainer.callback_metrics, str(tmp_path / "run.ckpt")


def test_three_heads_learn_a_sentence_by_heart(trained):
    metrics, checkpoint = trained
    found = {name: metrics[f"val/{name}"].item() for name in ("tags/f1", "spans/f1", "tree/las")}
    assert found == {"tags/f1": 1, "spans/f1": 1, "tree/las": 1}
    assert all(torch.isfinite(metrics[f"val/{name}/loss"]) for name in LABELS)
    [row] = zip(*Headset.from_checkpoint(checkpoint).predict([WORDS]).values(), strict=True)
    tags, spans, tree = row
    assert tags["tags"] == ROW["tags"]
    assert [(it["start"], it["end"], it["type"]) for it in spans["entities"]] == [(0, 2, "X"), (1, 2, "Y")]
    assert (tree["head"], tree["deprel"]) == (ROW["head"], ROW["deprel"])
