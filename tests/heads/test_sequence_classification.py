"""SequenceClassification: losses against transformers, metrics against scikit-learn, settings, predictions."""

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error
from transformers import BertConfig, BertForSequenceClassification

from backbones import HeadsetError
from heads import HeadContext, HeadOutput, SequenceClassification
from heads.testing import check_head, tiny_backbone

LABELS = ("x", "y", "z")
MULTI = "multi_label_classification"


@pytest.mark.parametrize("pooling", ["native", "cls", "mean", "max", "last", "attention", ["cls", "mean", "max"]])
@pytest.mark.parametrize("problem_type", ["single_label_classification", MULTI, "regression"])
def test_it_keeps_the_contract(problem_type, pooling):
    check_head(SequenceClassification(problem_type, pooling=pooling), LABELS)


@pytest.mark.parametrize("hidden_layers", [1, -2, [-1, -2], "mix"])
def test_it_keeps_the_contract_with_other_layers(hidden_layers):
    check_head(SequenceClassification(pooling="mean", hidden_layers=hidden_layers), LABELS)


@pytest.mark.parametrize("problem_type", ["single_label_classification", MULTI, "regression"])
def test_the_loss_is_that_of_transformers(problem_type):
    torch.manual_seed(0)
    size = 1 if problem_type == "regression" else 3
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_labels=size)
    config.problem_type = problem_type
    stock = BertForSequenceClassification(config).eval()
    labels = {"regression": torch.randn(4), MULTI: torch.tensor([[1.0, 0, 1]] * 4)}.get(problem_type)
    labels = torch.tensor([0, 1, 2, 1]) if labels is None else labels
    theirs = stock(torch.randint(5, 90, (4, 6)), labels=labels)
    ours = SequenceClassification(problem_type).loss(HeadOutput(theirs.logits), labels)
    assert torch.equal(ours, theirs.loss)


def measured(head, batches):
    metrics = head.metrics()
    for logits, labels in batches:
        metrics.update(*head.metric_inputs(HeadOutput(logits), labels))
    return {key: value.item() for key, value in metrics.compute().items()}


def test_metrics_equal_scikit_learn():
    torch.manual_seed(0)
    batches = [(torch.rand(size, 3), torch.randint(3, (size,))) for size in (5, 8, 1)]
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    head = SequenceClassification()
    head.labels = LABELS
    got = measured(head, batches)
    assert got["accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(-1)))
    assert got["f1"] == pytest.approx(f1_score(labels, logits.argmax(-1), average="macro"))


def test_multi_label_metrics_equal_scikit_learn_also_for_logits_between_0_and_1():
    torch.manual_seed(0)
    batches = [(torch.rand(size, 3) - shift, torch.randint(2, (size, 3))) for size, shift in ((6, 0.0), (9, 0.6))]
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    head = SequenceClassification(MULTI, threshold=0.6)
    head.labels = LABELS
    got = measured(head, batches)
    answers = logits.sigmoid() >= 0.6
    assert got["accuracy"] == pytest.approx(accuracy_score(labels, answers))
    assert got["f1"] == pytest.approx(f1_score(labels, answers, average="macro", zero_division=0))
    assert got["f1_micro"] == pytest.approx(f1_score(labels, answers, average="micro"))


def test_regression_metrics_equal_scikit_learn():
    torch.manual_seed(0)
    batches = [(torch.randn(size, 1), torch.randn(size)) for size in (5, 8)]
    numbers, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    got = measured(SequenceClassification("regression"), batches)
    assert got["mse"] == pytest.approx(mean_squared_error(labels, numbers.squeeze(-1)))
    assert got["pearson"] == pytest.approx(torch.corrcoef(torch.stack([labels, numbers.squeeze(-1)]))[0, 1].item())


def test_predictions_say_labels():
    head = SequenceClassification()
    head.labels = ("ham", "spam")
    [row] = head.predict(HeadOutput(torch.tensor([[0.0, 2.0]])))
    assert row["label"] == "spam"
    assert row["score"] == pytest.approx(torch.tensor(2.0).sigmoid().item())
    several = SequenceClassification(MULTI)
    several.labels = ("ham", "spam")
    assert several.predict(HeadOutput(torch.tensor([[-1.0, 2.0]])))[0]["labels"] == ["spam"]
    assert SequenceClassification("regression").predict(HeadOutput(torch.tensor([[1.5]]))) == [{"value": 1.5}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "maen"}, "Invalid pooling mode: 'maen'.*Did you mean 'mean'"),
        ({"problem_type": "regresion"}, "Did you mean 'regression'"),
        ({"hidden_layers": "mix"}, "needs a pooling of ours"),
        ({"pooling": "mean", "hidden_layers": "mixed"}, "Did you mean 'mix'"),
    ],
)
def test_wrong_settings_are_clear_errors(arguments, message):
    with pytest.raises(HeadsetError, match=message):
        SequenceClassification(**arguments)


def test_a_layer_that_is_not_there_is_a_clear_error():
    with pytest.raises(HeadsetError, match="no hidden layer 7"):
        SequenceClassification(pooling="mean", hidden_layers=7).attach(HeadContext(tiny_backbone(), LABELS))
