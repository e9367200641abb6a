"""Model cards: what a run leaves of itself in a checkpoint, a saved headset, and the folder of an export."""

import pytest
import torch
from huggingface_hub import ModelCard
from lightning.pytorch import Trainer
from transformers import AutoTokenizer

from backbones import Backbone
from heads import Pooling, SequenceClassification
from headset import Headset, LitHeadset, TextData
from headset.record import source_name


@pytest.fixture
def trained(tmp_path, tiny_bert, small_csv):
    """A checkpoint, and the metrics that Lightning logged last."""
    module = LitHeadset(str(tiny_bert), {"mood": SequenceClassification()}, learning_rate=1e-3)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    run = Trainer(default_root_dir=tmp_path, max_epochs=2, accelerator="cpu", **quiet)
    run.fit(module, TextData(train=str(small_csv), validation=str(small_csv), batch_size=4))
    return run.checkpoint_callback.best_model_path, run.callback_metrics


def test_the_card_of_a_run_has_its_metrics_data_and_arguments(trained, tmp_path):
    path, logged = trained
    assert torch.load(path, weights_only=True)["hyper_parameters"]["run"]["training"]["learning_rate"] == 1e-3
    Headset.from_checkpoint(path).save_pretrained(str(tmp_path / "whole"))
    folder = Headset.from_pretrained(str(tmp_path / "whole")).export(str(tmp_path / "out"))["mood"]
    card = ModelCard.load(f"{folder}/README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-classification")
    assert {"headset", "SequenceClassification", "bert"} == set(card.data.tags)
    assert card.data.datasets is None and card.data.base_model is None  # these are files, not on the hub
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results.keys() == {"loss", "accuracy", "f1"}
    for metric, result in results.items():
        assert result.metric_value == pytest.approx(logged[f"val/mood/{metric}"].item())
        assert (result.dataset_name, result.dataset_split) == ("small.csv", "validation")
    for line in ("| steps | 4 |", "| optimizer | AdamW |", "| learning_rate | 0.001 |", "| batch_size | 4 |"):
        assert line in card.text
    assert "`negative`, `neutral`, `positive`" in card.text
    assert 'pipeline("text-classification"' in card.text
    assert str(tmp_path) not in card.content


def test_the_card_of_a_headset_that_was_not_trained_here(tiny_bert, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    headset = Headset(Backbone.from_pretrained(str(tiny_bert)), {"vector": Pooling()}, tokenizer=tokenizer)
    headset.backbone.config.name_or_path = "somebody/tiny-bert"
    card = ModelCard.load(headset.export(str(tmp_path))["vector"] + "/README.md")
    assert card.data.base_model == "somebody/tiny-bert"
    assert (card.data.library_name, card.data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert card.data.eval_results is None and "## Metrics" not in card.text and "## Training" not in card.text


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/mine/train.csv", "train.csv"),
        ("../models/base/", "base"),
        ("owner/table", "owner/table"),
        ("package://some_package/model", "package://some_package/model"),
        ({"path": "owner/table", "name": "en", "split": "train"}, "owner/table, en, train"),
        ({"path": "csv", "data_files": "/data/mine/a.csv"}, "csv, a.csv"),
        (0.1, "0.1 of train"),
    ],
)
def test_sources_are_named_without_the_folders_of_a_machine(source, name):
    assert source_name(source) == name
