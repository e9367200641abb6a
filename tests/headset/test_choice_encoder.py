"""Texts with choices: the inputs of transformers' example for multiple choice, from tables of two forms."""

import re
from itertools import chain

import pytest
import torch
from transformers import DataCollatorForMultipleChoice

from backbones.errors import HeadsetError
from heads.choice_target import ChoiceTarget
from headset.choice_encoder import ChoiceEncoder
from headset.data import TextData

PROMPTS = ["the film was very good and the book was not, it was bad", "a film", "the book"]
STARTS = ["it is", "so it was", "the"]
ENDINGS = [["good", "bad", "a very very bad film"], ["a book", "not", "x"], ["end", "1 2 3", "y"]]


def as_in_the_example(tokenizer, prompts, starts, endings, length):
    """``preprocess_function`` of transformers' examples/pytorch/multiple-choice/run_swag.py, and its collator."""
    size = len(endings[0])
    first = [[prompt] * size for prompt in prompts]
    second = [[f"{start} {ending}" for ending in row] for start, row in zip(starts, endings, strict=True)]
    flat = tokenizer(list(chain(*first)), list(chain(*second)), max_length=length, truncation=True)
    rows = {key: [value[i : i + size] for i in range(0, len(value), size)] for key, value in flat.items()}
    features = [{key: value[row] for key, value in rows.items()} | {"label": 0} for row in range(len(prompts))]
    return DataCollatorForMultipleChoice(tokenizer)(features)


def collated(encoder, columns):
    encoded = encoder.encode(columns)
    rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    return encoder.collate([row | {"row": index + 5} for index, row in enumerate(rows)]), encoded["truncated"]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [64, 12])
def test_inputs_are_those_of_the_example(tokenizer, side, length):
    tokenizer.padding_side = side
    wanted = as_in_the_example(tokenizer, PROMPTS, STARTS, ENDINGS, length)
    del wanted["labels"]
    several = list(zip(*ENDINGS, strict=True))
    for columns in ([PROMPTS, STARTS, ENDINGS], [PROMPTS, STARTS, *several]):
        batch, truncated = collated(ChoiceEncoder(tokenizer, length, texts=2), columns)
        meta = batch.pop("meta")
        assert batch.keys() == wanted.keys()
        assert all(torch.equal(batch[name], tensor) for name, tensor in wanted.items())
        assert meta == {"texts": 1, "choices": ENDINGS, "rows": [5, 6, 7]}
        assert truncated == [length == 12, False, False]


def test_a_row_with_fewer_choices_repeats_its_last(tokenizer):
    encoder = ChoiceEncoder(tokenizer)
    choices = [["good", "bad", "a film"], ["x", "y"]]
    batch, _ = collated(encoder, [PROMPTS[:2], choices])
    alone, _ = collated(encoder, [PROMPTS[1:2], choices[1:]])
    assert batch["input_ids"].shape[:2] == (2, 3)
    width = alone["input_ids"].shape[-1]
    assert torch.equal(batch["input_ids"][1, :2, :width], alone["input_ids"][0])
    assert torch.equal(batch["input_ids"][1, 2], batch["input_ids"][1, 1])
    assert batch["meta"]["choices"] == choices


def test_models_that_take_no_mask(tokenizer):
    wanted = as_in_the_example(tokenizer, PROMPTS, STARTS, ENDINGS, 64)["attention_mask"]
    tokenizer.model_input_names = ["input_ids"]
    batch, _ = collated(ChoiceEncoder(tokenizer, texts=2), [PROMPTS, STARTS, ENDINGS])
    assert batch.keys() == {"input_ids", "meta"}
    assert torch.equal(batch["meta"]["attention_mask"], wanted)


