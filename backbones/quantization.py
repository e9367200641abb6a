"""Backbones in 4 bits, by bitsandbytes: their settings, and their way into and out of memory and checkpoints.

Only layers of the backbone are ever quantised: heads are made after it, in the type of its other weights.
"""

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from backbones.errors import HeadsetError, invalid_choice

__all__ = [
    "check_quantization",
    "dequantize",
    "empty_layer",
    "is_quantized",
    "keep_loadable",
    "quantization_config",
    "quantize",
]

EIGHT_BITS = "backbones are quantised to 4 bits here: load_in_4bit: true"
ELSEWHERE = {
    "load_in_8bit": EIGHT_BITS,
    "llm_int8_threshold": EIGHT_BITS,
    "llm_int8_has_fp16_weight": EIGHT_BITS,
    "llm_int8_enable_fp32_cpu_offload": EIGHT_BITS,
    "bnb_4bit_quant_storage": "it is for sharding by FSDP",
    "kwargs": "it is no field",
}


def check_quantization(settings: Mapping[str, Any]) -> None:
    """Check settings before anything is loaded.

    Args:
        settings: Fields of transformers' BitsAndBytesConfig.

    Raises:
        HeadsetError: bitsandbytes is not installed, there is no such field, or a value is refused.
    """
    quantization_config(settings)


def quantization_config(settings: Mapping[str, Any]) -> BitsAndBytesConfig:
    """Settings as transformers has them.

    Raises:
        HeadsetError: As `check_quantization`.
    """
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise HeadsetError(f"Quantisation needs {package}: pip install 'headset[quantization]'")
    fields = [name for name in inspect.signature(BitsAndBytesConfig).parameters if name not in ELSEWHERE]
    for name in settings:
        if name in ELSEWHERE:
            raise HeadsetError(f"backbone.quantization takes no {name}: {ELSEWHERE[name]}.")
        if name not in fields:
            raise invalid_choice("field of quantization", name, fields)
    try:
        config = BitsAndBytesConfig(**settings)
    except (ValueError, TypeError, AttributeError) as error:
        raise HeadsetError(f"backbone.quantization cannot be used. transformers says: {error}") from error
    if config.quantization_method() not in ("nf4", "fp4"):
        raise HeadsetError("backbone.quantization needs load_in_4bit: true, and bnb_4bit_quant_type: nf4 or fp4.")
    return config


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer has its weights in 4 bits."""
    return getattr(getattr(layer, "weight", None), "quant_state", None) is not None


def quantize(model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
    """Quantise a model in place, just the layers that ``from_pretrained`` of transformers quantises."""
    from bitsandbytes.nn.modules import Linear4bit, Params4bit
    from transformers.quantizers.auto import AutoHfQuantizer

    config = quantization_config(settings)
    full = dict(model.named_modules())
    AutoHfQuantizer.from_config(config).preprocess_model(model, device_map=None)
    model.config.quantization_config = config
    for path, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            weight = full[path].weight.detach()
            weight = weight.T if isinstance(full[path], Conv1D) else weight
            empty: Any = Params4bit(weight, requires_grad=False, **layer.weight.__dict__)
            layer.weight = empty.to(weight.device)  # quantises
            layer.bias = full[path].bias
    keep_loadable(model)


def keep_loadable(model: PreTrainedModel) -> None:
    """Let ``load_state_dict`` of a quantised model load its layers, which bitsandbytes only saves, and peft find them.

    Raises:
        HeadsetError: It is quantised in another way than to 4 bits by bitsandbytes.
    """
    layers = [layer for layer in model.modules() if is_quantized(layer)]
    if not layers:
        raise HeadsetError(
            f"{type(model).__name__} is quantised in another way than to 4 bits by bitsandbytes. Load a checkpoint in "
            "full precision, and set backbone.quantization: {load_in_4bit: true}."
        )
    # peft asks for it, also of a base that came inside a task model.
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
    for layer in layers:
        layer.register_load_state_dict_pre_hook(_take_quantized)
        # On some processors bitsandbytes would pack the weights in evaluation, which rounds them, and use bfloat16.
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def empty_layer(layer: Any) -> nn.Linear | Conv1D:
    """The layer that a quantised one was made of, with its bias, and without memory for its weights."""
    empty: nn.Linear | Conv1D
    with torch.device("meta"):
        if layer.source_cls is Conv1D:
            empty = Conv1D(layer.out_features, layer.in_features)
        else:
            empty = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    empty.bias = layer.bias
    return empty


@torch.no_grad()
def dequantize(model: PreTrainedModel) -> None:
    """Give a model its layers in full precision again, in place, with the values that the quantised ones stand for."""
    from bitsandbytes.functional import dequantize_4bit
    from transformers.quantizers.auto import AutoHfQuantizer

    for path, layer in [*model.named_modules()]:
        if is_quantized(layer):
            layer.state_dict()  # brings weights that were packed for the CPU into the form that all else reads
            full = empty_layer(layer)
            weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            full.weight = nn.Parameter(weight.T.contiguous() if isinstance(full, Conv1D) else weight)
            model.set_submodule(path, full.to(weight.dtype))
    AutoHfQuantizer.from_config(model.config.quantization_config).remove_quantization_config(model)
    model.is_loaded_in_4bit = False  # type: ignore[assignment]


def _take_quantized(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take a quantised weight out of a state, with the statistics beside it."""
    from bitsandbytes.nn.modules import Params4bit

    key = f"{prefix}weight"
    statistics: dict[str, Tensor] = {
        name.removeprefix(f"{key}."): state.pop(name) for name in [*state] if name.startswith(f"{key}.")
    }
    if statistics:
        device = layer.weight.device
        layer.weight = Params4bit.from_prequantized(state[key], statistics, device=device, module=layer)
