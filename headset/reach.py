"""Which parameters a loss reaches: those that it does not reach neither miss in DistributedDataParallel nor move."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from headset.sharding import local

__all__ = ["Reach", "touch"]


class Reach:
    """What the losses since the last optimizer step reached, in all processes.

    A head that is not in a batch gets no gradient. `DistributedDataParallel` would wait for it, so that it gets one of
    zeros (`touch`); and zeros would let weight decay and momentum move it, so that they are taken away again before
    the optimizer steps (`drop_idle`).
    """

    def __init__(self) -> None:
        # By the heads in a step and what is trainable: the graph is looked through once for each.
        self._known: dict[Any, list[bool]] = {}
        self._here: list[bool] = []
        self._anywhere: Tensor | None = None

    def find(self, losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> list[bool]:
        """Which of the parameters the losses of some heads reach."""
        key = frozenset(losses), tuple(parameter.requires_grad for parameter in parameters)
        if key not in self._known:
            leaves = _leaves(losses.values())
            self._known[key] = [id(parameter) in leaves for parameter in parameters]
        return self._known[key]

    def note(self, here: Sequence[bool], anywhere: Tensor | None) -> None:
        """Keep what a batch reached.

        Args:
            here: Of each parameter, whether this process reached it.
            anywhere: How many processes did, ``(P,)``; None where there is one.
        """
        earlier = self._here or [False] * len(here)
        self._here = [now or before for now, before in zip(here, earlier, strict=True)]
        if anywhere is not None:
            self._anywhere = anywhere if self._anywhere is None else self._anywhere + anywhere

    def state(self) -> dict[str, Any]:
        """What was reached since the last optimizer step, for a checkpoint."""
        return {"here": self._here, "anywhere": None if self._anywhere is None else self._anywhere.cpu()}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a `state`."""
        anywhere: Tensor | None = state["anywhere"]
        self._here, self._anywhere = state["here"], None if anywhere is None else anywhere.to(device)

    def drop_idle(self, parameters: Sequence[nn.Parameter]) -> None:
        """Take the gradients of zeros away from what no process has reached since the last optimizer step."""
        reached, anywhere = self._here, self._anywhere
        self._here, self._anywhere = [], None
        if all(reached):
            return
        if anywhere is not None:
            reached = anywhere.gt(0).tolist()
        idle = [one for one, its in zip(parameters, reached, strict=True) if not its and one.grad is not None]
        if idle:
            filled = torch.stack([local(one.grad).count_nonzero() for one in idle if one.grad is not None])
            if any(isinstance(one, DTensor) for one in idle):
                distributed.all_reduce(filled)
            for parameter in (one for one, number in zip(idle, filled.tolist(), strict=True) if not number):
                parameter.grad = None


def touch(total: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The same number, with a gradient of zeros for parameters that it does not come from.

    As ``0.0 *`` the parameters in the sum, but for those that are not finite.
    """
    touched: Tensor = _Touch.apply(total, *parameters)  # type: ignore[no-untyped-call]
    return touched


class _Touch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = [parameter.detach() for parameter in parameters]
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return (gradients[0], *map(torch.zeros_like, ctx.parameters))


def _leaves(losses: Any) -> set[int]:
    """The ids of the parameters that losses were computed from."""
    found = {id(loss) for loss in losses if loss.grad_fn is None}
    nodes = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        new = [after for after, _ in node.next_functions if after is not None and after not in seen]
        seen.update(new)
        nodes += new
    return found
