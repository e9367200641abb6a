"""Which parameters have a learning rate or a weight decay of their own: heads, layers, and names that fit a pattern."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from backbones.backbone import Backbone
from backbones.errors import HeadsetError, invalid_choice
from backbones.freezing import parameter_depths, transformer_layers

__all__ = ["ParameterGroup", "check_groups", "parameter_groups"]

# Learned weights of losses start at 0 as logarithms, and would not move at the rate of a backbone that is fine-tuned.
LOSS_WEIGHTS_RATE = 0.01


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate or a weight decay of their own.

    Args:
        pattern: Which: a name of `Headset.named_parameters`, in which ``*`` is anything, ``?`` any character and
            ``[0-3]`` one of several, as in file names: ``backbone.model.embeddings.*``, ``heads.topic.*``.
        learning_rate: Takes the place of every other one.
        weight_decay: Of those among them that decay: norms and biases never do.
    """

    pattern: str
    learning_rate: float | None = None
    weight_decay: float | None = None


def check_groups(
    heads: Sequence[str],
    head_learning_rate: float | Mapping[str, float] | None,
    layer_decay: float | None,
    patterns: Sequence[ParameterGroup],
) -> None:
    """Check what can be checked before anything is loaded; the arguments are those of `parameter_groups`.

    Raises:
        HeadsetError: A number is out of its range, a head is unknown, or a group says nothing.
    """
    rates = head_learning_rate if isinstance(head_learning_rate, Mapping) else {"": head_learning_rate}
    for name, rate in rates.items():
        if name and name not in heads:
            raise invalid_choice("head in head_learning_rate", name, heads)
        _check_number("head_learning_rate", rate)
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise HeadsetError(f"Invalid layer_decay: {layer_decay}. Give a factor above 0 and up to 1, such as 0.9.")
    for group in patterns:
        _check_number(f"learning_rate of {group.pattern!r}", group.learning_rate)
        _check_number(f"weight_decay of {group.pattern!r}", group.weight_decay)
        if group.learning_rate is None and group.weight_decay is None:
            raise HeadsetError(f"The parameter group {group.pattern!r} has neither learning_rate nor weight_decay.")


def parameter_groups(
    module: nn.Module,
    head_learning_rate: float | Mapping[str, float] | None = None,
    layer_decay: float | None = None,
    patterns: Sequence[ParameterGroup] = (),
) -> list[dict[str, Any]]:
    """The trainable parameters in groups, as optimizers take them.

    Weights decay, embeddings too; norms and biases do not, as in BERT and in transformers' Trainer.

    Args:
        module: A `Headset`, or a module around one, ``headset``.
        head_learning_rate: The learning rate of all heads, or of each.
        layer_decay: d: the rate of the i-th of L layers from below is multiplied by d^(L + 1 - i), that of the
            embeddings by d^(L + 1), and no other (ELECTRA, Clark et al. 2020; counted as BEiT and timm do).
        patterns: Parameters with settings of their own.

    Returns:
        Groups with ``params``; ``lr`` where the rate is given here, and for learned weights of losses; ``scale``, by
        which the optimizer's own rate is to be multiplied; ``weight_decay`` where it is not that of the optimizer.

    Raises:
        HeadsetError: A pattern fits no parameter that trains, or two patterns fit the same one.
    """
    names = {name.removeprefix("headset."): parameter for name, parameter in module.named_parameters()}
    owned = _match([group.pattern for group in patterns], {name: each.requires_grad for name, each in names.items()})
    scales = {} if layer_decay is None else _scales(module, layer_decay)
    decaying = _decaying(module)
    _check_decay(patterns, owned, decaying)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in names.items():
        if not parameter.requires_grad:
            continue
        rate, decay = _own_rate(name, head_learning_rate), None
        if name in owned:
            group = patterns[owned[name]]
            rate = rate if group.learning_rate is None else group.learning_rate
            decay = group.weight_decay
        if name not in decaying:
            decay = 0.0
        settings = {"lr": rate, "scale": scales.get(name, 1.0) if rate is None else 1.0, "weight_decay": decay}
        given = {key: value for key, value in settings.items() if value is not None}
        groups.setdefault(tuple(settings.values()), {"params": [], **given})["params"].append(parameter)
    return list(groups.values())


def _check_number(what: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise HeadsetError(f"Invalid {what}: {value}. Give a number of at least 0.")


def _own_rate(name: str, rates: float | Mapping[str, float] | None) -> float | None:
    section, _, rest = name.partition(".")
    if section == "loss_weights":
        return LOSS_WEIGHTS_RATE
    if section != "heads":
        return None
    return rates.get(rest.partition(".")[0]) if isinstance(rates, Mapping) else rates


def _scales(module: nn.Module, decay: float) -> dict[str, float]:
    """What the rate of each parameter of the backbone is multiplied by."""
    backbone = next(part for part in module.modules() if isinstance(part, Backbone))
    depths = parameter_depths(backbone.model)
    top = len(transformer_layers(backbone.model)) + 1
    return {f"backbone.model.{name}": decay ** (top - depth) for name, depth in depths.items()}


def _decaying(module: nn.Module) -> set[str]:
    """The names of weights that decay: matrices that are neither in a norm nor a bias."""
    return {
        f"{path}.{name}".removeprefix("headset.").lstrip(".")
        for path, part in module.named_modules()
        if "norm" not in type(part).__name__.lower()
        for name, parameter in part.named_parameters(recurse=False)
        if parameter.dim() >= 2 and "bias" not in name.lower()
    }


def _match(patterns: Sequence[str], trainable: Mapping[str, bool]) -> dict[str, int]:
    """Which pattern fits each name."""
    owned: dict[str, int] = {}
    for index, pattern in enumerate(patterns):
        fitting = [name for name in trainable if fnmatchcase(name, pattern)]
        if not fitting:
            near = difflib.get_close_matches(pattern, trainable, n=3, cutoff=0.3) or list(trainable)[:3]
            raise HeadsetError(
                f"The pattern {pattern!r} in parameter_groups fits no parameter. Names are such as {', '.join(near)}; "
                f"* stands for anything: '*.bias'."
            )
        if not any(trainable[name] for name in fitting):
            raise HeadsetError(
                f"The pattern {pattern!r} in parameter_groups fits only parameters that are frozen: "
                f"{', '.join(fitting[:3])}{', …' if len(fitting) > 3 else ''}."
            )
        for name in fitting:
            if name in owned:
                raise HeadsetError(
                    f"Two patterns in parameter_groups fit {name}: {patterns[owned[name]]!r} and {pattern!r}. "
                    "Each parameter belongs to one group at most."
                )
            owned[name] = index
    return owned


def _check_decay(patterns: Sequence[ParameterGroup], owned: Mapping[str, int], decaying: set[str]) -> None:
    for index, group in enumerate(patterns):
        fitting = [name for name, owner in owned.items() if owner == index]
        if group.weight_decay and decaying.isdisjoint(fitting):
            raise HeadsetError(
                f"The pattern {group.pattern!r} in parameter_groups has a weight_decay, and fits only norms and "
                f"biases, which do not decay: {', '.join(fitting[:3])}{', …' if len(fitting) > 3 else ''}."
            )
