"""What heads read of the outputs of a frozen backbone, so that this is kept and nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from backbones.calls import BackboneCall, merge_calls, model_inputs
from heads.base import HeadOutput
from headset.model import Headset
from headset.modes import evaluating

__all__ = ["CallPlan", "plan_calls"]

Spec = int | tuple[int, ...] | list[Any] | None


@dataclass(frozen=True)
class CallPlan:
    """A call to the backbone with the inputs of a batch as they are, and what of its output is kept.

    Args:
        call: The call, as it was made for some batch.
        kind: The class of the output.
        fields: By field of the output: the number of the tensor that is kept; of one that no head reads how many
            dimensions it has, and which after those of sequences and positions; a list of these; or None for the rest.
        kept: How many tensors are kept.
    """

    call: BackboneCall
    kind: type[ModelOutput]
    fields: Mapping[str, Spec]
    kept: int

    def answers(self, call: BackboneCall, inputs: Mapping[str, Any]) -> bool:
        """Whether a call is this one, for the inputs of its batch."""
        if call.path != self.call.path or not _is_plain(call, inputs):
            return False
        return BackboneCall(_settings(self.call)).shares_pass_with(BackboneCall(_settings(call))) and set(
            _tensors(self.call)
        ) == set(_tensors(call))

    def bound(self, inputs: Mapping[str, Any]) -> BackboneCall:
        """The same call with other inputs."""
        given = {name: inputs[name] for name in _tensors(self.call)}
        return replace(self.call, kwargs={**_settings(self.call), **given})

    def read(self, output: ModelOutput) -> list[Tensor]:
        """The tensors of an output that are kept."""
        found: dict[int, Tensor] = {}
        for name, spec in self.fields.items():
            for number, value in _pairs(spec, output.get(name)):
                found[number] = value
        return [found[number] for number in range(self.kept)]

    def output(self, tensors: Sequence[Tensor], inputs: Mapping[str, Any]) -> ModelOutput:
        """An output with the kept tensors; what no head reads is nan, and takes no memory."""
        first = next(iter(_tensors(BackboneCall(inputs)).values()))
        shape = next((tensor.shape[:2] for tensor in tensors if tensor.dim() > 2), first.shape[:2])
        blank = torch.full((), torch.nan, dtype=tensors[0].dtype, device=tensors[0].device)

        def made(spec: Spec) -> Any:
            if isinstance(spec, int):
                return tensors[spec]
            if isinstance(spec, list):
                return tuple(map(made, spec))
            return None if spec is None else blank.expand(*shape[: min(spec[0], 3) - 1], *spec[1:])

        return self.kind(**{name: made(spec) for name, spec in self.fields.items()})

    def describe(self) -> str:
        """What is kept, as a part of a key."""
        return repr((self.call.path, sorted(_tensors(self.call)), sorted(_settings(self.call).items()), self.fields))


def plan_calls(headset: Headset, batch: Mapping[str, Any], names: Sequence[str]) -> list[CallPlan]:
    """The calls that heads make with the inputs of a batch as they are.

    What they read is found by gradients: an answer depends on a tensor, or it does not.

    Args:
        headset: A headset whose backbone is frozen.
        batch: A batch, as `Headset.prepare` takes it.
        names: The heads to plan for.
    """
    with evaluating(headset), torch.no_grad():
        prepared, _ = headset.prepare(batch)
        batches = {name: prepared.get(name, {**batch, "labels": None}) for name in names}
        requests = {name: headset.head(name).request(batches[name]) for name in names}
        calls = merge_calls({name: call for name, call in requests.items() if call is not None})
        plans = []
        for call, its in calls:
            if _is_plain(call, model_inputs(batch)) and not call.padded:
                plans.append(_plan(headset, call, {name: batches[name] for name in its}))
    return [plan for plan in plans if plan is not None]


def _plan(headset: Headset, call: BackboneCall, batches: Mapping[str, Mapping[str, Any]]) -> CallPlan | None:
    output = headset.backbone.run(call)
    leaves: dict[int, Tensor] = {}

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1:
            if id(value) not in leaves:
                leaves[id(value)] = value.detach().clone().requires_grad_()
            return leaves[id(value)].clone()
        return tuple(map(leaf, value)) if isinstance(value, tuple) else value

    with torch.enable_grad():
        features = type(output)(**{name: leaf(value) for name, value in output.items()})
        answers = [answer for name, its in batches.items() for answer in _answers(headset.head(name)(features, its))]
        total = torch.stack([answer.float().sum() for answer in answers]).sum() if answers else None
        grads = (
            [None] * len(leaves) if total is None else torch.autograd.grad(total, [*leaves.values()], allow_unused=True)
        )
    read = [key for key, grad in zip(leaves, grads, strict=True) if grad is not None]
    numbers = {key: number for number, key in enumerate(read)}

    def spec(value: Any) -> Spec:
        if isinstance(value, tuple):
            return list(map(spec, value))
        if not isinstance(value, Tensor):
            return None
        if id(value) in numbers:
            return numbers[id(value)]
        return (value.dim(), *value.shape[min(value.dim(), 3) - 1 :])

    fields = {name: spec(value) for name, value in output.items()}
    return CallPlan(call, type(output), fields, len(read)) if read else None


def _answers(value: Any) -> Iterator[Tensor]:
    """The tensors of an answer that depend on something."""
    if isinstance(value, HeadOutput):
        yield from _answers([value.logits, value.info])
    elif isinstance(value, Mapping):
        yield from _answers(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _answers(item)
    elif isinstance(value, Tensor) and value.requires_grad:
        yield value


def _is_plain(call: BackboneCall, inputs: Mapping[str, Any]) -> bool:
    return all(value is inputs.get(name) for name, value in _tensors(call).items())


def _tensors(call: BackboneCall) -> dict[str, Tensor]:
    return {name: value for name, value in call.kwargs.items() if isinstance(value, Tensor)}


def _settings(call: BackboneCall) -> dict[str, Any]:
    return {name: value for name, value in call.kwargs.items() if not isinstance(value, Tensor)}


def _pairs(spec: Spec, value: Any) -> Iterator[tuple[int, Tensor]]:
    if isinstance(spec, int):
        yield spec, value
    elif isinstance(spec, list):
        for part, item in zip(spec, value, strict=True):
            yield from _pairs(part, item)
