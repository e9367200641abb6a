"""LoRA on a backbone, by peft: its settings, its injection, and which weights are of adapters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from backbones.errors import HeadsetError, invalid_choice

__all__ = ["adapted_layer", "check_lora", "inject_lora", "stock_name"]

BASE = "base_layer"  # where peft keeps the layer that it wraps
PREFIX = "lora_"  # of all that peft puts beside it
# Fields of LoraConfig that say what a headset says elsewhere, or that need what it has not.
ELSEWHERE = {
    "task_type": "the heads say what the task is",
    "modules_to_save": "heads are trained in full, always",
    "base_model_name_or_path": "it is the path of the backbone",
    "revision": "it is the revision of the backbone",
    "trainable_token_indices": "no tokens are added to the vocabulary",
    "ensure_weight_tying": "it is for modules_to_save and trainable_token_indices, which a headset has not",
    "layer_replication": "heads need the layers that the architecture has",
    "alora_invocation_tokens": "it is for generating text",
    "arrow_config": "it routes between several adapters, and there is one",
    "use_bdlora": "it is for serving",
    "runtime_config": "it is for serving",
    "eva_config": "the data of the run are not read before training",
    "corda_config": "the data of the run are not read before training",
    "lora_ga_config": "the data of the run are not read before training",
    "loftq_config": "quantised backbones come from bitsandbytes: backbone.quantization",
    "use_qalora": "quantised backbones come from bitsandbytes: backbone.quantization",
    "qalora_group_size": "quantised backbones come from bitsandbytes: backbone.quantization",
    "megatron_config": "the layers are those of transformers",
    "megatron_core": "the layers are those of transformers",
    **dict.fromkeys(("peft_type", "auto_mapping", "peft_version", "inference_mode"), "peft sets it itself"),
}
STARTS_ELSEWHERE = {name.removesuffix("_config"): ELSEWHERE[name] for name in ELSEWHERE if name.endswith("_config")}


def check_lora(settings: Mapping[str, Any]) -> None:
    """Check settings before anything is loaded.

    Args:
        settings: Fields of peft's LoraConfig.

    Raises:
        HeadsetError: peft is not installed, has no such field, refuses a value, or a headset has no use for a field.
    """
    _config(settings)


def inject_lora(model: PreTrainedModel, settings: Mapping[str, Any]) -> Any:
    """Put LoRA into a model in place; its own weights are frozen, and the adapters are float32, as peft has them.

    Args:
        model: The base model, without any head: so no head is ever wrapped.
        settings: Fields of peft's LoraConfig.

    Returns:
        peft's LoraModel, whose ``merge_and_unload`` and ``unload`` take the adapters away again.

    Raises:
        HeadsetError: As `check_lora`, or the model has no such layers.
    """
    config = _config(settings)
    from peft import LoraModel
    from peft.tuners.tuners_utils import cast_adapter_dtype

    targets = settings.get("target_modules")
    for target in targets if isinstance(targets, list) else ():
        if not any(path == target or path.endswith(f".{target}") for path, _ in model.named_modules()):
            raise invalid_choice("target module of lora", target, _layer_names(model))
    try:
        tuner = LoraModel(model, config, "default")
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise HeadsetError(
            f"LoRA does not go on {type(model).__name__} as backbone.lora says. peft says: {reason} "
            f"For target_modules give all-linear, or a list of layers: {', '.join(_layer_names(model))}."
        ) from error
    cast_adapter_dtype(model, "default")
    return tuner


def stock_name(name: str) -> str:
    """The name that a module, or a weight that is of no adapter, has without adapters.

    >>> stock_name("layer.0.query.base_layer.weight")
    'layer.0.query.weight'
    """
    return ".".join(part for part in name.split(".") if part != BASE)


def adapted_layer(name: str) -> str | None:
    """The path of the layer that an adapter's weight is for; None for the name of any other weight.

    >>> adapted_layer("layer.0.query.lora_A.default.weight")
    'layer.0.query'
    """
    parts = name.split(".")
    found = [index for index, part in enumerate(parts) if part.startswith(PREFIX)]
    return stock_name(".".join(parts[: found[0]])) if found else None


def _config(settings: Mapping[str, Any]) -> Any:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise HeadsetError("LoRA is made by peft: pip install 'headset[peft]'") from error
    fields = [field.name for field in dataclasses.fields(LoraConfig) if field.name not in ELSEWHERE]
    for name in settings:
        if name in ELSEWHERE:
            raise HeadsetError(f"backbone.lora takes no {name}: {ELSEWHERE[name]}.")
        if name not in fields:
            raise invalid_choice("field of lora", name, fields)
    start = settings.get("init_lora_weights")
    if start in STARTS_ELSEWHERE:
        raise HeadsetError(f"backbone.lora takes no init_lora_weights: {start}: {STARTS_ELSEWHERE[start]}.")
    try:
        return LoraConfig(**settings)
    except (ValueError, TypeError) as error:
        raise HeadsetError(f"backbone.lora cannot be used. peft says: {' '.join(str(error).split())}") from error


def _layer_names(model: PreTrainedModel) -> list[str]:
    """The last parts of the paths of layers that LoRA goes on."""
    kinds = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, Conv1D)
    return sorted({path.rpartition(".")[2] for path, module in model.named_modules() if isinstance(module, kinds)})
