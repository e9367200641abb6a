"""LitHeadset: training, self-contained checkpoints, resuming, and heads whose weights lie beside the backbone."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from backbones import BackboneOptions, HeadsetError
from heads import Pooling, SequenceClassification
from headset import Headset, LitHeadset, TextData

CLASSES = ["negative", "neutral", "positive"]


def trainer(folder, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **(quiet | {"max_epochs": 1} | settings))


def fit(folder, backbone, data, ckpt_path=None, max_epochs=1, callbacks=None, learning_rate=1e-3, **settings):
    seed_everything(7)
    module = LitHeadset(str(backbone), {"mood": SequenceClassification()}, learning_rate=learning_rate, **settings)
    run = trainer(folder, max_epochs=max_epochs, callbacks=callbacks)
    run.fit(module, TextData(train=str(data), validation=str(data), batch_size=3), ckpt_path=ckpt_path)
    return module, run


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((trainer.current_epoch, batch["meta"]["rows"], outputs["loss"].item()))


def test_it_learns_and_measures(tmp_path, tiny_bert, small_csv):
    module, run = fit(tmp_path, tiny_bert, small_csv, max_epochs=60, learning_rate=3e-3)
    metrics = run.validate(module, TextData(validation=str(small_csv)), verbose=False)[0]
    assert metrics["val/mood/accuracy"] == 1.0
    assert {"val/loss", "val/mood/loss", "val/mood/f1"} <= metrics.keys()
    assert module.labels == {"mood": tuple(CLASSES)}


def test_a_checkpoint_needs_neither_model_nor_data_nor_config(tmp_path, tiny_bert, small_csv):
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    module, run = fit(tmp_path, folder, small_csv)
    path = run.checkpoint_callback.best_model_path
    answers = module.headset.predict(["a good film", "bad"])["mood"]
    shutil.rmtree(folder)
    small_csv.unlink()

    code = (
        "import json, sys\nfrom headset import Headset, LitHeadset\n"
        "module = LitHeadset.load_from_checkpoint(sys.argv[1])\n"
        "answers = Headset.from_checkpoint(sys.argv[1]).predict(['a good film', 'bad'])['mood']\n"
        "assert answers == module.headset.predict(['a good film', 'bad'])['mood']\nprint(json.dumps(answers))"
    )
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert [row["label"] for row in json.loads(out.stdout.splitlines()[-1])] == [row["label"] for row in answers]
    raw = torch.load(path, weights_only=True)
    assert raw["hyper_parameters"]["labels"] == {"mood": CLASSES}
    assert raw["hyper_parameters"]["states"] == {"mood": "trained"}


def test_resumed_after_an_epoch_it_equals_the_uninterrupted_run(tmp_path, tiny_bert, small_csv):
    whole, parts = Losses(), Losses()
    straight, _ = fit(tmp_path / "a", tiny_bert, small_csv, max_epochs=3, callbacks=[whole])

    seed_everything(7)
    module = LitHeadset(str(tiny_bert), {"mood": SequenceClassification()}, learning_rate=1e-3)
    data = TextData(train=str(small_csv), validation=str(small_csv), batch_size=3)

    class StopAfterFirst(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    first = trainer(tmp_path / "b", max_epochs=3, callbacks=[parts, StopAfterFirst()])
    first.fit(module, data)
    torch.manual_seed(99)  # whatever the new process drew before
    resumed, _ = fit(
        tmp_path / "b", tiny_bert, small_csv, first.checkpoint_callback.best_model_path, max_epochs=3, callbacks=[parts]
    )
    assert parts.seen == whole.seen
    for (name, value), other in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("save_at", ["epoch", "validation"])
def test_a_resumed_run_with_workers_goes_on_with_the_next_epochs_rows(tmp_path, tiny_bert, small_csv, save_at):
    def run(name, ckpt_path=None, losses=None):
        seed_everything(7)
        module = LitHeadset(str(tiny_bert), {"mood": SequenceClassification()}, learning_rate=1e-3)
        data = TextData(train=str(small_csv), validation=str(small_csv), batch_size=3, num_workers=2)
        keep = ModelCheckpoint(
            save_top_k=-1, filename="{epoch}", every_n_epochs=1, save_on_train_epoch_end=save_at == "epoch"
        )
        trainer(tmp_path / name, max_epochs=2, callbacks=[losses, keep]).fit(module, data, ckpt_path=ckpt_path)
        return module

    whole, rest = Losses(), Losses()
    run("whole", losses=whole)
    [first] = (tmp_path / "whole").rglob("epoch=0.ckpt")
    run("rest", str(first), rest)
    assert rest.seen == [step for step in whole.seen if step[0] == 1]


def test_seeded_runs_repeat_exactly(tmp_path, tiny_bert, small_csv):
    runs = [Losses(), Losses()]
    for number, losses in enumerate(runs):
        fit(tmp_path / str(number), tiny_bert, small_csv, callbacks=[losses], max_epochs=2)
    assert runs[0].seen == runs[1].seen
    assert len({loss for *_, loss in runs[0].seen}) > 1


class Gradients(Callback):
    """Whether there are gradients when a batch comes."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(any(parameter.grad is not None for parameter in pl_module.parameters()))


