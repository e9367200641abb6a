"""SIGTERM and SIGINT: a checkpoint, and an exit code that says so, in all processes of a run; processes that die."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from backbones.errors import HeadsetError

__all__ = ["Interruption", "end_others", "ignore_signals", "is_lost_process", "lost_process"]

# What gloo and NCCL say when another process does not answer any more.
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "NCCL", "gloo")
GRACE = 10.0  # seconds for a process to end by itself, once another one has


class Interruption(Callback):
    """Ends a run that is told to end: SIGTERM with exit code 143, SIGINT with 130.

    In training all processes agree, through what they exchange in each step anyway, and end after the same step of the
    optimizer, or before the next batch of a validation, with a checkpoint. A second SIGINT ends a process at once. The
    signal by which SLURM announces a requeue does what Lightning does then, at such a moment too.

    Where Lightning has started the processes, one that dies ends the others, with exit code 1.
    """

    def __init__(self) -> None:
        self.agreed: set[int] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the place of Lightning's handlers, which save nothing and may wait for each other for ever."""
        self.agreed = set()
        trainer._signal_connector.teardown()
        trainer._signal_connector = Signals(trainer)
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        _watch(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Tell the other processes in the next step."""
        pl_module.joint_loss.flags = _signals(trainer).flags()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the run after a step of the optimizer."""
        signals = _signals(trainer)
        flags = pl_module.joint_loss.flags if trainer.world_size > 1 else signals.flags()
        self.agreed.update(number for number, flag in zip(signals.numbers, flags, strict=True) if flag > 0)
        if self.agreed and not trainer.fit_loop._should_accumulate():
            self._act(trainer, signals)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """End the run in the middle of a validation, which the resumed run begins anew."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        signals = _signals(trainer)
        flags = torch.tensor(signals.flags(), device=pl_module.device)
        if trainer.world_size > 1:
            flags = trainer.strategy.reduce(flags, reduce_op="sum")
        self.agreed.update(number for number, flag in zip(signals.numbers, flags.tolist(), strict=True) if flag > 0)
        if self.agreed:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging) and not trainer.sanity_checking:
                    callback.on_validation_epoch_end(trainer, pl_module)  # the weights that are trained come back
            self._act(trainer, signals)

    def _act(self, trainer: Trainer, signals: "Signals") -> None:
        if signals.requeue is not None and signals.requeue in self.agreed:
            self.agreed.discard(signals.requeue)
            signals.received.discard(signals.requeue)
            signals._slurm_sigusr_handler_fn(signals.requeue, None)  # type: ignore[arg-type]
        if self.agreed:
            _end(trainer, signals, max(self.agreed))


class Signals(_SignalConnector):
    """Notes signals while a run trains, and ends it at once at any other time.

    Args:
        trainer: The trainer, whose connector it replaces.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.received: set[int] = set()
        self.ending = False
        environment = trainer._accelerator_connector.cluster_environment
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        self.requeue = int(environment.requeue_signal or 0) if requeues else None  # type: ignore[attr-defined]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The signals that are noted."""
        return (signal.SIGINT, signal.SIGTERM, *([self.requeue] if self.requeue else []))

    def flags(self) -> list[float]:
        """Of each signal 1 if this process has received it, else 0."""
        return [float(number in self.received) for number in self.numbers]

    def register_signal_handlers(self) -> None:
        """Put the handlers in their place, until ``teardown`` of the trainer."""
        self.received_sigterm = False
        self._original_handlers = {number: signal.getsignal(number) for number in self.numbers}
        for number in self.numbers:
            self._register_signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        again = number in self.received
        self.received.add(number)
        if number == signal.SIGINT and again:
            _kill_others(self.trainer)
            os._exit(128 + number)
        trains = self.trainer.state.fn == TrainerFn.FITTING
        if self.ending or (number == self.requeue and trains):
            return
        if trains:
            if not again and self.trainer.is_global_zero:
                name = signal.Signals(number).name
                os.write(2, f"\n{name}: a checkpoint after this step, and the end. Ctrl-C ends at once.\n".encode())
            return
        self.ending = True
        if self.trainer.strategy.launcher is not None:
            self.trainer.strategy.launcher.kill(number)
        raise SystemExit(128 + number)


def ignore_signals(worker: int) -> None:
    """Have a worker of a data loader ignore signals, which a terminal or a scheduler sends to it too.

    It ends when the process ends that it works for.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end_others(trainer: Trainer) -> None:
    """Wait a while for the processes that this one has started, and kill those that are still there."""
    processes = _started(trainer)
    deadline = time.monotonic() + GRACE
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    _kill_others(trainer)


def is_lost_process(error: RuntimeError) -> bool:
    """Whether an error says that another process does not answer."""
    if not torch.distributed.is_available():
        return False
    running = torch.distributed.is_initialized() and any(word in str(error) for word in LOST)
    return running or isinstance(error, torch.distributed.DistError)


def lost_process(error: RuntimeError) -> HeadsetError:
    """What to say of a process that does not answer."""
    reason = " ".join(str(error).split())[:300]
    return HeadsetError(
        f"Another process of the run has died or hangs, so that this one ends. Its own message tells more, if it had "
        f"one. To go on from the last checkpoint: --ckpt_path. The library says: {reason}"
    )


def _end(trainer: Trainer, signals: Signals, number: int) -> NoReturn:
    """Save, say how to go on, and end."""
    signals.ending = True
    name = signal.Signals(number).name
    path = None if trainer.sanity_checking else _save(trainer)
    if path is None:
        rank_zero_info(f"{name}: the run ends, without a checkpoint: there is no step to save, or no saving.")
    else:
        logs = Path(trainer.log_dir or ".") / "config.yaml"
        config = f"-c {logs} " if logs.exists() else ""
        rank_zero_info(
            f"{name}: the run has ended after step {trainer.global_step}, with a checkpoint. To go on:\n"
            f"  headset fit {config}--ckpt_path {path}"
        )
    raise SystemExit(128 + number)


def _save(trainer: Trainer) -> str | None:
    """Write a checkpoint beside the others, or as the last one, where there is a last one."""
    savers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    if not savers or trainer.global_step == 0 or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    saver = next((each for each in savers if each.save_last), savers[0])
    candidates = saver._monitor_candidates(trainer)
    if saver.save_last is True:
        saver._save_last_checkpoint(trainer, candidates)
        return saver.last_model_path
    path = saver.format_checkpoint_name(candidates, "interrupted-{epoch}-{step}")
    trainer.save_checkpoint(path, weights_only=False)
    if saver.save_last:
        saver._last_checkpoint_saved = path
        saver._save_last_checkpoint(trainer, candidates)
    return path


def _signals(trainer: Trainer) -> Signals:
    connector = trainer._signal_connector
    assert isinstance(connector, Signals)
    return connector


def _started(trainer: Trainer) -> list["subprocess.Popen[bytes]"]:
    """The processes that Lightning has started from this one, each with the command line of this one."""
    started = getattr(trainer.strategy.launcher, "procs", None) or []
    return [process for process in started if isinstance(process, subprocess.Popen)]


def _kill_others(trainer: Trainer) -> None:
    for process in _started(trainer):
        if process.poll() is None:
            process.kill()
            process.wait()


def _watch(trainer: Trainer) -> None:
    """Watch the processes of this machine in a thread, as Lightning does, which kills without a word."""
    processes = _started(trainer)
    if not isinstance(trainer._accelerator_connector.cluster_environment, LightningEnvironment):
        return
    if processes:
        for thread in threading.enumerate():
            if thread.name == "child-process-observer" and getattr(thread, "_child_processes", None):
                thread._child_processes = []  # type: ignore[attr-defined]
                threading.Thread(target=_watch_started, args=(trainer, processes), daemon=True).start()
    elif trainer.local_rank > 0 and os.environ.get("LOCAL_RANK"):
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()


def _watch_started(trainer: Trainer, processes: list[Any]) -> None:
    while True:
        time.sleep(0.5)
        codes = [process.poll() for process in processes]
        if all(code == 0 for code in codes):
            return
        rank, code = next(((rank, code) for rank, code in enumerate(codes, 1) if code), (0, 0))
        if not code:
            continue
        connector: Any = trainer._signal_connector
        ends = getattr(connector, "received", True) or connector.ending
        if code in (128 + signal.SIGTERM, 128 + signal.SIGINT) and not ends:
            os.kill(os.getpid(), code - 128)
        time.sleep(GRACE)  # it ends by itself, unless it waits for the one that is gone
        if code < 0:
            told = f"was killed by {signal.Signals(-code).name}"
        else:
            told = f"has ended with exit code {code}"
        print(f"headset: error: Process {rank} of the run {told}; the others are ended.", file=sys.stderr, flush=True)
        _kill_others(trainer)
        os._exit(code if code in (143, 130) else 1)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(GRACE)
    print("headset: error: The first process of the run is gone; this one ends.", file=sys.stderr, flush=True)
    os._exit(1)


def _nothing() -> None:
    """What Lightning does in each step to tell of SIGTERM."""
