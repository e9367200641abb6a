"""What a task model of transformers and a base model have in common."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["SharedPart", "on_meta", "shared_parts"]

# Lists of modules are never called as a whole: what is shared is found inside them.
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class SharedPart:
    """A sub-module of the task model that the base serves: its path there, and its path in the base."""

    task_path: str
    backbone_path: str


def on_meta(kind: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model without memory: its weights have a shape and no values."""
    with torch.device("meta"):
        model: PreTrainedModel = kind._from_config(copy.deepcopy(config), dtype=dtype)
    return model


def shared_parts(task: PreTrainedModel, base: PreTrainedModel) -> Iterator[SharedPart]:
    """The largest sub-modules of the task model that the base serves.

    That is: same type, with no weight that the base's lacks, at the same path less the prefix of the base; or, where
    the task model has no such prefix, the base as a whole.
    """
    prefix = task.base_model_prefix
    nested = bool(prefix) and isinstance(getattr(task, prefix, None), nn.Module)
    theirs = dict(base.named_modules())

    def places(path: str) -> list[str]:
        if not nested:
            return [path, ""]
        if path == prefix:
            return [""]
        return [path.removeprefix(f"{prefix}.")] if path.startswith(f"{prefix}.") else []

    def visit(module: nn.Module, path: str) -> Iterator[SharedPart]:
        for name, child in module.named_children():
            child_path = f"{path}.{name}".removeprefix(".")
            place = next((it for it in places(child_path) if it in theirs and _serves(theirs[it], child)), None)
            if place is None:
                yield from visit(child, child_path)
            elif child.state_dict():
                yield SharedPart(child_path, place)

    return visit(task, "")


def _serves(other: nn.Module, module: nn.Module) -> bool:
    if type(other) is not type(module) or isinstance(module, CONTAINERS):
        return False
    theirs = other.state_dict()
    return all(key in theirs and theirs[key].shape == value.shape for key, value in module.state_dict().items())
