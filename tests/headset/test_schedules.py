"""Schedules against transformers.get_scheduler, step by step."""

import math
import subprocess
import sys

import pytest
import torch
from torch.optim import SGD
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

from backbones import HeadsetError
from headset.schedules import SCHEDULERS, by_metric, check_schedule, make_scheduler, schedule_config

ARGUMENTS = {
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"power": 2.0, "lr_end": 1e-5},
    "inverse_sqrt": {"timescale": 7},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
    "warmup_stable_decay": {"num_decay_steps": 5, "min_lr_ratio": 0.1, "decay_type": "linear"},
    "reduce_lr_on_plateau": {"factor": 0.5, "patience": 0},
    "greedy": {"factor": 0.5, "patience": 0, "min_lr": 1e-6},
}


def optimizer():
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    return torch.optim.AdamW([{"params": weights[:1], "lr": 0.01}, {"params": weights[1:]}], lr=0.1)


def rates(optimizer, schedule, steps, *metric):
    seen = []
    for _ in range(steps):
        optimizer.step()
        seen.append([group["lr"] for group in optimizer.param_groups])
        schedule.step(*metric)
    return seen


def test_the_names_are_those_of_transformers():
    assert set(SCHEDULERS) == {kind.value for kind in SchedulerType}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("warmup", [0.15, 4, 0])
def test_rates_are_those_of_transformers(name, warmup):
    arguments = ARGUMENTS.get(name, {})
    check_schedule(name, warmup, arguments)
    ours, theirs = optimizer(), optimizer()
    config = schedule_config(ours, name, warmup, 23, arguments)["lr_scheduler"]
    rising = math.ceil(0.15 * 23) if warmup == 0.15 else warmup
    reference = get_scheduler(name, theirs, rising, 23, scheduler_specific_kwargs=arguments)
    metric = (1.0,) if by_metric(name) else ()
    expected = rates(theirs, reference, 23, *metric)
    assert rates(ours, config["scheduler"], 23, *metric) == expected
    assert name.startswith("constant") or len({rate for rate, _ in expected}) > 1


def test_schedules_by_a_metric_tell_lightning_which():
    assert schedule_config(optimizer(), "greedy", 0, 9, {})["lr_scheduler"]["monitor"] == "val/loss"
    config = schedule_config(optimizer(), "reduce_lr_on_plateau", 0, 9, {"monitor": "val/mood/f1", "mode": "max"})
    assert config["lr_scheduler"]["monitor"] == "val/mood/f1"
    assert config["lr_scheduler"]["scheduler"].mode == "max"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("liner", {}, "Did you mean 'linear'"),
        ("cosine_with_min_lr", {"min_lr_rat": 0.1}, "Did you mean 'min_lr_rate'"),
        ("cosine_with_min_lr", {}, r"transformers refuses.*min_lr"),
        ("warmup_stable_decay", {}, "num_decay_steps"),
        ("warmup_stable_decay", {"num_decay_steps": 3, "decay_type": "x"}, "Unknown decay type"),
        ("linear", {"power": 2}, "Invalid argument in scheduler_args of linear"),
        ("linear", {"monitor": "val/loss"}, "Invalid argument"),
        ("reduce_lr_on_plateau", {"factor": 2.0}, "Factor"),
        ("greedy", {"monitor": "train/loss"}, "Give a metric of validation"),
        ("polynomial", {"power": "x"}, "transformers refuses"),
    ],
)
def test_wrong_arguments(name, arguments, message):
    with pytest.raises(HeadsetError, match=message):
        check_schedule(name, 0.1, arguments)


def test_an_optimizer_without_a_rate_has_no_schedule():
    from transformers.optimization import Adafactor

    own = Adafactor([torch.nn.Parameter(torch.zeros(2, 2))])
    assert schedule_config(own, "constant", 0.1, 10, {}) == {}
    with pytest.raises(HeadsetError, match=r"Adafactor makes its own.*scheduler: constant"):
        schedule_config(own, "linear", 0.1, 10, {})


def test_linear_is_that_of_transformers_without_its_imports():
    ours, theirs = (SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3) for _ in range(2))
    mine, stock = make_scheduler(ours, "linear", 3, 10), get_scheduler("linear", theirs, 3, 10)
    for _ in range(12):
        assert mine.get_last_lr() == stock.get_last_lr()
        assert mine.state_dict() == stock.state_dict()
        for optimizer, schedule in ((ours, mine), (theirs, stock)):
            optimizer.step()
            schedule.step()


def test_a_run_does_not_import_what_it_does_not_use():
    """Where peft is installed, transformers' schedules import it and bitsandbytes, which takes as long as torch."""
    code = (
        "import sys, torch, headset.cli\n"
        "from headset.schedules import make_scheduler\n"
        "make_scheduler(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 'linear', 0.1, 10)\n"
        "print([name for name in ('peft', 'bitsandbytes', 'onnx', 'sentence_transformers', 'sklearn', 'tensorboard') "
        "if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr
