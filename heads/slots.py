"""Slots: what stands in a transformers task model where its base was."""

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

__all__ = ["BackboneNeededError", "Slot"]


class BackboneNeededError(Exception):
    """Raised by a slot to stop the forward of the task model where it calls the backbone."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__("the forward of the task model reached its backbone")
        self.call_args = args
        self.call_kwargs = kwargs

    def arguments(self, part: nn.Module) -> dict[str, Any]:
        """The arguments of the call by their names, so that calls can be compared; without those that are None."""
        signature = inspect.signature(part.forward)
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
