"""MaskedLM and MultipleChoice from a file to a stock model: trained, resumed, measured, exported, imported."""

import json

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    pipeline,
)

from backbones import Backbone, HeadsetError
from heads import MaskedLM, MultipleChoice, SequenceClassification
from headset import Headset, LitHeadset, TextData
from headset.info import describe_path
from headset.main import main

TEXTS = ["the film was very good", "a bad book", "not a good film", "the book is good and it was not very very bad"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
EXACT = ["--trainer.precision", "32-true"]  # some machines predict in bfloat16 unless told


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with texts, and with choices in the form of SWAG."""
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"{text} {number}", "label": str(number % 2)} for number in range(4) for text in TEXTS]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "masks.jsonl").write_text('{"text": "the [MASK] was good"}\n{"text": "a film"}\n')
    endings = [("good", "bad", 0), ("bad", "good", 1)]
    lines = [f"{text},it is,{one},{two},{label}" for text in TEXTS for one, two, label in endings]
    (tmp_path / "swag.csv").write_text("\n".join(["sent1,sent2,ending0,ending1,label", *lines]))
    return tmp_path


def trainer(folder, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **(quiet | {"max_epochs": 1} | settings))


def texts(**settings):
    return TextData(train="texts.jsonl", validation="texts.jsonl", batch_size=3, **settings)


class Seen(Callback):
    def __init__(self):
        self.losses, self.perplexities = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append((trainer.current_epoch, outputs["loss"].item()))

    def on_validation_end(self, trainer, pl_module):
        self.perplexities.append(trainer.callback_metrics["val/words/perplexity"].item())


class Stop(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


def test_a_masked_lm_run_from_yaml_to_a_stock_model(folder, tiny_bert, capsys, caplog):
    settings = {
        "model": {
            "backbone": str(tiny_bert),
            "heads": {"words": {"class_path": "MaskedLM", "init_args": {"whole_words": True}}},
            "learning_rate": 0.003,
        },
        "data": {"train": "texts.jsonl", "validation": "texts.jsonl", "test": "texts.jsonl", "max_length": 8},
        "trainer": {"max_epochs": 6, "accelerator": "cpu", "logger": False},
    }
    (folder / "run.yaml").write_text(json.dumps(settings))
    assert main(["fit", "-c", "run.yaml", *QUIET]) == 0
    assert "head words: newly initialised" in caplog.text and "16 rows from texts.jsonl, in 24 parts" in caplog.text
    [checkpoint] = map(str, folder.rglob("last.ckpt"))
    assert main(["test", "--ckpt_path", checkpoint, *QUIET]) == 0
    assert "test/words/perplexity" in capsys.readouterr().out
    predict = ["predict", "--ckpt_path", checkpoint, "--data.predict", "masks.jsonl", "--output", "out.jsonl", *QUIET]
    assert main([*predict, *EXACT]) == 0
    rows = [json.loads(line)["words"]["masks"] for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [len(masks) for masks in rows] == [1, 0]
    assert main(["export", "--ckpt_path", checkpoint, "--output_dir", "export"]) == 0
    assert describe_path("export/words")["heads"]["words"]["class"] == "BertForMaskedLM"
    theirs = pipeline("fill-mask", "export/words")("the [MASK] was good")
    assert [mask["token"] for mask in rows[0][0]] == [mask["token"] for mask in theirs]
    assert [mask["score"] for mask in rows[0][0]] == pytest.approx([mask["score"] for mask in theirs], rel=1e-4)
    stock = AutoModelForMaskedLM.from_pretrained("export/words")
    assert stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
    assert main(["info", checkpoint]) == 0


def test_a_resumed_run_masks_as_an_uninterrupted_one_and_validation_can_be_compared(folder, tiny_bert):
    def fit(name, seen, stop=False, ckpt_path=None):
        module = LitHeadset(str(tiny_bert), {"words": MaskedLM()}, learning_rate=1e-3)
        run = trainer(folder / name, max_epochs=2, callbacks=[seen, Stop()] if stop else [seen])
        run.fit(module, texts(), ckpt_path=ckpt_path)
        return run.checkpoint_callback.best_model_path

    seed_everything(7)
    whole, parts = Seen(), Seen()
    fit("whole", whole)
    seed_everything(7)
    path = fit("parts", parts, stop=True)
    seed_everything(99)
    fit("parts", parts, ckpt_path=path)
    assert parts.losses == whole.losses
    assert parts.perplexities[-1] == whole.perplexities[-1]

    frozen = Seen()
    module = LitHeadset(str(tiny_bert), {"words": MaskedLM()}, learning_rate=0.0)
    trainer(folder, max_epochs=2, callbacks=[frozen], num_sanity_val_steps=0).fit(module, texts())
    assert frozen.perplexities[0] == frozen.perplexities[1]
    assert frozen.losses[0][1] != frozen.losses[len(frozen.losses) // 2][1]
    again = trainer(folder).validate(module, texts(eval_batch_size=5), verbose=False)
    assert again[0]["val/words/perplexity"] == pytest.approx(frozen.perplexities[0], rel=1e-5)


def test_the_head_of_a_pretrained_model_is_kept(folder, tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    stock = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes))
    stock.save_pretrained(folder / "mlm")
    tokenizer.save_pretrained(folder / "mlm")
    module = LitHeadset(str(folder / "mlm"), {"words": MaskedLM(), "topic": SequenceClassification()})
    data = texts(labels={"topic": "label"})
    trainer(folder, limit_train_batches=0, limit_val_batches=0).fit(module, data)
    assert module.headset.states == {"words": "loaded", "topic": "new"}
    again = module.headset.head("words").scorer.whole(module.headset.backbone).state_dict()
    assert all(torch.equal(again[key], value) for key, value in stock.state_dict().items())
    imported = Headset.from_transformers(str(folder / "mlm"), "words")
    assert imported.states == {"words": "loaded"}
    out = AutoModelForMaskedLM.from_pretrained(imported.export(str(folder / "out"))["words"]).state_dict()
    assert out.keys() == stock.state_dict().keys()
    assert all(torch.equal(out[key], value) for key, value in stock.state_dict().items())


def test_a_tokenizer_without_a_mask_token_is_refused_before_training(folder, tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder / "maskless")
    module = LitHeadset(str(tiny_bert), {"words": MaskedLM()}, processor=str(folder / "maskless"))
    with pytest.raises(HeadsetError, match=r"of this 'bert' model .* has no mask token"):
        trainer(folder).fit(module, texts())


def test_a_multiple_choice_run_from_yaml_to_a_stock_model(folder, tiny_bert, capsys):
    settings = {
        "model": {"backbone": str(tiny_bert), "heads": {"ending": "MultipleChoice"}, "learning_rate": 0.01},
        "data": {
            **dict.fromkeys(("train", "validation", "test", "predict"), "swag.csv"),
            "text": ["sent1", "sent2"],
            "choices": ["ending0", "ending1"],
            "batch_size": 3,
        },
        "trainer": {"max_epochs": 12, "accelerator": "cpu", "logger": False},
    }
    (folder / "run.yaml").write_text(json.dumps(settings))
    assert main(["fit", "-c", "run.yaml", *QUIET]) == 0
    [checkpoint] = map(str, folder.rglob("last.ckpt"))
    assert main(["test", "--ckpt_path", checkpoint, *QUIET]) == 0
    shown = capsys.readouterr().out
    assert "1.0" in next(line for line in shown.splitlines() if "test/ending/accuracy" in line)
    assert main(["predict", "--ckpt_path", checkpoint, "--output", "out.jsonl", *QUIET, *EXACT]) == 0
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["ending"]["choice"] for row in rows] == [0, 1] * 4
    assert {row["ending"]["text"] for row in rows} == {"good"}

    headset = Headset.from_checkpoint(checkpoint)
    asked = [(row["sent1"], [f"it is {row[f'ending{index}']}" for index in range(2)]) for row in rows]
    answers = headset.predict(asked, batch_size=5)["ending"]
    for row, answer in zip(rows, answers, strict=True):
        assert answer["scores"] == pytest.approx(row["ending"]["scores"], abs=1e-5)

    assert main(["export", "--ckpt_path", checkpoint, "--output_dir", "export"]) == 0
    stock = AutoModelForMultipleChoice.from_pretrained("export/ending").eval()
    tokenizer = AutoTokenizer.from_pretrained("export/ending")
    inputs = tokenizer([asked[0][0]] * 2, asked[0][1], padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = stock(**{key: value.unsqueeze(0) for key, value in inputs.items()}).logits
    assert logits[0].softmax(-1).tolist() == pytest.approx(answers[0]["scores"], abs=1e-5)
    usage = (folder / "export" / "ending" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(usage.replace("path/to", "export"))
    imported = Headset.from_transformers("export/ending", "ending")
    assert imported.predict(asked)["ending"] == [
        answer | {"score": pytest.approx(answer["score"]), "scores": pytest.approx(answer["scores"])}
        for answer in answers
    ]


def test_rows_with_different_numbers_of_choices(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    headset = Headset(Backbone.from_pretrained(str(tiny_bert)), {"ending": MultipleChoice()}, tokenizer=tokenizer)
    asked = [("a film", ["good", "bad", "a very bad book"]), ("the book", ["x", "y"])]
    together = headset.predict(asked, allow_untrained=True)["ending"]
    alone = [headset.predict([row], allow_untrained=True)["ending"][0] for row in asked]
    for one, other in zip(together, alone, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-6) and one["text"] == other["text"]
    assert [len(row["scores"]) for row in together] == [3, 2]