def test_gradients_are_kept_until_the_step_and_no_longer(tmp_path, tiny_bert, small_csv):
    gradients = Gradients()
    module = LitHeadset(str(tiny_bert), {"mood": SequenceClassification()})
    run = trainer(tmp_path, callbacks=[gradients], accumulate_grad_batches=2)
    run.fit(module, TextData(train=str(small_csv), batch_size=2))
    assert gradients.seen == [False, True, False, True]


def stored(folder, names, tiny_bert):
    """A fine-tuned classifier as others save it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    config = BertConfig.from_pretrained(tiny_bert, id2label=dict(enumerate(names)))
    torch.manual_seed(3)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_head_in_the_backbones_checkpoint_is_loaded_with_its_labels(tmp_path, tiny_bert, small_csv):
    folder = stored(tmp_path / "stock", ["positive", "negative", "neutral"], tiny_bert)
    module = LitHeadset(str(folder), {"mood": SequenceClassification()})
    run = trainer(tmp_path, fast_dev_run=True)
    run.validate(module, TextData(validation=str(small_csv)), verbose=False)
    assert module.labels["mood"] == ("positive", "negative", "neutral")
    assert module.headset.states == {"mood": "loaded"}
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    batch = dict(module.processor(["a good film"], return_tensors="pt"))
    assert torch.allclose(module.headset.eval()(batch)["mood"].logits, stock(**batch).logits, atol=1e-6)


def test_a_loaded_head_with_other_labels_is_an_error_that_names_the_way_out(tmp_path, tiny_bert, small_csv):
    folder = stored(tmp_path / "stock", ["bad", "good"], tiny_bert)
    with pytest.raises(HeadsetError) as error:
        fit(tmp_path, folder, small_csv)
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("text,label\na film,bad\na book,bad\n")
    with pytest.raises(HeadsetError, match=r"has 2 labels: bad, good.*have 1: bad"):
        fit(tmp_path, folder, fewer)
    fit(tmp_path, folder, fewer, labels={"mood": ["bad", "good"]})
    for part in ("bad, good", "negative, neutral, positive", "--model.new_heads '[mood]'"):
        assert part in str(error.value)
    module, _ = fit(tmp_path, folder, small_csv, new_heads=["mood"])
    assert module.labels["mood"] == tuple(CLASSES)


def test_what_it_says_of_heads_at_the_start(tmp_path, tiny_bert, small_csv, caplog, capsys):
    with caplog.at_level("INFO"):
        fit(tmp_path, tiny_bert, small_csv)
        fit(tmp_path, stored(tmp_path / "stock", CLASSES, tiny_bert), small_csv)
    said = caplog.text + capsys.readouterr().err
    assert "head mood: newly initialised, 3 labels: negative, neutral, positive" in said
    assert "head mood: loaded from the backbone's checkpoint, 3 labels" in said


def test_a_label_that_the_run_does_not_know_is_an_error_with_its_place(tmp_path, tiny_bert, small_csv):
    _, run = fit(tmp_path, tiny_bert, small_csv)
    other = tmp_path / "other.csv"
    other.write_text("text,label\na film,positive\na book,postive\n")
    module = LitHeadset.load_from_checkpoint(run.checkpoint_callback.best_model_path)
    with pytest.raises(HeadsetError, match=r"other\.csv.*row 2.*postive.*Did you mean 'positive'"):
        trainer(tmp_path).test(module, TextData(test=str(other)), verbose=False)


def test_labels_in_another_order_are_taken_by_name(tmp_path, tiny_bert, small_csv):
    module, run = fit(tmp_path, tiny_bert, small_csv, max_epochs=60, learning_rate=3e-3)
    turned = tmp_path / "turned.csv"
    lines = small_csv.read_text().splitlines()
    turned.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    again = LitHeadset.load_from_checkpoint(run.checkpoint_callback.best_model_path)
    metrics = trainer(tmp_path).test(again, TextData(test=str(turned)), verbose=False)[0]
    assert metrics["test/mood/accuracy"] == 1.0
    assert again.labels == module.labels


def test_it_says_of_heads_in_every_stage(tmp_path, tiny_bert, small_csv, caplog):
    _, run = fit(tmp_path, tiny_bert, small_csv)
    path = run.checkpoint_callback.best_model_path
    new = LitHeadset(str(tiny_bert), {"mood": SequenceClassification()}, labels={"mood": CLASSES})
    with caplog.at_level("INFO"):
        trainer(tmp_path).test(new, TextData(test=str(small_csv)), verbose=False)
        fit(tmp_path, tiny_bert, small_csv, path, max_epochs=2)
    assert "head mood: newly initialised, 3 labels" in caplog.text
    assert "head mood: trained, 3 labels" in caplog.text


def test_a_head_of_a_checkpoint_can_start_anew_with_other_labels(tmp_path, tiny_bert, small_csv):
    old, run = fit(tmp_path, tiny_bert, small_csv)
    path = run.checkpoint_callback.best_model_path
    other = tmp_path / "other.csv"
    other.write_text("text,label\na film,yes\na book,no\nbad,no\n")
    hparams = torch.load(path, weights_only=True)["hyper_parameters"]

    def resume(**settings):
        module = LitHeadset(str(tiny_bert), {"mood": SequenceClassification()}, **settings)
        module.restore(hparams)
        run = trainer(tmp_path, max_epochs=3)
        run.fit(module, TextData(train=str(other)), ckpt_path=path)
        return module

    with pytest.raises(HeadsetError, match=r"--model.new_heads '\[mood\]'"):
        resume()
    module = resume(new_heads=["mood"])
    assert module.labels == {"mood": ("no", "yes")}
    assert module.headset.head("mood").scorer.task.classifier.weight.shape == (2, 32)
    before = old.headset.backbone.model.state_dict()["encoder.layer.0.output.dense.weight"]
    after = module.headset.backbone.model.state_dict()["encoder.layer.0.output.dense.weight"]
    assert torch.allclose(before, after, atol=0.02) and not torch.equal(before, after)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "elsewhere"}, "holds its own backbone"),
        ({"heads": {"mood": SequenceClassification(pooling="mean")}}, "fixes the heads setting of 'mood'"),
        ({"heads": {"other": SequenceClassification()}}, "has the heads mood; the settings have other"),
        ({"labels": {"mood": ["a", "b", "c"]}}, "fixes the labels setting of 'mood'"),
    ],
)
def test_what_a_checkpoint_fixes_cannot_be_changed(tmp_path, tiny_bert, small_csv, settings, message):
    _, run = fit(tmp_path, tiny_bert, small_csv)
    hparams = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)["hyper_parameters"]
    arguments = {"backbone": str(tiny_bert), "heads": {"mood": SequenceClassification()}} | settings
    with pytest.raises(HeadsetError, match=message):
        LitHeadset(**arguments).restore(hparams)


class Keeps(SequenceClassification):
    """A head whose argument is what a test makes of it."""

    def __init__(self, size: int = 3, keep=lambda size: size):
        super().__init__()
        self.size = keep(size)
        self.keep = None


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda size: torch.nn.Linear(size, size), "cannot hold"),
        (lambda size: {1, size}, "cannot hold"),
        (lambda size: torch.ones(size), "cannot hold"),
        (lambda size: pathlib.Path("x"), "cannot hold"),
    ],
)
def test_a_head_that_no_checkpoint_could_hold_is_refused_before_training(keep, message):
    with pytest.raises(HeadsetError, match=message):
        LitHeadset("nowhere", {"mood": Keeps(3, keep)})


class Doubles(SequenceClassification):
    """A head that changes its argument."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.width = width * 2


