"""What a head asks of a backbone: one call, comparable with the calls of other heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

__all__ = ["BackboneCall", "merge_calls", "model_inputs"]

NOT_MODEL_INPUTS = ("labels", "meta")
# Asking for more outputs never changes the others, so calls that differ only here share a pass.
OUTPUT_FLAGS = ("output_hidden_states", "output_attentions")
NOT_COMPARED = (*OUTPUT_FLAGS, "return_dict")


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a batch that a transformers model takes: everything but ``labels`` and ``meta``."""
    return {key: value for key, value in batch.items() if key not in NOT_MODEL_INPUTS}


@dataclass(frozen=True)
class BackboneCall:
    """One call to the backbone, or to a part of it.

    Args:
        kwargs: Keyword arguments of the call. Tensors are compared by identity, all else by value.
        path: The sub-module to call (``"encoder"``); the empty string is the whole model.
        padded: Whether what the model gives at padding is needed. It never changes the rest, so it is not compared.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    padded: bool = False

    def _essence(self) -> dict[str, Any]:
        return {key: value for key, value in self.kwargs.items() if key not in NOT_COMPARED}

    def shares_pass_with(self, other: "BackboneCall") -> bool:
        """Whether one pass answers both calls."""
        mine, theirs = self._essence(), other._essence()
        if self.path != other.path or mine.keys() != theirs.keys():
            return False
        return all(_same(value, theirs[key]) for key, value in mine.items())

    def joined(self, other: "BackboneCall") -> "BackboneCall":
        """The call that answers both, for calls that share a pass."""
        flags = {key: value for key, value in other.kwargs.items() if key in OUTPUT_FLAGS and value}
        return replace(self, kwargs={**self.kwargs, **flags}, padded=self.padded or other.padded)


def merge_calls(calls: Mapping[str, BackboneCall]) -> list[tuple[BackboneCall, list[str]]]:
    """Group the calls of several heads into as few passes as possible.

    Args:
        calls: The call of each head, by the head's name.

    Returns:
        Pairs of a call and the names of the heads that it answers.
    """
    passes: list[tuple[BackboneCall, list[str]]] = []
    for name, call in calls.items():
        for index, (shared, names) in enumerate(passes):
            if shared.shares_pass_with(call):
                passes[index] = (shared.joined(call), [*names, name])
                break
        else:
            passes.append((call, [name]))
    return passes


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor):
        return left is right
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_same(value, right[key]) for key, value in left.items())
    if isinstance(left, Sequence) and isinstance(right, Sequence) and not isinstance(left, str):
        return len(left) == len(right) and all(map(_same, left, right))
    return left is right or bool(left == right)
