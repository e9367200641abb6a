"""Rows as views are what `datasets` makes of them, and batches of them what `tokenizer.pad` makes."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer

from headset.choice_encoder import ChoiceEncoder
from headset.columns import Columns, Sizes, plain
from headset.document_encoder import DocumentEncoder
from headset.question_encoder import QuestionEncoder
from headset.text_encoder import TextEncoder


def numbers(draw):
    return draw.integers(-5, 9, draw.integers(0, 4)).tolist()


def many(draw, one, most=3):
    return [one(draw) for _ in range(draw.integers(0, most))]


COLUMNS = {
    "input_ids": numbers,
    "floats": lambda draw: draw.random(draw.integers(0, 3)).tolist(),
    "nested": lambda draw: many(draw, numbers),
    "deep": lambda draw: many(draw, lambda draw: many(draw, lambda draw: draw.integers(0, 9, 2).tolist())),
    "number": lambda draw: int(draw.integers(9)),
    "part": lambda draw: float(draw.random()),
    "perhaps": lambda draw: [None, 3][draw.integers(2)],
    "perhaps_many": lambda draw: [None, numbers(draw)][draw.integers(2)],
    "text": lambda draw: "ü" * int(draw.integers(3)),
    "texts": lambda draw: ["ab"] * int(draw.integers(3)),
    "yes": lambda draw: bool(draw.integers(2)),
}


def table(folder, rows, name):
    """Rows in a file with chunks of three, as `datasets` memory-maps it."""
    path = folder / f"{name}.arrow"
    content = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content, 3)
    return Dataset.from_file(str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@pytest.mark.parametrize("seed", range(4))
def test_values_are_those_of_datasets(folder, seed):
    draw = np.random.default_rng(seed)
    rows = [{name: make(draw) for name, make in COLUMNS.items()} for _ in range(10)]
    whole = table(folder, rows, f"rows{seed}")
    chosen = draw.permutation(10)
    for found in (whole, whole.select(chosen), concatenate_datasets([whole, whole]).select(10 + chosen)):
        columns = Columns(found)
        for asked in draw.integers(0, 10, (5, 6)).tolist():
            values = columns[asked]
            assert {name: list(map(plain, column)) for name, column in values.items()} == found[asked]
            assert all(isinstance(value, np.ndarray) for value in values["input_ids"])


@pytest.mark.parametrize("seed", range(4))
def test_sizes(seed):
    draw = np.random.default_rng(seed)
    deep = [many(draw, lambda draw: many(draw, numbers)) for _ in range(10)]
    nested = [[numbers for part in row for numbers in part] for row in deep]
    flat = [[number for numbers in row for number in numbers] for row in nested]
    several = [(max(map(len, row), default=0), len(row)) for row in nested]
    for depth, (rows, expected) in enumerate(
        [(flat, [(len(row), 1) for row in flat]), (nested, several), (deep, several)]
    ):
        kind = pa.list_(pa.int32())
        for _ in range(depth):
            kind = pa.list_(kind)
        found = Dataset(pa.table({"input_ids": pa.chunked_array([pa.array(rows[:4], kind), pa.array(rows[4:], kind)])}))
        order = draw.permutation(10)
        for start, end in [(0, 10), (2, 7), (5, 5)]:
            for table, numbered in [(found, range(10)), (found.select(order), order)]:
                longest, inputs = Sizes(table)(start, end)
                pairs = list(zip(longest.tolist(), inputs.tolist(), strict=True))
                assert pairs == [expected[numbered[row]] for row in range(start, end)]


TEXTS = ["a good film", "unbelievably long-winded " * 9, "the book was not very good", "x"]
OTHERS = ["so it is", "no", "one two three four five", "y " * 20]
ENCODERS = {
    "text": (lambda tokenizer: TextEncoder(tokenizer, 16), (TEXTS,)),
    "pair": (lambda tokenizer: TextEncoder(tokenizer, 16), (TEXTS, OTHERS)),
    "separate": (lambda tokenizer: TextEncoder(tokenizer, 16, separate=True), (TEXTS, OTHERS)),
    "words": (lambda tokenizer: TextEncoder(tokenizer, 16), ([text.split() for text in TEXTS],)),
    "word_ids": (lambda tokenizer: TextEncoder(tokenizer, 16, word_ids=True), (TEXTS,)),
    "document": (lambda tokenizer: DocumentEncoder(tokenizer, 16, stride=4), (TEXTS, OTHERS)),
    "choices": (lambda tokenizer: ChoiceEncoder(tokenizer, 16), (TEXTS, [OTHERS, OTHERS[:2], OTHERS[1:], OTHERS[:3]])),
    "question": (lambda tokenizer: QuestionEncoder(tokenizer, 32, stride=2), (OTHERS[:3], TEXTS[:3])),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "inputs", [["input_ids", "token_type_ids", "attention_mask"], ["input_ids"]], ids=["all", "ids"]
)
@pytest.mark.parametrize("kind", ENCODERS)
def test_batches_from_the_file_are_those_of_python_lists_padded_by_the_tokenizer(
    tiny_tokenizer, folder, kind, side, inputs, monkeypatch
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer, padding_side=side, model_input_names=inputs)
    tokenizer.pad_token_id, tokenizer._pad_token_type_id = 7, 3
    make, columns = ENCODERS[kind]
    encoder = make(tokenizer)
    encoded = encoder.encode(columns)
    rows = [dict(zip(encoded, values, strict=True)) | {"row": 5} for values in zip(*encoded.values(), strict=True)]
    read = Columns(table(folder, rows, kind))[range(len(rows))]
    batch = encoder.collate([dict(zip(read, values, strict=True)) for values in zip(*read.values(), strict=True)])
    monkeypatch.setattr("headset.text_encoder.PADDING", ())  # so that the tokenizer pads
    expected = encoder.collate(rows)
    assert same(batch, expected)
    if inputs[1:] and kind in ("text", "pair"):
        names = {name: [row[name] for row in rows] for name in inputs if name in rows[0]}
        assert same({name: batch[name] for name in inputs}, dict(tokenizer.pad(names, return_tensors="pt")))


def same(one, other):
    """Whether values are equal, also in type."""
    if isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in other)
    if isinstance(other, list):
        return isinstance(one, list) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other
