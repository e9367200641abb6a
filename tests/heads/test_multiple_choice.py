"""MultipleChoice: the contract, scores and loss of transformers, rows with other numbers of choices, accuracy."""

import pytest
import torch
from sklearn.metrics import accuracy_score
from transformers import BertConfig, BertForMultipleChoice

from backbones import Backbone, HeadsetError
from heads import HeadContext, HeadOutput, MultipleChoice
from heads.choice_target import ChoiceTarget
from heads.testing import check_head, tiny_backbone

CHOICES = ["a film", "C", "2", "a book"]


@pytest.mark.parametrize(
    "settings", [{}, {"pooling": "attention", "hidden_layers": "mix"}, {"pooling": ["cls", "max"], "hidden_layers": 1}]
)
def test_it_keeps_the_contract(settings):
    check_head(MultipleChoice(**settings))


def test_a_pooling_of_ours_scores_each_choice_by_itself():
    torch.manual_seed(0)
    backbone, head = tiny_backbone().eval(), MultipleChoice(pooling="mean")
    head.attach(HeadContext(backbone))
    ids = torch.randint(5, 64, (2, 3, 7))
    mask = torch.ones_like(ids)
    mask[1, 2, 4:] = 0
    output = run(
        backbone, head.eval(), {"input_ids": ids, "attention_mask": mask, "meta": {"choices": [["a"] * 3] * 2}}
    )
    for row, choice in ((0, 1), (1, 2)):
        real = mask[row, choice].bool()
        hidden = backbone(input_ids=ids[row, choice][real].unsqueeze(0)).last_hidden_state
        torch.testing.assert_close(output.logits[row, choice], head.scorer.linear(hidden.mean(1))[0, 0])
    short = run(backbone, head, {"input_ids": ids, "meta": {"choices": [["a"] * 3, ["a"] * 2]}})
    assert short.logits.isinf().tolist() == [[False] * 3, [False, False, True]]


def pair():
    """A stock model, and a head with its weights on its base."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    stock = BertForMultipleChoice(BertConfig(vocab_size=64, **sizes)).eval()
    backbone, head = Backbone(stock.bert), MultipleChoice()
    head.attach(HeadContext(backbone))
    head.scorer.take(stock)
    return stock, backbone.eval(), head.eval()


def run(backbone, head, batch):
    return head(backbone.run(head.request(batch)), batch)


def test_scores_and_loss_are_those_of_transformers():
    stock, backbone, head = pair()
    batch = {"input_ids": torch.randint(5, 64, (3, 4, 7)), "attention_mask": torch.ones(3, 4, 7, dtype=torch.long)}
    batch["attention_mask"][1, :, 5:] = 0
    labels = torch.tensor([3, 0, 2])
    theirs = stock(**batch, labels=labels)
    output = run(backbone, head, batch)
    assert torch.equal(output.logits, theirs.logits)
    assert torch.equal(head.loss(output, labels), theirs.loss)


def test_rows_with_fewer_choices_are_answered_as_stock_answers_them_alone():
    stock, backbone, head = pair()
    ids = torch.randint(5, 64, (2, 4, 7))
    texts = [["a", "b", "c", "d"], ["e", "f"]]
    labels = torch.tensor([1, 0])
    output = run(backbone, head, {"input_ids": ids, "meta": {"choices": texts}})
    alone = [stock(input_ids=ids[row : row + 1, : len(texts[row])], labels=labels[row : row + 1]) for row in range(2)]
    loss = head.loss(output, labels)
    torch.testing.assert_close(loss, torch.stack([one.loss for one in alone]).mean())
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    for row, answer in enumerate(head.predict(output)):
        scores = alone[row].logits[0].softmax(-1)
        assert answer["scores"] == pytest.approx(scores.tolist(), abs=1e-6)
        assert answer["score"] == max(answer["scores"]) and answer["choice"] == scores.argmax().item()
        assert answer["text"] == texts[row][answer["choice"]]


def test_accuracy_is_over_rows():
    head, (answers, gold) = MultipleChoice(), torch.randint(5, (2, 40))
    metrics = head.metrics()
    for part in torch.arange(40).split(13):
        logits = torch.nn.functional.one_hot(answers[part], 5).float()
        metrics.update(*head.metric_inputs(HeadOutput(logits), gold[part]))
    assert metrics.compute()["accuracy"].item() == pytest.approx(accuracy_score(gold, answers))


@pytest.mark.parametrize(
    ("value", "index"),
    [(0, 0), (3, 3), (2.0, 2), ("3", 3), ("A", 0), ("D", 3), ("a book", 3), (" a film ", 0), ("B", 1)],
)
def test_the_right_choice_is_a_number_a_letter_or_a_text(value, index):
    assert ChoiceTarget().encode(value, None, {"choices": CHOICES}) == index


@pytest.mark.parametrize("value", [4, -1, 1.5, float("nan"), True, None, "", "E", "film", "4", ["a film"]])
def test_what_is_no_choice_is_refused(value):
    with pytest.raises(HeadsetError, match=r"expected one of 4 choices, .*got .*Choices: 'a film', 'C', '2', 'a book'"):
        ChoiceTarget().encode(value, None, {"choices": CHOICES})


@pytest.mark.parametrize(("value", "both"), [("C", "1 and 2")])
def test_what_may_mean_two_choices_is_refused(value, both):
    with pytest.raises(HeadsetError, match=f"'{value}' may mean the choices {both}"):
        ChoiceTarget().encode(value, None, {"choices": CHOICES})
    assert ChoiceTarget().encode("2", None, {"choices": CHOICES}) == 2
    with pytest.raises(HeadsetError, match="may mean the choices 0 and 2"):
        ChoiceTarget().encode("same", None, {"choices": ["same", "other", "same"]})
