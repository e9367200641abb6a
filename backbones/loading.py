"""Loading a base model with every weight from the file, or not at all."""

import importlib.util
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto import modeling_auto

from backbones.errors import HeadsetError
from backbones.parts import on_meta, shared_parts

__all__ = [
    "base_class",
    "base_of",
    "first_line",
    "is_memory",
    "limit_length",
    "load_base_model",
    "load_config",
    "load_task_model",
    "load_tokenizer",
    "own_class",
    "resolve_path",
    "task_classes",
]

PACKAGE = "package://"


def resolve_path(path: str) -> str:
    """The place to load from: ``package://name/folder`` becomes a folder inside that installed package.

    Raises:
        HeadsetError: The package is not installed, or has no such folder.
    """
    if not path.startswith(PACKAGE):
        return path
    package, _, folder = path.removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise HeadsetError(
            f"{path} names the Python package '{package}', which is not installed. "
            f"Install it: pip install {package.replace('_', '-')}"
        )
    place = Path(found.submodule_search_locations[0]) / folder
    if not place.is_dir():
        raise HeadsetError(f"{path}: the package '{package}' has no folder '{folder}'.")
    return str(place)


def load_config(path: str, **kwargs: Any) -> PretrainedConfig:
    """The model configuration at a path.

    Raises:
        HeadsetError: There is none.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(resolve_path(path), trust_remote_code=False, **kwargs)
    except Exception as error:  # it is the file that decides what fails
        raise _not_loadable(path, error) from error
    return config


def load_base_model(path: str, **kwargs: Any) -> tuple[PreTrainedModel, PretrainedConfig]:
    """The base model at a path, or in the task checkpoint that lies there, and the configuration of the checkpoint.

    ``AutoModel`` alone is not enough: on a task checkpoint it fills what it does not find with random weights (a pooler
    that the task does not have, for some architectures the whole base), or finds weights of other shapes, and for a few
    architectures there is no base model. Then the checkpoint's own class is loaded, and its base taken out.

    Raises:
        HeadsetError: There is no model, or its checkpoint lacks weights of the base model.
    """
    config = load_config(path, revision=kwargs.get("revision"))
    base, own = base_class(config), own_class(config)
    if base is not None:
        try:
            model, missing = _load(AutoModel, path, **kwargs)
        except HeadsetError:
            if own not in task_classes(config):
                raise
        else:
            if not missing:
                return model, model.config
            if own not in task_classes(config):
                raise _weights_missing(path, type(model).__name__, missing)
    task = load_task_model(path, own or task_classes(config)[0], base_only=True, **kwargs)
    return base_of(task), task.config


def load_task_model(path: str, kind: Any, base_only: bool = False, **kwargs: Any) -> PreTrainedModel:
    """A task model (an ``AutoModelFor...`` or a class of transformers), with every weight from the file.

    Args:
        path: Where it lies.
        kind: The class that loads it.
        base_only: Only the weights of its base must be in the file.
        kwargs: Passed to ``from_pretrained``.

    Raises:
        HeadsetError: There is no model, or its checkpoint lacks weights.
    """
    model, missing = _load(kind, path, **kwargs)
    if base_only:
        needed = {id(value) for value in base_of(model).state_dict(keep_vars=True).values()}
        state = model.state_dict(keep_vars=True)
        missing = [key for key in missing if id(state.get(key)) in needed]
    if missing:
        raise _weights_missing(path, type(model).__name__, missing)
    return model


def load_tokenizer(path: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer at a path, with a padding token: where it has none, the end-of-text token serves.

    Raises:
        HeadsetError: There is no tokenizer, or it has no token that could serve for padding.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolve_path(path), trust_remote_code=False, **kwargs
        )
    except Exception as error:
        raise HeadsetError(
            f"No tokenizer could be loaded from {path}: {first_line(error)} "
            "Give a folder or hub id that has one: --model.processor PATH"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # transformers makes one up from nothing, which reads every word as unknown.
        raise HeadsetError(f"There is no tokenizer at {path}. Say where there is one: --model.processor PATH")
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None or not isinstance(tokenizer.model_max_length, int | float):
        raise HeadsetError(f"The tokenizer at {path} has no padding token, or a model_max_length that is no number.")
    return tokenizer


def limit_length(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Where the tokenizer knows no limit, or one above the model's, set that of the model's position embeddings.

    Some architectures keep the rows up to the padding token's free, so these are counted off.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < tokenizer.model_max_length:
        tokenizer.model_max_length = max(positions - (tokenizer.pad_token_id or 0) - 1, 1)


def _load(kind: Any, path: str, **kwargs: Any) -> tuple[PreTrainedModel, list[str]]:
    place = resolve_path(path)
    try:
        model, info = kind.from_pretrained(place, output_loading_info=True, trust_remote_code=False, **kwargs)
    except Exception as error:
        if is_memory(error):
            raise
        raise _not_loadable(path, error) from error
    return model, sorted(info["missing_keys"])


def own_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class of transformers that wrote the checkpoint, by the name in its configuration."""
    names = config.architectures
    kind = getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None
    return kind if isinstance(kind, type) and issubclass(kind, PreTrainedModel) else None


