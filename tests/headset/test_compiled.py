"""A backbone that torch.compile makes kernels for: the same run, the same checkpoint."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from transformers import AutoModelForSequenceClassification

from backbones import BackboneOptions
from heads import SequenceClassification
from headset import Headset, LitHeadset, TextData

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(outputs["loss"].item())


def fit(folder, bert, rows, compile):
    """The losses of a run, and its checkpoint."""
    seed_everything(3)
    module = LitHeadset(
        BackboneOptions(str(bert), compile=compile), {"mood": SequenceClassification(dropout=0.0)}, learning_rate=1e-3
    )
    losses = Losses()
    trainer = Trainer(default_root_dir=folder, max_epochs=2, callbacks=[losses], **QUIET)
    trainer.fit(module, TextData(train=str(rows), batch_size=4))
    return losses.seen, trainer.checkpoint_callback.best_model_path


def test_a_compiled_run_is_the_same_and_goes_out(tmp_path, still_bert, small_csv, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    torch._dynamo.reset()
    expected, _ = fit(tmp_path / "stock", still_bert, small_csv, False)
    torch._dynamo.utils.counters.clear()
    losses, path = fit(tmp_path / "compiled", still_bert, small_csv, True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert losses == pytest.approx(expected, rel=1e-4) and len(losses) > 2
    headset = Headset.from_checkpoint(path)
    headset.export(str(tmp_path / "export"))
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export/mood")
    assert list(stock.config.id2label.values()) == list(headset.labels["mood"])
    torch._dynamo.reset()
