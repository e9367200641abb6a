"""LoRA and 4-bit backbones in a headset: what is trained, what a checkpoint holds, and what peft makes of the same."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForSequenceClassification

from backbones import Backbone, BackboneOptions, HeadsetError
from heads import HeadContext, Pooling, SequenceClassification, TokenClassification
from heads.native import NativeModel
from headset import Headset, LitHeadset, TextData
from headset.info import describe_path
from headset.main import main

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
KINDS = {
    "lora": {"lora": LORA},
    "4 bits": {"quantization": NF4},
    "qlora": {"lora": LORA, "quantization": NF4},
}
TEXTS = ["a good film", "bad"]


def module(folder, heads=None, **options):
    settings = {"learning_rate": 1e-2}
    return LitHeadset(BackboneOptions(str(folder), **options), heads or {"mood": SequenceClassification()}, **settings)


def fit(folder, lit, data, epochs=1, ckpt_path=None, callbacks=None):
    seed_everything(7)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    run = Trainer(default_root_dir=folder, max_epochs=epochs, callbacks=callbacks, **quiet)
    run.fit(lit, TextData(train=str(data), validation=str(data), batch_size=3), ckpt_path=ckpt_path)
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_and_heads_are_trained_and_a_checkpoint_is_whole(tmp_path, tiny_bert, small_csv, kind):
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    lit = module(folder, **KINDS[kind])
    before = {}

    class Before(Callback):
        def on_train_start(self, trainer, pl_module):
            before.update({key: value.clone() for key, value in pl_module.state_dict().items()})

    run = fit(tmp_path, lit, small_csv, callbacks=[Before()])
    shutil.rmtree(folder)
    moved = {key for key, value in lit.state_dict().items() if not torch.equal(value, before[key])}
    adapters = {key for key in before if ".lora_" in key}
    heads = {key for key in before if key.startswith("headset.heads.")}
    assert moved == adapters | heads and bool(adapters) == ("lora" in KINDS[kind])
    assert not any(isinstance(part, BaseTunerLayer) for part in lit.heads["mood"].modules())
    assert {value.dtype for value in lit.heads["mood"].parameters()} == {torch.float32}

    path = run.checkpoint_callback.best_model_path
    run.test(lit, TextData(test=str(small_csv)), ckpt_path=path, verbose=False, weights_only=True)
    answers = lit.headset.predict(TEXTS)["mood"]
    assert LitHeadset.load_from_checkpoint(path).headset.predict(TEXTS)["mood"] == answers
    again = Headset.from_checkpoint(path)
    assert again.predict(TEXTS)["mood"] == answers
    again.save_pretrained(str(tmp_path / "saved"))
    assert Headset.from_pretrained(str(tmp_path / "saved")).predict(TEXTS)["mood"] == answers
    stored = torch.load(path, weights_only=True)["hyper_parameters"]["backbone"]
    assert {what: stored[what] for what in ("lora", "quantization")} == {"lora": None, "quantization": None} | KINDS[
        kind
    ]
    for place in (path, tmp_path / "saved"):
        described = describe_path(str(place))["backbone"]
        assert ("'r': 4" in described) == ("lora" in KINDS[kind])
        assert ("nf4" in described) == ("quantization" in KINDS[kind])


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_resumed_it_equals_the_uninterrupted_run(tmp_path, tiny_bert, small_csv, kind):
    straight = module(tiny_bert, freeze=1, **KINDS[kind])
    fit(tmp_path / "a", straight, small_csv, epochs=2)

    class StopAfterFirst(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    first = fit(tmp_path / "b", module(tiny_bert, freeze=1, **KINDS[kind]), small_csv, 2, callbacks=[StopAfterFirst()])
    resumed = module(tiny_bert, freeze=1, **KINDS[kind])
    fit(tmp_path / "b", resumed, small_csv, 2, ckpt_path=first.checkpoint_callback.best_model_path)
    for (name, value), other in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_another_lora_than_the_checkpoints_is_refused(tmp_path, tiny_bert, small_csv):
    path = fit(tmp_path, module(tiny_bert, lora=LORA), small_csv).checkpoint_callback.best_model_path
    stored = torch.load(path, weights_only=True)["hyper_parameters"]
    with pytest.raises(HeadsetError, match=r"fixes the backbone's lora setting: .*'r': 4.*cannot go on with .*'r': 2"):
        module(tiny_bert, lora={**LORA, "r": 2}).restore(stored)
    with pytest.raises(HeadsetError, match="cannot go on with None"):
        module(tiny_bert).restore(stored)
    frozen = LitHeadset.load_from_checkpoint(path, backbone=BackboneOptions(str(tiny_bert), lora=LORA, freeze="all"))
    assert not any(parameter.requires_grad for parameter in frozen.headset.backbone.parameters())


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_a_stored_head_comes_whole_and_in_full_precision(tmp_path, tiny_bert, small_csv, kind):
    names = {0: "positive", 1: "negative", 2: "neutral"}
    torch.manual_seed(3)
    stock = BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert, id2label=names))
    stock.save_pretrained(tmp_path / "stock")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "stock")
    lit = module(tmp_path / "stock", **KINDS[kind])
    lit.configure_model()
    assert lit.headset.states == {"mood": "loaded"} and lit.labels["mood"] == tuple(names.values())
    head = lit.heads["mood"].scorer.task
    assert torch.equal(head.classifier.weight, stock.classifier.weight)
    batch = dict(lit.processor(TEXTS, padding=True, return_tensors="pt"))
    with torch.inference_mode():
        ours, theirs = lit.headset.eval()(batch)["mood"].logits, stock.eval()(**batch).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 if kind == "lora" else 0.1)
    assert kind == "lora" or not torch.allclose(ours, theirs, atol=1e-6)
    fit(tmp_path, lit, small_csv)


@pytest.mark.parametrize("targets", [["query", "value"], ["query", "word_embeddings"]])
def test_tied_weights_stay_tied_and_gradients_are_those_of_peft(tiny_bert, targets):
    settings = {"r": 4, "target_modules": targets}
    torch.manual_seed(0)
    backbone = Backbone.from_options(BackboneOptions(str(tiny_bert), lora=settings)).eval()
    scorer = NativeModel("AutoModelForMaskedLM", backbone).eval()
    head = scorer.task.cls.predictions
    assert head.decoder.weight is backbone.model.get_input_embeddings().weight
    assert not head.decoder.weight.requires_grad and head.transform.dense.weight.requires_grad

    theirs = AutoModelForMaskedLM.from_pretrained(tiny_bert)
    theirs.load_state_dict(scorer.task.state_dict(), strict=False)
    theirs = get_peft_model(theirs, LoraConfig(**settings, modules_to_save=["predictions.transform"])).eval()
    ours = {key: value for key, value in backbone.model.state_dict().items() if not key.startswith("pooler")}
    theirs.base_model.model.bert.load_state_dict(ours)
    batch = {"input_ids": torch.tensor([[2, 7, 9, 3]]), "labels": torch.tensor([[-100, 8, -100, -100]])}
    mine = scorer(backbone.run(scorer.request(batch)), batch)
    expected = theirs(**batch)
    assert torch.equal(mine.logits, expected.logits)
    torch.nn.functional.cross_entropy(mine.logits.view(-1, mine.logits.shape[-1]), batch["labels"].view(-1)).backward()
    expected.loss.backward()
    gradients = {key: value.grad for key, value in theirs.base_model.model.bert.named_parameters()}
    adapters = [name for name, value in backbone.model.named_parameters() if value.requires_grad]
    assert adapters and all(".lora_" in name for name in adapters)
    for name in adapters:
        torch.testing.assert_close(backbone.model.get_parameter(name).grad, gradients[name])


def test_what_a_head_does_not_need_of_the_adapters_is_frozen(tiny_bert):
    backbone = Backbone.from_pretrained(str(tiny_bert)).add_lora(LORA)
    pooler = {name for name, _ in backbone.model.named_parameters() if name.startswith("pooler.")}
    assert any("lora_A" in name for name in pooler)
    for head, unused in ((TokenClassification(), pooler), (Pooling(), pooler), (SequenceClassification(), set())):
        head.attach(HeadContext(backbone, ("x", "y")))
        assert head.unused(backbone) == unused


def test_two_processes_train_adapters_from_a_yaml(tmp_path, tiny_bert, monkeypatch, capsys):
    rows = [("the film was good", "O O O B-X"), ("bad", "B-X"), ("a book", "O O"), ("the book is good", "O O O B-X")]
    lines = ["\n".join(f"{word} {tag}" for word, tag in zip(*map(str.split, row), strict=True)) for row in rows]
    (tmp_path / "data.conll").write_text("\n\n".join(lines) + "\n")
    settings = {
        "model": {"backbone": {"path": str(tiny_bert), "lora": LORA}, "heads": {"tags": "TokenClassification"}},
        "data": {"train": "data.conll", "test": "data.conll", "text": "tokens", "labels": "tags", "batch_size": 1},
        "trainer": {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))

    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "headset", "fit", "-c", "run.yaml"]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run([*command, *two], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = map(str, tmp_path.glob("**/last.ckpt"))
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "-c", "run.yaml", "--ckpt_path", path, "--trainer.max_epochs", "2"]) == 0
    assert main(["test", "--ckpt_path", path, "--model.backbone.freeze", "all"]) == 0
    assert "test/tags/accuracy" in capsys.readouterr().out
    assert main(["fit", "-c", "run.yaml", "--model.backbone.lora", "{rank: 4}"]) == 1
    assert "Invalid field of lora: 'rank'" in capsys.readouterr().err
