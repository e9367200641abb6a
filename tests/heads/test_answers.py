import pytest
import torch

from backbones import HeadsetError
from heads.answers import AnswerTarget, token_positions

EXAMPLE = {"context": "Ann lives in Oslo."}
OSLO = [[13, 17]]


@pytest.mark.parametrize(
    ("value", "spans"),
    [
        ({"text": ["Oslo"], "answer_start": [13]}, OSLO),
        ({"text": "Oslo", "answer_start": 13}, OSLO),
        ([{"text": "Oslo", "answer_start": 13}, {"text": "in Oslo", "answer_start": 10}], [*OSLO, [10, 17]]),
        ({"text": ["Oslo", "Ann"], "answer_start": [13, 0], "answer_id": [1, 2]}, [*OSLO, [0, 3]]),
        (None, [[-1, -1]]),
        ([], [[-1, -1]]),
        ({"text": [], "answer_start": []}, [[-1, -1]]),
        ({"text": None, "answer_start": None}, [[-1, -1]]),
    ],
)
def test_all_forms_of_answers(value, spans):
    assert AnswerTarget(no_answer=True).encode(value, None, EXAMPLE) == spans


def test_rows_have_any_number_of_answers():
    assert AnswerTarget().collate([OSLO, [*OSLO, [0, 3]]], 9).tolist() == [[*OSLO, [-1, -1]], [*OSLO, [0, 3]]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "there is no answer.*set no_answer: true on the head"),
        ("Oslo", "got 'Oslo'. CSV files cannot hold them: use JSON lines or Parquet"),
        (13, "expected answers as SQuAD has them, {'text': .*got 13"),
        ({"text": ["Oslo"]}, "expected answers as SQuAD has them"),
        ({"text": ["Oslo"], "answer_start": []}, "there are 1 texts and 0 starts"),
        ({"text": ["Oslo"], "answer_start": ["13"]}, "got the text 'Oslo' and the start '13'"),
        ({"text": [None], "answer_start": [13]}, "got the text None"),
        ({"text": [" "], "answer_start": [3]}, "an answer is blank"),
        (
            {"text": ["Oslo"], "answer_start": [12]},
            "the answer 'Oslo' does not begin at 12: there stands ' Osl'. The answer stands at 13",
        ),
        ({"text": ["Oslo"], "answer_start": [-5]}, "does not begin at -5: the context has 18 characters.*stands at 13"),
        ({"text": ["Oslo"], "answer_start": [40]}, "does not begin at 40: the context has 18 characters"),
        ({"text": ["Bergen"], "answer_start": [13]}, "there stands 'Oslo.'. The context does not have the answer"),
    ],
)
def test_wrong_answers_say_what_stands_there(value, message):
    with pytest.raises(HeadsetError, match=message):
        AnswerTarget().encode(value, None, EXAMPLE)


def test_answers_need_a_context():
    with pytest.raises(HeadsetError, match="Read a question and its context"):
        AnswerTarget().encode({"text": ["Oslo"], "answer_start": [13]}, None, {"input_ids": [1]})


@pytest.mark.parametrize(
    ("span", "tokens"),
    [((0, 3), (2, 2)), ((4, 5), (3, 5)), ((1, 5), (2, 5)), ((5, 7), (6, 6)), ((4, 8), (0, 0)), ((-1, -1), (0, 0))],
)
def test_an_answer_has_all_tokens_of_its_characters(span, tokens):
    """The character from 4 to 5 takes three tokens, as bytes of an emoji do."""
    none = [-1, -1]
    offsets = torch.tensor([[none, none, [0, 3], [4, 5], [4, 5], [4, 5], [5, 7], none]])
    assert token_positions(torch.tensor([span]), offsets, torch.tensor([0])).tolist() == [list(tokens)]
