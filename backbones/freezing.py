"""Freezing parts of a transformers model, found by their shape and not by any architecture's names."""

from torch import nn
from transformers import PreTrainedModel

from backbones.errors import HeadsetError

__all__ = ["embedding_modules", "freeze", "transformer_layers"]


def transformer_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of layers, lowest first: the first list of modules as long as the configuration says.

    Raises:
        HeadsetError: The model has no such list.
    """
    size = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == size:
            return module
    raise HeadsetError(f"{type(model).__name__} has no list of {size} layers, so no lowest layers can be frozen.")


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
