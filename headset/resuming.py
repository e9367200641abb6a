"""A resumed run goes on where the checkpoint was written, and equals the one that was not interrupted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed

from backbones.errors import HeadsetError
from headset.checkpoint import read_checkpoint
from headset.sharding import like, local

__all__ = ["Resuming", "check_callbacks", "settle"]

KEY = "resuming"  # of a checkpoint
SAVES = ("_last_global_step_saved", "_last_checkpoint_saved", "_defer_save_until_validation")


class Resuming(Callback):
    """Keeps in checkpoints what Lightning does not, and what a run needs to go on as if nothing had been.

    That is whether a validation is still to come after the step, which metrics there were, whether early stopping has
    ended the run, what each ModelCheckpoint has saved, and gradients that are accumulated but not used yet.
    Checkpoints that are due by steps or by time wait for the next optimizer step, so that they have no such.
    """

    def __init__(self) -> None:
        self.validating = False
        self.stored: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have checkpoints that are due by steps or by time wait for the optimizer."""
        self.stored = {}
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                _wait_for_optimizer(trainer, callback)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Until it ends, a checkpoint is one before it."""
        self.validating = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Callbacks that save come after this one."""
        self.validating = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        checkpoint[KEY] = {
            "validation": self.validating or _validation_follows(trainer),
            "validated": trainer.validating and not self.validating,
            "metrics": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
            "stopped": trainer.should_stop and any(_has_stopped(each) for each in trainer.early_stopping_callbacks),
            "saves": {each.state_key: {name: getattr(each, name) for name in SAVES} for each in _savers(trainer)},
            "accumulated": _accumulated(trainer, pl_module),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what `on_train_start` puts back."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.stored = {**checkpoint.get(KEY, {}), "callbacks": checkpoint.get("callbacks", {})}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put back what was stored, once Lightning has put back the rest."""
        stored, self.stored = self.stored, {}
        if not stored:
            return
        if trainer.val_dataloaders is None:  # Lightning counts its batches in epochs alone that have a validation
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
            trainer.training = True
        trainer._logger_connector._callback_metrics.update(
            {name: value.to(pl_module.device) for name, value in stored.get("metrics", {}).items()}
        )
        if stored.get("stopped"):
            trainer.should_stop = True
        for callback in _savers(trainer):
            _restore_saves(trainer, callback, stored)
        if stored.get("accumulated"):
            _restore_accumulated(trainer, pl_module, stored["accumulated"])


def settle(loop: dict[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Change the state of a fit loop such that Lightning goes on where it was.

    By itself it leaves out a validation that was still to come after the step, and what comes at the end of an epoch
    when the checkpoint is of its last step.

    Args:
        loop: The state of the fit loop in a checkpoint; it is changed.
        checkpoint: The checkpoint.
    """
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    unfinished = batches["total"]["completed"] < batches["total"]["processed"]
    if epochs["total"]["processed"] == epochs["total"]["ready"]:
        if batches["is_last_batch"]:
            return
        for which in ("total", "current"):  # max_steps has ended the run in the middle of an epoch: it goes on there
            before = epochs[which]["ready"] - 1
            epochs[which] |= {"processed": before, "completed": before}
    due: bool = checkpoint.get(KEY, {}).get("validation", False)
    if due or (unfinished and batches["is_last_batch"]):
        for which in ("total", "current"):
            batches[which]["completed"] = batches[which]["processed"]
        if not due:
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    # How Lightning tells a validation that was begun from one that is over.
    validation = loop["epoch_loop.val_loop.batch_progress"]
    over = validation["total"]["completed"]
    validation["total"] = {"ready": over + due, "started": over + due, "processed": over, "completed": over}
    if due:
        validation["current"] = dict.fromkeys(validation["current"], 0)
        validation["is_last_batch"] = False


def check_callbacks(trainer: Trainer, path: str) -> None:
    """Check that a run has the callbacks of the one that it goes on with, where nothing says that it should not.

    Args:
        trainer: With the callbacks of the run.
        path: The checkpoint.

    Raises:
        HeadsetError: There is one without which the run would go on as another.
    """
    kinds = {type(callback).__qualname__ for callback in trainer.callbacks}  # type: ignore[attr-defined]
    stored = {key.split("{")[0] for key in read_checkpoint(path).get("callbacks", {})}
    missing = sorted(stored - kinds - {"ModelCheckpoint", "Timer", "NonFinite"})
    if missing:
        config = next((each / "config.yaml" for each in Path(path).resolve().parents if _has_config(each)), "CONFIG")
        raise HeadsetError(
            f"The run in the checkpoint had {', '.join(missing)}, and without it this one would be another. Callbacks "
            f"are not in checkpoints. Give the configuration of that run: -c {config} --ckpt_path {path}"
        )


def _has_config(folder: Path) -> bool:
    return (folder / "config.yaml").exists()


def _validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning is about to validate after the step that has just been made."""
    loop = trainer.fit_loop.epoch_loop
    progress = loop.batch_progress.total
    fetcher: Any = trainer.fit_loop._data_fetcher
    return progress.completed < progress.processed and bool(loop._should_check_val_fx(fetcher))  # type: ignore[attr-defined]


def _has_stopped(callback: EarlyStopping | None) -> bool:
    return callback is not None and callback.stopping_reason.value != 0


def _savers(trainer: Trainer) -> list[ModelCheckpoint]:
    return [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]


def _wait_for_optimizer(trainer: Trainer, callback: ModelCheckpoint) -> None:
    if "on_train_batch_end" in vars(callback):
        return
    its_own = callback.on_train_batch_end

    def on_train_batch_end(*args: Any, **kwargs: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            its_own(*args, **kwargs)

    callback.on_train_batch_end = on_train_batch_end  # type: ignore[method-assign]


def _restore_saves(trainer: Trainer, callback: ModelCheckpoint, stored: Mapping[str, Any]) -> None:
    """What a ModelCheckpoint knows of its files, also where this run writes to another folder."""
    for name, value in stored.get("saves", {}).get(callback.state_key, {}).items():
        setattr(callback, name, value)
    state = stored["callbacks"].get(callback.state_key)
    source = Path(str(trainer.ckpt_path))
    if state is None:
        return
    named = [state["best_model_path"], state["last_model_path"], *state["best_k_models"]]
    if source.resolve().name in {Path(path).name for path in named if path}:
        callback._last_global_step_saved = trainer.global_step
        callback._last_checkpoint_saved = str(source.resolve())
        callback._defer_save_until_validation &= not stored.get("validated")  # that is what it was written for
    if str(callback.dirpath) == str(state["dirpath"]):
        return
    found = {path: str(_found(path, source)) for path in state["best_k_models"]}
    callback.best_k_models = {found[path]: score for path, score in state["best_k_models"].items()}
    callback.kth_best_model_path = found.get(state["kth_best_model_path"], "")
    callback.kth_value = state["kth_value"]
    callback.best_model_score = state["best_model_score"]
    callback.best_model_path = str(_found(state["best_model_path"], source)) if state["best_model_path"] else ""


def _found(path: str, source: Path) -> Path:
    """Where a checkpoint is now, if its folder has another name."""
    moved = source.resolve().parent / Path(path).name
    return moved if moved.exists() and not Path(path).exists() else Path(path)


def _accumulated(trainer: Trainer, module: Any) -> dict[str, Any] | None:
    """Gradients that no optimizer step has used yet, of each process, and what they reached."""
    if not trainer.fit_loop._should_accumulate() or not trainer.fit_loop.epoch_loop.batch_progress.current.ready:
        return None
    mine = {name: local(one.grad).detach().cpu() for name, one in module.named_parameters() if one.grad is not None}
    state = {"gradients": mine, "reach": module.joint_loss.reach.state()}
    if trainer.world_size == 1:
        return {"processes": [state]}
    every: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    distributed.gather_object(state, every)  # to the process that writes
    return {"processes": every}


def _restore_accumulated(trainer: Trainer, module: Any, accumulated: Mapping[str, Any]) -> None:
    states = accumulated["processes"]
    if len(states) != trainer.world_size:
        raise HeadsetError(
            f"The checkpoint is of the middle of an accumulation in {len(states)} processes, and goes on in as many, "
            f"not in {trainer.world_size}. Take one of another step."
        )
    state = states[trainer.global_rank]
    for name, parameter in module.named_parameters():
        if name in state["gradients"]:
            gradient: Tensor = state["gradients"][name]
            parameter.grad = like(parameter, gradient.to(parameter.device, parameter.dtype))
    module.joint_loss.reach.restore(state["reach"], module.device)
    torch.set_grad_enabled(True)
