"""What a file says of a headset, checked before anything is made of it: kinds of values, sizes, names of code."""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch

from backbones.errors import HeadsetError
from backbones.options import BackboneOptions

__all__ = ["check_sizes", "check_tensors", "is_description", "is_plain"]

MOST_VALUES = 1_000_000  # beside weights, in a checkpoint

STATES = ("new", "loaded", "trained")
# Settings of an architecture that say how many layers there are, and how wide they are, as transformers names them.
LAYERS = re.compile(r"(n|num|number_of)_(\w+_)?(layers?|blocks?)|\w+_layers|n_layer|depth|num_hidden_groups")
SIZES = re.compile(r"hidden_size|d_model|n_embd|dim|vocab_size|intermediate_size|d_ff|ffn_dim|max_position_embeddings")
# Attention from the hub is code. transformers takes it from here without being asked.
KERNELS = "kernels-community/"


def is_description(value: Any) -> bool:
    """Whether a value from a file has the form of what `describe` gives, so that nothing is loaded from elsewhere."""
    try:
        options, heads, labels = BackboneOptions(**value["backbone"]), value["heads"], value["labels"]
        files, states = value.get("processor") or {}, value["states"]
        return (
            all(_is(getattr(options, name), kind) for name, kind in get_type_hints(BackboneOptions).items())
            and isinstance(options.config, dict)
            and isinstance(options.config["model_type"], str)
            and isinstance(getattr(torch, options.dtype, None), torch.dtype)
            and all(isinstance(its["class_path"], str) and isinstance(its["init_args"], dict) for its in heads.values())
            and labels.keys() <= heads.keys() >= states.keys()
            and all(names is None or _is_label_set(names) for names in labels.values())
            and all(state in STATES for state in states.values())
            and all(isinstance(name, str) and isinstance(content, bytes) for name, content in files.items())
            and _is_optimizer(value.get("optimizer"))
            and isinstance(value.get("run", {}), dict)
            and isinstance(value.get("seed", 0), int)
            and all(_is_known_attention(name) for name in _attention(value["backbone"]))
        )
    except (KeyError, TypeError, AttributeError):
        return False


def is_plain(content: Any) -> bool:
    """Whether there is an end to what a file holds: containers may hold each other, or themselves."""
    left, count = [content], 0
    while left and count < MOST_VALUES:
        value = left.pop()
        if isinstance(value, Mapping | list | tuple | set):
            left += value.values() if isinstance(value, Mapping) else value
        count += 1
    return not left


def check_tensors(weights: Mapping[str, torch.Tensor]) -> None:
    """Check that the file holds each value of its tensors, which may say that one stands for many.

    Raises:
        HeadsetError: It does not.
    """
    for name, weight in weights.items():
        if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
            raise HeadsetError(f"{name} of {tuple(weight.shape)} is larger than what the file holds of it.")


def check_sizes(description: Mapping[str, Any], shapes: Sequence[Sequence[int]]) -> None:
    """Check that there are weights for the sizes that a description gives, which are made before weights are loaded.

    Args:
        description: What `is_description` is true of.
        shapes: Those of all weights in the file.

    Raises:
        HeadsetError: A number of layers, or a width, is beyond what the file has weights for.
    """
    most = max(map(prod, shapes), default=0)
    for name, value in _numbers(description["backbone"]["config"]):
        limit = len(shapes) if LAYERS.fullmatch(name) else most if SIZES.fullmatch(name) else value
        if not 0 <= value <= limit and not (name == "max_position_embeddings" and value <= 10**9):
            raise HeadsetError(
                f"The backbone's {name} is {value}, and the file has weights for {limit} at most. Is it damaged?"
            )


def _is(value: Any, kind: Any) -> bool:
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return any(isinstance(value, get_origin(each) or each) for each in kinds)


def _is_optimizer(spec: Any) -> bool:
    return spec is None or (isinstance(spec["class_path"], str) and isinstance(spec["init_args"], dict))


def _is_label_set(names: Any) -> bool:
    """Labels are told apart by their names."""
    return (
        isinstance(names, list | tuple)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
    )


def _attention(settings: Any) -> Iterator[Any]:
    """Every setting of the attention, also of the parts of a configuration."""
    for key, value in settings.items():
        if isinstance(value, dict) and "attn_implementation" not in str(key):
            yield from _attention(value)
        elif "attn_implementation" in str(key):
            yield from value.values() if isinstance(value, dict) else [value]


def _is_known_attention(name: Any) -> bool:
    return name is None or (isinstance(name, str) and ("/" not in name or name.split("|")[-1].startswith(KERNELS)))


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The whole numbers of a configuration and of its parts, by name."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield str(name), value
