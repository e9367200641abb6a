"""The LightningModule: a headset that trains, is measured, predicts, and lives in checkpoints."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any, Self

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from transformers import PreTrainedTokenizerBase

from backbones.backbone import Backbone, BackboneOptions
from backbones.errors import HeadsetError, told_of
from backbones.freezing import reinitialize_layers
from backbones.loading import limit_length, load_config
from heads.base import Head
from heads.label_counts import LabelCounts
from headset.averaging import WholeNumbers
from headset.balancing import make_loss_weights
from headset.checkpoint import (
    check_same,
    describe,
    fitting_weights,
    make_heads,
    read_checkpoint,
)
from headset.checkpoint_io import CheckpointFiles
from headset.data import TextData
from headset.distillation import Teacher
from headset.feature_run import keep_features
from headset.fsdp2 import check_strategy
from headset.global_batch import check_global_batch
from headset.heartbeat import Heartbeat
from headset.interruption import Interruption
from headset.joint_loss import JointLoss
from headset.labels import other_labels
from headset.loader import position
from headset.measures import Measures
from headset.model import Headset
from headset.monitors import MetricSchedules, MonitorCheck
from headset.nonfinite import NonFinite
from headset.optim import Resumed, make_optimizer, optimizer_spec, resumed
from headset.parameter_groups import ParameterGroup, parameter_groups
from headset.processors import Processor, load_processor, processor_files, processor_from_files
from headset.record import record
from headset.resuming import Resuming, settle
from headset.schedules import schedule_config
from headset.settings import check_settings
from headset.sharding import shard
from headset.stages import STAGES, Stages
from headset.start import Start
from headset.stored import find_stored_heads, load_stored_head
from headset.tuning import Tuning

__all__ = ["LitHeadset"]


class LitHeadset(Stages):
    """A headset in Lightning.

    It makes nothing in ``__init__``: the label sets come from the data at the first ``setup``, and the modules in
    ``configure_model``. What it saves is complete: ``LitHeadset.load_from_checkpoint(path)`` needs no argument, no hub,
    none of the data and no configuration.

    Args:
        backbone: A folder, a hub id or ``package://some_package/folder``; or these with settings.
        heads: The heads by name. In YAML the name of a class is enough: ``{topic: SequenceClassification}``.
        labels: Label sets, for heads whose labels shall not be those found in the training data, or not in that order.
        processor: Where the tokenizer, image processor or feature extractor is, if not beside the backbone.
        learning_rate: Of AdamW; 5e-5 if not given.
        weight_decay: Of AdamW, on matrices; 0.01 if not given.
        head_learning_rate: Of the heads, all of them or each by name, where it is not that of the backbone.
        layer_decay: By what the learning rate is multiplied from each layer of the backbone to the one below.
        parameter_groups: Parameters with a learning rate or a weight decay of their own, by patterns of their names.
        optimizer: Another optimizer, with its own learning rate and weight decay.
        scheduler: How the learning rate goes, as transformers names it: ``linear``, ``cosine``, ``constant``, ...
        scheduler_args: Arguments of the schedule, as transformers names them; ``monitor`` is the metric of those that
            go by one.
        warmup: How long it rises at first: a share of the run, or a number of steps.
        reinitialize_layers: How many of the top layers of the backbone start anew, and its pooler with them.
        loss_weights: The weight of each head in the loss, 1 where not given; or how they are learned: ``uncertainty``
            (Kendall et al. 2018) or ``gradnorm`` (Chen et al. 2018).
        detached_heads: Heads that learn, and from which the backbone does not.
        frozen_heads: Heads whose own weights stay as they are; they are measured, and the backbone learns from them.
        stored_head: What becomes of the head in the backbone's checkpoint, where that is of a task: ``keep`` gives its
            weights to the head of that task, ``replace`` starts that head anew, with labels of its own, ``drop`` says
            that no head is of that task. If not given, it is kept where a head is of its task.
        new_heads: Heads that start anew although a checkpoint has trained weights for them.
        distillation: A trained model that heads learn from beside their labels: ``{teacher: CHECKPOINT or FOLDER,
            temperature: 2.0, alpha: 0.5, heads: [NAME, ...]}``; ``alpha`` is its share of the loss.
        start_from: A checkpoint, or several on the same backbone, whose backbone and heads the run starts with; what
            ``heads`` names beyond them is new.
        nonfinite_loss: What becomes of a step whose loss or gradients are not finite, of which no weight learns:
            ``stop`` ends the run and names the rows, ``skip`` goes on without that step.
        cache_features: Whether a backbone that is frozen as a whole runs once for each row, in a run of several epochs,
            and what heads read of it is kept on disk.

    Raises:
        HeadsetError: A setting is wrong. Nothing is loaded before settings are checked.
    """

    def __init__(
        self,
        backbone: str | BackboneOptions,
        heads: dict[str, Head],
        labels: dict[str, list[str] | None] | None = None,
        processor: str | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        head_learning_rate: float | dict[str, float] | None = None,
        layer_decay: float | None = None,
        parameter_groups: list[ParameterGroup] | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: str = "linear",
        scheduler_args: dict[str, Any] | None = None,
        warmup: float = 0.1,
        reinitialize_layers: int = 0,
        loss_weights: dict[str, float] | str | None = None,
        detached_heads: list[str] | None = None,
        frozen_heads: list[str] | None = None,
        stored_head: str | None = None,
        new_heads: list[str] | None = None,
        distillation: dict[str, Any] | None = None,
        start_from: str | list[str] | None = None,
        nonfinite_loss: str = "stop",
        cache_features: bool = True,
    ) -> None:
        super().__init__()
        self.backbone_options = BackboneOptions(backbone) if isinstance(backbone, str) else backbone
        self.backbone_options.check()
        patterns = [ParameterGroup(**each) if isinstance(each, dict) else each for each in parameter_groups or ()]
        self._start = Start(start_from, new_heads or ()) if start_from else None
        if self._start is not None:
            self._start.check({"backbone": dataclasses.asdict(self.backbone_options), **_plain(heads, labels)})
            heads = self._start.heads(heads)
            self.backbone_options = self._start.options(self.backbone_options)
        self.heads = dict(heads)
        self.teacher: Teacher | None = None
        self.optimizer = optimizer
        settings = {
            "backbone": dataclasses.asdict(self.backbone_options),
            "labels": labels or {},
            "processor": processor,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "head_learning_rate": head_learning_rate,
            "layer_decay": layer_decay,
            "parameter_groups": [dataclasses.asdict(group) for group in patterns],
            "optimizer": None,
            "scheduler": scheduler,
            "scheduler_args": scheduler_args or {},
            "warmup": warmup,
            "reinitialize_layers": reinitialize_layers,
            "loss_weights": loss_weights or {},
            "detached_heads": detached_heads or [],
            "frozen_heads": frozen_heads or [],
            "stored_head": stored_head,
            "new_heads": new_heads or [],
            "distillation": distillation,
            "start_from": start_from,
            "nonfinite_loss": nonfinite_loss,
            "cache_features": cache_features,
        }
        check_settings(settings, self.heads, optimizer)
        self.save_hyperparameters({**settings, "heads": {name: head.spec() for name, head in heads.items()}})
        self.allow_untrained = False
        self.predicted_heads: dict[str, Head] = self.heads  # what predict runs
        self.headset: Headset | None = None
        self.loss_weights = make_loss_weights(loss_weights, self.heads)
        self.measures = nn.ModuleDict()
        self._labels = {name: None if names is None else tuple(names) for name, names in (labels or {}).items()}
        self._label_counts: dict[str, LabelCounts] = {}
        self._states: dict[str, str] = {}
        self._processor: Processor | None = None
        self._run: dict[str, Any] = {}
        self._resumed: Resumed | None = None
        self._seed = 0
        if self._start is not None:
            self._labels |= self._start.labels()
            if self._start.hparams["processor"] and not processor:
                self._processor = processor_from_files(self._start.hparams["processor"], self.heads)

    @property
    def processor(self) -> Processor:
        """The processor: that of the checkpoint, or the one that the settings name; loaded when first asked for."""
        if self._processor is None:
            options = self.backbone_options
            place = self.hparams["processor"] or options.path
            self._processor = load_processor(place, self.heads, revision=options.revision)
            if isinstance(self._processor, PreTrainedTokenizerBase):
                limit_length(self._processor, load_config(options.path, revision=options.revision))
        return self._processor

    @functools.cached_property
    def stored_heads(self) -> dict[str, tuple[str, ...] | None]:
        """The heads whose weights lie in the backbone's checkpoint, with their labels there, if they have any."""
        heads = {name: head for name, head in self.heads.items() if name not in self.hparams["new_heads"]}
        return find_stored_heads(self.backbone_options, heads, self._labels, self.hparams["stored_head"])

    @property
    def loaded_heads(self) -> set[str]:
        """The heads that come with weights, and so with labels, which the settings do not confirm."""
        return set(self.stored_heads).difference(self.hparams["labels"])

    @property
    def labels(self) -> dict[str, tuple[str, ...] | None]:
        """The label set of each head, as far as it is known: from the settings, from a checkpoint, or from the data."""
        return {name: self.stored_heads.get(name) or self._labels.get(name) for name in self.heads}

    def restore(self, hparams: Mapping[str, Any]) -> None:
        """Take from a checkpoint's settings what must not come from elsewhere: shapes, labels, processor, states."""
        check_same(self.hparams, hparams)
        self._start = None  # the checkpoint holds what came from there
        self.backbone_options = dataclasses.replace(
            BackboneOptions(**hparams["backbone"]),
            freeze=self.backbone_options.freeze,
            **self.backbone_options.of_the_run(),
        )
        old = self.heads.keys() - set(self.hparams["new_heads"])
        self._labels |= {name: names and tuple(names) for name, names in hparams["labels"].items() if name in old}
        self._states = {name: state for name, state in hparams["states"].items() if name in old}
        self._seed = hparams["seed"]
        self._run = hparams.get("run", {})
        if hparams["processor"]:
            self._processor = processor_from_files(hparams["processor"], self.heads)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str, map_location: Any = None, trust_heads: bool = False, **kwargs: Any
    ) -> Self:
        """The module in a checkpoint, with its weights.

        Args:
            checkpoint_path: The file.
            map_location: Where to put the weights, as in torch.load.
            trust_heads: Import head classes that the file names and that are neither built in nor imported yet.
            kwargs: Settings to change.

        Raises:
            HeadsetError: The file is not the checkpoint of a headset, or a head's class is not known and not trusted.
        """
        content = read_checkpoint(checkpoint_path)
        hparams = content["hyper_parameters"]
        known = inspect.signature(cls).parameters
        settings = {key: value for key, value in hparams.items() if key in known} | {
            "backbone": BackboneOptions(**hparams["backbone"]),
            "processor": None,
            "start_from": None,  # what came from there is in the checkpoint
        }
        with told_of(checkpoint_path):
            settings["heads"] = make_heads(hparams, trust_heads)
            module = cls(**(settings | kwargs))
            module.restore(hparams)
            module.configure_model()
            module.load_state_dict(content["state_dict"])
        return module if map_location is None else module.to(map_location)

    def setup(self, stage: str) -> None:
        """Take the label sets that the data found, and have checkpoints written whole."""
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = CheckpointFiles()
        found: dict[str, Any] = getattr(self.trainer.datamodule, "label_sets", {})  # type: ignore[attr-defined]
        self._labels = found | {name: names for name, names in self._labels.items() if names is not None}
        if stage == "fit" and isinstance(self.trainer.datamodule, TextData):  # type: ignore[attr-defined]
            self._label_counts = self.trainer.datamodule.label_counts()  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Make the headset: once, with the weights of the backbone, or to be filled from a checkpoint."""
        if self.headset is not None:
            return
        if self._trainer is not None and self._trainer.datamodule is not None:  # type: ignore[attr-defined]
            self.setup(self._trainer.state.fn or "")  # callbacks that average weights ask for the model before setup
        backbone = Backbone.from_options(self.backbone_options)
        if self.hparams["reinitialize_layers"] and self.backbone_options.config is None:
            reinitialize_layers(backbone.model, self.hparams["reinitialize_layers"])
        counts = self._label_counts
        self.headset = Headset(backbone, self.heads, self.labels, processor=self.processor, label_counts=counts)
        for name in self.stored_heads:
            load_stored_head(name, self.heads[name], self.backbone_options.path)
            self.headset.states[name] = "loaded"
        if self._start is not None:
            self._start.load(self.headset)
        self.headset.states |= self._states
        self.headset.run = self._run
        self.headset.detached = frozenset(self.hparams["detached_heads"])
        self.headset.frozen = frozenset(self.hparams["frozen_heads"])
        for name in self.headset.frozen:
            self.heads[name].requires_grad_(False)
        self.headset.freeze_unused()
        self.headset.train()
        if self._trainer is not None:
            check_strategy(self._trainer, self.backbone_options, self.loss_weights)
            if self.device_mesh is not None:
                shard(self.headset, self.device_mesh["data_parallel"])
        if self.backbone_options.compile:
            backbone.model.compile(dynamic=True)
        self.joint_loss = JointLoss(self.headset, self.loss_weights)
        for stage in STAGES:
            self.measures[stage] = Measures(self.heads)
        self.tuning = Tuning(self.heads)

    def configure_callbacks(self) -> list[Callback]:
        """What every run has."""
        return [
            Resuming(),
            MonitorCheck(),
            MetricSchedules(),
            WholeNumbers(),
            Heartbeat(),
            Interruption(),
            NonFinite(self.hparams["nonfinite_loss"]),
        ]

    def configure_optimizers(self) -> Any:
        """AdamW or the optimizer given, and a schedule over all steps of the run."""
        settings = self.hparams
        patterns = [ParameterGroup(**group) for group in settings["parameter_groups"]]
        groups = parameter_groups(self, settings["head_learning_rate"], settings["layer_decay"], patterns)
        # Lightning does not clip gradients for a fused optimizer in mixed precision.
        clips_mixed = "mixed" in str(self.trainer.precision) and self.trainer.gradient_clip_val
        optimizer = make_optimizer(
            groups,
            self.optimizer or settings["optimizer"],
            learning_rate=settings["learning_rate"],
            weight_decay=settings["weight_decay"],
            fused=not clips_mixed,
        )
        if self._resumed is not None:
            self._resumed.check(optimizer)
        schedule = settings["scheduler"], settings["warmup"]
        steps = self.trainer.estimated_stepping_batches if self.trainer.limit_train_batches else 0
        return {"optimizer": optimizer, **schedule_config(optimizer, *schedule, steps, settings["scheduler_args"])}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """As Lightning does; that it is here lets schedules through which are of no class of torch's."""
        super().lr_scheduler_step(scheduler, metric)

    @told_of("The checkpoint")
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Start the ``new_heads`` anew, and with them the optimizer, whose state is of the old ones.

        Raises:
            HeadsetError: Another head has other labels here than in the checkpoint, or them in another order.
        """
        if "loops" in checkpoint and self.trainer.state.fn == TrainerFn.FITTING:
            loop = checkpoint["loops"]["fit_loop"]
            settle(loop, checkpoint)
            if isinstance(self.trainer.datamodule, TextData):  # type: ignore[attr-defined]
                data = self.trainer.datamodule  # type: ignore[attr-defined]
                data.epoch, data.done = position(loop)
                check_global_batch(checkpoint, data.hparams, self.trainer.world_size, data.done)
        hparams = checkpoint["hyper_parameters"]
        self._seed = hparams["seed"]
        for name in self.heads.keys() - set(self.hparams["new_heads"]):
            stored, here = hparams["labels"].get(name), self.labels[name]
            if stored is not None and here is not None and tuple(stored) != here:
                raise other_labels(name, stored, here)
            self.built.states[name] = hparams["states"].get(name, "new")
        new = tuple(f"headset.heads.{name}." for name in self.hparams["new_heads"])
        if not new:
            if self.trainer.state.fn == TrainerFn.FITTING and checkpoint.get("optimizer_states"):
                self._resumed, kept = resumed(self.hparams, checkpoint)
                self.hparams.update(kept | {"optimizer": self._resumed.optimizer})
            return
        weights = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith(new)}
        fresh = {key: value for key, value in self.state_dict().items() if key.startswith(new)}
        checkpoint |= {"state_dict": weights | fresh, "optimizer_states": [], "lr_schedulers": []}

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As every module; weights that do not fit are a `HeadsetError`."""
        with fitting_weights():
            return super().load_state_dict(*args, **kwargs)

    def on_fit_start(self) -> None:
        """Say which heads are new, load their teacher, and fix the seed of the steps."""
        self.report_states()
        for name in self.built.frozen:
            if self.built.states[name] == "new" and any(True for _ in self.heads[name].parameters()):
                raise HeadsetError(
                    f"The head '{name}' is frozen and newly initialised: it would stay as random as it is. Take it "
                    "from a checkpoint (--model.start_from CKPT), or leave it out of frozen_heads."
                )
        if self.hparams["distillation"]:
            self.teacher = Teacher(self.hparams["distillation"], self.built)
            self.teacher.headset.backbone.padding_free = self.backbone_options.padding_free
        self._seed = self._seed or torch.initial_seed() % 2**31
        if self.hparams.get("cache_features", True):
            self.built.kept = keep_features(self, self.built)

    def on_train_end(self) -> None:
        """Check that a backbone whose features were used is what it was."""
        if self.built.kept is not None:
            self.built.kept.check()

    def teardown(self, stage: str) -> None:
        """Let go of features, which are of this run."""
        if self.headset is not None:
            self.headset.kept = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint self-contained."""
        self.built.run = record(self, self.built.run)
        described = describe(self.built)
        described["backbone"] |= self.backbone_options.of_the_run() | {
            "quantization": self.backbone_options.quantization
        }
        settings = {"processor": processor_files(self.processor), "seed": self._seed, "start_from": None}
        if self.optimizer is not None:
            settings["optimizer"] = optimizer_spec(self.trainer.optimizers[0])
        checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], **described, **settings}


def _plain(heads: Mapping[str, Head], labels: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"heads": {name: head.spec() for name, head in heads.items()}, "labels": labels or {}}
