"""Native heads: the task model that transformers has for an architecture, less the base that the backbone shares.

``AutoModelForX`` of any architecture is its base model and the rest. The rest, with the unmodified ``forward`` of
transformers around it, is a head: the base is taken out of the task model and *slots* stand in its place. To ask for a
request the forward runs until it reaches the slot, which stops it and tells the exact call. To answer, the forward
runs again, and the slot gives the backbone's output. No architecture needs a rule of its own.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall, model_inputs
from backbones.errors import HeadsetError
from backbones.loading import load_task_model

__all__ = ["NativeModel", "is_stored", "label_settings", "task_class"]

# Lists of modules are never called as a whole: what is shared is found inside them.
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class SharedPart:
    """A sub-module of the task model that the backbone serves: its path there, and its path in the backbone."""

    task_path: str
    backbone_path: str


class BackboneNeededError(Exception):
    """Raised by a slot to stop the forward of the task model where it calls the backbone."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__("the forward of the task model reached its backbone")
        self.call_args = args
        self.call_kwargs = kwargs


class Slot(nn.Module):
    """Stands in a task model where a part of the backbone was, and has no parameters of its own.

    It finds that part by path at every use, so that adapters put into the backbone later are seen.

    Args:
        model: The backbone's model; not registered as a sub-module.
        path: The path of the part in it.
        live: Call the part at once, instead of stopping for a request and answering with its features.
    """

    features: ModelOutput | None

    def __init__(self, model: PreTrainedModel, path: str, live: bool) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)
        self.path = path
        self.live = live
        self.features = None

    @property
    def part(self) -> nn.Module:
        """The part of the backbone that this slot stands for."""
        model: PreTrainedModel = self.__dict__["model"]
        return model.get_submodule(self.path)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the part: transformers reads ``self.bert.embeddings`` or ``self.bert.config``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.part, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's output; or the end of the forward, where there is none yet."""
        if self.live:
            return self.part(*args, **kwargs)
        if self.features is None:
            raise BackboneNeededError(args, kwargs)
        return self.features


def label_settings(labels: tuple[str, ...] | None, size: int) -> dict[str, Any]:
    """Label names as a transformers configuration has them; numbered names where there is no label set."""
    names = labels or tuple(f"LABEL_{index}" for index in range(size))
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def task_class(auto_class: str, config: PretrainedConfig, instead: str = "") -> type[PreTrainedModel]:
    """The class that transformers has for a task and an architecture.

    Args:
        auto_class: The task, as ``"AutoModelForSequenceClassification"``.
        config: The architecture's configuration.
        instead: The setting of the head that does without the class, for the error.

    Raises:
        HeadsetError: It has none.
    """
    mapping = getattr(transformers, auto_class)._model_mapping
    if type(config) not in mapping:
        hint = f" Set {instead} on the head, which needs none." if instead else ""
        raise HeadsetError(f"transformers has no {auto_class} for the architecture '{config.model_type}'.{hint}")
    kind = mapping[type(config)]
    found: type[PreTrainedModel] = kind[0] if isinstance(kind, tuple) else kind
    return found


def is_stored(auto_class: str, config: PretrainedConfig) -> bool:
    """Whether the checkpoint that a configuration belongs to has a head of this task."""
    mapping = getattr(transformers, auto_class)._model_mapping
    return type(config) in mapping and (config.architectures or [""])[0] == task_class(auto_class, config).__name__


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
        config.update(settings)
        kind = task_class(auto_class, config, instead)
        task = _on_meta(kind, config, backbone.spec.dtype)
        parts = list(_shared_parts(task, backbone.model))
        expected = set(task.state_dict())
        for part in parts:
            task.set_submodule(part.task_path, backbone.model.get_submodule(part.backbone_path))
        task.tie_weights()
        served = expected & {key for part in parts for key in _keys_at(task, part.task_path)}
        live = len(parts) != 1
        for part in parts:
            task.set_submodule(part.task_path, Slot(backbone.model, part.backbone_path, live))
        if not parts or expected - served - set(task.state_dict()):
            raise HeadsetError(
                f"{kind.__name__} is not built on {type(backbone.model).__name__}: its head does not fit this backbone."
            )
        _initialise(task, backbone)
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
        """The exact call that the task model makes to the backbone; None if it makes several, in ``forward``."""
        if self.live:
            return None
        try:
            self.task(**model_inputs(batch))
        except BackboneNeededError as needed:
            return BackboneCall(_by_name(self.slots[0].part, needed), self.parts[0].backbone_path)
        raise HeadsetError(f"The forward of {type(self.task).__name__} did not call its base model.")

    def forward(self, features: ModelOutput | None, batch: Mapping[str, Any]) -> ModelOutput:
        """The task model's own output for a batch, given the backbone's output for its request."""
        slots = self.slots
        try:
            for slot in slots:
                slot.features = features
            output: ModelOutput = self.task(**model_inputs(batch))
            return output
        finally:
            for slot in slots:
                slot.features = None

    def unused(self, backbone: Backbone) -> set[str]:
        """Names of the backbone's parameters that the task model does not have, such as a pooler."""
        used = {
            f"{part.backbone_path}.{key}".removeprefix(".")
            for part in self.parts
            for key in _on_meta(type(self.task), self.config, backbone.spec.dtype)
            .get_submodule(part.task_path)
            .state_dict()
        }
        return {name for name, _ in backbone.model.named_parameters()} - used

    def whole(self, backbone: Backbone) -> PreTrainedModel:
        """The stock task model, with the weights of the backbone and of this head; no weight is copied."""
        task = _on_meta(type(self.task), self.config, backbone.spec.dtype)
        state = self.task.state_dict()
        for part in self.parts:
            shared = backbone.model.get_submodule(part.backbone_path).state_dict()
            state |= {f"{part.task_path}.{key}": value for key, value in shared.items()}
        wanted = task.state_dict().keys()
        task.load_state_dict({key: value for key, value in state.items() if key in wanted}, assign=True)
        task.tie_weights()
        return task

    def load(self, path: str) -> None:
        """Take the head's weights from a checkpoint of the same task model.

        Raises:
            HeadsetError: It lacks weights, or has those of this head in other shapes: for another number of labels.
        """
        source = load_task_model(path, type(self.task))
        theirs = source.state_dict()
        own = dict(self.task.state_dict())
        lacking = sorted(key for key, value in own.items() if key not in theirs or theirs[key].shape != value.shape)
        if lacking:
            raise HeadsetError(f"{type(source).__name__} has no fitting weights for {', '.join(lacking)}.")
        self.task.load_state_dict({key: theirs[key] for key in own})


