"""Where the gradient of a head stops: it learns from the backbone's features, and the backbone does not from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

__all__ = ["detached", "without_gradients"]


def detached(features: Any) -> Any:
    """Features ``(B, T, D)``, or an output of transformers with such tensors, without the graph that they come from."""
    if isinstance(features, Tensor):
        return features.detach()
    if isinstance(features, ModelOutput):
        return type(features)(**{key: detached(value) for key, value in features.items()})
    return tuple(map(detached, features)) if isinstance(features, tuple) else features


@contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """For a while no graph is made for the parameters of a module: heads may call it, or tie their weights to it."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
