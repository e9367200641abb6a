"""What callbacks and schedules monitor: checked before training, and told to the schedules that go by it."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn

from backbones.errors import HeadsetError, invalid_choice

__all__ = ["MetricSchedules", "MonitorCheck"]


class MonitorCheck(Callback):
    """Tells of a ``monitor`` that names no metric: of early stopping, of checkpoints, and of schedules.

    Metrics of validation are known after the first batches of it, which Lightning runs before training.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have early stopping look at metrics of validation after validation, not at the end of an epoch.

        There is none in an epoch that the last step of a run (``max_steps``) cuts short.
        """
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.monitor.startswith("val/"):
                callback._check_on_train_epoch_end = False

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the metrics that validation has.

        Raises:
            HeadsetError: One is not among them.
        """
        known = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
        for monitor in _monitors(trainer):
            if known and monitor.startswith("val") and monitor not in known:
                raise invalid_choice("monitor", monitor, known)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse metrics of validation where there is none: stopping would never come.

        Raises:
            HeadsetError: There is no validation.
        """
        if sum(trainer.num_val_batches) == 0:
            for monitor in _monitors(trainer):
                if monitor.startswith("val"):
                    raise HeadsetError(
                        f"monitor: {monitor} is a metric of validation, and this run has none: set data.validation."
                    )


class MetricSchedules(Callback):
    """Steps the schedules that go by a metric after each validation, and before a checkpoint is saved.

    Lightning does it at the end of an epoch, after the checkpoint, and leaves it out in the epoch that a resumed run
    starts in.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell them the metric."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            for config in trainer.lr_scheduler_configs:
                if config.reduce_on_plateau and config.monitor is not None:
                    scheduler: Any = config.scheduler
                    scheduler.step(float(trainer.callback_metrics[config.monitor]))


def _monitors(trainer: Trainer) -> Iterator[str]:
    places = [*trainer.callbacks, *trainer.lr_scheduler_configs]  # type: ignore[attr-defined]
    return (place.monitor for place in places if isinstance(getattr(place, "monitor", None), str))
