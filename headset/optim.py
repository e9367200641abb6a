"""Optimizers and learning rate schedules of a run."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from backbones.errors import HeadsetError, invalid_choice

__all__ = ["check_schedule", "make_optimizer", "make_scheduler", "optimizer_spec", "parameter_groups"]

# Those of transformers that need no settings of their own and go by steps, not by a metric.
SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
MakeOptimizer = Callable[[Iterable[Any]], Optimizer]


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices, which decay, and biases and norms, which do not (BERT, RoBERTa)."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trainable if parameter.dim() >= 2]},
        {"params": [parameter for parameter in trainable if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    module: nn.Module,
    optimizer: MakeOptimizer | dict[str, Any] | None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
) -> Optimizer:
    """The optimizer of a run: AdamW, unless another is given with settings of its own.

    Args:
        module: Its trainable parameters are optimized.
        optimizer: Takes parameter groups and gives an optimizer; or what `optimizer_spec` wrote.
        learning_rate: Of AdamW; 5e-5 if not given.
        weight_decay: Of AdamW; 0.01 if not given.

    Raises:
        HeadsetError: Nothing is trainable, or an optimizer from a file is not one of torch.
    """
    groups = parameter_groups(module)
    if not groups:
        raise HeadsetError("Nothing to train: the backbone is frozen, and no head has parameters.")
    if optimizer is None:
        rate = 5e-5 if learning_rate is None else learning_rate
        return AdamW(groups, lr=rate, weight_decay=0.01 if weight_decay is None else weight_decay)
    if not isinstance(optimizer, dict):
        return optimizer(groups)
    library, _, name = optimizer["class_path"].rpartition(".")
    kind = getattr(torch.optim, name, None)
    if library != "torch.optim" or kind is None:
        raise HeadsetError(
            f"The run was trained with {optimizer['class_path']}, which is not imported from a file. "
            "To go on training, name it again: --model.optimizer CLASS"
        )
    made: Optimizer = kind(groups, **optimizer["init_args"])
    return made


def optimizer_spec(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer as plain values: ``{"class_path": ..., "init_args": {...}}``."""
    kind = type(optimizer)
    library = "torch.optim" if getattr(torch.optim, kind.__name__, None) is kind else kind.__module__
    plain = {name: value for name, value in optimizer.defaults.items() if _is_plain(value)}
    for generated in ("differentiable", "decoupled_weight_decay"):
        plain.pop(generated, None)
    return {"class_path": f"{library}.{kind.__name__}", "init_args": plain}


def check_schedule(name: str, warmup: float) -> None:
    """Check the settings of a schedule before anything is loaded.

    Raises:
        HeadsetError: There is no such schedule in transformers, or the warm-up is not a share or a number of steps.
    """
    if name not in SCHEDULERS:
        raise invalid_choice("scheduler", name, SCHEDULERS)
    if warmup < 0 or (warmup > 1 and warmup != int(warmup)):
        raise HeadsetError(f"Invalid warmup: {warmup}. Give a share of the run (0.1) or a number of steps (500).")


def make_scheduler(optimizer: Optimizer, name: str, warmup: float, steps: float) -> LRScheduler:
    """A learning rate schedule of transformers.

    Args:
        optimizer: Whose rates it sets.
        name: As transformers names it: ``linear``, ``cosine``, ``constant``, ...
        warmup: A share of all steps, up to 1; or a number of steps.
        steps: The number of optimizer steps of the run.

    Raises:
        HeadsetError: The run has no end, so that neither has the schedule.
    """
    if math.isinf(steps):
        raise HeadsetError("The schedule needs the length of the run: set trainer.max_epochs or trainer.max_steps.")
    rising = round(warmup * steps) if warmup <= 1 else int(warmup)
    # Imported here: it imports bitsandbytes where that is installed, and configurations would know two AdamWs.
    from transformers import get_scheduler

    schedule: LRScheduler = get_scheduler(name, optimizer, num_warmup_steps=rising, num_training_steps=int(steps))
    return schedule


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, bool | int | float | str | None)
