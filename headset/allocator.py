"""Memory that is freed stays with the process for the next steps, and what does not fit them goes back."""

import ctypes
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

__all__ = ["FreedMemory", "held", "keep_freed_memory"]

# Of malloc.h of glibc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

LARGEST = 2**28  # bytes; larger blocks are mapped by themselves, so that no gaps of their size are left
MARGIN = 1.25  # of what batches need, above which memory is given back
MEMORY = Path("/proc/self/statm")


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
    """Keeps freed memory for the next batches, and gives back what is more than they need.

    Batches differ in length, so few blocks fit exactly where others were, and the gaps between them would become more
    with every step: by half in a hundred steps of training, and without an end in a prediction of a large table. What a
    batch needs is what the process holds after it, if memory was given back before it.
    """

    def __init__(self) -> None:
        keep_freed_memory()
        self._trim = _of_libc("malloc_trim") if MEMORY.exists() else None
        self._needed = 0
        self._given_back = False

    def on_train_batch_end(self, *arguments: Any) -> None:
        """See whether some goes back."""
        self._give_back()

    def on_validation_batch_end(self, *arguments: Any) -> None:
        """See whether some goes back."""
        self._give_back()

    def on_test_batch_end(self, *arguments: Any) -> None:
        """See whether some goes back."""
        self._give_back()

    def on_predict_batch_end(self, *arguments: Any) -> None:
        """See whether some goes back."""
        self._give_back()

    def _give_back(self) -> None:
        if self._trim is None:
            return
        if self._given_back:
            self._needed = max(self._needed, held())
            self._given_back = False
        elif held() > MARGIN * self._needed:
            self._trim(0)
            self._given_back = True


def held() -> int:
    """The bytes of the process that are no file's."""
    _, resident, shared, *_ = map(int, MEMORY.read_text(encoding="ascii").split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def _of_libc(name: str) -> Any:
    """A function of the C library; None where it has no such."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
