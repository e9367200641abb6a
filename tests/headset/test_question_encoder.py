"""Questions in windows: as the question answering example of transformers prepares them, and back again."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from backbones import HeadsetError
from heads import HeadOutput, QuestionAnswering
from heads.answers import AnswerTarget
from headset.batches import LABEL, Collator
from headset.checks import RowError
from headset.question_encoder import QuestionEncoder

WORDS = st.lists(st.sampled_from(["the", "film", "was", "filmed", "Oslo", "x9", "é", "¿", "a-b"]), min_size=1)


def encoded(encoder, question, context, span):
    """A row of the encoder with its label, as `ExampleMaker` makes it."""
    row = encoder.encode([[question], [context]])
    answers = {"text": [context[slice(*span)]], "answer_start": [span[0]]}
    label = AnswerTarget().encode(answers, None, {name: values[0] for name, values in row.items()})
    return row | {"row": [7], LABEL + "qa": [label]}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    words=WORDS,
    question=st.sampled_from(["film?", "  the", "was it bad"]),
    data=st.data(),
    length=st.integers(14, 40),
    stride=st.integers(0, 8),
    side=st.sampled_from(["right", "left"]),
)
def test_windows_and_answers(tiny_tokenizer, words, question, data, length, stride, side):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer, padding_side=side)
    context = " ".join(words)
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    start = len(" ".join([*words[:first], ""]))
    span = start, start + len(" ".join(words[first : last + 1]))
    encoder = QuestionEncoder(tokenizer, length, stride=stride)
    try:
        row = encoded(encoder, question, context, span)
    except RowError:
        assume(False)

    right = side == "right"
    pair = (question.lstrip(), context) if right else (context, question.lstrip())
    settings = {"truncation": "only_second" if right else "only_first", "max_length": length, "stride": stride}
    stock = tokenizer(*pair, **settings, return_overflowing_tokens=True, return_offsets_mapping=True)
    assert row["input_ids"] == [stock["input_ids"]]

    batch = Collator(encoder, {"qa": AnswerTarget()})(row)
    _, positions = QuestionAnswering().prepare(batch, batch["labels"]["qa"])
    for window, (begin, end) in enumerate(positions.tolist()):
        own = stock.sequence_ids(window)
        places = {at: o for at, o in enumerate(stock["offset_mapping"][window]) if own[at] == int(right)}
        shift = 0 if right else batch["input_ids"].shape[1] - len(own)
        if min(o[0] for o in places.values()) > span[0] or max(o[1] for o in places.values()) < span[1]:
            assert begin == end == stock["input_ids"][window].index(tokenizer.cls_token_id) + shift
            continue
        assert begin - shift == max(at for at, o in places.items() if o[0] <= span[0])
        assert end - shift == min(at for at, o in places.items() if o[1] >= span[1])
        offsets = batch["meta"]["offsets"][window]
        assert (offsets[begin, 0], offsets[end, 1]) == span
    logits = torch.nn.functional.one_hot(positions, batch["input_ids"].shape[1]).transpose(1, 2) * 9.0
    head = QuestionAnswering(no_answer=True, max_answer_length=length)
    output = HeadOutput(logits, {"mask": batch["attention_mask"].bool(), "meta": batch["meta"]})
    whole = bool((positions[:, 0] != batch["meta"]["no_answer"]).any())
    assert head.predict(output)[0]["answer"] == (context[slice(*span)] if whole else "")

    parts = encoder.parts(row)
    assert parts["row"] == [7] * len(positions)
    again = Collator(encoder, {"qa": AnswerTarget()})(parts)
    assert torch.equal(QuestionAnswering().prepare(again, again["labels"]["qa"])[1], positions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 3}, "Invalid max_length: 3 tokens leave no place"),
        ({"max_length": 65}, "at most 64, the limit of this tokenizer"),
        ({"max_length": 20, "stride": 17}, "Invalid stride: 17. Windows of 20 tokens.*from 0 to 16"),
    ],
)
def test_settings_that_do_not_fit_are_told(tokenizer, settings, message):
    with pytest.raises(HeadsetError, match=message):
        QuestionEncoder(tokenizer, **settings)


def test_a_tokenizer_that_does_not_know_characters_is_refused():
    with pytest.raises(HeadsetError, match=r"Use a model whose tokenizer has a tokenizer\.json"):
        QuestionEncoder(ByT5Tokenizer())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["who?"], r"pairs of a question and its context: .*input 0 is 'who\?'"),
        ([("who?", "Ann"), ("who?", " ")], "input 1: column 'context': the text is blank"),
        ([("who?", ["Ann"])], "input 0: column 'context': expected a text, got"),
        ([("w" * 40, "x " * 40)], r"input 0: the question has 40 tokens, which leaves 21 of 64.*smaller data\.stride"),
    ],
)
def test_wrong_questions_are_told_before_any_is_answered(tokenizer, inputs, message):
    with pytest.raises(HeadsetError, match=message):
        QuestionEncoder(tokenizer).columns(inputs)


def test_a_long_question_has_its_answer_where_the_context_is_short(tokenizer):
    assert len(QuestionEncoder(tokenizer).encode([["w" * 40], ["x x"]])["input_ids"][0]) == 1


def test_defaults_of_length_and_stride(tokenizer):
    assert (QuestionEncoder(tokenizer).overlap, QuestionEncoder(tokenizer, 30).overlap) == (32, 15)
    tokenizer.model_max_length = 10**30
    assert (QuestionEncoder(tokenizer).length, QuestionEncoder(tokenizer).overlap) == (512, 128)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("answer", ["the", "naïve", "☃", "東京", "☃ 東京, 12"])
def test_tokenizers_of_bytes_without_special_tokens(side, answer):
    """Spaces belong to words, characters have several tokens, and nothing stands for the whole input."""
    context = "the  film: naïve ☃ 東京, 12"
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<pad>"])
    model.train_from_iterator([context.replace("☃", "")] * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", padding_side=side)
    start = context.index(answer)
    row = encoded(QuestionEncoder(tokenizer, 40, stride=8), "who?", context, (start, start + len(answer)))
    batch = Collator(QuestionEncoder(tokenizer), {"qa": AnswerTarget()})(row)
    _, positions = QuestionAnswering().prepare(batch, batch["labels"]["qa"])
    nothing = batch["input_ids"].gather(1, batch["meta"]["no_answer"].unsqueeze(1))
    assert (nothing == tokenizer("who?")["input_ids"][0]).all()
    logits = torch.nn.functional.one_hot(positions, batch["input_ids"].shape[1]).transpose(1, 2) * 9.0
    output = HeadOutput(logits, {"mask": batch["attention_mask"].bool(), "meta": batch["meta"]})
    assert QuestionAnswering().predict(output)[0]["answer"] == answer
