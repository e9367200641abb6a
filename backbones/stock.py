"""The layers of a model as its class builds them, where adapters or quantisation have put others in their places."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from backbones.adapters import BASE
from backbones.quantization import empty_layer, is_quantized

__all__ = ["stock_layers"]


@contextmanager
def stock_layers(model: PreTrainedModel) -> Iterator[None]:
    """While this is open, the model has the layers under its adapters, and unquantised ones.

    So its weights have the names, the shapes and the types that other models of its class have. Quantised ones have no
    values meanwhile.
    """
    replaced: dict[str, nn.Module] = {}
    for path, module in [*model.named_modules()]:
        if path.endswith(f".{BASE}"):
            continue
        layer = module.get_base_layer() if hasattr(module, BASE) else module
        layer = empty_layer(layer) if is_quantized(layer) else layer
        if layer is not module:
            replaced[path] = module
            model.set_submodule(path, layer)
    try:
        yield
    finally:
        for path, module in replaced.items():
            model.set_submodule(path, module)
