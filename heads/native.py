"""Native heads: the task model that transformers has for an architecture, less the base that the backbone shares.

``AutoModelForX`` of any architecture is its base model and the rest. The rest, with the unmodified ``forward`` of
transformers around it, is a head: the base is taken out of the task model and *slots* stand in its place. To ask for a
request the forward runs until it reaches the slot, which stops it and tells the exact call. To answer, the forward
runs again, and the slot gives the backbone's output. No architecture needs a rule of its own.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from backbones.adapters import adapted_layer, stock_name
from backbones.backbone import Backbone
from backbones.calls import BackboneCall, model_inputs
from backbones.errors import HeadsetError
from backbones.parts import on_meta, shared_parts
from backbones.stock import stock_layers
from heads.slots import BackboneNeededError, Slot, Tie
from heads.task_models import initialise, task_class

__all__ = ["NativeModel"]


class NativeModel(nn.Module):
    """What a transformers task model has beyond the base, on a shared backbone.

    Args:
        auto_class: The task, as ``"AutoModelForSequenceClassification"``.
        backbone: Serves the base; it is referred to, not registered.
        instead: The setting of the head that does without transformers' own modules, for errors.
        settings: Changes to the backbone's configuration: ``id2label``, ``label2id``, ``problem_type``.

    Raises:
        HeadsetError: transformers has no such class for the architecture, or its base is not the backbone's.
    """

    def __init__(self, auto_class: str, backbone: Backbone, instead: str = "", **settings: Any) -> None:
        super().__init__()
        # The forward of transformers writes into the configuration: every head has its own.
        config = copy.deepcopy(backbone.config)
        config.__dict__.pop("quantization_config", None)
        config.update(settings)
        kind = task_class(auto_class, config, instead)
        task = on_meta(kind, config, backbone.spec.dtype)
        with stock_layers(backbone.model):
            parts = list(shared_parts(task, backbone.model))
            expected = set(task.state_dict())
            for part in parts:
                task.set_submodule(part.task_path, backbone.model.get_submodule(part.backbone_path))
            task.tie_weights()
            served = {
                f"{part.task_path}.{key}" for part in parts for key in task.get_submodule(part.task_path).state_dict()
            }
        live = len(parts) != 1
        for part in parts:
            task.set_submodule(part.task_path, Slot(backbone.model, part.backbone_path, live))
        if not parts or expected - served - set(task.state_dict()):
            raise HeadsetError(
                f"{kind.__name__} is not built on {type(backbone.model).__name__}: its head does not fit this backbone."
            )
        initialise(task, backbone)
        with stock_layers(backbone.model):
            self.ties = Tie.all_of(task, backbone.model)
        self.task = task
        self.parts = parts
        self.live = live

    @property
    def config(self) -> PretrainedConfig:
        """The configuration of the task model."""
        return self.task.config

    @property
    def slots(self) -> list[Slot]:
        """The places of the backbone in the task model."""
        return [module for module in self.task.modules() if isinstance(module, Slot)]

    def request(self, batch: Mapping[str, Any]) -> BackboneCall | None:
        """The exact call that the task model makes to the backbone; None if it makes several, in ``forward``.

        Args:
            batch: The batch; with the head's own ``labels``, from which some architectures make their decoder's inputs.
        """
        if self.live:
            return None
        taught = self._taught(batch)
        try:
            self._run(batch, taught)
        except BackboneNeededError as needed:
            given = needed.arguments(self.slots[0].part)
            call = {name: value for name, value in given.items() if all(value is not it for it in taught.values())}
            return BackboneCall(call, self.parts[0].backbone_path)
        raise HeadsetError(f"The forward of {type(self.task).__name__} did not call its base model.")

    def forward(self, features: ModelOutput | None, batch: Mapping[str, Any]) -> ModelOutput:
        """The task model's own output for a batch, given the backbone's output for its request.

        With the head's own ``labels`` in the batch it has the ``loss`` that transformers computes, if the task model
        computes one.
        """
        slots = self.slots
        try:
            for slot in slots:
                slot.features = features
            return self._run(batch, self._taught(batch))
        finally:
            for slot in slots:
                slot.features = None

    def _run(self, batch: Mapping[str, Any], taught: Mapping[str, Tensor]) -> ModelOutput:
        for tie in self.ties:
            tie.bind()
        output: ModelOutput = self.task(**model_inputs(batch), **taught)
        return output

    def _taught(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The head's own labels as the task model takes them; copies, since some architectures change them in place."""
        labels = batch.get("labels")
        if not isinstance(labels, Tensor):  # none, or those of a whole headset
            return {}
        known = _parameters(type(self.task).forward)
        labels = labels.to(self.task.dtype) if labels.is_floating_point() else labels.clone()
        if "start_positions" in known:
            start, end = labels.unbind(-1)
            return {"start_positions": start, "end_positions": end}
        takes_labels = "labels" in known or any(it.kind is it.VAR_KEYWORD for it in known.values())
        return {"labels": labels} if takes_labels else {}

    def unused(self, backbone: Backbone) -> set[str]:
        """Names of the backbone's parameters that the task model does not have, such as a pooler."""
        used = {
            f"{part.backbone_path}.{key}".removeprefix(".")
            for part in self.parts
            for key in on_meta(type(self.task), self.config, backbone.spec.dtype)
            .get_submodule(part.task_path)
            .state_dict()
        }
        layers = {key.rpartition(".")[0] for key in used}
        return {
            name
            for name, _ in backbone.model.named_parameters()
            if stock_name(name) not in used and adapted_layer(name) not in layers
        }

    def whole(self, backbone: Backbone) -> PreTrainedModel:
        """The stock task model, with the weights of a stock backbone and of this head; no weight is copied."""
        task = on_meta(type(self.task), self.config, backbone.spec.dtype)
        state = self.task.state_dict()
        buffers = dict(self.task.named_buffers())
        for part in self.parts:
            shared = backbone.model.get_submodule(part.backbone_path)
            state |= {f"{part.task_path}.{key}": value for key, value in shared.state_dict().items()}
            buffers |= {f"{part.task_path}.{key}": value for key, value in shared.named_buffers()}
        state |= {tie.task_key: tie.weight.detach() for tie in self.ties}
        wanted = task.state_dict().keys()
        task.load_state_dict({key: value for key, value in state.items() if key in wanted}, assign=True)
        for key, value in list(task.named_buffers()):
            if value.is_meta:  # computed ones, which are in no checkpoint
                path, _, name = key.rpartition(".")
                task.get_submodule(path).register_buffer(name, buffers[key], persistent=False)
        task.tie_weights()
        return task

    def take(self, source: PreTrainedModel) -> None:
        """Copy the head's weights from another task model of the same class.

        Raises:
            HeadsetError: It lacks weights of this head, has them in other shapes (for another number of labels), or has
                weights apart that its configuration says are one.
        """
        theirs = source.state_dict()
        own = dict(self.task.state_dict())
        lacking = sorted(key for key, value in own.items() if key not in theirs or theirs[key].shape != value.shape)
        if lacking:
            raise HeadsetError(f"{type(source).__name__} has no fitting weights for {', '.join(lacking)}.")
        for tie in self.ties:
            if not torch.equal(theirs[tie.task_key], tie.weight):
                raise HeadsetError(
                    f"{tie.task_key} of {type(source).__name__} is not the same as the weight of the base that its "
                    "configuration ties it to. Set tie_word_embeddings to false in its config.json."
                )
        self.task.load_state_dict({key: theirs[key] for key in own})


@functools.cache
def _parameters(forward: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """What the forward of a task model takes."""
    return inspect.signature(forward).parameters
