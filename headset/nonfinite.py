"""Losses and gradients that are no numbers: the run stops before they reach a weight, or the step is left out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, distributed

from backbones.errors import HeadsetError
from headset.readers import place
from headset.sharding import in_any, is_sharded, local

__all__ = ["ACTIONS", "NonFinite"]

ACTIONS = ("stop", "skip")
MOST = 8  # rows that a message names

Rows = list[tuple[str, list[int]]]  # of a batch: the source, and the numbers of its rows


class NonFinite(Callback):
    """Looks at losses and gradients before each step of the optimizer, in all processes alike.

    A step in which one of them is nan or infinite does not touch the weights. With ``stop`` it ends the run, with the
    rows named; with ``skip`` it is told and counted, and the run goes on.

    On a GPU the fused optimizer is told by a tensor there, as a gradient scaler tells it, and it is looked at in
    the step after, so that nothing waits for it.

    Args:
        action: ``stop`` or ``skip``.
    """

    def __init__(self, action: str) -> None:
        self.action = action
        self.skipped = 0
        self.rows: Rows = []
        self.pending: list[tuple[Any, Tensor, dict[str, Tensor], int, Rows]] = []
        self.found: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """How many steps were left out."""
        return {"skipped": self.skipped} if self.skipped else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on counting."""
        self.skipped = state_dict["skipped"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the rows."""
        for part in batch if isinstance(batch, list) else [batch]:
            meta = part.get("meta", {})
            self.rows.append((meta.get("source", ""), list(meta.get("rows", ()))))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        """Look at the losses since the last step, and at the gradients."""
        losses, rows = pl_module.joint_loss.take(), self.rows
        self.rows = []
        scales = getattr(trainer.precision_plugin, "scaler", None) is not None  # it looks at gradients itself
        bad = _bad([*losses.values()], [] if scales else _gradients(optimizer))
        if is_sharded(pl_module.built):
            bad = in_any(bad)
        step = trainer.global_step
        if not _can_wait(bad, optimizer):
            if bool(bad):
                optimizer.zero_grad(set_to_none=True)
                self._tell(trainer, pl_module, losses, step, rows)
            return
        if self.action == "stop":
            bad = self.found = bad if self.found is None else self.found | bad  # no step after it counts either
        if not scales:
            optimizer.found_inf, optimizer.grad_scale = bad.float(), None
        self._look(trainer, pl_module)
        self.pending.append((*_on_its_way(bad), losses, step, rows))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last step."""
        self._look(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at the last step, before anything is written."""
        self._look(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many steps were left out."""
        self._look(trainer, pl_module)
        if self.skipped:
            rank_zero_info(f"{self.skipped} steps were left out, whose loss or gradients were not finite.")

    def _look(self, trainer: Trainer, module: Any) -> None:
        pending, self.pending = self.pending, []
        for event, bad, losses, step, rows in pending:
            event.synchronize()  # it was recorded a step ago
            if bool(bad):
                self._tell(trainer, module, losses, step, rows)

    def _tell(self, trainer: Trainer, module: Any, losses: dict[str, Tensor], step: int, rows: Rows) -> None:
        wrong = [name for name, loss in losses.items() if not bool(loss.isfinite())]
        what = f"The loss of {' and '.join(wrong)} is" if wrong else "The losses are finite, but gradients are"
        where = self._where(trainer, module, rows)
        if self.action == "skip":
            self.skipped += 1
            rank_zero_warn(f"Step {step} is left out, {self.skipped} so far. {what} not finite: {where}.")
            return
        raise HeadsetError(
            f"{what} not finite in step {step}: {where}. The weights and earlier checkpoints are untouched. Look at "
            "these rows, or lower the learning rate; to leave such steps out: --model.nonfinite_loss skip"
        )

    def _where(self, trainer: Trainer, module: Any, rows: Rows) -> str:
        """The rows of all processes that make it so alone, or if none does, all that were in the step."""
        able = not is_sharded(module.built)  # where weights are in parts, no process can run a row by itself
        guilty = [(source, _guilty(trainer, module, source, its) if able else []) for source, its in rows]
        mine = [_places(trainer, found) for found in (guilty, rows)]
        every = [mine]
        if trainer.world_size > 1:
            every = [[] for _ in range(trainer.world_size)]
            distributed.all_gather_object(every, mine)
        alone, together = ([place for part in every for place in part[kind]] for kind in (0, 1))
        names = alone or together
        listed = ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")
        return listed if alone else f"with no row alone, but in the batch of {listed}"


def _can_wait(bad: Tensor, optimizer: Any) -> bool:
    """Whether the optimizer leaves a step out by itself, as its kernel is told on the GPU."""
    return bad.device.type == "cuda" and bool(optimizer.defaults.get("fused"))


def _on_its_way(bad: Tensor) -> tuple[Any, Tensor]:
    """A copy in main memory, and the event after which it is there."""
    there = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(bad, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return event, there


def _gradients(optimizer: Any) -> list[Tensor]:
    return [local(one.grad) for group in optimizer.param_groups for one in group["params"] if one.grad is not None]


def _bad(losses: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Whether one of them is not finite, on their device."""
    largest = [loss.detach().float().abs() for loss in losses]
    if gradients:
        filled = [gradient for gradient in gradients if gradient.numel()]  # a process may have no part of some
        largest.append(_size(filled))
    return ~torch.stack(largest).isfinite().all() if largest else torch.tensor(False)


def _size(gradients: list[Tensor]) -> Tensor:
    """A number that is finite if all gradients are."""
    if all(gradient.device.type == "cpu" for gradient in gradients):
        size = torch.nn.utils.get_total_norm(gradients)  # many times faster there than the largest number
        if bool(size.isfinite()):  # squares may be infinite where numbers are not
            return size.float()
    return torch.nn.utils.get_total_norm(gradients, norm_type=torch.inf).float()


def _guilty(trainer: Trainer, module: Any, source: str, rows: list[int]) -> list[int]:
    """Those of some rows whose loss or gradients, each alone, are not finite with the weights as they are.

    All processes look at equally many, since heads may exchange something for each loss.
    """
    counts = [len(rows)]
    if trainer.world_size > 1:
        counts = [0] * trainer.world_size
        distributed.all_gather_object(counts, len(rows))
    if not all(counts):
        return []
    found = [row for row in [*rows, *rows[-1:] * (max(counts) - len(rows))] if _is_bad(trainer, module, source, row)]
    return sorted(set(found))


def _is_bad(trainer: Trainer, module: Any, source: str, row: int) -> bool:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    loader: Any = trainer.train_dataloader
    try:
        number = data.examples("train", source or None)["row"].index(row)
        batch = loader.collate_fn(loader.dataset[source or next(iter(data.sources)), [number]])
    except (AttributeError, KeyError, TypeError, ValueError):  # data of another kind
        return False
    batch = trainer.strategy.batch_to_device(batch)
    parameters = [one for one in module.parameters() if one.requires_grad]
    bad = False
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        for loss, _ in module._losses(batch).values():
            bad |= not bool(loss.isfinite())
            if loss.requires_grad:
                found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                bad |= bool(_bad([], [gradient for gradient in found if gradient is not None]))
    return bad


def _places(trainer: Trainer, rows: Rows) -> list[str]:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    names = []
    for source, numbers in rows:
        sources = getattr(data, "sources", {})
        its = sources.get(source) or (next(iter(sources.values())) if len(sources) == 1 else None)
        for number in sorted(set(numbers)):
            if its is None:
                names.append(f"row {number + 1}")
            else:
                names.append(place(its.location("train"), number, its.settings.conll_columns))
    return names
