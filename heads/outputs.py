"""What a scorer gives, as the output of a head: its scores, and the loss that transformers computed along with them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from heads.base import HeadOutput

__all__ = ["head_output", "logits_of", "stock_loss"]


def logits_of(output: ModelOutput) -> Tensor:
    """The scores in a task model's output, whatever transformers calls them.

    Returns:
        Scores ``(B, C)`` or ``(B, T, C)``; of question answering those of starts and ends, ``(B, T, 2)``.
    """
    if "start_logits" in output:
        return torch.stack([output["start_logits"], output["end_logits"]], dim=-1)
    first = next(name for name in output if name != "loss")
    scores: Tensor = output["logits" if "logits" in output else first]
    return scores


def head_output(output: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
    """A task model's output as that of a head, which keeps the loss if the batch has the head's labels."""
    loss = output.get("loss")
    return HeadOutput(logits_of(output), {} if loss is None else {"loss": loss, "labels": batch["labels"]})


def stock_loss(output: HeadOutput, labels: Any) -> Tensor | None:
    """The loss that transformers computed along with the scores, if it had these labels and the task model has one."""
    loss: Tensor | None = output.info.get("loss") if output.info.get("labels") is labels else None
    return loss
