"""Long documents in windows: from one vector, or one row of scores, a window to one a document."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backbones.errors import HeadsetError, invalid_choice
from heads.poolers import Pooler

__all__ = ["WindowPooler", "check_windows", "without_labels"]

MODES = ("mean", "max", "attention")


def check_windows(windows: str | None, native: bool = False) -> None:
    """Check how a head is told to pool windows; None reads texts as one input each.

    Raises:
        HeadsetError: It is no way to do so, or one that needs vectors, which native scorers do not give.
    """
    if windows is None:
        return
    if windows not in MODES:
        raise invalid_choice("pooling of windows", windows, MODES)
    if native and windows == "attention":
        raise HeadsetError(
            "windows: attention pools vectors, and native modules give scores. Set pooling to cls, mean, max, last or "
            "attention, or windows to mean or max."
        )


def without_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch for a scorer that reads windows: its labels are those of documents."""
    return {key: value for key, value in batch.items() if key != "labels"}


class WindowPooler(nn.Module):
    """Pools over the windows of a document, dimension by dimension, as `Pooler` does over tokens.

    What has one window stays as it is, to the bit.

    Args:
        mode: ``mean``, ``max``, or ``attention``.
        width: D, the width of what a window has.
        initializer_range: Standard deviation of the query of the attention at the start.
    """

    def __init__(self, mode: str, width: int, initializer_range: float = 0.02) -> None:
        super().__init__()
        self.pooler = Pooler(mode, width, initializer_range)

    def forward(self, values: Tensor, meta: Mapping[str, Any]) -> Tensor:
        """Pool.

        Args:
            values: Vectors or scores of windows ``(N, D)``, those of a document one after the other.
            meta: ``windows``: how many each of B documents has; without it each is a document of its own.

        Returns:
            Those of the documents ``(B, D)``.
        """
        counts: Sequence[int] | None = meta.get("windows")
        if counts is None:
            return values
        padded = nn.utils.rnn.pad_sequence(list(values.split(list(counts))), batch_first=True)
        places = torch.arange(padded.shape[1], device=values.device)
        pooled: Tensor = self.pooler(padded, places < torch.tensor(counts, device=values.device).unsqueeze(1))
        return pooled
