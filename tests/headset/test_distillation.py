"""Distillation against the formula of Hinton et al., from checkpoints, folders and stock models."""

import math

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from backbones import Backbone, HeadsetError
from heads import SequenceClassification, TokenClassification
from heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, TagTarget
from headset import Headset, LitHeadset, TextData
from headset.distillation import Teacher, distillation_loss

CLASSES = ["negative", "neutral", "positive"]


def softmax(row, temperature):
    powers = [math.exp(score / temperature) for score in row]
    return [power / sum(powers) for power in powers]


def divergence(teacher, student, temperature):
    """T**2 * KL(p || q), by hand."""
    pairs = zip(softmax(teacher, temperature), softmax(student, temperature), strict=True)
    return temperature**2 * sum(p * math.log(p / q) for p, q in pairs)


@pytest.fixture
def scores():
    torch.manual_seed(0)
    return 2 * torch.randn(4, 3), 2 * torch.randn(4, 3)


def test_it_is_the_formula_of_the_paper(scores):
    student, teacher = scores
    pairs = list(zip(teacher.tolist(), student.tolist(), strict=True))
    got = distillation_loss(ClassTarget(), student, teacher, torch.zeros(4), 3.0)
    assert got.item() == pytest.approx(sum(divergence(t, s, 3.0) for t, s in pairs) / 4, rel=1e-5)
    several = distillation_loss(MultiLabelTarget(), student, teacher, torch.zeros(4, 3), 3.0)
    wanted = [divergence([a, 0.0], [b, 0.0], 3.0) for t, s in pairs for a, b in zip(t, s, strict=True)]
    assert several.item() == pytest.approx(sum(wanted) / 12, rel=1e-5)
    tags = torch.tensor([[0, -100], [1, 2]])
    words = distillation_loss(TagTarget(), student.view(2, 2, 3), teacher.view(2, 2, 3), tags, 3.0)
    assert words.item() == pytest.approx(sum(divergence(*pairs[it], 3.0) for it in (0, 2, 3)) / 3, rel=1e-5)
    assert distillation_loss(NumberTarget(), student, teacher, teacher, 3.0) == F.mse_loss(student, teacher)


@pytest.fixture
def stock(tmp_path, tiny_bert):
    """The folder of a stock classifier with other sizes than the student, and its labels in another order."""
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    order = dict(enumerate(["positive", "negative", "neutral"]))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=64,
        id2label=order,
        label2id={name: index for index, name in order.items()},
        initializer_range=0.2,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "stock")
    tokenizer.save_pretrained(tmp_path / "stock")
    return str(tmp_path / "stock")


def student(tiny_bert, heads=None, labels=None):
    heads = heads or {"mood": SequenceClassification()}
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    return Headset(Backbone.from_pretrained(str(tiny_bert)), heads, labels or {"mood": CLASSES}, tokenizer)


def test_a_step_learns_from_stock_scores_by_the_names_of_labels(tiny_bert, stock):
    headset = student(tiny_bert).eval()
    batch = dict(headset.tokenizer(["a good film", "bad"], return_tensors="pt", padding=True))
    labels = torch.tensor([2, 0])
    batches, given = headset.prepare({**batch, "labels": {"mood": labels}, "meta": {}})
    outputs = headset.answer(batches)
    teacher = Teacher({"teacher": stock, "temperature": 3.0, "alpha": 0.25}, headset)
    mixed = teacher.losses(batches, outputs, given, headset.losses(outputs, given))["mood"]
    with torch.no_grad():
        theirs = AutoModelForSequenceClassification.from_pretrained(stock)(**batch).logits[:, [1, 2, 0]]
    ours = outputs["mood"].logits
    soft = sum(divergence(t, s, 3.0) for t, s in zip(theirs.tolist(), ours.tolist(), strict=True)) / 2
    assert mixed.item() == pytest.approx(0.75 * F.cross_entropy(ours, labels).item() + 0.25 * soft, rel=1e-4)
    mixed.backward()
    assert all(weight.grad is None for weight in teacher.headset.parameters())


