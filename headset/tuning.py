"""What heads choose from the answers to all of validation, which are gathered here from all processes."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, distributed
from torchmetrics import MetricCollection

from backbones.errors import HeadsetError
from heads.base import Head, HeadOutput

__all__ = ["Tuning"]


class Tuning:
    """One validation of heads that choose thresholds or a temperature.

    Scores and labels of these heads are kept, in main memory, until all are there.

    Args:
        heads: The heads by name, built.
    """

    def __init__(self, heads: Mapping[str, Head]) -> None:
        self.heads = {name: head for name, head in heads.items() if head.tunes}
        self.kept: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.heads}
        self.all: dict[str, tuple[Tensor, Tensor]] = {}  # of all processes

    def check(self, validates: bool) -> None:
        """Check that there is a validation to choose on.

        Raises:
            HeadsetError: There is none.
        """
        if self.heads and not validates:
            raise HeadsetError(
                f"The head {next(iter(self.heads))!r} chooses what is 'tuned' on validation, and there is none. Set "
                "data.validation to a file, or to a share of train: 0.1."
            )

    def keep(self, name: str, output: HeadOutput, labels: Tensor) -> None:
        """Keep the answer to a batch, if the head chooses something."""
        if name in self.heads:
            self.kept[name].append((output.logits.detach().float().cpu(), labels.cpu()))

    def choose(self) -> None:
        """Have the heads choose, in all processes alike, while they have the weights that were measured."""
        for name, mine in self.kept.items():
            every = _gathered(mine)
            if every:
                logits, labels = (torch.cat(parts) for parts in zip(*every, strict=True))
                self.all[name] = logits, labels
                self.heads[name].tune(logits, labels)

    def finish(self, metrics: Callable[[str], MetricCollection]) -> None:
        """Measure the heads with what they chose, and forget the rows.

        What averages weights has changed them back by now, and with them what was chosen: it is chosen once more.

        Args:
            metrics: The metrics of a head, which were measured with what it had chosen before.
        """
        for name, (logits, labels) in self.all.items():
            head, measure = self.heads[name], metrics(name)
            head.tune(logits, labels)
            measure.reset()
            device = next(head.parameters()).device
            for its, truth in self.kept[name]:
                measure.update(*head.metric_inputs(HeadOutput(its.to(device)), truth.to(device)))
        self.all = {}
        self.kept = {name: [] for name in self.heads}


def _gathered(mine: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The batches of all processes, in the same order in each."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return mine
    parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, mine)
    return [batch for part in parts for batch in part]
