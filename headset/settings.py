"""Checks of a run's settings, before anything is loaded."""

from collections.abc import Iterable, Mapping
from typing import Any

from backbones.errors import HeadsetError, invalid_choice
from heads.base import Head
from headset.balancing import check_loss_weights
from headset.distillation import check_distillation
from headset.model import check_name
from headset.nonfinite import ACTIONS
from headset.parameter_groups import ParameterGroup, check_groups
from headset.schedules import check_schedule
from headset.stored import POLICIES

__all__ = ["check_settings"]


def check_settings(settings: Mapping[str, Any], heads: Mapping[str, Head], optimizer: Any) -> None:
    """Check the settings of a `LitHeadset`.

    Args:
        settings: Its arguments by name, as plain values.
        heads: The heads by name.
        optimizer: The optimizer given, if there is one.

    Raises:
        HeadsetError: One of them is wrong, or they do not go together.
    """
    check_schedule(settings["scheduler"], settings["warmup"], settings["scheduler_args"])
    patterns = [ParameterGroup(**group) for group in settings["parameter_groups"]]
    check_groups(list(heads), settings["head_learning_rate"], settings["layer_decay"], patterns)
    for name in ("learning_rate", "weight_decay", "reinitialize_layers"):
        if settings[name] is not None and settings[name] < 0:
            raise HeadsetError(f"Invalid {name}: {settings[name]}. Give a number of at least 0.")
    if optimizer is not None and not (settings["learning_rate"] is None and settings["weight_decay"] is None):
        raise HeadsetError(
            "learning_rate and weight_decay are those of the default optimizer. With model.optimizer, give them "
            "there: model.optimizer.init_args.lr"
        )
    if settings["stored_head"] not in (None, *POLICIES):
        raise invalid_choice("stored_head", settings["stored_head"], POLICIES)
    if settings["nonfinite_loss"] not in ACTIONS:
        raise invalid_choice("nonfinite_loss", settings["nonfinite_loss"], ACTIONS)
    for name in heads:
        check_name(name)
    if not heads:
        raise HeadsetError("A headset needs at least one head: model.heads: {topic: SequenceClassification}.")
    for setting in ("labels", "new_heads", "detached_heads", "frozen_heads"):
        _check_heads(setting, settings[setting], heads)
    check_distillation(settings["distillation"], heads)
    check_loss_weights(settings["loss_weights"], heads, settings["backbone"]["freeze"])


def _check_heads(setting: str, names: Iterable[str], heads: Mapping[str, Head]) -> None:
    for name in names:
        if name not in heads:
            raise invalid_choice(f"head in {setting}", name, heads)
