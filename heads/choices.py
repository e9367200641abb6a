"""Inputs with several choices a row, taken one by one by a scorer that reads one text."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from backbones.calls import model_inputs
from heads.base import HeadOutput

__all__ = ["masked", "one_by_one"]


def one_by_one(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with inputs ``(B, C, T)`` as one of B * C texts, ``(B * C, T)``, without labels.

    Texts that are one by one already, ``(N, T)``, stay as they are.
    """
    mask = batch.get("meta", {}).get("attention_mask")
    inputs = model_inputs(batch) | ({} if mask is None else {"meta": mask})
    flat = {
        key: value.flatten(0, 1) if isinstance(value, Tensor) and value.dim() > 2 else value
        for key, value in inputs.items()
    }
    return flat if mask is None else flat | {"meta": {"attention_mask": flat["meta"]}}


def masked(logits: Tensor, choices: Sequence[Sequence[str]] | None) -> HeadOutput:
    """Scores ``(B, C)`` as an output, -inf for the choices that a row lacks.

    Args:
        logits: The scores.
        choices: The texts of each row's choices, which are kept in ``info``; None where each row has C.
    """
    if choices is not None:
        counts = torch.tensor([len(row) for row in choices], device=logits.device).unsqueeze(-1)
        lacking = torch.arange(logits.shape[-1], device=logits.device) >= counts
        if lacking.any():
            logits = logits.masked_fill(lacking, float("-inf"))
    return HeadOutput(logits, {"choices": choices})
