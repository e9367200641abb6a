"""Which hidden layers of the backbone feed a head."""

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from backbones.errors import HeadsetError, invalid_choice

__all__ = ["LayerChoice", "check_layer_choice"]


def check_layer_choice(choice: int | str | list[int]) -> None:
    """Check what can be checked of a choice of hidden layers before the backbone is known.

    Raises:
        HeadsetError: It is an unknown name or an empty list.
    """
    if isinstance(choice, str) and choice not in ("last", "mix"):
        raise invalid_choice("hidden layer", choice, ["last", "mix", "a number", "a list of numbers"])
    if choice == []:
        raise HeadsetError("The list of hidden layers is empty. Name at least one layer, or use hidden_layers='last'.")


class LayerChoice(nn.Module):
    """The hidden layers that a head reads, as one tensor.

    Layers count as transformers' ``hidden_states`` do: 0 is the output of the embeddings, ``num_layers`` (or -1) the
    last layer.

    Args:
        choice: ``"last"`` is the backbone's last hidden state; a number is one layer; a list is several, concatenated
            along D in the order given (Devlin et al. 2018, table 7, "concat last four hidden"); ``"mix"`` is a learned
            mean of all layers, scaled (Peters et al. 2018, equation 1), which starts as their plain mean.
        hidden_size: D, the width of one layer.
        num_layers: The number of layers, not counting the embeddings.

    Raises:
        HeadsetError: The backbone has no such layer, or the choice is none of the above.
    """

    def __init__(self, choice: int | str | list[int], hidden_size: int, num_layers: int) -> None:
        super().__init__()
        check_layer_choice(choice)
        self.choice = choice
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.needs_hidden_states = choice != "last"
        self.width = hidden_size * (len(choice) if isinstance(choice, list) else 1)
        for layer in self._numbers():
            if not -num_layers - 1 <= layer <= num_layers:
                raise HeadsetError(
                    f"There is no hidden layer {layer}: the backbone has {num_layers} layers. Valid layers: 0 (the "
                    f"embeddings) to {num_layers}, or -1 (the last) to {-num_layers - 1}."
                )
        if choice == "mix":
            self.weights = nn.Parameter(torch.zeros(num_layers + 1))
            self.gamma = nn.Parameter(torch.ones(()))

    def forward(self, features: ModelOutput) -> Tensor:
        """The chosen layers.

        Args:
            features: The backbone's output, with ``hidden_states`` if ``needs_hidden_states``. Feature maps
                ``(B, D, H, W)`` or ``(B, H, W, D)``, as convolutions give them, are H * W tokens.

        Returns:
            The chosen layers ``(B, T, width)``.

        Raises:
            HeadsetError: The hidden states are missing, not as many as the backbone has layers, or of other widths.
        """
        if not self.needs_hidden_states:
            return self._tokens(features["last_hidden_state"])
        states: tuple[Tensor, ...] = features.get("hidden_states", ())
        if len(states) != self.num_layers + 1:
            raise HeadsetError(
                f"Expected {self.num_layers + 1} hidden states from the backbone (the embeddings and {self.num_layers} "
                f"layers), got {len(states)}. Use hidden_layers: last, if this architecture counts them otherwise; "
                "without a headset, call the backbone with output_hidden_states=True."
            )
        if self.choice == "mix":
            return self.gamma * (torch.stack([*map(self._tokens, states)], dim=-1) @ self.weights.softmax(dim=0))
        return torch.cat([self._tokens(states[layer]) for layer in self._numbers()], dim=-1)

    def _tokens(self, states: Tensor) -> Tensor:
        """The states of one layer as ``(B, T, hidden_size)``."""
        if states.dim() == 4:
            maps_first = states.shape[1] == self.hidden_size
            states = states.flatten(2).transpose(1, 2) if maps_first else states.flatten(1, 2)
        if states.shape[-1] != self.hidden_size:
            raise HeadsetError(
                f"A hidden layer is {states.shape[-1]} wide, and the last one {self.hidden_size}: the stages of this "
                "architecture differ, so that they cannot be read together. Use hidden_layers: last."
            )
        return states

    def _numbers(self) -> list[int]:
        """The layers chosen by number."""
        if isinstance(self.choice, str):
            return []
        return [self.choice] if isinstance(self.choice, int) else self.choice
