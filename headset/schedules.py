"""Learning rate schedules: those of transformers, by its names and with its arguments."""

import functools
import inspect
import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from backbones.errors import HeadsetError, invalid_choice

__all__ = ["SCHEDULERS", "by_metric", "check_schedule", "make_scheduler", "schedule_config"]

# Those of transformers' SchedulerType, which is imported late: it imports bitsandbytes where that is installed, and
# configurations would know two AdamWs.
SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
)
BY_METRIC = ("reduce_lr_on_plateau", "greedy")
NOT_SETTINGS = ("self", "optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")


def check_schedule(name: str, warmup: float, arguments: Mapping[str, Any]) -> None:
    """Check the settings of a schedule before anything is loaded.

    Args:
        name: Of the schedule.
        warmup: A share of the run, or a number of steps.
        arguments: Its own ones; for schedules that go by a metric also ``monitor``.

    Raises:
        HeadsetError: There is no such schedule in transformers, it has no such argument, or it refuses a value.
    """
    if name not in SCHEDULERS:
        raise invalid_choice("scheduler", name, SCHEDULERS)
    if warmup < 0 or (warmup > 1 and warmup != int(warmup)):
        raise HeadsetError(f"Invalid warmup: {warmup}. Give a share of the run (0.1) or a number of steps (500).")
    if not arguments and name in SCHEDULERS[:7]:
        return
    known = _argument_names(name)
    for argument in arguments:
        if argument not in known:
            raise invalid_choice(f"argument in scheduler_args of {name}", argument, known)
    if by_metric(name) and not str(arguments.get("monitor", "val/loss")).startswith("val/"):
        raise HeadsetError(
            f"Invalid monitor in scheduler_args of {name}: {arguments['monitor']!r}. Give a metric of validation, "
            "such as val/loss."
        )
    try:
        # What a schedule thinks of a value it may say only when it is asked for a rate.
        optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        schedule = make_scheduler(optimizer, name, min(warmup, 50), 100, arguments)
        optimizer.step()
        for _ in range(0 if by_metric(name) else 100):
            schedule.step()
    except (TypeError, ValueError) as error:
        reasons = " ".join(str(error).split())
        raise HeadsetError(
            f"transformers refuses scheduler_args {dict(arguments)} for scheduler {name}: {reasons}. "
            f"It takes: {', '.join(known)}."
        ) from error


def by_metric(name: str) -> bool:
    """Whether a schedule goes by a metric after each validation, and not by steps."""
    return name in BY_METRIC


def make_scheduler(
    optimizer: Optimizer, name: str, warmup: float, steps: float, arguments: Mapping[str, Any] | None = None
) -> Any:
    """A learning rate schedule of transformers.

    Args:
        optimizer: Whose rates it sets.
        name: As transformers names it: ``linear``, ``cosine``, ``constant``, ...
        warmup: A share of all steps, up to 1, rounded up as Trainer does; or a number of steps.
        steps: The number of optimizer steps of the run.
        arguments: Of the schedule itself.

    Raises:
        HeadsetError: The run has no end, so that neither has the schedule.
    """
    if math.isinf(steps) or steps < 0:  # Lightning's -1 is that of a stream
        if name != "constant" and not by_metric(name):
            raise HeadsetError(
                "The schedule needs the length of the run: set trainer.max_steps, or trainer.max_epochs if the rows "
                "are no stream; or model.scheduler: constant."
            )
        warmup, steps = 0, 0
    rising = math.ceil(warmup * steps) if warmup <= 1 else int(warmup)
    if name == "linear" and not arguments:
        return LambdaLR(optimizer, functools.partial(_linear, rising=rising, steps=int(steps)))
    own = {key: value for key, value in (arguments or {}).items() if key != "monitor"}
    from transformers import get_scheduler

    return get_scheduler(name, optimizer, rising, int(steps), scheduler_specific_kwargs=own)


def schedule_config(
    optimizer: Optimizer, name: str, warmup: float, steps: float, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """What Lightning wants to know of a schedule; empty where the rates stay, as the optimizer makes its own.

    Raises:
        HeadsetError: As `make_scheduler`, or the optimizer has no learning rate that a schedule could change.
    """
    if optimizer.defaults.get("lr") is None:
        if name == "constant":
            return {}
        raise HeadsetError(
            f"{type(optimizer).__name__} makes its own learning rates here, which the scheduler {name} cannot change. "
            "Set model.scheduler: constant; or give model.optimizer a learning rate (for Adafactor: init_args: "
            "{lr: 1.0e-4, relative_step: false, scale_parameter: false})."
        )
    config = {"scheduler": make_scheduler(optimizer, name, warmup, steps, arguments), "interval": "step"}
    if by_metric(name):
        # Lightning saves and restores it, and never steps it: MetricSchedules does.
        config |= {"interval": "epoch", "frequency": sys.maxsize, "reduce_on_plateau": True}
        config["monitor"] = arguments.get("monitor", "val/loss")
    return {"lr_scheduler": config}


def _linear(step: int, rising: int, steps: int) -> float:
    """The schedule that is the default, here once more: with those of transformers it imports peft and bitsandbytes.

    That takes as long as torch does, where they are installed.
    """
    if step < rising:
        return step / max(1, rising)
    return max(0.0, (steps - step) / max(1, steps - rising))


def _argument_names(name: str) -> list[str]:
    """The arguments that a schedule takes beside those that the run gives it."""
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR
    from transformers.trainer_utils import SchedulerType

    classes: dict[str, Any] = {"reduce_lr_on_plateau": torch.optim.lr_scheduler.ReduceLROnPlateau, "greedy": GreedyLR}
    make = classes.get(name, TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)])
    names = [key for key in inspect.signature(make).parameters if key not in NOT_SETTINGS]
    return ["monitor", *names] if by_metric(name) else names
