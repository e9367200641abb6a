"""Peak memory, of tensors and of the process."""

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["Watch", "forget_peak", "give_back", "peak_of_process", "peak_of_tensors"]

MIB = 2**20


@contextmanager
def peak_of_tensors() -> Iterator[dict[str, float]]:
    """The most bytes of tensors that were allocated at once within the block, beyond those before it; in MiB.

    Every allocation is counted, so that the number is the same each time, as ``torch.cuda.max_memory_allocated`` is.
    """
    found: dict[str, float] = {}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found["tensors"] = (torch.cuda.max_memory_allocated() - before) / MIB
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    result: Any = profiler.profiler
    held = most = 0
    for event in sorted(result.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    found["tensors"] = most / MIB


def give_back() -> None:
    """Give the memory that was freed back to the system, where the C library can: another side needs it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def forget_peak() -> None:
    """Start anew with what `peak_of_process` tells, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_of_process() -> float:
    """The most memory that the process has had, since `forget_peak`; in MiB."""
    return _status("VmHWM")


class Watch:
    """Looks all the time how much memory the process has of its own, without the pages of files; ``most`` is in MiB."""

    def __init__(self) -> None:
        self.most = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        """Start to look."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.most = max(self.most, _status("RssAnon"))
            if self._ended.wait(0.05):
                return


def _status(name: str) -> float:
    """A number of the process in MiB; where there is no /proc, the most memory that it has ever had."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    [line] = [line for line in status.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:")]
    return float(line.split()[1]) / 2**10
