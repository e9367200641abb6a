"""The layers of a transformers model, found by their shape and not by any architecture's names; freezing them."""

import torch
from torch import nn
from transformers import PreTrainedModel

from backbones.errors import HeadsetError

__all__ = ["embedding_modules", "freeze", "parameter_depths", "reinitialize_layers", "transformer_layers"]


def transformer_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of layers, lowest first: the first list of modules as long as the configuration says.

    Raises:
        HeadsetError: The model has no such list.
    """
    size = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == size:
            return module
    raise HeadsetError(f"{type(model).__name__} has no list of {size} layers, so none is the lowest or the highest.")


def embedding_modules(model: PreTrainedModel) -> list[nn.Module]:
    """What turns ids into the input of the first layer: every module that comes before the stack of layers."""
    layers = transformer_layers(model)
    path = next(name for name, module in model.named_modules() if module is layers).split(".")
    before: list[nn.Module] = []
    parent: nn.Module = model
    for name in path:
        for child_name, child in parent.named_children():
            if child_name == name:
                break
            before.append(child)
        parent = parent.get_submodule(name)
    return before


def parameter_depths(model: PreTrainedModel) -> dict[str, int]:
    """How deep each parameter lies, by its name in the model.

    Returns:
        0 for embeddings, i for the i-th of L layers from below, and L + 1 for what is neither: a pooler, a last norm,
        or the decoder behind an encoder.

    Raises:
        HeadsetError: The model has no list of layers.
    """
    layers = transformer_layers(model)
    depths: dict[int, int] = {}
    for depth, modules in enumerate([embedding_modules(model), *([layer] for layer in layers)]):
        for parameter in (parameter for module in modules for parameter in module.parameters()):
            depths.setdefault(id(parameter), depth)
    return {name: depths.get(id(parameter), len(layers) + 1) for name, parameter in model.named_parameters()}


@torch.no_grad()
def reinitialize_layers(model: PreTrainedModel, number: int) -> None:
    """Give the top layers, and the pooler over them if there is one, the weights that a new model starts with.

    What pre-training left in the top layers can be in the way of a small data set (Zhang et al. 2021, "Revisiting
    Few-sample BERT Fine-tuning", section 4).

    Args:
        model: The model to change.
        number: How many layers, from the top.

    Raises:
        HeadsetError: The model has fewer, or they are frozen, so that they would stay random.
    """
    layers = transformer_layers(model)
    if number > len(layers):
        raise HeadsetError(
            f"Cannot reinitialise the top {number} layers: {type(model).__name__} has {len(layers)}. "
            f"Give reinitialize_layers: a number from 1 to {len(layers)}."
        )
    pooler = getattr(model, "pooler", None)
    top = nn.ModuleList([*layers[len(layers) - number :], *([pooler] if isinstance(pooler, nn.Module) else [])])
    if not all(parameter.requires_grad for parameter in top.parameters()):
        raise HeadsetError(
            f"The top {number} layers cannot be reinitialised: weights in them are frozen (by freeze, lora or "
            "quantization), and would stay random."
        )
    for module in top:
        for parameter in module.parameters():
            parameter._is_hf_initialized = False  # type: ignore[attr-defined]  # else transformers leaves it alone
        module.apply(model._init_weights)


def freeze(model: PreTrainedModel, what: str | int | None) -> None:
    """Set ``requires_grad`` of all parameters: off for ``what``, on for the rest.

    Args:
        model: The model to change.
        what: ``"all"``, ``"embeddings"``, a number n for the embeddings and the lowest n layers, or None.

    Raises:
        HeadsetError: None of these, or more layers than there are.
    """
    if what is not None and what not in ("all", "embeddings") and not (isinstance(what, int) and what >= 0):
        raise HeadsetError(
            f"Invalid freeze: {what!r}. Give 'all', 'embeddings', or a number of layers from the bottom."
        )
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # quantised ones cannot
    if what == "all":
        model.requires_grad_(False)
    elif what is not None:
        layers = transformer_layers(model)
        depth = 0 if what == "embeddings" else int(what)
        if depth > len(layers):
            raise HeadsetError(f"Cannot freeze the lowest {depth} layers: {type(model).__name__} has {len(layers)}.")
        for module in [*embedding_modules(model), *layers[:depth]]:
            module.requires_grad_(False)
