"""Lightning's callbacks on a headset: averaged weights, early stopping, the best checkpoint; and layers made anew."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel

from backbones import BackboneOptions, HeadsetError
from heads import SequenceClassification
from headset import Headset, LitHeadset, TextData

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def fit(folder, bert, rows, callbacks=(), ckpt_path=None, epochs=3, validation=True, trainer=None, **settings):
    seed_everything(5)
    backbone = bert if isinstance(bert, BackboneOptions) else str(bert)
    module = LitHeadset(backbone, {"mood": SequenceClassification()}, **({"learning_rate": 1e-2} | settings))
    data = TextData(train=str(rows), validation=str(rows) if validation else None, batch_size=2)
    run = Trainer(default_root_dir=folder, max_epochs=epochs, callbacks=list(callbacks), **(QUIET | (trainer or {})))
    run.fit(module, data, ckpt_path=ckpt_path)
    return module, run


class Average(Callback):
    """The exponential mean of the weights, computed by its formula."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = {name: value.detach().clone() for name, value in pl_module.headset.named_parameters()}
        mean = getattr(self, "mean", now)
        self.mean = {name: 0.9 * mean[name] + 0.1 * value for name, value in now.items()}


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_weights_are_validated_saved_exported_and_resumed(tmp_path, tiny_bert, small_csv, use_buffers):
    def averaging():
        return EMAWeightAveraging(decay=0.9, use_buffers=use_buffers)

    kept = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    truth = Average()
    module, run = fit(tmp_path, tiny_bert, small_csv, [averaging(), truth, kept])
    for name, value in module.headset.named_parameters():
        assert torch.allclose(value, truth.mean[name], atol=1e-6), name
    for name, value in module.headset.named_buffers():
        assert torch.equal(value, BertModel.from_pretrained(tiny_bert).get_buffer(name.removeprefix("backbone.model.")))
    path = str(tmp_path / "kept/step=12.ckpt")
    headset = Headset.from_checkpoint(path)
    assert all(torch.equal(a, b) for a, b in zip(headset.parameters(), module.headset.parameters(), strict=True))
    tested = Trainer(**QUIET).validate(LitHeadset.load_from_checkpoint(path), run.datamodule, verbose=False)[0]
    assert tested["val/mood/loss"] == pytest.approx(float(run.callback_metrics["val/mood/loss"]))

    if use_buffers:
        return
    exported = headset.export(str(tmp_path / "export"))["mood"]
    stock, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(exported),
        AutoTokenizer.from_pretrained(exported),
    )
    batch = dict(tokenizer(["a good film"], return_tensors="pt"))
    assert torch.allclose(stock(**batch).logits, module.headset.eval()(batch)["mood"].logits, atol=1e-5)

    resumed, _ = fit(tmp_path, tiny_bert, small_csv, [averaging(), kept], str(tmp_path / "kept/step=6.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), module.parameters(), strict=True))


def test_early_stopping_and_the_best_checkpoint(tmp_path, tiny_bert, small_csv):
    best = ModelCheckpoint(tmp_path / "best", monitor="val/mood/accuracy", mode="max")
    stop = EarlyStopping("val/mood/accuracy", mode="max", patience=2)
    _, run = fit(tmp_path, tiny_bert, small_csv, [best, stop], epochs=40, learning_rate=0.0)
    assert run.current_epoch == 3
    assert "epoch=0" in best.best_model_path
    _, short = fit(tmp_path, tiny_bert, small_csv, [EarlyStopping("val/loss")], trainer={"max_steps": 5})
    assert short.global_step == 5


@pytest.mark.parametrize(
    "settings",
    [
        {"callbacks": [EarlyStopping("val/mood/accurcy", mode="max")]},
        {"callbacks": [ModelCheckpoint(monitor="val/mood/accurcy")]},
        {"callbacks": [ModelCheckpoint(monitor="val_mood_accuracy")]},
        {"scheduler": "reduce_lr_on_plateau", "scheduler_args": {"monitor": "val/mood/accurcy"}},
    ],
)
def test_a_monitor_that_is_no_metric_is_told_before_training(tmp_path, tiny_bert, small_csv, settings):
    with pytest.raises(HeadsetError, match=r"'val.mood.accura?cy'.*val/mood/f1.*Did you mean 'val/mood/accuracy'"):
        fit(tmp_path, tiny_bert, small_csv, **settings)
    with pytest.raises(HeadsetError, match=r"set data\.validation"):
        fit(tmp_path, tiny_bert, small_csv, validation=False, **settings)


def test_a_schedule_by_a_metric_lowers_the_rate_and_is_resumed(tmp_path, tiny_bert, small_csv):
    settings = {"scheduler": "reduce_lr_on_plateau", "scheduler_args": {"factor": 0.5, "patience": 0, "threshold": 9.0}}
    kept = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    module, run = fit(tmp_path, tiny_bert, small_csv, [kept], epochs=4, **settings)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 * 0.5**4)
    resumed, again = fit(tmp_path, tiny_bert, small_csv, [kept], str(tmp_path / "kept/step=10.ckpt"), 4, **settings)
    assert again.optimizers[0].param_groups[0]["lr"] == run.optimizers[0].param_groups[0]["lr"]
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), module.parameters(), strict=True))


