"""Losses and metrics of a stage of evaluation, over all of its batches and processes."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from heads.base import Head

__all__ = ["Measures"]


class Measures(nn.Module):
    """The loss and the metrics of each head.

    Args:
        heads: The heads by name, built.
    """

    def __init__(self, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict({name: LossMean() for name in heads})
        self.metrics = nn.ModuleDict({name: head.metrics() for name, head in heads.items()})

    def update(self, name: str, loss: Tensor, size: Tensor | float, inputs: tuple[Any, Any]) -> None:
        """Take in a batch of a head.

        Args:
            name: The head.
            loss: Its loss.
            size: How much the loss is a mean over.
            inputs: Predictions and targets, as the head's metrics take them.
        """
        cast(LossMean, self.losses[name]).update(loss, size)
        self.of(name).update(*inputs)

    def of(self, name: str) -> MetricCollection:
        """The metrics of a head."""
        return cast(MetricCollection, self.metrics[name])

    def compute(self, weight: Callable[[str], float], every: bool = False) -> dict[str, Tensor]:
        """What was measured of the heads that any process had rows of; and all is forgotten.

        Args:
            weight: The weight of a head in the sum of the losses.
            every: Give also what heads without rows would be measured by.

        Returns:
            ``loss``, the weighted sum of the losses; and of each head ``<head>/loss`` and ``<head>/<metric>``.
        """
        found: dict[str, Tensor] = {}
        total = []
        for name in self.losses:
            mean, size = cast(LossMean, self.losses[name]).value()
            if size > 0 or every:  # alike in all processes
                total.append(weight(name) * mean)
                found[f"{name}/loss"] = mean
                found |= {f"{name}/{metric}": value for metric, value in self._metrics(name).items()}
        for measure in [*self.losses.values(), *self.metrics.values()]:
            cast(Metric, measure).reset()
        return ({"loss": torch.stack(total).sum()} if total else {}) | found

    def _metrics(self, name: str) -> dict[str, Tensor]:
        with warnings.catch_warnings():  # a process may have had no rows of this head
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            values: dict[str, Tensor] = self.of(name).compute()
        return values


class LossMean(Metric):
    """The mean of losses, each counted by its size."""

    full_state_update = False
    total: Tensor
    size: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("total", "size"):
            self.add_state(state, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, size: Tensor | float) -> None:
        """Take in a loss and its size; a loss over nothing, which may be nan, does not count."""
        size = torch.as_tensor(size, dtype=torch.float32, device=loss.device)
        self.total += torch.where(size > 0, loss.detach().float() * size, 0.0)
        self.size += size

    def compute(self) -> Tensor:
        """The mean, and the sum of the sizes ``(2,)``."""
        return torch.stack([self.total / self.size, self.size])

    def value(self) -> tuple[Tensor, float]:
        """The mean over all processes, and the sum of the sizes."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            mean, size = self.compute()
        return mean.float(), size.item()
