"""The end of a training that is measured up to its first step. It imports nothing that such a training does not."""

import os
from typing import Any

from lightning.pytorch import Callback

__all__ = ["StopAtFirstStep"]


class StopAtFirstStep(Callback):
    """Ends the process when the first step would begin."""

    def on_train_batch_start(self, *arguments: Any) -> None:
        """The first batch is there."""
        os._exit(0)
