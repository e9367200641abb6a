"""When each step of a training ended, told by callbacks of Lightning and of transformers' Trainer."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback
from transformers import TrainerCallback

__all__ = ["Clock", "Stamps", "TrainerClock"]


class Stamps:
    """The times of one training, from before its first batch is fetched.

    Attributes:
        began: When the first epoch began.
        ended: When each step ended, and its epoch.
    """

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.began = time.perf_counter()
        self.ended: list[tuple[int, float]] = []

    def step(self, epoch: int) -> None:
        """A step has ended."""
        self.ended.append((epoch, time.perf_counter()))

    def end(self) -> None:
        """The training has ended: where a card works by itself, the last step ends when it has done all."""
        if torch.cuda.is_available() and self.ended:
            torch.cuda.synchronize()
            self.ended[-1] = self.ended[-1][0], time.perf_counter()

    def seconds(self, first_epoch: int = 0) -> float:
        """How long all steps took, with what is between them, from an epoch on."""
        before = [moment for epoch, moment in self.ended if epoch < first_epoch]
        return self.ended[-1][1] - (before[-1] if before else self.began)


class Clock(Callback):
    """Times the steps of Lightning. The last one that was made is ``Clock.last``, with its ``trainer``."""

    last: "Clock"

    def __init__(self) -> None:
        self.stamps = Stamps()
        self.module: Any = None
        Clock.last = self

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Training begins."""
        self.stamps, self.module = Stamps(), pl_module

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        """A step has ended."""
        self.stamps.step(trainer.current_epoch)

    def on_train_end(self, *arguments: Any) -> None:
        """Training ends."""
        self.stamps.end()


class TrainerClock(TrainerCallback):
    """Times the steps of transformers' Trainer."""

    def __init__(self) -> None:
        self.stamps = Stamps()

    def on_train_begin(self, *arguments: Any, **others: Any) -> None:
        """Training begins."""
        self.stamps = Stamps()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """A step has ended."""
        self.stamps.step(int(state.epoch - 1e-6) if state.epoch else 0)

    def on_train_end(self, *arguments: Any, **others: Any) -> None:
        """Training ends."""
        self.stamps.end()
