"""Long texts in parts: every token of them is in one of the examples, as the tokenizer gives them."""

import pytest
from transformers import ByT5Tokenizer

from backbones.errors import HeadsetError
from heads import MaskedLM, SequenceClassification
from headset.batches import make_encoder
from headset.chunk_encoder import ChunkEncoder
from headset.data import TextData

TEXTS = ["the film was not very good, and the book was bad", "a book", "unbelievably bad"]


def flat(encoder, columns):
    encoded = encoder.encode(columns) | {"row": list(range(len(columns[0])))}
    examples = encoder.parts(encoded)
    return [dict(zip(examples, values, strict=True)) for values in zip(*examples.values(), strict=True)]


@pytest.mark.parametrize("kind", ["fast", "slow"])
def test_parts_are_the_whole_text(tokenizer, kind):
    tokenizer = ByT5Tokenizer() if kind == "slow" else tokenizer
    encoder = ChunkEncoder(tokenizer, 7)
    parts = flat(encoder, [TEXTS])
    special = tokenizer.num_special_tokens_to_add()
    for row, text in enumerate(TEXTS):
        own = [part for part in parts if part["row"] == row]
        assert all(len(part["input_ids"]) == 7 for part in own[:-1]) and len(own[-1]["input_ids"]) <= 7
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        bare = [token for part in own for token in part["input_ids"] if token not in tokenizer.all_special_ids]
        assert bare == whole
        assert len(own) == -(-len(whole) // (7 - special))
        for start, part in enumerate(own):
            inner = whole[start * (7 - special) : (start + 1) * (7 - special)]
            assert part["input_ids"] == tokenizer.prepare_for_model(inner)["input_ids"] if kind == "slow" else True
    batch = encoder.collate(parts)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(parts), 7)
    assert batch["meta"]["rows"] == [part["row"] for part in parts]


def test_a_short_text_is_as_the_tokenizer_gives_it(tokenizer):
    [part] = flat(ChunkEncoder(tokenizer, word_ids=True), [TEXTS[:1]])
    wanted = tokenizer(TEXTS[0], return_attention_mask=False)
    assert part == {**wanted, "word_ids": wanted.word_ids(), "row": 0}


def test_pairs_are_cut(tokenizer):
    parts = flat(ChunkEncoder(tokenizer, 9), [TEXTS, TEXTS[::-1]])
    wanted = tokenizer(TEXTS, TEXTS[::-1], truncation=True, max_length=9)
    assert [part["input_ids"] for part in parts] == wanted["input_ids"]


def test_words_need_a_tokenizer_that_knows_them():
    with pytest.raises(HeadsetError, match="ByT5Tokenizer cannot tell which token belongs to which word"):
        make_encoder("text", ByT5Tokenizer(), word_ids=True, in_parts=True).encode([TEXTS])


def test_words_need_a_tokenizer_that_splits_them(tokenizer):
    tokenizer.backend_tokenizer.pre_tokenizer = None
    encoder = make_encoder("text", tokenizer, word_ids=True, in_parts=True)
    with pytest.raises(HeadsetError, match="takes a text for one word"):
        encoder.encode([TEXTS])
    [[part], *_] = encoder.encode([[text.split() for text in TEXTS]])["parts"]
    assert part["word_ids"][:3] == [None, 0, 1]


def test_texts_are_learnt_and_measured_in_parts_and_predicted_cut(tmp_path, tokenizer, capsys):
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(f'{{"text": "{text}"}}' for text in TEXTS))
    sources = dict.fromkeys(("train", "validation", "test", "predict"), str(file))
    data = TextData(**sources, max_length=7, batch_size=2)
    data.connect(tokenizer, {"words": MaskedLM(whole_words=True)}, {})
    for stage, split in (("fit", "train"), ("fit", "validation"), ("test", "test"), ("predict", "predict")):
        data.setup(stage)
        rows = data.examples(split)["row"][:]
        assert (len(rows) > 3 and set(rows) == {0, 1, 2}) if split != "predict" else rows == [0, 1, 2]
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"] == {} and (batch["meta"]["word_ids"] >= 0).any()
    assert "word_ids" not in next(iter(data.predict_dataloader()))["meta"]

    file.write_text("\n".join(f'{{"text": "{text}", "label": "{len(text)}"}}' for text in TEXTS))
    data = TextData(train=str(file), max_length=7)
    data.connect(tokenizer, {"words": MaskedLM(), "size": SequenceClassification()}, {})
    data.setup("fit")
    assert data.examples("train")["row"][:] == [0, 1, 2]


def test_validation_is_a_share_of_rows_and_not_of_parts(tmp_path, tokenizer):
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(f'{{"text": "{text} {number}"}}' for number in range(10) for text in TEXTS))
    data = TextData(train=str(file), validation=0.2, max_length=7)
    data.connect(tokenizer, {"words": MaskedLM()}, {})
    data.setup("fit")
    rows = [set(data.examples(split)["row"][:]) for split in ("train", "validation")]
    assert not rows[0] & rows[1] and len(rows[0]) == 24 and len(rows[1]) == 6
