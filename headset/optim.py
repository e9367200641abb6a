"""The optimizer of a run, and what of its settings a resumed run goes on with."""

import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from backbones.errors import HeadsetError

__all__ = ["LIBRARIES", "Resumed", "make_optimizer", "optimizer_spec", "resumed"]

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]
# The settings that the state of the optimizer and of its schedule were made with.
KEPT = (
    "learning_rate",
    "weight_decay",
    "head_learning_rate",
    "layer_decay",
    "parameter_groups",
    "scheduler",
    "scheduler_args",
)
# Libraries whose optimizers are made where only a checkpoint names them.
LIBRARIES = ("torch.optim", "transformers.optimization")


def make_optimizer(
    groups: list[dict[str, Any]],
    optimizer: MakeOptimizer | dict[str, Any] | None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    fused: bool = False,
) -> Optimizer:
    """The optimizer of a run: AdamW, unless another is given with settings of its own.

    Args:
        groups: What `parameter_groups` gives.
        optimizer: Takes parameter groups and gives an optimizer; or what `optimizer_spec` wrote.
        learning_rate: Of AdamW; 5e-5 if not given.
        weight_decay: Of AdamW; 0.01 if not given.
        fused: Whether AdamW updates all weights in one kernel, as transformers' Trainer has it.

    Raises:
        HeadsetError: Nothing is trainable, the optimizer refuses the groups or has no learning rate for them, or an
            optimizer from a file is of no library that is known.
    """
    if not groups:
        raise HeadsetError("Nothing to train: the backbone is frozen, and no head has parameters.")
    scales = [group["scale"] for group in groups]
    own = any("lr" in group or group["scale"] != 1 for group in groups)
    groups = [{key: value for key, value in group.items() if key != "scale"} for group in groups]
    if optimizer is None:
        rate = 5e-5 if learning_rate is None else learning_rate
        decay = 0.01 if weight_decay is None else weight_decay
        made: Optimizer = AdamW(groups, lr=rate, weight_decay=decay, fused=fused or None)
    else:
        make = _from_spec(optimizer) if isinstance(optimizer, dict) else optimizer
        try:
            made = make(groups)
        except (TypeError, ValueError) as error:
            raise HeadsetError(f"The optimizer cannot be made: {' '.join(str(error).split())}") from error
    if own and made.defaults.get("lr") is None:
        raise HeadsetError(
            f"{type(made).__name__} makes its own learning rates here, so layer_decay, head_learning_rate and the "
            "learning rates in parameter_groups would do nothing. Give it one: model.optimizer.init_args.lr (for "
            "Adafactor with relative_step: false)."
        )
    for group, scale in zip(made.param_groups, scales, strict=True):
        if scale != 1:
            group["lr"] = group["lr"] * scale
    return made


def optimizer_spec(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer as plain values: ``{"class_path": ..., "init_args": {...}}``."""
    kind = type(optimizer)
    library = "torch.optim" if getattr(torch.optim, kind.__name__, None) is kind else kind.__module__
    plain = {name: value for name, value in optimizer.defaults.items() if _is_plain(value)}
    for generated in ("differentiable", "decoupled_weight_decay"):
        plain.pop(generated, None)
    return {"class_path": f"{library}.{kind.__name__}", "init_args": plain}


@dataclass(frozen=True)
class Resumed:
    """What the optimizer in a checkpoint was.

    Args:
        optimizer: Its spec; None for the default one.
        sizes: The number of parameters in each of its groups.
    """

    optimizer: dict[str, Any] | None
    sizes: list[int]

    def check(self, optimizer: Optimizer) -> None:
        """Check that another one can take over its state.

        Raises:
            HeadsetError: It is of another class, or trains other parameters.
        """
        there = self.optimizer or {"class_path": "torch.optim.AdamW", "init_args": {}}
        here = optimizer_spec(optimizer)
        if here["class_path"] != there["class_path"]:
            raise HeadsetError(
                f"The run in the checkpoint was trained with {there['class_path']}, and cannot go on with "
                f"{here['class_path']}: its state is of no use to that. Leave model.optimizer as it was."
            )
        if [len(group["params"]) for group in optimizer.param_groups] != self.sizes:
            raise HeadsetError(
                "What trains here is not what trained in the run of the checkpoint, so that the state of its optimizer "
                "does not fit. Leave freezing as it was (backbone.freeze, frozen heads)."
            )
        for name, value in there["init_args"].items():
            if name in here["init_args"] and _listed(here["init_args"][name]) != _listed(value):
                _warn_kept(f"optimizer.init_args.{name}", here["init_args"][name], value)


def resumed(settings: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> tuple[Resumed, dict[str, Any]]:
    """What a run goes on with.

    Args:
        settings: Those of the run; warns of those that cannot take effect.
        checkpoint: Where it goes on from.

    Returns:
        The optimizer in the checkpoint, and the settings that it was made with.
    """
    stored = checkpoint["hyper_parameters"]
    kept = {name: stored[name] for name in KEPT if name in stored}
    for name, value in kept.items():
        if settings[name] != value:
            _warn_kept(name, settings[name], value)
    sizes = [len(group["params"]) for group in checkpoint["optimizer_states"][0]["param_groups"]]
    return Resumed(stored["optimizer"], sizes), kept


def _warn_kept(name: str, here: Any, there: Any) -> None:
    before, now = ("its default" if value is None else value for value in (there, here))
    warnings.warn(
        f"model.{name}: {now} has no effect: the run goes on with the state of the checkpoint, made with {before}.",
        stacklevel=2,
    )


def _from_spec(spec: Mapping[str, Any]) -> MakeOptimizer:
    library, _, name = spec["class_path"].rpartition(".")
    kind = getattr(importlib.import_module(library), name, None) if library in LIBRARIES else None
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise HeadsetError(
            f"The run was trained with {spec['class_path']}, which is not imported from a file. "
            "To go on training, name it again: --model.optimizer CLASS"
        )
    return lambda groups: kind(groups, **spec["init_args"])


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, bool | int | float | str | None)
