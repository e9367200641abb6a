"""Features of a frozen backbone: each row goes through it once, and what heads read of it is kept on disk."""

import contextlib
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.progress import Progress
from torch import Tensor

from backbones.backbone import Backbone
from backbones.calls import model_inputs
from headset.data import TextData
from headset.feature_key import code_digest, inputs_digest, weights_digest
from headset.feature_pass import collated, write_features
from headset.feature_plan import CallPlan, plan_calls
from headset.feature_store import FeatureStore, finish
from headset.features import KeptFeatures
from headset.model import Headset
from headset.modes import evaluating
from headset.readers import cache_file
from headset.steps import SourcePart

__all__ = ["keep_features"]

DAY = 24 * 60 * 60.0
SAMPLE = 8  # examples that are run both ways
EXACT, ROUGH = 1e-4, 0.1  # how far features may be from those of a padded batch, in full and in half precision


def keep_features(module: LightningModule, headset: Headset) -> KeptFeatures | None:
    """Make the features of all rows of a run, or find them on disk, if they are of use to it.

    Args:
        module: A module that is about to be fitted.
        headset: Its headset.

    Returns:
        What answers for the backbone; None where it has to run in every step.
    """
    data = module.trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, TextData):
        data.features.clear()
    if not isinstance(data, TextData) or not _applies(module, headset.backbone):
        return None
    run = _Run(module, headset, data)
    with evaluating(headset), torch.no_grad(), module.trainer.precision_plugin.forward_context():
        if not run.plan() or not run.make() or not run.agree():
            return None
    data.features.update(run.stores)
    return KeptFeatures(headset.backbone, run.plans, run.weights)


def _applies(module: LightningModule, backbone: Backbone) -> bool:
    """Whether the backbone stays as it is, and each row is read more than once."""
    trainer = module.trainer
    if backbone.model.training or any(each.requires_grad for each in backbone.parameters()):
        return False
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        return False
    if trainer.fast_dev_run or trainer.overfit_batches or trainer.limit_train_batches != 1.0:  # type: ignore[attr-defined]
        return False
    steps = trainer.estimated_stepping_batches
    return steps * trainer.accumulate_grad_batches >= 2 * trainer.num_training_batches


