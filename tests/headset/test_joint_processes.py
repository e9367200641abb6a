"""Two processes equal one with the same rows: where tokens differ in number, labels are missing, and heads are idle."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RUN = str(Path(__file__).with_name("joint_run.py"))


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


def run(folder, backbone, world, strategy="auto"):
    output = folder / f"{strategy}{world}.pt"
    (folder / "steps.json").write_text(json.dumps(steps()))
    settings = json.dumps(settings_for(strategy))
    command = [sys.executable, RUN, str(backbone), str(folder / "steps.json"), settings, str(output)]
    several = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    started = [
        subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "STRATEGY": strategy}
            | (several | {"LOCAL_RANK": str(rank)} if world > 1 else {}),
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
    {"backbone": {"freeze": 1}, "layer_decay": 0.5, "trainer": {"gradient_clip_val": 0.1}},
    {
        "backbone": {"lora": {"r": 2, "target_modules": ["query"]}},
        "loss_weights": "uncertainty",
        "trainer": {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2},
    },
    {"backbone": {"freeze": "all"}, "trainer": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}},
]


def settings_for(strategy):
    return [one for one in SETTINGS if not (strategy == "fsdp2" and one.get("loss_weights") == "gradnorm")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, still_bert):
    """What one process comes to with each of the settings."""
    return run(tmp_path_factory.mktemp("alone"), still_bert, 1)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(tmp_path, still_bert, alone, strategy):
    expected = [one for settings, one in zip(SETTINGS, alone, strict=True) if settings in settings_for(strategy)]
    found = run(tmp_path, still_bert, 2, strategy)
    for settings, one, two in zip(settings_for(strategy), expected, found, strict=True):
        for name, value in one["weights"].items():
            torch.testing.assert_close(two["weights"][name], value, rtol=1e-4, atol=1e-5, msg=f"{settings}: {name}")
        assert one["values"].keys() == two["values"].keys() >= {"val/loss", "val/topic/f1", "val/mark/loss"}
        for name, value in one["values"].items():
            assert two["values"][name] == pytest.approx(value, rel=1e-4), f"{settings}: {name}"