def test_a_resumed_run_keeps_what_its_optimizer_was_made_with(tmp_path, tiny_bert, small_csv):
    settings = {"layer_decay": 0.5, "parameter_groups": [{"pattern": "*.layer.1.*", "learning_rate": 1e-5}]}
    _, first = fit(tmp_path, tiny_bert, small_csv, epochs=1, scheduler="constant", **settings)
    path = first.checkpoint_callback.best_model_path
    stored = torch.load(path, weights_only=True)["hyper_parameters"]
    assert stored["parameter_groups"] == [{"pattern": "*.layer.1.*", "learning_rate": 1e-5, "weight_decay": None}]
    with pytest.warns(UserWarning) as warned:
        module, run = fit(tmp_path, tiny_bert, small_csv, (), path, 2, learning_rate=7.0, head_learning_rate=1.0)
    told = " ".join(str(each.message) for each in warned)
    for name in ("learning_rate: 7.0", "head_learning_rate: 1.0", "layer_decay: its default", "parameter_groups: []"):
        assert f"model.{name} has no effect" in told
    rates = sorted({group["lr"] for group in run.optimizers[0].param_groups})
    assert rates == pytest.approx([1e-5, 1e-2 * 0.125, 1e-2 * 0.25, 1e-2])
    assert module.hparams["layer_decay"] == 0.5
    with pytest.raises(HeadsetError, match=r"with torch\.optim\.AdamW, and cannot go on with torch\.optim\.SGD"):
        fit(
            tmp_path, tiny_bert, small_csv, (), path, 2, learning_rate=None, optimizer=lambda g: torch.optim.SGD(g, 1.0)
        )
    with pytest.raises(HeadsetError, match=r"What trains here is not what trained"):
        fit(tmp_path, BackboneOptions(str(tiny_bert), freeze=1), small_csv, (), path, 2, **settings)


def test_top_layers_start_anew_and_only_once(tmp_path, tiny_bert, small_csv):
    still = {"learning_rate": 0.0, "trainer": {"limit_train_batches": 1}, "epochs": 1}
    module, run = fit(tmp_path, tiny_bert, small_csv, reinitialize_layers=1, **still)
    model, before = module.headset.backbone.model, BertModel.from_pretrained(tiny_bert)
    made = copy.deepcopy(before)
    for part in (made.encoder.layer[1], made.pooler):
        for parameter in part.parameters():
            parameter._is_hf_initialized = False
        part.apply(made._init_weights)
    for (name, value), other in zip(model.named_parameters(), before.parameters(), strict=True):
        anew = "layer.1." in name or "pooler" in name
        if name.endswith("weight") and value.dim() == 2:
            assert torch.equal(value, other) != anew, name
            assert value.std().item() == pytest.approx(0.02, rel=0.2)
        elif anew:
            assert torch.equal(value, made.get_parameter(name)), name
    path = run.checkpoint_callback.best_model_path
    again = LitHeadset.load_from_checkpoint(path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), module.parameters(), strict=True))
    resumed, _ = fit(tmp_path, tiny_bert, small_csv, (), path, reinitialize_layers=1, **(still | {"epochs": 2}))
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "layers", "message"),
    [
        ({}, 3, "top 3 layers: BertModel has 2"),
        ({"freeze": 1}, 2, "frozen"),
        ({"lora": {"r": 2, "target_modules": "all-linear"}}, 1, "frozen"),
        ({}, -1, "Invalid reinitialize_layers"),
    ],
)
def test_layers_that_cannot_start_anew(tmp_path, tiny_bert, small_csv, options, layers, message):
    with pytest.raises(HeadsetError, match=message):
        fit(tmp_path, BackboneOptions(str(tiny_bert), **options), small_csv, reinitialize_layers=layers)
