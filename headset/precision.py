"""The precision to predict in where none is asked for, and what it costs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["predict_precision", "rounded_weights"]


def predict_precision(accelerator: str, hparams: Mapping[str, Any] | None) -> str | None:
    """``bf16-mixed`` where the machine multiplies bfloat16 faster than float32; None for float32, or other weights.

    Args:
        accelerator: What Trainer is to run on, as its argument has it.
        hparams: The settings in the checkpoint.
    """
    backbone = (hparams or {}).get("backbone", {})
    if backbone.get("dtype", "float32") != "float32" or backbone.get("quantization"):
        return None
    on_gpu = accelerator in ("cuda", "gpu", "auto") and torch.cuda.is_available()
    if on_gpu:
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases of torch do not tell
    return "bf16-mixed" if on_cpu and known.get("amx_bf16") else None


def rounded_weights(model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Round the weights of linear layers to bfloat16 in place, once: autocast does it anew for each batch.

    Args:
        model: What runs under autocast to bfloat16.

    Returns:
        The parameters, each with what it was.
    """
    others = {
        id(its) for part in model.modules() if type(part) is not nn.Linear for its in part.parameters(recurse=False)
    }
    linear = [its for part in model.modules() if type(part) is nn.Linear for its in part.parameters(recurse=False)]
    exact = {its: its.data for its in linear if its.dtype == torch.float32 and id(its) not in others}
    for parameter, values in exact.items():
        parameter.data = values.bfloat16()
    return list(exact.items())
