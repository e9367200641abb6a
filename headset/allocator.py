"""Memory that is freed stays with the process, to be used again."""

import ctypes

__all__ = ["keep_freed_memory"]

# Of malloc.h of glibc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

LARGEST = 2**28  # bytes; larger blocks are mapped by themselves, so that no gaps of their size are left


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, of large blocks too, for the whole process.

    Each step frees and allocates the same large tensors again: otherwise the system has to clear their pages anew each
    time, which costs as much as a twentieth of a step on a CPU. The peak of memory grows by a few per cent, as blocks
    do not fit exactly where others were. Without glibc nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
