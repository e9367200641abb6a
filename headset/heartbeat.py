"""A host that is cut off ends the run: processes tell each other that they are there."""

import atexit
import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

__all__ = ["Heartbeat"]

EVERY = 5.0  # seconds between two beats
PATIENCE = float(os.environ.get("HEADSET_PATIENCE", 60))  # seconds without one


class Heartbeat(Callback):
    """Ends this process with an error when another one has not been heard of for a minute.

    When a cable is cut nothing is sent to say so: a process that waits for the gradients of others waits until the
    timeout of its process group, which has to be long, since others may be busy with writing a checkpoint. So each
    process counts on, in a thread of its own, in the store that they have in common, and looks whether the others do.
    A process that dies closes its connections, which the others notice at once.

    The environment variable ``HEADSET_PATIENCE`` gives another number of seconds.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._heard = 0.0  # when the store last answered
        self._stop: Callable[[], None] = self._over.set

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin, where there are several processes."""
        if trainer.world_size == 1 or not distributed.is_initialized():
            return
        self._over = threading.Event()
        self._heard = time.monotonic()
        store = distributed.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        keys = [f"headset/beat/{rank}" for rank in range(trainer.world_size)]
        store.set(keys[trainer.global_rank], str(time.monotonic_ns()))
        trainer.strategy.barrier()
        arguments = (self._over, store, keys, trainer.global_rank)
        beat = threading.Thread(target=self._beat, args=arguments, daemon=True)
        beat.start()
        self._stop = functools.partial(_stop, self._over, beat)
        atexit.register(self._stop)
        threading.Thread(target=self._watch, args=(self._over,), daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End."""
        self._stop()

    def _beat(self, over: threading.Event, store: Any, keys: list[str], rank: int) -> None:
        """Count on, and look whether the others do."""
        values = [b""] * len(keys)
        since = [time.monotonic()] * len(keys)
        try:
            while not over.wait(min(EVERY, PATIENCE / 4)):
                store.set(keys[rank], str(time.monotonic_ns()))
                found = store.multi_get(keys)
                self._heard = now = time.monotonic()
                for other, value in enumerate(found):
                    if value != values[other]:
                        values[other], since[other] = value, now
                    elif value != b"over" and now - since[other] > PATIENCE:
                        _end(f"process {other} has not been heard of for {PATIENCE:.0f} s")
            store.set(keys[rank], "over")
        except RuntimeError:
            over.set()  # the store is gone, and with it the process that had it: whoever waits for that one notices

    def _watch(self, over: threading.Event) -> None:
        """See to it that the other thread does not wait for ever."""
        while not over.wait(1.0):
            if time.monotonic() - self._heard > PATIENCE + EVERY:
                _end(f"the host of process 0 has not been heard of for {PATIENCE:.0f} s")


def _stop(over: threading.Event, beat: threading.Thread) -> None:
    """End a thread, which must not be in the store when the interpreter goes."""
    over.set()
    beat.join(timeout=EVERY)


def _end(reason: str) -> None:
    """End this process; its main thread may wait in a place that no exception reaches."""
    print(f"headset: error: {reason}. Is a host down, or the network? Checkpoints are as they were.", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
