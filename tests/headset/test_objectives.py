"""Objectives in runs: balanced weights, soft labels, orders of labels, thresholds, temperatures, and their exports."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from backbones import HeadsetError
from heads import SequenceClassification
from heads.tuning import best_thresholds
from headset import Headset, LitHeadset, TextData
from headset.label_statistics import count_labels

MULTI = "multi_label_classification"
TEXTS = ["the film was very good", "a bad book", "not a good film", "the book is good", "very bad", "good", "a film"]
TEXTS += ["the"]
GRADES = ["bad", "good", "fair", "good", "bad", "good", "fair", "fair"]


def trainer(folder, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **(quiet | {"max_epochs": 1} | settings))


def fit(folder, backbone, head, data, run=None, **settings):
    seed_everything(7)
    module = LitHeadset(str(backbone), {"mood": head}, **({"learning_rate": 1e-3} | settings))
    run = trainer(folder, **(run or {}))
    run.fit(module, data)
    return module, run


@pytest.fixture
def table(tmp_path):
    """Writes rows to a file."""

    def write(rows, name="rows.jsonl"):
        file = tmp_path / name
        file.write_text("\n".join(json.dumps(row) for row in rows))
        return str(file)

    return write


def several(count):
    """Texts with labels that their words tell, and some noise."""
    names = ["film", "book", "bad"]
    rows = []
    for index in range(count):
        given = [name for bit, name in enumerate(names) if (index >> bit) & 1 or index % 7 == bit]
        rows.append({"text": f"the {' '.join(given)} was {'very ' * (index % 3)}good", "label": given[: 1 + index % 3]})
    return rows


def test_balanced_weights_come_from_the_train_split_alone_and_stay(tmp_path, tiny_bert, table):
    labels = ["x"] * 20 + ["y"] * 60 + ["z"] * 8
    rows = table([{"text": f"the film {index}", "label": label} for index, label in enumerate(labels)])
    data = TextData(train=rows, validation=0.25, batch_size=8)
    head = SequenceClassification(objective={"class_weights": "balanced"})
    module, run = fit(tmp_path, tiny_bert, head, data, {"max_steps": 2})
    train = [labels[row] for row in data.examples("train")["row"]]
    assert len(train) == 66
    wanted = compute_class_weight("balanced", classes=np.array([*"xyz"]), y=np.array(train))
    assert module.heads["mood"].weights.value.tolist() == pytest.approx(wanted.tolist())
    path = str(tmp_path / "run.ckpt")
    run.save_checkpoint(path)
    (tmp_path / "rows.jsonl").unlink()
    again = LitHeadset.load_from_checkpoint(path)
    assert again.heads["mood"].weights.value.tolist() == pytest.approx(wanted.tolist())


def test_labels_of_rows_and_words_are_counted():
    rows = Dataset.from_dict({"label:a": [0, 2, 2, None], "label:b": [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], None]})
    tags = Dataset.from_dict({"label:c": [[-100, 0, 1, -100], [1, 1], [-100], [0]]})
    one, two = count_labels([rows, tags], "a", "xyz"), count_labels([rows, rows], "b", "xy")
    assert (one.counts, one.total) == ((1, 0, 2), 3)
    assert (two.counts, two.total) == ((4, 2), 6)
    assert count_labels([tags], "c", "xy").counts == (2, 3)


@pytest.mark.parametrize("form", ["columns", "names"])
def test_soft_labels_are_read_from_columns_or_by_name(tmp_path, tiny_bert, table, form):
    shares = [(0.25, 0.75), (1.0, 0.0), (0.5, 0.5), (0.9, 0.1)]
    if form == "columns":
        rows = [{"text": text, "no": a, "yes": b} for text, (a, b) in zip(TEXTS, shares, strict=False)]
        labels = ["no", "yes"]
    else:
        rows = [{"text": text, "label": {"no": a, "yes": b}} for text, (a, b) in zip(TEXTS, shares, strict=False)]
        labels = "label"
    data = TextData(train=table(rows), labels=labels, batch_size=4)
    head = SequenceClassification(objective={"soft_labels": True})
    module, _ = fit(tmp_path, tiny_bert, head, data)
    assert module.labels["mood"] == ("no", "yes")
    batch = next(iter(data.val_dataloader() or data.train_dataloader()))
    order = batch["meta"]["rows"]
    torch.testing.assert_close(batch["labels"]["mood"], torch.tensor(shares)[order])


def test_soft_labels_that_are_none_are_told_with_their_row(table, tiny_bert):
    rows = table([{"text": "a", "no": 0.5, "yes": 0.5}, {"text": "b", "no": 0.5, "yes": 0.7}])
    data = TextData(train=rows, labels=["no", "yes"])
    head = SequenceClassification(objective={"soft_labels": True})
    data.connect(AutoTokenizer.from_pretrained(tiny_bert), {"mood": head}, {})
    with pytest.raises(HeadsetError, match=r"line 2: .*expected probabilities with the sum 1.*whose sum is 1\.2"):
        data.setup("fit")


def test_labels_in_alphabetical_order_are_no_ranks(tmp_path, tiny_bert, table):
    rows = table([{"text": text, "label": grade} for text, grade in zip(TEXTS, GRADES, strict=True)])
    head = SequenceClassification(objective="coral", pooling="mean")
    with pytest.raises(HeadsetError, match=r"no other order than that of the alphabet: bad, fair, good.*model\.labels"):
        fit(tmp_path, tiny_bert, head, TextData(train=rows))
    stars = table([{"text": text, "label": index % 3 + 9} for index, text in enumerate(TEXTS)], "stars.jsonl")
    head = SequenceClassification(objective="coral", pooling="mean")
    module, _ = fit(tmp_path, tiny_bert, head, TextData(train=stars))
    assert module.labels["mood"] == ("9", "10", "11")


@pytest.mark.parametrize("objective", ["coral", "corn"])
def test_ordinal_heads_go_out_with_their_code(tmp_path, tiny_bert, table, objective):
    rows = table([{"text": text, "label": grade} for text, grade in zip(TEXTS, GRADES, strict=True)])
    head = SequenceClassification(objective=objective, pooling="mean")
    data = TextData(train=rows, validation=rows)
    module, run = fit(tmp_path, tiny_bert, head, data, labels={"mood": ["bad", "fair", "good"]})
    assert {"val/mood/accuracy", "val/mood/mae", "val/mood/kappa"} <= run.callback_metrics.keys()
    headset = module.headset.eval()
    with pytest.raises(HeadsetError, match="--format custom"):
        headset.export(str(tmp_path / "no"), format="transformers")
    folder = headset.export(str(tmp_path / "out"))["mood"]
    answer = headset.predict(TEXTS[:3])["mood"]
    classify = pipeline("text-classification", folder, trust_remote_code=True, top_k=None)
    for ours, theirs in zip(answer, classify(TEXTS[:3]), strict=True):
        assert {row["label"]: row["score"] for row in theirs} == pytest.approx(ours["scores"], abs=1e-5)
    assert "The answer is the median" in (tmp_path / "out/mood/README.md").read_text()


def test_thresholds_are_chosen_on_validation_stored_exported_and_used(tmp_path, tiny_bert, table):
    data = TextData(train=table(several(60)), validation=table(several(40), "validation.jsonl"), batch_size=16)
    head = SequenceClassification(MULTI, threshold="tuned")
    module, run = fit(tmp_path, tiny_bert, head, data, {"max_epochs": 3})
    logged = {key: value.item() for key, value in run.callback_metrics.items()}
    thresholds = head.tuned.value.tolist()
    assert thresholds != [0.5] * 3

    rows = several(40)
    answers = module.headset.predict([row["text"] for row in rows])["mood"]
    chances = torch.tensor([list(row["scores"].values()) for row in answers])
    truth = torch.tensor([[float(label in row["label"]) for label in module.labels["mood"]] for row in rows])
    best = [
        max(f1_score(truth[:, it], chances[:, it] >= cut) for cut in chances[:, it].unique().tolist())
        for it in range(3)
    ]
    given = torch.tensor([[float(label in row["labels"]) for label in module.labels["mood"]] for row in answers])
    assert [f1_score(truth[:, it], given[:, it]) for it in range(3)] == pytest.approx(best)
    assert logged["val/mood/f1"] == pytest.approx(sum(best) / 3)

    path = run.checkpoint_callback.best_model_path
    other = TextData(validation=table(several(10)[3:], "other.jsonl"))
    run.validate(module, other, verbose=False)
    run.test(module, TextData(test=table(several(10)[3:], "other.jsonl")), verbose=False)
    assert head.tuned.value.tolist() == thresholds  # chosen in training alone
    again = Headset.from_checkpoint(path)
    assert again.predict(TEXTS)["mood"] == module.headset.predict(TEXTS)["mood"]

    folder = again.export(str(tmp_path / "out"))["mood"]
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    assert stock.config.thresholds == pytest.approx(dict(zip(module.labels["mood"], thresholds, strict=True)))
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, return_tensors="pt", padding=True)
    names = list(stock.config.id2label.values())
    cut = torch.tensor([stock.config.thresholds[label] for label in names])
    with torch.inference_mode():
        flags = stock(**inputs).logits.sigmoid() >= cut
    ours = [row["labels"] for row in again.predict(TEXTS)["mood"]]
    assert [[name for name, its in zip(names, row, strict=True) if its] for row in flags.tolist()] == ours
    assert "model.config.thresholds" in (tmp_path / "out/mood/README.md").read_text()
    imported = Headset.from_transformers(folder, "mood")
    assert [row["labels"] for row in imported.predict(TEXTS)["mood"]] == ours


def test_thresholds_of_averaged_weights_are_chosen_with_them(tmp_path, tiny_bert, table):
    validation = table(several(40), "validation.jsonl")
    data = TextData(train=table(several(60)), validation=validation, batch_size=16)
    head = SequenceClassification(MULTI, threshold="tuned")
    average = EMAWeightAveraging(decay=0.7)
    _, run = fit(tmp_path, tiny_bert, head, data, {"max_epochs": 3, "callbacks": [average]}, learning_rate=3e-3)
    stored = Headset.from_checkpoint(run.checkpoint_callback.best_model_path)
    rows = several(40)
    answers = stored.predict([row["text"] for row in rows])["mood"]
    chances = torch.tensor([list(row["scores"].values()) for row in answers])
    truth = torch.tensor([[float(label in row["label"]) for label in stored.labels["mood"]] for row in rows])
    wanted = best_thresholds(chances, truth).tolist()
    assert stored.head("mood").tuned.value.tolist() == pytest.approx(wanted, abs=1e-5)


def test_nothing_is_chosen_on_the_sanity_check(tmp_path, tiny_bert, table):
    data = TextData(train=table(several(20)), validation=table(several(20), "validation.jsonl"), batch_size=4)
    head = SequenceClassification(MULTI, threshold="tuned")
    chosen = []
    head.tune = lambda logits, labels: chosen.append(len(logits))
    fit(tmp_path, tiny_bert, head, data, {"num_sanity_val_steps": 2, "max_epochs": 2})
    assert chosen == [20] * 4  # with the weights that are measured, and with those that training goes on with


def test_a_threshold_without_validation_is_a_clear_error(tmp_path, tiny_bert, table):
    head = SequenceClassification(MULTI, threshold="tuned")
    with pytest.raises(HeadsetError, match=r"'mood' chooses what is 'tuned' on validation, and there is none"):
        fit(tmp_path, tiny_bert, head, TextData(train=table(several(8))))


def test_the_temperature_is_stored_and_exported(tmp_path, tiny_bert, table):
    rows = table([{"text": text, "label": grade} for text, grade in zip(TEXTS, GRADES, strict=True)])
    head = SequenceClassification(temperature="tuned")
    data = TextData(train=rows, validation=rows, batch_size=4)
    module, run = fit(tmp_path, tiny_bert, head, data, {"max_epochs": 2})
    assert "val/mood/ece" in run.callback_metrics
    temperature = head.tuned.value.item()
    assert temperature != 1.0
    folder = module.headset.export(str(tmp_path / "out"))["mood"]
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    assert stock.config.calibration_temperature == pytest.approx(temperature)
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, return_tensors="pt", padding=True)
    with torch.inference_mode():
        wanted = (stock(**inputs).logits / temperature).softmax(-1)
    ours = torch.tensor([list(row["scores"].values()) for row in module.headset.predict(TEXTS)["mood"]])
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    [imported] = Headset.from_transformers(folder).predict(TEXTS[:1])["head"]
    assert imported["score"] == pytest.approx(ours[0].max().item(), rel=1e-4)
