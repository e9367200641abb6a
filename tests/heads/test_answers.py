import pytest

from backbones import HeadsetError
from heads.answers import AnswerTarget

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
