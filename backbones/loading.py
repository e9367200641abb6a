"""Loading a base model with every weight from the file, or not at all."""

import importlib.util
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from backbones.errors import HeadsetError

__all__ = [
    "base_of",
    "limit_length",
    "load_base_model",
    "load_config",
    "load_task_model",
    "load_tokenizer",
    "own_class",
    "resolve_path",
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
    except (OSError, ValueError) as error:
        raise _not_loadable(path, error) from error
    return config


def load_base_model(path: str, **kwargs: Any) -> PreTrainedModel:
    """The base model at a path, or the one inside the task checkpoint that lies there.

    ``AutoModel`` alone is not enough: on a task checkpoint it fills what it does not find with random weights (a pooler
    that the task does not have, for some architectures the whole base). Then the checkpoint's own class is loaded, and
    its base taken out.

    Raises:
        HeadsetError: There is no model, or its checkpoint lacks weights of the base model.
    """
    model, missing = _load(AutoModel, path, **kwargs)
    if not missing:
        return model
    kind = own_class(model.config)
    if kind is None or isinstance(model, kind):
        raise _weights_missing(path, type(model).__name__, missing)
    return base_of(load_task_model(path, kind, type(model), **kwargs))


def load_task_model(path: str, kind: Any, base: type | None = None, **kwargs: Any) -> PreTrainedModel:
    """A task model (an ``AutoModelFor...`` or a class of transformers), with every weight from the file.

    Args:
        path: Where it lies.
        kind: The class that loads it.
        base: If given, only the weights of the part of this class must be in the file.
        kwargs: Passed to ``from_pretrained``.

    Raises:
        HeadsetError: There is no model, or its checkpoint lacks weights.
    """
    model, missing = _load(kind, path, **kwargs)
    if base is not None:
        body = base_of(model)
        prefix = next(name for name, module in model.named_modules() if module is body)
        missing = [key for key in missing if key.startswith(f"{prefix}.")]
    if missing:
        raise _weights_missing(path, type(model).__name__, missing)
    return model


def load_tokenizer(path: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer at a path, with a padding token: where it has none, the end-of-text token serves.

    Raises:
        HeadsetError: There is no tokenizer.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolve_path(path), trust_remote_code=False, **kwargs
        )
    except (OSError, ValueError, KeyError) as error:
        raise HeadsetError(
            f"No tokenizer could be loaded from {path}: {_first_line(error)} "
            "Give a folder or hub id that has one: --model.processor PATH"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # transformers makes one up from nothing, which reads every word as unknown.
        raise HeadsetError(f"There is no tokenizer at {path}. Say where there is one: --model.processor PATH")
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
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
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _not_loadable(path, error) from error
    return model, sorted(info["missing_keys"])


def own_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class of transformers that wrote the checkpoint, by the name in its configuration."""
    names = config.architectures or [""]
    kind = getattr(transformers, names[0], None)
    return kind if isinstance(kind, type) and issubclass(kind, PreTrainedModel) else None


def base_of(model: PreTrainedModel) -> PreTrainedModel:
    """The base inside a task model: what transformers says it is, else the largest model in it."""
    base = model.base_model
    if isinstance(base, PreTrainedModel) and base is not model:
        return base
    parts = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if not parts:
        raise HeadsetError(f"{type(model).__name__} holds no base model that a head could be put on.")
    return max(parts, key=_size)


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
    return HeadsetError(f"No model could be loaded from {path}.{hint} transformers says: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
