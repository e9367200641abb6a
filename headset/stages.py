"""What a headset does in the stages of a run: it learns, is measured, and predicts."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from backbones.backbone import BackboneOptions
from backbones.errors import HeadsetError, invalid_choice
from heads.base import Head, HeadOutput
from headset.balancing import LossWeights
from headset.batches import moved
from headset.distillation import Teacher
from headset.joint_loss import JointLoss, combined
from headset.measures import Measures
from headset.model import Headset
from headset.precision import rounded_weights
from headset.sharding import clip_gradients, is_sharded
from headset.tuning import Tuning

__all__ = ["STAGES", "Stages"]

STAGES = ("val", "test")
Batch = Mapping[str, Any]


class Stages(LightningModule):
    """The steps of `LitHeadset`, which makes, restores and saves what they use."""

    heads: dict[str, Head]
    headset: Headset | None
    loss_weights: LossWeights
    joint_loss: JointLoss
    measures: nn.ModuleDict
    tuning: Tuning
    teacher: Teacher | None
    predicted_heads: dict[str, Head]
    allow_untrained: bool
    backbone_options: BackboneOptions
    _seed: int
    _exact: Sequence[tuple[nn.Parameter, Tensor]] = ()

    @property
    def built(self) -> Headset:
        """The headset.

        Raises:
            HeadsetError: It is not made yet.
        """
        if self.headset is None:
            raise HeadsetError("The headset is not made yet: Lightning does it in setup, configure_model() by hand.")
        return self.headset

    def forward(self, batch: Mapping[str, Any]) -> dict[str, HeadOutput]:
        """The answers of all heads for a batch."""
        outputs: dict[str, HeadOutput] = self.built(batch)
        return outputs

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the tensors of a batch, or of several; Lightning would look for some among the numbers of rows."""
        return [moved(part, device) for part in batch] if isinstance(batch, list) else moved(batch, device)

    def report_states(self) -> None:
        """Say of each head whether it is newly initialised, loaded or trained, and what its labels are."""
        for name, state in self.built.states.items():
            labels = self.built.labels[name]
            size = (
                f", {len(labels)} labels: {', '.join(labels[:5])}{', …' if len(labels) > 5 else ''}" if labels else ""
            )
            words = {"new": "newly initialised", "loaded": "loaded from the backbone's checkpoint"}
            rank_zero_info(f"head {name}: {words.get(state, state)}{size}")

    def on_train_start(self) -> None:
        """Check that heads that choose something on validation have one."""
        self.tuning.check(sum(self.trainer.num_val_batches) > 0)

    def on_validation_start(self) -> None:
        """Say which heads are new, unless training has said so."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self.report_states()

    def on_test_start(self) -> None:
        """Say which heads are new."""
        self.report_states()

    def on_predict_start(self) -> None:
        """Say which heads are new, and refuse to predict with them, unless ``allow_untrained`` is set."""
        self.report_states()
        if not self.allow_untrained:
            self.built.check_trained(list(self.predicted_heads))
        if self.trainer.precision == "bf16-mixed" and not is_sharded(self.built):
            self._exact = rounded_weights(self.built.backbone)

    def on_predict_end(self) -> None:
        """Give the backbone its exact weights back."""
        for parameter, values in self._exact:
            parameter.data = values
        self._exact = ()

    def predict_only(self, names: Sequence[str]) -> None:
        """Have `predict_step` run some heads alone.

        Raises:
            HeadsetError: One of them does not exist.
        """
        for name in names:
            if name not in self.heads:
                raise invalid_choice("head", name, self.heads)
        self.predicted_heads = {name: self.heads[name] for name in names}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by epoch, batch and process, so that a resumed run draws what an uninterrupted one draws."""
        mixed = (self._seed * 1_000_003 + self.current_epoch) * 1_000_003 + batch_idx
        seed = (mixed * 1_009 + self.global_rank) % 2**63
        if self.device.type == "cpu":  # torch.manual_seed keeps a list of seeds for devices that are not in use
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def training_step(self, batch: Batch | list[Batch], batch_idx: int) -> Tensor:
        """The weighted sum of the heads' losses; the batch may be several, whose losses then count together."""
        total, everywhere, means = self.joint_loss(combined(self._losses(part) for part in _parts(batch)))
        logged = {"train/loss": everywhere} | {f"train/{name}/loss": loss for name, loss in means.items()}
        self.log_dict(logged, prog_bar=True, batch_size=1)
        if self.loss_weights.learned:
            weights = {name: torch.as_tensor(self.loss_weights.weight(name)).detach() for name in means}
            self.log_dict({f"train/{name}/weight": weight for name, weight in weights.items()}, batch_size=1)
        return total

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Keep the weights of idle heads from moving by decay or momentum."""
        self.joint_loss.drop_idle()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """As Lightning does, also where parameters are in parts."""
        if not is_sharded(self.built):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            clip_gradients(parameters, gradient_clip_val, by_value=gradient_clip_algorithm == "value")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Free the gradients after a step: Lightning does it behind the next forward pass, where memory is scarce."""
        if not self.trainer.fit_loop._should_accumulate():
            for parameter in self.joint_loss.parameters:
                parameter.grad = None

    def validation_step(self, batch: Batch | list[Batch], batch_idx: int) -> None:
        """Losses and metrics."""
        for part in _parts(batch):
            self._losses(part, "val")

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """After the last batch in training: thresholds and temperatures are chosen."""
        counts = self.trainer.num_val_batches
        if self._tunes and (dataloader_idx + 1, batch_idx + 1) == (len(counts), counts[-1]):
            self.tuning.choose()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of validation, with the thresholds and temperatures that it gives in training."""
        self.tuning.finish(self._measures("val").of)
        self._log_measures("val")

    def test_step(self, batch: Batch | list[Batch], batch_idx: int) -> None:
        """Losses and metrics."""
        for part in _parts(batch):
            self._losses(part, "test")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test."""
        self._log_measures("test")

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, list[dict[str, Any]]]:
        """What a user reads: for each head one dictionary a row."""
        with self._without_padding():
            outputs: dict[str, HeadOutput] = self.built(batch, list(self.predicted_heads))
        counts = not _is_filler(batch)
        return {name: self.heads[name].predict(output) if counts else [] for name, output in outputs.items()}

    def _losses(self, batch: Batch, stage: str | None = None) -> dict[str, Any]:
        """The loss of each head that a batch is for, and its size; measured, where there is a stage to measure."""
        headset = self.built
        batches, labels = headset.prepare(batch)
        with self._without_padding():
            outputs = headset.answer(batches)
        losses, sizes = headset.losses(outputs, labels), headset.loss_sizes(outputs, labels)
        if _is_filler(batch):
            sizes = dict.fromkeys(sizes, 0.0)
        if stage is None and self.teacher is not None:
            losses = self.teacher.losses(batches, outputs, labels, losses)
        if stage is not None:
            for name, output in outputs.items():
                inputs = self.heads[name].metric_inputs(output, labels[name])  # processes may exchange something here
                if _is_filler(batch):
                    continue
                self._measures(stage).update(name, losses[name], sizes[name], inputs)
                if self._tunes:
                    self.tuning.keep(name, output, labels[name])
        return {name: (loss, sizes[name]) for name, loss in losses.items()}

    def _without_padding(self) -> contextlib.AbstractContextManager[None]:
        """In the steps of a run alone: by itself, the headset gives what the stock model gives at padding too.

        Where weights are in parts, all processes have to call the model equally often, and trials break that.
        """
        free = self.backbone_options.padding_free and not is_sharded(self.built)
        return self.built.backbone.without_padding(free)

    @property
    def _tunes(self) -> bool:
        """Whether what is evaluated now is the validation of training."""
        return self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking

    def _log_measures(self, stage: str) -> None:
        values = self._measures(stage).compute(self.loss_weights.given_weight, every=self.trainer.sanity_checking)
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, prog_bar=True)

    def _measures(self, stage: str) -> Measures:
        measures = self.measures[stage]
        assert isinstance(measures, Measures)
        return measures


def _is_filler(batch: Batch) -> bool:
    """Whether a batch counts for nothing: it is for a process for which no row is left."""
    return "filler" in batch.get("meta", {})


def _parts(batch: Batch | list[Batch]) -> list[Batch]:
    return batch if isinstance(batch, list) else [batch]
