"""Trees out of CoNLL-U files and columns of lists, and what is said of those that are none."""

import json

import pytest
import torch

from backbones import HeadsetError
from heads import DependencyParsing
from headset import TextData

SENTENCES = """\
# sent_id = 1
# text = They don't sleep
1\tThey\t_\tPRON\t_\t_\t4\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\t_\tAUX\t_\t_\t4\taux\t_\t_
3\tn't\t_\tPART\t_\t_\t4\tadvmod\t_\t_
4\tsleep\t_\tVERB\t_\t_\t0\troot\t_\t_
4.1\tsleep\t_\tVERB\t_\t_\t_\t_\t_\t_

# sent_id = 2
1\tRun\t_\tVERB\t_\t_\t0\troot\t_\t_
2\t!\t_\tPUNCT\t_\t_\t1\tpunct\t_\t_
"""
ROWS = [
    {"form": ["They", "do", "n't", "sleep"], "head": [4, 4, 4, 0], "deprel": ["nsubj", "aux", "advmod", "root"]},
    {"form": ["Run", "!"], "head": [0, 1], "deprel": ["root", "punct"]},
]
COLUMNS = {"tree": ["head", "deprel"]}


def batch_of(data, tokenizer):
    data.connect(tokenizer, {"tree": DependencyParsing()}, {})
    data.setup("fit")
    data.setup("test")
    return next(iter(data.test_dataloader())), data.label_sets["tree"]


def test_a_file_and_columns_of_lists_give_the_same(make_file, tokenizer):
    place, other = make_file(".conllu", SENTENCES), make_file(".jsonl", ROWS)
    batches = [
        batch_of(TextData(train=source, test=source, text="form", labels=COLUMNS), tokenizer)
        for source in (place, other)
    ]
    labels = batches[0][1]
    assert labels == batches[1][1] == ("advmod", "aux", "nsubj", "punct", "root")
    targets = [batch["labels"]["tree"] for batch, _ in batches]
    assert torch.equal(*targets)
    words = [[(head, labels[name]) for head, name in row.tolist() if head >= 0] for row in targets[0]]
    assert words == [list(zip(row["head"], row["deprel"], strict=True)) for row in ROWS]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1\tRun\t_\tVERB\t_\t_\t0", "1\tRun\t_\tVERB\t_\t_\t2", "line 11: .*in a circle: 1 <- 2"),
        ("2\t!\t_\tPUNCT\t_\t_\t1", "2\t!\t_\tPUNCT\t_\t_\t5", "line 11: .*word 2: expected the number of its head"),
        ("0\troot\t_\t_\n2\t!", "_\troot\t_\t_\n2\t!", "line 11: .*word 1: .*got '_'"),
    ],
)
def test_what_is_no_tree_is_said_with_file_and_line(make_file, tokenizer, old, new, message):
    source = make_file(".conllu", SENTENCES.replace(old, new))
    with pytest.raises(HeadsetError, match=rf"train: {source}, {message}"):
        batch_of(TextData(train=source, test=source, text="form", labels=COLUMNS), tokenizer)


@pytest.mark.parametrize("columns", ["head", ["head", "deprel", "upos"]])
def test_two_columns_are_needed(make_file, tokenizer, columns):
    source = make_file(".conllu", SENTENCES)
    with pytest.raises(HeadsetError, match=r"takes two columns.*Give \{tree: \[head, deprel\]\}"):
        batch_of(TextData(train=source, test=source, text="form", labels={"tree": columns}), tokenizer)


@pytest.fixture
def make_file(tmp_path):
    def write(suffix, content):
        path = tmp_path / f"trees{suffix}"
        lines = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(lines, encoding="utf-8")
        return str(path)

    return write
