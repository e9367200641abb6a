"""The precision of ``headset predict``: what it is on which machine, and how far its scores are from float32."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from backbones import BackboneOptions
from heads import SequenceClassification
from headset import LitHeadset, TextData
from headset.cli import HeadsetCLI
from headset.main import main
from headset.precision import predict_precision, rounded_weights

QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one with AMX, a GPU with or without bfloat16, or none of these."""

    def become(amx=False, gpu=False, bfloat16=False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx}, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)

    return become


@pytest.mark.parametrize(
    ("here", "accelerator", "backbone", "expected"),
    [
        ({"amx": True}, "auto", {}, "bf16-mixed"),
        ({"amx": True}, "cpu", {"dtype": "float32"}, "bf16-mixed"),
        ({}, "auto", {}, None),
        ({"amx": True, "gpu": True, "bfloat16": True}, "auto", {}, "bf16-mixed"),
        ({"amx": True, "gpu": True, "bfloat16": False}, "auto", {}, None),
        ({"amx": True, "gpu": True, "bfloat16": False}, "cpu", {}, "bf16-mixed"),
        ({"amx": True}, "auto", {"dtype": "bfloat16"}, None),
        ({"amx": True}, "auto", {"quantization": {"load_in_4bit": True}}, None),
    ],
)
def test_bfloat16_where_it_is_fast(machine, here, accelerator, backbone, expected):
    machine(**here)
    assert predict_precision(accelerator, {"backbone": backbone}) == expected


def test_the_command_takes_it_unless_told_and_scores_stay_probabilities(
    tmp_path, monkeypatch, tiny_bert, small_csv, machine
):
    machine(amx=True)
    monkeypatch.chdir(tmp_path)
    module = LitHeadset(BackboneOptions(str(tiny_bert)), {"mood": SequenceClassification()}, learning_rate=1e-2)
    trainer = Trainer(default_root_dir=tmp_path, max_epochs=2, logger=False, accelerator="cpu", **QUIET)
    trainer.fit(module, TextData(train=str(small_csv), batch_size=2))
    chosen, make = [], HeadsetCLI.instantiate_trainer

    def instantiate(self, **given):
        made = make(self, **given)
        chosen.append(made.precision)
        return made

    monkeypatch.setattr(HeadsetCLI, "instantiate_trainer", instantiate)
    scores = {}
    for name, told in {"default": [], "whole": ["--trainer.precision", "32-true"]}.items():
        command = ["predict", "--ckpt_path", trainer.checkpoint_callback.best_model_path, "--output", f"{name}.jsonl"]
        quiet = [word for key in QUIET for word in (f"--trainer.{key}", "false")]
        place = ["--data.predict", str(small_csv), "--trainer.accelerator", "cpu"]
        assert main([*command, *place, *quiet, *told]) == 0
        rows = [json.loads(line)["mood"]["scores"] for line in Path(f"{name}.jsonl").read_text().splitlines()]
        scores[name] = torch.tensor([[*row.values()] for row in rows], dtype=torch.float64)
    assert chosen == ["bf16-mixed", "32-true"]
    torch.testing.assert_close(scores["default"].sum(1), torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(scores["default"], scores["whole"], rtol=0, atol=0.01)
    assert not torch.equal(scores["default"], scores["whole"])


def test_weights_that_are_rounded_once_give_to_the_bit_what_autocast_gives(tiny_bert, small_csv):
    module = LitHeadset(BackboneOptions(str(tiny_bert)), {"mood": SequenceClassification()})
    module.allow_untrained = True
    data = TextData(train=str(small_csv), predict=str(small_csv), batch_size=8)
    trainer = Trainer(logger=False, accelerator="cpu", precision="bf16-mixed", enable_checkpointing=False, **QUIET)
    data.connect(module.processor, module.heads, {})
    data.setup("fit")
    [answers] = trainer.predict(module, data)
    linear = module.built.backbone.model.encoder.layer[0].attention.self.query
    assert linear.weight.dtype == torch.float32  # they came back
    before = linear.weight.clone()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = module.eval().predict_step(next(iter(data.predict_dataloader())), 0)
    assert answers == expected
    kept = rounded_weights(module.built.backbone)
    assert linear.weight.dtype == torch.bfloat16
    assert module.built.backbone.model.embeddings.word_embeddings.weight.dtype == torch.float32
    assert torch.equal(dict(kept)[linear.weight], before)