def _by_name(part: nn.Module, needed: BackboneNeededError) -> dict[str, Any]:
    """The arguments of a call by their names, so that calls can be compared; without those that are None."""
    signature = inspect.signature(part.forward)
    arguments = dict(signature.bind(*needed.call_args, **needed.call_kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(parameter.name, {})
    return {name: value for name, value in arguments.items() if value is not None}


def _on_meta(kind: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A task model without memory: its weights have a shape and no values."""
    with torch.device("meta"):
        task: PreTrainedModel = kind._from_config(copy.deepcopy(config), dtype=dtype)
    return task


def _keys_at(task: PreTrainedModel, path: str) -> Iterator[str]:
    return (f"{path}.{key}" for key in task.get_submodule(path).state_dict())


def _shared_parts(task: PreTrainedModel, model: PreTrainedModel) -> Iterator[SharedPart]:
    """The largest sub-modules of the task model that the backbone serves.

    That is: same type, at the same path less the prefix of the base model, with no weight that the backbone's lacks.
    """
    prefix = task.base_model_prefix
    nested = bool(prefix) and isinstance(getattr(task, prefix, None), nn.Module)
    theirs = dict(model.named_modules())

    def path_in_backbone(path: str) -> str | None:
        if not nested:
            return path
        if path == prefix:
            return ""
        return path.removeprefix(f"{prefix}.") if path.startswith(f"{prefix}.") else None

    def visit(module: nn.Module, path: str) -> Iterator[SharedPart]:
        for name, child in module.named_children():
            child_path = f"{path}.{name}".removeprefix(".")
            place = path_in_backbone(child_path)
            other = theirs.get(place) if place is not None else None
            if other is not None and place is not None and _serves(other, child):
                if child.state_dict():
                    yield SharedPart(child_path, place)
            else:
                yield from visit(child, child_path)

    return visit(task, "")


def _serves(other: nn.Module, module: nn.Module) -> bool:
    if type(other) is not type(module) or isinstance(module, CONTAINERS):
        return False
    shapes = _shapes(other)
    return all(shapes.get(key) == shape for key, shape in _shapes(module).items())


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Shapes by key, as they are without adapters: peft nests a wrapped layer in ``base_layer``."""
    state = module.state_dict()
    return {key.replace(".base_layer", ""): value.shape for key, value in state.items() if "lora_" not in key}


@torch.no_grad()
def _initialise(task: PreTrainedModel, backbone: Backbone) -> None:
    """Give the head's weights memory, and start them as transformers does; the backbone's stay as they are."""
    fresh: dict[Tensor, Tensor] = {}
    device = next(backbone.parameters()).device
    for module in task.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for store in stores:
            for name, tensor in store.items():
                if tensor is not None and tensor.is_meta:
                    if tensor not in fresh:
                        fresh[tensor] = _blank(tensor, device)
                    store[name] = fresh[tensor]
    shared = [*backbone.model.parameters(), *backbone.model.buffers()]
    unmarked = [tensor for tensor in shared if not hasattr(tensor, "_is_hf_initialized")]
    for tensor in unmarked:
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    for module in task.modules():
        module.__dict__.pop("_is_hf_initialized", None)
    task.initialize_weights()
    for tensor in unmarked:
        del tensor._is_hf_initialized  # type: ignore[attr-defined]
    for tensor in fresh.values():
        # transformers leaves some biases of masked language models without an initial value.
        if tensor.is_floating_point() and tensor.isnan().any():
            tensor.zero_() if tensor.dim() < 2 else tensor.normal_(std=backbone.spec.initializer_range)


def _blank(tensor: Tensor, device: torch.device) -> Tensor:
    """Memory for a tensor, filled with NaN so that a value never given shows."""
    blank = torch.empty_like(tensor, device=device)
    blank = blank.fill_(float("nan")) if tensor.is_floating_point() else blank.zero_()
    return nn.Parameter(blank, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else blank