def test_a_head_that_changes_an_argument_is_refused_before_training():
    with pytest.raises(HeadsetError, match="changes its argument width: 6 becomes 12"):
        LitHeadset("nowhere", {"mood": Doubles()})


def test_a_head_made_in_a_function_is_refused_before_training():
    class Inner(SequenceClassification):
        pass

    with pytest.raises(HeadsetError, match="made inside a function"):
        LitHeadset("nowhere", {"mood": Inner()})


@pytest.mark.parametrize("name", ["", "a/b", "/tmp/x", "..", "a.b", "type", "keys"])
def test_a_head_with_the_name_of_a_path_or_of_torch_is_refused(name):
    with pytest.raises(HeadsetError, match="cannot be named"):
        LitHeadset("nowhere", {name: SequenceClassification()})


def test_weights_that_do_not_fit_are_a_clear_error(tmp_path, tiny_bert, small_csv):
    _, run = fit(tmp_path, tiny_bert, small_csv)
    content = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)
    del content["state_dict"]["headset.heads.mood.scorer.task.classifier.bias"]
    torch.save(content, tmp_path / "less.ckpt")
    for load in (LitHeadset.load_from_checkpoint, Headset.from_checkpoint):
        with pytest.raises(HeadsetError, match=r"do not fit.*classifier\.bias"):
            load(str(tmp_path / "less.ckpt"))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path, tiny_bert, small_csv):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_bert / name, folder)
    with pytest.raises(HeadsetError, match=r"no tokenizer.*--model\.processor"):
        fit(tmp_path, folder, small_csv)
    fit(tmp_path, folder, small_csv, processor=str(tiny_bert))


