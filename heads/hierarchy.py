"""Labels that are paths in a tree, such as sport/football: their target, the tree, and metrics of paths."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from backbones.errors import HeadsetError
from heads.target import in_order, label_index, label_name, shown
from heads.targets import ClassTarget

__all__ = ["PathTarget", "Tree", "path_metrics"]


@dataclass(frozen=True)
class PathTarget(ClassTarget):
    """One path a row: int64 ``(B,)``, its index in the label set, which has the paths that rows have.

    A value is a string with a separator between its parts, or a list of parts, from coarse to fine; several columns
    have one part each. Empty parts at the end are left out: paths may end at any level.

    Args:
        separator: What stands between the parts.
    """

    separator: str = "/"

    def find_labels(self, values: Iterable[Any]) -> tuple[str, ...]:
        """The distinct paths, sorted."""
        found = set()
        for value in values:
            try:
                found.add(self.path(value))
            except HeadsetError:  # which encode says, where the row is known
                continue
        return in_order(found)

    def encode(self, value: Any, labels: tuple[str, ...] | None, example: Mapping[str, Any] | None = None) -> int:
        """The index of the path.

        Raises:
            HeadsetError: There is none, a part is missing or has the separator in it, or the run does not know it.
        """
        return label_index(self.path(value), labels)

    def join(self, values: Mapping[str, Any]) -> list[Any]:
        """The parts in several columns, from coarse to fine."""
        return list(values.values())

    def path(self, value: Any) -> str:
        """A value as a path with separators.

        Raises:
            HeadsetError: It is none.
        """
        if isinstance(value, list | tuple):
            names = [label_name(part) for part in value]
            if any(name is not None and self.separator in name for name in names):
                raise HeadsetError(f"a part of the path {shown(value)} has the separator {self.separator!r} in it.")
        else:
            names = [label_name(part) for part in (label_name(value) or "").split(self.separator)]
        while names and names[-1] is None:
            names.pop()
        if not names or None in names:
            raise HeadsetError(
                f"expected a path such as sport{self.separator}football, with no part missing before another; got "
                f"{shown(value)}."
            )
        return self.separator.join(name.strip() for name in names if name is not None)


class Tree:
    """The tree that paths make, with a choice to be made at each inner node: between its children.

    Where a path ends at an inner node, to stop there is one more choice.

    Args:
        labels: The paths.
        separator: What stands between their parts.
    """

    def __init__(self, labels: Sequence[str], separator: str) -> None:
        paths = [tuple(label.split(separator)) for label in labels]
        self.depth = max(map(len, paths))
        nodes = sorted({path[:end] for path in paths for end in range(1, len(path) + 1)})
        inner = {node[:-1] for node in nodes}
        steps = nodes + [(*path, "") for path in paths if path in inner]  # an empty part stops
        index = {step: place for place, step in enumerate(steps)}
        parents = sorted({step[:-1] for step in steps})
        choices = [[index[step] for step in steps if step[:-1] == parent] for parent in parents]
        ways = [
            [index[path[:end]] for end in range(1, len(path) + 1)] + ([index[(*path, "")]] if path in inner else [])
            for path in paths
        ]
        self.size = len(steps)
        # All are filled up with ``size``, the index of what adds nothing.
        self.choices = _filled(choices, self.size)  # (P, M): the steps that each inner node has to choose from
        self.parent = torch.tensor([parents.index(step[:-1]) for step in steps])  # (S,): at which node a step is made
        self.ways = _filled(ways, self.size)  # (L, W): the steps of each label
        self.nodes = _filled([[index[path[:end]] for end in range(1, len(path) + 1)] for path in paths], -1)  # (L, D)
        self.names = {place: separator.join(step) for step, place in index.items()}


def _filled(rows: list[list[int]], value: int) -> Tensor:
    """Rows of whole numbers, filled up to the longest."""
    most = max(map(len, rows))
    return torch.tensor([row + [value] * (most - len(row)) for row in rows])


class LevelAccuracy(Metric):
    """The share of rows that are right down to a level, of those that have it.

    Args:
        nodes: The nodes of each label from coarse to fine ``(L, D)``, -1 for none.
        level: The level, from 1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    nodes: Tensor
    right: Tensor
    rows: Tensor

    def __init__(self, nodes: Tensor, level: int) -> None:
        super().__init__()
        self.level = level
        self.register_buffer("nodes", nodes, persistent=False)
        for state in ("right", "rows"):
            self.add_state(state, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take the labels predicted and the true ones, both ``(B,)``."""
        said, true = self.nodes[preds, self.level - 1], self.nodes[target, self.level - 1]
        self.right += ((said == true) & (true >= 0)).sum()
        self.rows += (true >= 0).sum()

    def compute(self) -> Tensor:
        """A scalar."""
        return self.right / self.rows


class HierarchicalF1(Metric):
    """F1 over the nodes of predicted and true paths, of all rows together (Kiritchenko et al. 2006).

    Args:
        nodes: The nodes of each label from coarse to fine ``(L, D)``, -1 for none.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    nodes: Tensor
    shared: Tensor
    said: Tensor
    true: Tensor

    def __init__(self, nodes: Tensor) -> None:
        super().__init__()
        self.register_buffer("nodes", nodes, persistent=False)
        for state in ("shared", "said", "true"):
            self.add_state(state, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take the labels predicted and the true ones, both ``(B,)``."""
        said, true = self.nodes[preds], self.nodes[target]
        self.shared += ((said == true) & (true >= 0)).sum()  # a node stands at one level only
        self.said += (said >= 0).sum()
        self.true += (true >= 0).sum()

    def compute(self) -> Tensor:
        """A scalar: 2PR / (P + R)."""
        return 2 * self.shared / (self.said + self.true)


def path_metrics(tree: Tree) -> MetricCollection:
    """Accuracy of whole paths and of each level, and the hierarchical F1."""
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(len(tree.nodes), average="micro"),
        "hierarchical_f1": HierarchicalF1(tree.nodes),
    }
    metrics |= {f"accuracy_level_{level}": LevelAccuracy(tree.nodes, level) for level in range(1, tree.depth + 1)}
    return MetricCollection(metrics, compute_groups=False)
