"""Gradual unfreezing: first the heads train, then the backbone too, from its top layer downwards."""

import warnings
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer

from backbones.backbone import Backbone
from backbones.errors import HeadsetError, invalid_choice
from backbones.freezing import parameter_depths, transformer_layers

__all__ = ["GradualUnfreezing"]


class GradualUnfreezing(Callback):
    """Freezes the backbone, and lets its layers train one after the other, the top one first.

    Howard & Ruder 2018, "Universal Language Model Fine-tuning" (ULMFiT), section 3.3.

    What is frozen in a step depends on the number of that step or epoch and on nothing else, so a run may be killed and
    resumed at any step, and all processes agree. Every parameter is in the optimizer from the start; while it is
    frozen it has no gradient, so that neither weight decay nor momentum moves it. Under strategies of several processes
    gradients are computed and dropped: DistributedDataParallel waits for those that were trainable when it started.

    Frozen layers under a layer that trains keep their dropout, as with ``backbone.freeze``. A backbone of which nothing
    trains is in eval mode. What ``backbone.freeze`` froze stays frozen.

    Args:
        start: When the top layer begins to train, and what is behind the layers, such as a pooler; by default after
            ``every``. Until then the heads train alone.
        every: After how many steps or epochs each next layer follows, and after the lowest one the embeddings; 1 if not
            given.
        schedule: Instead of both: from when on how many of the top layers train: ``{0: 0, 1: 2, 3: all}``. ``all`` has
            the embeddings too.
        unit: What is counted: ``epoch``, or ``step`` (of the optimizer).

    Raises:
        HeadsetError: A number is out of its range, or there are two schedules.

    Example:
        >>> GradualUnfreezing(start=1, every=2).trained_layers(4, 6)  # of 6 layers in epoch 4, counted from 0
        2
        >>> GradualUnfreezing(schedule={0: 1, 100: "all"}, unit="step").trained_layers(100, 6)
        7
    """

    def __init__(
        self,
        start: int | None = None,
        every: int | None = None,
        schedule: dict[int, int | str] | None = None,
        unit: str = "epoch",
    ) -> None:
        if unit not in ("epoch", "step"):
            raise invalid_choice("unit", unit, ["epoch", "step"])
        if schedule is not None and not (start is None and every is None):
            raise HeadsetError("Give GradualUnfreezing either a schedule, or start and every.")
        self.every = 1 if every is None else every
        self.start = self.every if start is None else start
        self.schedule = None if schedule is None else dict(sorted(schedule.items()))
        self.unit = unit
        if self.every < 1 or self.start < 0:
            raise HeadsetError(f"Invalid start or every: {self.start}, {self.every}. Give at least 0, and at least 1.")
        for since, layers in (self.schedule or {}).items():
            if since < 0 or not (layers == "all" or (isinstance(layers, int) and layers >= 0)):
                raise HeadsetError(
                    f"Invalid schedule: {{{since}: {layers}}}. Give the {unit} from which on, counted from 0, and the "
                    "number of top layers that train, or all."
                )
        self._layers = 0
        self._depths: list[tuple[nn.Parameter, int]] = []

    def trained_layers(self, position: int, layers: int) -> int:
        """How many layers train, from the top; the embeddings count as one more.

        Args:
            position: The number of the epoch or step, from 0.
            layers: How many layers the backbone has.
        """
        if self.schedule is None:
            return max(0, min(layers + 1, (position - self.start) // self.every + 1))
        trained: int | str = 0
        for since, number in self.schedule.items():
            trained = number if since <= position else trained
        return layers + 1 if trained == "all" else int(trained)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers.

        Raises:
            HeadsetError: The backbone has no such layers, fewer than the schedule names, or is frozen anyway; or no
                head has parameters to train alone.
        """
        model = _backbone(pl_module).model
        count = len(transformer_layers(model))
        wanted = max((number for number in (self.schedule or {}).values() if isinstance(number, int)), default=0)
        if wanted > count:
            raise HeadsetError(f"The schedule has {wanted} layers train: {type(model).__name__} has {count}. Give all.")
        depths = parameter_depths(model)
        self._depths = [(each, depths[name]) for name, each in model.named_parameters() if each.requires_grad]
        if not self._depths:
            raise HeadsetError("GradualUnfreezing has nothing to unfreeze: backbone.freeze keeps the whole backbone.")
        own = {id(parameter) for parameter in model.parameters()}
        heads = any(each.requires_grad and id(each) not in own for each in pl_module.parameters())
        if not heads and self.trained_layers(0, count) == 0:
            raise HeadsetError("No head has parameters to train alone. Let a layer train from the start: start: 0.")
        self._layers = count
        rank_zero_info(f"backbone: frozen at first; of its {count} layers train {self._plan(count)}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Freeze what does not train in this step."""
        lowest = self._lowest(trainer)
        if isinstance(trainer.strategy, SingleDeviceStrategy):
            for parameter, depth in self._depths:
                parameter.requires_grad_(depth >= lowest)
        _backbone(pl_module).train(any(depth >= lowest for _, depth in self._depths))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drop gradients of what does not train in this step, before they are clipped."""
        lowest = self._lowest(trainer)
        for parameter, depth in self._depths:
            if depth < lowest:
                parameter.grad = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave everything trainable, for another run."""
        for parameter, _ in self._depths:
            parameter.requires_grad_(True)
        self._depths = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As after a run."""
        self.on_fit_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The settings, so that a run that goes on without this callback, or with another schedule, is warned."""
        return {"start": self.start, "every": self.every, "schedule": self.schedule, "unit": self.unit}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Warn of another schedule than before."""
        if dict(state_dict) != self.state_dict():
            warnings.warn(
                f"GradualUnfreezing goes on with {self.state_dict()}; the checkpoint's run had {dict(state_dict)}.",
                stacklevel=2,
            )

    def _lowest(self, trainer: Trainer) -> int:
        """From which depth on parameters train, as `parameter_depths` counts."""
        position = trainer.current_epoch if self.unit == "epoch" else trainer.global_step
        layers = self.trained_layers(position, self._layers)
        return self._layers + 2 if layers == 0 else self._layers + 1 - layers

    def _plan(self, count: int) -> str:
        if self.schedule is None:
            last = self.start + count * self.every
            return f"one from {self.unit} {self.start} on, and all, with the embeddings, from {self.unit} {last}"
        return ", ".join(f"{layers} from {self.unit} {since} on" for since, layers in self.schedule.items())


def _backbone(module: LightningModule) -> Backbone:
    return next(part for part in module.modules() if isinstance(part, Backbone))
