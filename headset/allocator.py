"""Memory that is freed stays with the process for the next steps, and what does not fit them goes back."""

import ctypes
from typing import Any

from lightning.pytorch import Callback

__all__ = ["FreedMemory", "keep_freed_memory"]

# Of malloc.h of glibc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

LARGEST = 2**28  # bytes; larger blocks are mapped by themselves, so that no gaps of their size are left
BATCHES = 32  # after which memory is given back: often enough, and what it costs is not seen in steps of real models


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, of large blocks too, for the whole process.

    Each step frees and allocates the same large tensors again: otherwise the system has to clear their pages anew each
    time, which costs as much as a twentieth of a step on a CPU. Without glibc nothing is done.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class FreedMemory(Callback):
    """Keeps freed memory, and gives it back after so many batches.

    Batches differ in length, so few blocks fit exactly where others were, and the gaps between them would become more
    with every step: by half in a hundred steps of training, and without an end in a prediction of a large table.
    """

    def __init__(self) -> None:
        keep_freed_memory()
        self._trim = _of_libc("malloc_trim")
        self._batches = 0

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Count it."""
        self._give_back()

    def on_validation_batch_end(self, *arguments: Any) -> None:
        """Count it."""
        self._give_back()

    def on_test_batch_end(self, *arguments: Any) -> None:
        """Count it."""
        self._give_back()

    def on_predict_batch_end(self, *arguments: Any) -> None:
        """Count it."""
        self._give_back()

    def _give_back(self) -> None:
        self._batches += 1
        if self._trim is not None and self._batches % BATCHES == 0:
            self._trim(0)


def _of_libc(name: str) -> Any:
    """A function of the C library; None where it has no such."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
