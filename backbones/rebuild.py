"""Building a base model again from its configuration, as checkpoints need it: no folder, no hub."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from backbones.errors import HeadsetError
from backbones.loading import base_class, base_of, first_line, is_memory, own_class, task_classes
from backbones.parts import on_meta

__all__ = ["config_from_dict", "new_base_model", "origin", "plain_config", "rebuild", "rebuild_empty"]


def origin(model: PreTrainedModel, config: PretrainedConfig | None = None) -> str:
    """The class of transformers that makes a model with exactly these weights from a configuration.

    That is the model's own class, or a task class around it: the base inside ``BertForTokenClassification`` has no
    pooler, which no configuration says.

    Args:
        model: The base model.
        config: The configuration; by default the model's own.

    Raises:
        HeadsetError: There is none.
    """
    config = config or model.config
    wanted = _shapes(model)
    for kind in _candidates(model, config):
        built = _base(on_meta(kind, config, model.dtype))
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
    return _base(_model_class(class_name)._from_config(copy.deepcopy(config), **kwargs))


def rebuild_empty(config: PretrainedConfig, class_name: str, dtype: torch.dtype, **kwargs: Any) -> PreTrainedModel:
    """A base model as ``from_pretrained`` makes it, whose weights are 0 and wait for those of a checkpoint.

    Made from a configuration alone, some parts are of other types than in a pretrained model of that type.

    Raises:
        HeadsetError: The name is not that of a model class of transformers.
    """
    kind = _model_class(class_name)
    shapes = on_meta(kind, config, dtype).state_dict()
    zeros = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in shapes.items()}
    model: PreTrainedModel = kind.from_pretrained(
        None, config=copy.deepcopy(config), state_dict=zeros, dtype=dtype, **kwargs
    )
    model.config.name_or_path = config.name_or_path
    return _base(model)


def _model_class(name: str) -> type[PreTrainedModel]:
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise HeadsetError(f"transformers has no model class '{name}'.")
    return kind


def new_base_model(config: PretrainedConfig, **kwargs: Any) -> PreTrainedModel:
    """A base model with random weights: that of ``AutoModel``, or, where there is none, the base of a task model.

    Raises:
        HeadsetError: transformers has neither, or makes no model of these settings.
    """
    # Where an architecture has several base models, AutoModel looks for a name in this list, and fails on None.
    config.architectures = config.architectures or []
    whole, tasks = base_class(config) is not None, task_classes(config)
    if not whole and not tasks:
        raise HeadsetError(f"transformers has no model for the architecture '{config.model_type}'.")
    make: Any = AutoModel.from_config if whole else tasks[0]._from_config
    try:
        model: PreTrainedModel = make(config, **kwargs)
    except Exception as error:  # whatever an architecture does with settings that do not fit each other
        if is_memory(error):
            raise
        raise HeadsetError(
            f"transformers makes no model of this configuration of the architecture '{config.model_type}': "
            f"{first_line(error).rstrip('.')}. Look at its config.json."
        ) from error
    return model if whole else base_of(model)


def _base(model: PreTrainedModel) -> PreTrainedModel:
    """The base inside a task model; a base model, as it is."""
    return base_of(model) if type(model) in task_classes(model.config) else model


def _candidates(model: PreTrainedModel, config: PretrainedConfig) -> Iterator[type[PreTrainedModel]]:
    if type(config) is type(model.config) and hasattr(transformers, type(model).__name__):
        yield type(model)
    tasks = task_classes(config)
    own = own_class(config)
    yield from [own] if own in tasks else []
    yield from tasks


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}