@dataclass
class _Run:
    """The features of one run."""

    module: LightningModule
    headset: Headset
    data: TextData

    def __post_init__(self) -> None:
        self.trainer = self.module.trainer
        self.parts: dict[tuple[str, str], SourcePart] = {
            (split, name): self.data.sources[name].part(split, rows, self.data.heads)
            for split in ("train", "validation")
            for name, rows in self.data.datasets.get(split, {}).items()
            if isinstance(rows, Dataset) and len(rows)
        }
        self.plans: dict[str, list[CallPlan]] = {}
        self.stores: dict[tuple[str, str], list[FeatureStore]] = {}
        self.weights = b""

    def plan(self) -> bool:
        """Find what is to be kept; whether there is anything."""
        for (_, name), part in self.parts.items():
            if name not in self.plans:
                last = len(part.rows) - 1
                numbers = sorted({last * place // SAMPLE for place in range(SAMPLE + 1)})
                heads = list(self.data.sources[name].heads)
                self.plans[name] = plan_calls(self.headset, self._batch(part, numbers), heads)
        return any(self.plans.values())

    def make(self) -> bool:
        """Find or write the features; whether all are there."""
        self.weights = weights_digest(self.headset.backbone)
        common = [self.weights, code_digest(self.headset.backbone, str(self.trainer.precision))]
        rows = sum(len(part.rows) for (_, name), part in self.parts.items() if self.plans[name])
        first, written = self.module.local_rank == 0, False
        with Progress(disable=not first or self.trainer.progress_bar_callback is None, transient=True) as progress:
            task = progress.add_task("Features of the frozen backbone", total=rows)
            for key, part in self.parts.items():
                left = part.collator.encoder.padding_side == "left"
                rows_key = inputs_digest(part.rows, part.collator.encoder)
                for plan in self.plans[key[1]]:
                    target = cache_file([*common, rows_key, plan.describe()]).with_suffix(".features")
                    found = self._found(target, len(part.rows), left) if first else True
                    if not self._all(found):
                        written = True
                        if not self._write(part, plan, target, lambda count: progress.advance(task, count)):
                            return False
                    self.stores.setdefault(key, []).append(FeatureStore(target, left))
        size = sum(store.size for stores in self.stores.values() for store in stores)
        told = "written to" if written else "read from"
        rank_zero_info(f"backbone: frozen; features of {rows:,} rows, {_bytes(size)}, {told} {target.parent}")
        return True

    def agree(self) -> bool:
        """Whether some rows have the same features and losses with the backbone and without."""
        kept = KeptFeatures(self.headset.backbone, self.plans, self.weights)
        tolerance = EXACT if str(self.trainer.precision).startswith("32") else ROUGH
        same = True
        for key, stores in self.stores.items():
            part, lengths = self.parts[key], stores[0].sizes()
            order = lengths.argsort()
            numbers = [int(order[(len(order) - 1) * place // SAMPLE]) for place in range(SAMPLE + 1)]
            numbers = list(dict.fromkeys(numbers))
            batch = self._batch(part, numbers)
            features = [store.gather(numbers) for store in stores]
            fed = {**batch, "meta": {**batch["meta"], "features": move_data_to_device(features, self.module.device)}}
            results = []
            for its, used in ((batch, None), (fed, kept)):
                self.headset.kept = used
                batches, labels = self.headset.prepare(its)
                outputs = self.headset.answer(batches)
                results.append(self.headset.losses(outputs, labels))
            self.headset.kept = None
            same &= all(_near(results[1][name], loss, tolerance) for name, loss in results[0].items())
            inputs = model_inputs(batch)
            for plan, tensors in zip(self.plans[key[1]], fed["meta"]["features"], strict=True):
                read = plan.read(self.headset.backbone.run(plan.bound(inputs)))
                for here, there in zip(tensors, read, strict=True):
                    same &= here.shape == there.shape and _near(here, there.where(here != 0, here), tolerance)
        if not self._all(same):
            rank_zero_info("backbone: frozen; it runs in every step, since its features depend on padding")
            return False
        return True

    def _batch(self, part: SourcePart, numbers: list[int]) -> dict[str, Any]:
        batch: dict[str, Any] = move_data_to_device(collated(part, numbers), self.module.device)
        return batch

    def _found(self, target: Path, rows: int, left: bool) -> bool:
        try:
            return len(FeatureStore(target, left).check()) == rows
        except (OSError, ValueError):
            return False

    def _write(self, part: SourcePart, plan: CallPlan, target: Path, advance: Any) -> bool:
        """Each process of this machine writes its share; whether all could."""
        node, world, rank = self.trainer.node_rank, self.trainer.num_devices, self.module.local_rank
        unique = self.trainer.strategy.broadcast(uuid.uuid4().hex[:8])
        folder = target.with_suffix(f".{node}.{unique}.unfinished")
        if rank == 0:
            _sweep(target.parent)
        world = min(world, len(part.rows))
        bounds = [len(part.rows) * place // world for place in range(world + 1)]
        failure = ""
        try:
            if rank < world:
                mine = range(bounds[rank], bounds[rank + 1])
                write_features(self.headset.backbone, part, plan, folder / f"part{rank}", mine, advance)
        except (OSError, ValueError) as error:
            failure = str(error)
        if self._all(not failure):
            try:
                if rank == 0:
                    finish([folder / f"part{place}" for place in range(world)], target)
            except (OSError, ValueError) as error:
                failure = str(error)
        done = self._all(not failure)
        if not done:
            if rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            rank_zero_warn(f"backbone: frozen; it runs in every step, since its features could not be kept: {failure}")
        return done

    def _all(self, decision: bool) -> bool:
        """Whether it is so in all processes."""
        return bool(self.trainer.strategy.reduce_boolean_decision(bool(decision), all=True))


def _sweep(folder: Path) -> None:
    """Remove what runs that were killed left unfinished, more than a day ago."""
    for left in folder.glob("*.unfinished"):
        files = [left, *left.rglob("*")]
        with contextlib.suppress(OSError):  # another run may be at it
            if max(file.stat().st_mtime for file in files) < time.time() - DAY:
                shutil.rmtree(left)


def _near(here: Tensor, there: Tensor, tolerance: float) -> bool:
    scale = there.abs().max().clamp(min=1e-6)
    return bool(((here - there).abs().max() <= tolerance * scale) | (~here.isfinite() & ~there.isfinite()).all())


def _bytes(size: float) -> str:
    unit = next(unit for unit in ("B", "kB", "MB", "GB", "TB") if (size := size / 1000) < 1 or unit == "TB")
    return f"{size * 1000:.3g} {unit}"