def base_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class that ``AutoModel`` has for an architecture; None for the few that have task models only."""
    kinds = AutoModel._model_mapping.get(type(config), None)
    found: type[PreTrainedModel] | None = kinds[0] if isinstance(kinds, tuple) else kinds
    return found


def task_classes(config: PretrainedConfig) -> list[type[PreTrainedModel]]:
    """The classes that transformers has for an architecture and any task."""
    found: list[type[PreTrainedModel]] = []
    for name, auto in vars(modeling_auto).items():
        if name.startswith("AutoModelFor") and name != "AutoModelForTextEncoding":  # its classes are encoders, no more
            kinds = auto._model_mapping.get(type(config), ())
            found += kinds if isinstance(kinds, tuple) else (kinds,)
    return [kind for kind in dict.fromkeys(found) if kind is not base_class(config)]


def base_of(model: PreTrainedModel) -> PreTrainedModel:
    """The base inside a task model.

    It is what transformers says it is; or the model of ``AutoModel``, put together from the parts of the task model; or
    the largest model inside it.

    Raises:
        HeadsetError: There is none of these.
    """
    base = model.base_model
    if isinstance(base, PreTrainedModel) and base is not model:
        return base
    built = _put_together(model)
    if built is not None:
        return built
    parts = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if not parts:
        raise HeadsetError(f"{type(model).__name__} holds no base model that a head could be put on.")
    return max(parts, key=_size)


def _put_together(model: PreTrainedModel) -> PreTrainedModel | None:
    """The base model of an architecture from the modules of a task model, where these are all that it needs."""
    kind = base_class(model.config)
    if kind is None or isinstance(model, kind):
        return model if kind is not None else None
    base = on_meta(kind, model.config, model.dtype)
    for part in list(shared_parts(model, base)):
        if part.backbone_path:
            base.set_submodule(part.backbone_path, model.get_submodule(part.task_path))
    whole = not any(tensor.is_meta for tensor in [*base.parameters(), *base.buffers()])
    return base.train(model.training) if whole else None


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _weights_missing(path: str, kind: str, missing: list[str]) -> HeadsetError:
    shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    return HeadsetError(
        f"The checkpoint at {path} lacks weights of {kind}: {shown}. They would be random, so nothing was loaded. "
        "Is it the whole checkpoint of this architecture? To start from random weights on purpose, set "
        "backbone.random_weights to true."
    )


def _not_loadable(path: str, error: Exception) -> HeadsetError:
    hint = ""
    place = Path(resolve_path(path))
    if not place.exists():
        hint = " There is no such folder here, so it was taken for a hub id."
    elif (place / "config.json").is_file() and not [*place.glob("*.safetensors"), *place.glob("*.bin")]:
        hint = " The folder has a config.json but no weights; for random weights set backbone.random_weights to true."
    return HeadsetError(f"No model could be loaded from {path}.{hint} transformers says: {first_line(error)}")


def is_memory(error: Exception) -> bool:
    """Whether there was too little memory."""
    return isinstance(error, MemoryError) or "memory" in str(error)


def first_line(error: Exception) -> str:
    """What an error says, and its kind where that would not be understood without."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return line if line and isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {line}"
