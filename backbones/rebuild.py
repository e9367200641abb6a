"""Building a base model again from its configuration, as checkpoints need it: no folder, no hub."""

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from backbones.errors import HeadsetError
from backbones.loading import base_of

__all__ = ["config_from_dict", "origin", "plain_config", "rebuild"]


def origin(model: PreTrainedModel) -> str:
    """The class of transformers that makes a model with exactly these weights from the model's configuration.

    That is the model's own class, or a task class around it: the base inside ``BertForTokenClassification`` has no
    pooler, which no configuration says.

    Raises:
        HeadsetError: There is none.
    """
    wanted = _shapes(model)
    for kind in _candidates(model):
        with torch.device("meta"):
            built = _base(kind._from_config(copy.deepcopy(model.config)))
        if type(built) is type(model) and _shapes(built) == wanted:
            return kind.__name__
    raise HeadsetError(
        f"No class of transformers builds this {type(model).__name__} from its configuration, so a checkpoint of it "
        "could not be loaded again. Were its layers changed by hand?"
    )


def plain_config(config: PretrainedConfig) -> dict[str, Any]:
    """A configuration as JSON has it: dictionaries, lists, strings and numbers; without quantisation."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    values.pop("quantization_config", None)
    return values


def config_from_dict(values: dict[str, Any]) -> PretrainedConfig:
    """The configuration that `plain_config` wrote.

    Raises:
        HeadsetError: The installed transformers does not know the architecture.
    """
    try:
        return AutoConfig.for_model(**values)
    except ValueError as error:
        raise HeadsetError(
            f"The installed transformers {transformers.__version__} does not know the architecture "
            f"'{values['model_type']}'; the model was written by {values.get('transformers_version', 'another')}."
        ) from error


def rebuild(config: PretrainedConfig, class_name: str, **kwargs: Any) -> PreTrainedModel:
    """A base model with random weights, of the shape that `origin` named.

    Raises:
        HeadsetError: The name is not that of a model class of transformers.
    """
    kind = getattr(transformers, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise HeadsetError(f"transformers has no model class '{class_name}'.")
    return _base(kind._from_config(copy.deepcopy(config), **kwargs))


def _base(model: PreTrainedModel) -> PreTrainedModel:
    """The base inside a task model; a model that is its own base, as it is."""
    return base_of(model) if re.search("For[A-Z]", type(model).__name__) else model


def _candidates(model: PreTrainedModel) -> Iterator[type[PreTrainedModel]]:
    yield type(model)
    for name in vars(modeling_auto):
        mapping = getattr(getattr(modeling_auto, name), "_model_mapping", {}) if name.startswith("AutoModelFor") else {}
        if type(model.config) in mapping:
            kind = mapping[type(model.config)]
            yield from kind if isinstance(kind, tuple) else (kind,)


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}
