"""One loss of many heads, which several processes compute as one with all of their rows would."""

import functools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, distributed, nn

from headset.balancing import LossWeights
from headset.model import Headset
from headset.reach import Reach, touch
from headset.sharding import average_whole, gathered_ones, is_sharded, while_in

__all__ = ["JointLoss", "combined"]

Sized = tuple[Tensor, Tensor | float]  # a loss, and how much it is a mean over


def combined(parts: Iterable[Mapping[str, Sized]]) -> dict[str, Sized]:
    """The loss of each head over several batches, as one batch of all their rows would have it."""
    by_head: dict[str, list[Sized]] = {}
    for part in parts:
        for name, sized in part.items():
            by_head.setdefault(name, []).append(sized)
    return {name: sized[0] if len(sized) == 1 else _mean(sized) for name, sized in by_head.items()}


class JointLoss:
    """The sum of the weighted losses of a step, over all processes.

    `DistributedDataParallel` takes the mean of the gradients of W processes. The loss of a head in this one is
    multiplied by ``W * size / (the sum of all sizes)``, by which that mean is the gradient of the loss over all rows.

    Args:
        headset: The heads and their backbone.
        weights: The weights of the losses.
    """

    def __init__(self, headset: Headset, weights: LossWeights) -> None:
        self.headset = headset
        self.weights = weights
        self.reach = Reach()
        self.seen: list[dict[str, Tensor]] = []
        self.flags: list[float] = []  # what this process tells the others in a step; afterwards the sums over all

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that the loss may come from."""
        if is_sharded(self.headset):  # a module has others while its parts are gathered
            return [*self.headset.parameters(), *self.weights.parameters()]
        return self._listed

    @functools.cached_property
    def _listed(self) -> list[nn.Parameter]:
        """Listed once, since walking through all modules takes a while."""
        return [*self.headset.parameters(), *self.weights.parameters()]

    def __call__(self, losses: Mapping[str, Sized]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss of a step.

        Args:
            losses: Of the heads that this process has in this step.

        Returns:
            The sum to compute gradients of, in this process; the same over all processes; and the losses of the heads
            that any process has, as means over all of their rows.
        """
        parameters, names = self.parameters, list(self.headset.heads)
        device = parameters[0].device
        nothing = torch.zeros((), device=device)
        sizes = {name: torch.as_tensor(size, dtype=torch.float32, device=device) for name, (_, size) in losses.items()}
        here = {name: torch.where(sizes[name] > 0, loss.float(), nothing) for name, (loss, _) in losses.items()}
        # What is computed from the losses, and the weights of the losses themselves.
        roots = here | {f"weight of {name}": torch.as_tensor(self.weights.weight(name)) for name in here}
        leaves = gathered_ones(self.headset, parameters)
        reached = self.reach.find(roots, leaves)
        if _processes() == 1:
            self.reach.note(reached, None)
            present = {name: size.new_ones(()) for name, size in sizes.items()}
            means = {name: loss.detach() for name, loss in here.items()}
        else:
            sums = {name: sizes[name] * loss.detach() for name, loss in here.items()}
            rows = [kind.get(name, nothing) for kind in (sizes, sums) for name in names]
            table = torch.cat([torch.stack(rows), torch.tensor([*reached, *self.flags], device=device).float()])
            distributed.all_reduce(table)
            self.reach.note(reached, table[2 * len(names) : 2 * len(names) + len(reached)])
            totals = dict(zip(names, table, strict=False))
            known = torch.cat([table[: len(names)], table[len(table) - len(self.flags) :]]).tolist()
            self.flags = known[len(names) :]
            there = [name for name, total in zip(names, known, strict=False) if total > 0]
            present = {name: (totals[name] > 0).float() for name in names}
            means = {name: table[len(names) + names.index(name)] / totals[name] for name in there}
            here = {
                name: loss * (_processes() * sizes[name] / totals[name].clamp(min=1e-12)) for name, loss in here.items()
            }
        self.seen.append(means)
        self.weights.learn(here, means, self.headset.backbone)
        total = self._sum(here, present)
        everywhere = self._sum(means, {name: present[name] for name in means}).detach()
        if _processes() > 1 or not total.requires_grad:
            pairs = zip(leaves, reached, strict=True)
            total = touch(total, [one for one, its in pairs if one.requires_grad and not its])
        return while_in(total, self.headset), everywhere, means

    def take(self) -> dict[str, Tensor]:
        """The mean losses of the heads since this was last asked, summed: finite, if all of them were."""
        seen, self.seen = self.seen, []
        names = dict.fromkeys(name for means in seen for name in means)
        return {name: torch.stack([means[name] for means in seen if name in means]).sum() for name in names}

    def drop_idle(self) -> None:
        """Before the optimizer steps: what no loss has reached gets no gradient, and so does not move."""
        if is_sharded(self.headset):
            average_whole(self.parameters)
        self.reach.drop_idle(self.parameters)

    def _sum(self, losses: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        weighted = [self.weights.weight(name) * loss for name, loss in losses.items()]
        start = torch.zeros((), device=next(self.headset.parameters()).device)
        total: Tensor = torch.stack(weighted).sum() if weighted else start
        return total + self.weights.penalty(present) if present else total


def _mean(sized: list[Sized]) -> Sized:
    """The mean of losses, each counted by its size."""
    sizes = torch.stack([torch.as_tensor(size, dtype=torch.float32, device=loss.device) for loss, size in sized])
    losses = torch.stack([loss.float() for loss, _ in sized])
    total = sizes.sum()
    return (torch.where(sizes > 0, losses, 0.0) * sizes).sum() / total.clamp(min=1e-12), total


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
