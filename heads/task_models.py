"""Task models of transformers: which class, its labels, and how what it has beyond the base starts."""

import re
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from backbones.backbone import Backbone
from backbones.errors import HeadsetError

__all__ = ["are_numbered", "initialise", "is_stored", "is_task_model", "label_settings", "task_class"]


def label_settings(labels: tuple[str, ...] | None, size: int) -> dict[str, Any]:
    """Label names as a transformers configuration has them; numbered names where there is no label set.

    Two are not LABEL_0 and LABEL_1: these are left out of a saved configuration, and some architectures read 3 then.
    """
    prefix = "output" if size == 2 else "LABEL"
    names = labels or tuple(f"{prefix}_{index}" for index in range(size))
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def are_numbered(names: Iterable[str]) -> bool:
    """Whether names are those of outputs without any: transformers' own, or those of `label_settings`."""
    return all(re.fullmatch(r"(LABEL|output)_\d+", name) for name in names)


def task_class(auto_class: str, config: PretrainedConfig, instead: str = "") -> type[PreTrainedModel]:
    """The class that transformers has for a task and an architecture; of several, the one that the configuration names.

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
    kinds = mapping[type(config)]
    if not isinstance(kinds, tuple):
        kinds = (kinds,)
    found: type[PreTrainedModel] = next((it for it in kinds if it.__name__ in (config.architectures or ())), kinds[0])
    return found


def is_stored(auto_class: str, config: PretrainedConfig) -> bool:
    """Whether the checkpoint that a configuration belongs to has a head of this task."""
    mapping = getattr(transformers, auto_class)._model_mapping
    return type(config) in mapping and (config.architectures or [""])[0] == task_class(auto_class, config).__name__


def is_task_model(auto_class: str, model: PreTrainedModel) -> bool:
    """Whether a model is of the class that transformers has for a task and its architecture."""
    kinds = getattr(transformers, auto_class)._model_mapping.get(type(model.config), ())
    return type(model) in (kinds if isinstance(kinds, tuple) else (kinds,))


@torch.no_grad()
def initialise(task: PreTrainedModel, backbone: Backbone) -> None:
    """Give the head's weights memory, and start them as transformers does; the backbone's stay as they are."""
    fresh: dict[Tensor, Tensor] = {}
    device = next(backbone.parameters()).device
    if device.type == "meta":  # transformers is loading the model, and the weights come from a file
        return
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