def fit(folder, backbone, data, distillation, **settings):
    seed_everything(7)
    module = LitHeadset(str(backbone), {"mood": SequenceClassification()}, distillation=distillation, **settings)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    run = Trainer(default_root_dir=folder, max_epochs=60 if distillation else 1, **quiet)
    run.fit(module, data)
    return module, run


def test_with_the_teacher_alone_a_student_answers_as_it_does(tmp_path, tiny_bert, small_csv, stock):
    data = TextData(train=str(small_csv), validation=str(small_csv), batch_size=8)
    settings = {"teacher": stock, "alpha": 1.0}
    module, run = fit(tmp_path, tiny_bert, data, settings, learning_rate=3e-3, scheduler="constant")
    texts = [line.split(",")[0].strip('"') for line in small_csv.read_text().splitlines()[1:]]
    theirs = Headset.from_transformers(stock).predict(texts)["head"]
    ours = module.headset.predict(texts)["mood"]
    pairs = [(a["scores"][it], b["scores"][it]) for a, b in zip(theirs, ours, strict=True) for it in CLASSES]
    assert sum(abs(a - b) for a, b in pairs) / len(pairs) < 0.08
    stored = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)
    assert set(stored["state_dict"]) == {f"headset.{key}" for key in module.headset.state_dict()}
    assert Headset.from_checkpoint(run.checkpoint_callback.best_model_path).predict(texts)["mood"] == ours


def test_teachers_are_checkpoints_and_folders_too(tmp_path, tiny_bert, small_csv):
    data = TextData(train=str(small_csv), batch_size=8)
    module, run = fit(tmp_path, tiny_bert, data, None)
    run.save_checkpoint(tmp_path / "teacher.ckpt")
    module.headset.save_pretrained(str(tmp_path / "folder"))
    headset = student(tiny_bert)
    batch = dict(headset.tokenizer(["a good film"], return_tensors="pt"))
    for place in ("teacher.ckpt", "folder"):
        teacher = Teacher({"teacher": str(tmp_path / place)}, headset)
        answer = teacher.answers({"mood": batch})["mood"]
        torch.testing.assert_close(answer, module.headset.eval()(batch)["mood"].logits)


def test_teachers_that_do_not_fit_are_clear_errors(tmp_path, tiny_bert, stock):
    with pytest.raises(HeadsetError, match="Distillation needs the same ones"):
        Teacher({"teacher": stock}, student(tiny_bert, labels={"mood": ["x", "y"]}))
    tagger = student(tiny_bert, {"mood": TokenClassification()})
    with pytest.raises(HeadsetError, match="they are of other kinds"):
        Teacher({"teacher": stock}, tagger)
    both = {name: SequenceClassification() for name in "ab"}
    two = student(tiny_bert, both, dict.fromkeys("ab", CLASSES))
    with pytest.raises(HeadsetError, match="has the heads head, and not a, b"):
        Teacher({"teacher": stock}, two)
    tokenizer = AutoTokenizer.from_pretrained(stock)
    tokenizer.add_tokens(["films"])
    tokenizer.save_pretrained(stock)
    with pytest.raises(HeadsetError, match="reads other inputs"):
        Teacher({"teacher": stock}, student(tiny_bert))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"techer": "x"}, "Did you mean 'teacher'"),
        ({"alpha": 0.5}, "Distillation needs a teacher"),
        ({"teacher": "x", "alpha": 2.0}, "the share of the teacher, from 0 to 1"),
        ({"teacher": "x", "temperature": 0.0}, "Give a number above 0"),
        ({"teacher": "x", "heads": ["moood"]}, "Did you mean 'mood'"),
    ],
)
def test_wrong_settings_are_clear_errors(tiny_bert, settings, message):
    with pytest.raises(HeadsetError, match=message):
        LitHeadset(str(tiny_bert), {"mood": SequenceClassification()}, distillation=settings)
