"""Scorers of our own, for heads that do not use the native one: hidden layers of choice, pooled or not, and a layer."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall, model_inputs
from backbones.errors import HeadsetError
from backbones.layers import LayerChoice, check_layer_choice
from heads.base import HeadContext, attention_mask, init_linear
from heads.poolers import Pooler, pooling_modes
from heads.windows import WindowPooler

__all__ = ["NATIVE", "Scorer", "check_pooling"]

NATIVE = "native"  # the pooling of the modules that transformers has for an architecture


def check_pooling(pooling: str | list[str], hidden_layers: int | str | list[int]) -> None:
    """Check what a head is told to pool, before the backbone is known.

    Args:
        pooling: ``native``, or what `Pooler` takes.
        hidden_layers: What `LayerChoice` takes; ``last`` with the native pooling.

    Raises:
        HeadsetError: It is none of these.
    """
    check_layer_choice(hidden_layers)
    if pooling != NATIVE:
        pooling_modes(pooling)
    elif hidden_layers != "last":
        raise HeadsetError(
            f"hidden_layers: {hidden_layers} needs a pooling of ours, since the native one reads the last layer. "
            "Set pooling to cls, mean, max, last or attention."
        )


class Scorer(nn.Module):
    """Hidden layers -> pooling, if any -> dropout -> linear; used as a `NativeModel` is.

    Args:
        context: The backbone, which is read and not registered.
        size: C, the number of scores.
        hidden_layers: Which hidden layers to read, as `LayerChoice` takes them.
        pooling: How to pool over tokens, as `Pooler` takes it; None scores every token.
        dropout: The probability of dropping a value before the linear layer.
        windows: How to pool over the windows of a document, as `WindowPooler` takes it; None for texts in one piece.
    """

    def __init__(
        self,
        context: HeadContext,
        size: int,
        hidden_layers: str | int | list[int] = "last",
        pooling: str | list[str] | None = None,
        dropout: float = 0.1,
        windows: str | None = None,
    ) -> None:
        super().__init__()
        spec = context.spec
        self.encoder_path = context.backbone.encoder_path
        self.layers = LayerChoice(hidden_layers, spec.hidden_size, spec.num_layers)
        self.pooler = None if pooling is None else Pooler(pooling, self.layers.width, spec.initializer_range)
        width = self.layers.width if self.pooler is None else self.pooler.width
        self.over_windows = None if windows is None else WindowPooler(windows, width, spec.initializer_range)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, size)
        init_linear(self.linear, spec)

    def request(self, batch: Mapping[str, Any]) -> BackboneCall:
        """The model inputs as they are, to the encoder where there is a decoder too; all layers where they are read."""
        inputs = model_inputs(batch)
        if self.layers.needs_hidden_states:
            inputs["output_hidden_states"] = True
        return BackboneCall(inputs, self.encoder_path)

    def unused(self, backbone: Backbone) -> set[str]:
        """The backbone's pooler: hidden states do not go through it."""
        return backbone.pooler_parameters

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> ModelOutput:
        """An output with ``logits`` ``(B, C)``, or ``(B, T, C)`` without pooling."""
        hidden = self.layers(features)
        if self.pooler is not None:
            hidden = self.pooler(hidden, attention_mask(batch, hidden))
        if self.over_windows is not None:
            hidden = self.over_windows(hidden, batch.get("meta", {}))
        return ModelOutput(logits=self.linear(self.dropout(hidden)))