def test_other_labels_than_the_checkpoints_are_refused_also_by_a_bare_trainer(tmp_path, tiny_bert, small_csv):
    _, run = fit(tmp_path, tiny_bert, small_csv)
    other = tmp_path / "other.csv"
    other.write_text("text,label\na film,a\na book,b\nbad,c\n")
    with pytest.raises(HeadsetError, match=r"negative, neutral, positive.*a, b, c"):
        fit(tmp_path, tiny_bert, other, run.checkpoint_callback.best_model_path, max_epochs=2)


def test_predicting_with_an_untrained_head_is_refused(tmp_path, tiny_bert, small_csv):
    module = LitHeadset(str(tiny_bert), {"mood": SequenceClassification()}, labels={"mood": CLASSES})
    data = TextData(predict=str(small_csv))
    with pytest.raises(HeadsetError, match="newly initialised"):
        trainer(tmp_path).predict(module, data)
    module.allow_untrained = True
    batches = trainer(tmp_path).predict(module, data)
    assert sum(len(batch["mood"]) for batch in batches) == 8


def test_a_frozen_backbone_does_not_move(tmp_path, tiny_bert, small_csv):
    seed_everything(1)
    module = LitHeadset(BackboneOptions(str(tiny_bert), freeze="all"), {"mood": SequenceClassification()})
    trainer(tmp_path).fit(module, TextData(train=str(small_csv)))
    weights = load_file(tiny_bert / "model.safetensors")
    state = module.headset.backbone.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": {}}, "at least one head"),
        ({"labels": {"mod": ["a"]}}, "Did you mean 'mood'"),
        ({"loss_weights": {"x": 1.0}}, "Invalid head in loss_weights"),
        ({"scheduler": "liner"}, "Did you mean 'linear'"),
        ({"warmup": -1}, "Invalid warmup"),
        ({"learning_rate": -1.0}, "Invalid learning_rate"),
        ({"optimizer": torch.optim.SGD, "learning_rate": 1.0}, "those of the default optimizer"),
    ],
)
def test_wrong_settings_are_errors_before_anything_is_loaded(settings, message):
    arguments = {"backbone": "no/such/folder", "heads": {"mood": SequenceClassification()}} | settings
    with pytest.raises(HeadsetError, match=message):
        LitHeadset(**arguments)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_a_damaged_checkpoint_is_a_clear_error(tmp_path, content):
    path = tmp_path / "bad.ckpt"
    path.write_bytes(content)
    with pytest.raises(HeadsetError, match=r"bad\.ckpt cannot be read"):
        LitHeadset.load_from_checkpoint(str(path))


def test_a_checkpoint_of_something_else_is_a_clear_error(tmp_path):
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(HeadsetError, match="not a checkpoint of a headset"):
        Headset.from_checkpoint(str(path))


def test_another_optimizer_is_kept_with_its_own_settings(tmp_path, tiny_bert, small_csv):
    seed_everything(1)
    heads = {"mood": SequenceClassification()}
    module = LitHeadset(str(tiny_bert), heads, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5, momentum=0.9))
    run = trainer(tmp_path)
    run.fit(module, TextData(train=str(small_csv)))
    assert {group["weight_decay"] for group in run.optimizers[0].param_groups} == {0}
    hparams = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)["hyper_parameters"]
    assert hparams["optimizer"]["class_path"] == "torch.optim.SGD"
    assert hparams["optimizer"]["init_args"]["momentum"] == 0.9
    again = LitHeadset.load_from_checkpoint(run.checkpoint_callback.best_model_path)
    resumed = trainer(tmp_path, max_epochs=2)
    resumed.fit(again, TextData(train=str(small_csv)), ckpt_path=run.checkpoint_callback.best_model_path)
    assert isinstance(resumed.optimizers[0], torch.optim.SGD)


def test_pooling_trains_on_pairs_without_labels(tmp_path, tiny_bert):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b\n" + "".join(f"the {word},a {word}\n" for word in ("film", "book", "good", "bad")))
    seed_everything(1)
    module = LitHeadset(str(tiny_bert), {"vector": Pooling()})
    run = trainer(tmp_path, max_epochs=2)
    run.fit(module, TextData(train=str(pairs), validation=str(pairs), text=["a", "b"]))
    assert 0 <= run.callback_metrics["val/vector/accuracy"] <= 1