@pytest.mark.parametrize("row", ["a", ("a", "x"), ("a", ["x"]), ("a", ["x", None]), (["a"], ["x", "y"])])
def test_what_predict_cannot_read(tokenizer, row):
    with pytest.raises(HeadsetError, match=r"\(text, \[choice, choice, \.\.\.\]\)"):
        ChoiceEncoder(tokenizer).columns([("fine", ["x", "y"]), row])


RACE = [
    {"article": "the film", "options": ["good", "bad", "x", "y"], "answer": "B"},
    {"article": "a book", "options": ["good", "bad"], "answer": "A"},
]
SWAG = "sent1,sent2,ending0,ending1,label\nthe film,it was,good,bad,1\na book,is,bad,good,0\n"


@pytest.fixture
def choosing(make, target_head):
    """Makes a TextData for a head that chooses."""

    def choosing(**settings):
        head = target_head(ChoiceTarget())
        head.reads = "choices"
        data = make(**settings)
        data.connect(data.processor, {"answer": head}, {})
        return data

    return choosing


def test_tables_as_of_race(choosing):
    data = choosing(train=RACE, text="article", choices="options", labels="answer")
    data.setup("fit")
    [batch] = data.train_dataloader()
    order = batch["meta"]["rows"]
    assert batch["labels"]["answer"].tolist() == [[1, 0][row] for row in order]
    assert batch["meta"]["choices"] == [RACE[row]["options"] for row in order]
    assert batch["input_ids"].shape[:2] == (2, 4)


def test_tables_as_of_swag(choosing, tokenizer):
    data = choosing(test=SWAG, text=["sent1", "sent2"], choices=["ending0", "ending1"], labels="label")
    data.setup("test")
    [batch] = data.test_dataloader()
    assert batch["labels"]["answer"].tolist() == [1, 0]
    wanted = as_in_the_example(
        tokenizer, ["the film", "a book"], ["it was", "is"], [["good", "bad"], ["bad", "good"]], 64
    )
    assert torch.equal(batch["input_ids"], wanted["input_ids"])
    data = choosing(predict=SWAG, text=["sent1", "sent2"], choices=["ending0", "ending1"])
    data.setup("predict")
    assert torch.equal(next(iter(data.predict_dataloader()))["input_ids"], wanted["input_ids"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": "article"}, "answer: each row has several choices. Name the column .*data.choices"),
        ({"text": "article", "choices": "option"}, "no column 'option'. Did you mean 'options'"),
        (
            {"text": "article", "choices": "answer"},
            "column 'answer' has to hold lists of strings.*Name a column with lists",
        ),
        ({"text": "article", "choices": ["options", "answer"]}, "column 'options' has to hold plain strings"),
        ({"text": "options", "choices": "options"}, "column 'options' has to hold plain strings"),
    ],
)
def test_settings_that_do_not_fit_the_table(choosing, fault, settings, message):
    assert re.search(message, fault(choosing(train=RACE, labels="answer", **settings)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": ["good"]}, "line 2: column 'options': at least two choices are needed, got ['good']"),
        ({"options": ["good", " "]}, "line 2: column 'options': expected texts to choose from, got ' ' among them"),
        ({"options": ["good", None]}, "line 2: column 'options': expected texts to choose from, got None among them"),
        ({"options": None}, "line 2: column 'options': the text is missing (null)"),
        ({"article": ""}, "line 2: column 'article': the text is blank"),
        ({"answer": "C"}, "line 2: column 'answer': expected one of 2 choices, as a number from 0"),
    ],
)
def test_rows_with_a_fault_are_named(choosing, fault, change, message):
    rows = [RACE[0], RACE[1] | change]
    assert message in fault(choosing(train=rows, text="article", choices="options", labels="answer"))


def test_choices_are_for_heads_that_choose(make, fault):
    message = fault(make(train=RACE, text="article", choices="options", labels="answer"))
    assert "data.choices is for heads that choose; topic does not" in message
    with pytest.raises(HeadsetError, match=r"data\.choices is an empty list"):
        TextData(choices=[])
