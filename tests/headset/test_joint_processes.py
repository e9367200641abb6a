"""Two processes equal one with the same rows: where tokens differ in number, labels are missing, and heads are idle."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

RUN = str(Path(__file__).with_name("joint_run.py"))


@pytest.fixture(scope="module")
def still_bert(tmp_path_factory, tiny_bert):
    """The tiny model without dropout, which processes draw apart."""
    folder = tmp_path_factory.mktemp("still")
    model = BertModel.from_pretrained(tiny_bert)
    BertConfig.from_pretrained(
        tiny_bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0
    ).save_pretrained(folder)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


def steps():
    """6 steps of 4 rows, which 2 processes deal out by turns."""
    generator = torch.Generator().manual_seed(1)

    def row(number, topic=True, tags=True, mark=True):
        length = 3 + number % 4
        ids = torch.randint(5, 60, (length,), generator=generator).tolist() + [0] * (7 - length)
        words = 1 + number % 3
        return {
            "ids": ids,
            "topic": number % 2 if topic else None,
            "tags": [(number + place) % 3 if place < words else -100 for place in range(7)] if tags else None,
            "mark": number / 4 if mark else None,
        }

    return [
        [row(number) for number in range(4)],  # all of all
        [row(number, topic=number == 1) for number in range(4)],  # one head in one process alone
        [row(number, tags=number > 0, mark=False) for number in range(4)],  # a head in none, one in parts
        [row(number, topic=False, mark=False) for number in range(4)],  # one head alone
        [row(number, topic=number % 2 == 0, tags=False, mark=number % 2 == 1) for number in range(4)],  # heads apart
        [row(number, tags=number != 2) for number in range(4)],
    ]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run(folder, backbone, world):
    output = folder / f"{world}.pt"
    (folder / "steps.json").write_text(json.dumps(steps()))
    command = [sys.executable, RUN, str(backbone), str(folder / "steps.json"), json.dumps(SETTINGS), str(output)]
    several = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    started = [
        subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | (several | {"LOCAL_RANK": str(rank)} if world > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    told = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0] * world, "\n".join(told)
    return torch.load(output)


SETTINGS = [
    {"loss_weights": {"tags": 0.5}},
    {"loss_weights": "uncertainty"},
    {"loss_weights": "gradnorm"},
    {"detached_heads": ["tags"], "frozen_heads": ["mark"]},
    {"detached_heads": ["tags", "topic", "mark"]},
]


def test_two_processes_train_as_one(tmp_path, still_bert):
    together = zip(SETTINGS, run(tmp_path, still_bert, 1), run(tmp_path, still_bert, 2), strict=True)
    for settings, one, two in together:
        for name, value in one["weights"].items():
            torch.testing.assert_close(two["weights"][name], value, rtol=1e-4, atol=1e-5, msg=f"{settings}: {name}")
        assert one["values"].keys() == two["values"].keys() >= {"val/loss", "val/topic/f1", "val/mark/loss"}
        for name, value in one["values"].items():
            assert two["values"][name] == pytest.approx(value, rel=1e-4), f"{settings}: {name}"
