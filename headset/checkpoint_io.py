"""How Lightning writes and reads checkpoints: whole files, checked; and the one before the last is kept."""

import contextlib
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from headset.sharded_files import is_folder, open_folder
from headset.whole_files import check_whole, remove_leftovers, save_checkpoint

__all__ = ["CheckpointFiles", "LastCheckpoints"]


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's way to the disk, for local files by `save_checkpoint` and `check_whole`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a file that is whole or not there."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            save_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a file once it is known to be whole, or a folder with its parts."""
        if is_folder(path):
            return open_folder(Path(path))
        if "://" not in str(path):
            check_whole(path)
            with contextlib.suppress(OSError):
                remove_leftovers(Path(path).parent)
        content: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
        return content


class LastCheckpoints(ModelCheckpoint):
    """Lightning's ModelCheckpoint after each epoch, with the link ``last.ckpt``; it keeps the one before the last too.

    So there is one to go back to if the last one gets damaged.
    """

    def __init__(self) -> None:
        super().__init__(save_last="link")
        self.before = ""

    @property
    def state_key(self) -> str:
        """That of a ModelCheckpoint with its defaults, which it may go on from and be followed by."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def state_dict(self) -> dict[str, Any]:
        """As every ModelCheckpoint, and which one was before the last."""
        return super().state_dict() | {"before": self.before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every ModelCheckpoint."""
        super().load_state_dict(state_dict)
        self.before = state_dict.get("before", "")

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Remove, instead of one that is out of date, the one that was so before it."""
        older, self.before = self.before, filepath
        if older and older != filepath and self._should_remove_checkpoint(trainer, older, filepath):
            super()._remove_checkpoint(trainer, older)
