"""Slots and ties: what stands in a transformers task model where its base was, and the weights that both have."""

import functools
import inspect
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

__all__ = ["BackboneNeededError", "Slot", "Tie", "signature_of"]


def signature_of(module: nn.Module) -> inspect.Signature:
    """What the forward of a module takes; looked up once for all modules of a class."""
    forward: Any = module.forward
    return _signature(getattr(forward, "__func__", forward), hasattr(forward, "__func__"))


@functools.lru_cache(maxsize=256)
def _signature(forward: Any, bound: bool) -> inspect.Signature:
    signature = inspect.signature(forward)
    return signature.replace(parameters=[*signature.parameters.values()][1:]) if bound else signature


class BackboneNeededError(Exception):
    """Raised by a slot to stop the forward of the task model where it calls the backbone."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__("the forward of the task model reached its backbone")
        self.call_args = args
        self.call_kwargs = kwargs

    def arguments(self, part: nn.Module) -> dict[str, Any]:
        """The arguments of the call by their names, so that calls can be compared; without those that are None."""
        signature = signature_of(part)
        given = dict(signature.bind(*self.call_args, **self.call_kwargs).arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name, {})
        return {name: value for name, value in given.items() if value is not None}


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


class Tie:
    """A weight of the backbone that the rest of a task model uses too, as a masked language model its embeddings.

    It stays a parameter of the backbone alone, and is looked up by path before every use, so that nothing that happens
    to the backbone's weights comes between the two.

    Args:
        model: The backbone's model.
        weight_path: The path of the weight in it.
        module: The module of the task model that uses the weight, as an attribute.
        name: The name of that attribute.
        task_key: The key of the weight in the state of the stock task model.
    """

    def __init__(self, model: PreTrainedModel, weight_path: str, module: nn.Module, name: str, task_key: str) -> None:
        self.model = model
        self.weight_path = weight_path
        self.module = module
        self.name = name
        self.task_key = task_key

    @classmethod
    def all_of(cls, task: PreTrainedModel, model: PreTrainedModel) -> "list[Tie]":
        """Take the backbone's weights out of the rest of a task model."""
        paths = {id(weight): path for path, weight in model.named_parameters()}
        found = [
            cls(model, paths[id(weight)], module, name, f"{path}.{name}".removeprefix("."))
            for path, module in task.named_modules()
            for name, weight in module._parameters.items()
            if id(weight) in paths
        ]
        for tie in found:
            del tie.module._parameters[tie.name]
            tie.bind()
        return found

    @property
    def weight(self) -> Tensor:
        """The weight as it is now."""
        path, _, name = self.weight_path.rpartition(".")
        weight: Tensor = getattr(self.model.get_submodule(path), name)
        return weight

    def bind(self) -> None:
        """Give the weight to the module that uses it."""
        self.module.__dict__[self.name] = self.weight
