"""Errors of the machine as one message: what was done, what happened, and what to do about it."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from backbones.errors import HeadsetError

__all__ = ["environment", "machine_error"]

# What happened, and what to do, by the number that the system gives an error.
TOLD = {
    errno.ENOSPC: ("the disk is full", "Free some space there, or write elsewhere."),
    errno.EDQUOT: ("the disk quota is used up", "Free some space there, or write elsewhere."),
    errno.EFBIG: ("the file is larger than is allowed here", "See ulimit -f, and what the file system takes."),
    errno.EROFS: ("the file system is read-only", "Choose a folder that can be written to."),
    errno.EACCES: ("that is not permitted", "Check the owner and the mode of the file and of its folder."),
    errno.EPERM: ("that is not permitted", "Check the owner and the mode of the file and of its folder."),
    errno.ENOENT: ("the file is not there", "Was it moved or deleted while it was in use?"),
    errno.ESTALE: ("the file is not there any more", "Was it moved or deleted while it was in use?"),
    errno.EIO: ("the disk failed", "Is it damaged, or was it disconnected?"),
    errno.EMFILE: ("too many files are open", "Raise the limit: ulimit -n 4096; or set fewer data.num_workers."),
}
TORCH_WRITES = re.compile(r"PytorchStreamWriter failed writing|unexpected pos \d+ vs|iostream error")
MEMORY = re.compile(
    r"can't allocate memory|not enough memory|[Oo]ut of memory|_STATUS_ALLOC_FAILED|Cannot allocate memory|"
    r"killed by signal: Killed|std::bad_alloc|could not create a (?:primitive|memory object)$|alloc of \d+ bytes failed"
)
SHARED_MEMORY = re.compile(r"insufficient shared memory|killed by signal: Bus error|unable to write to file </torch")
SIZE = re.compile(r"[Tt]ried to allocate ([\d.]+ ?\w+)")
NUMBER = re.compile(r"\[[Ee]rrno (\d+)\][^:'\"]*(?:: ['\"](?P<file>[^'\"\n]+)['\"])?|\(os error (?P<rust>\d+)\)")
WORKER = re.compile(r"Caught (?P<kind>\w+) in .*?process \d+\.\s.*^(?:[\w.]+\.)?(?P=kind): (?P<text>.*)", re.S | re.M)

TRAINING = (
    "Set a smaller data.batch_size (with trainer.accumulate_grad_batches for as many rows in a step), a smaller "
    "data.eval_batch_size if it was in validation, a smaller data.max_length, trainer.precision: bf16-mixed, "
    "backbone.freeze, or backbone.lora."
)
ANSWERING = "Set a smaller data.eval_batch_size, a smaller data.max_length, or trainer.precision: bf16-true."
ELSE = "End other programs, or take a machine with more memory."
MEMORY_ADVICE = {"fit": TRAINING, "validate": ANSWERING, "test": ANSWERING, "predict": ANSWERING}


@contextmanager
def environment(doing: str) -> Iterator[None]:
    """Turn what the machine fails to do into one message.

    Args:
        doing: What is done inside, as a message says it: ``writing a.ckpt``.

    Raises:
        HeadsetError: The disk is full or read-only, a file has vanished, memory has run out, or the like.
    """
    try:
        yield
    except HeadsetError:
        raise
    except Exception as error:
        told = machine_error(error, doing)
        if told is None:
            raise
        raise told from error


def machine_error(error: BaseException, doing: str, command: str | None = None) -> HeadsetError | None:
    """What to tell of an error of the machine; None for all others.

    Args:
        error: Any error, also one that a worker process of a data loader handed on.
        doing: What was done, as in `environment`.
        command: The command that ran, which says what can be set against running out of memory.
    """
    text = str(error.args[0]) if isinstance(error, HeadsetError) and error.args else str(error)
    worker = WORKER.search(text)
    if worker is not None:
        text = worker["text"].strip()
        if worker["kind"] in ("HeadsetError", "RowError"):
            return HeadsetError(text)
    if SHARED_MEMORY.search(text):
        return _told(doing, "the shared memory ran out", "Enlarge /dev/shm, or set data.num_workers: 0", None)
    names = {kind.__name__ for kind in type(error).__mro__} | ({worker["kind"]} if worker else set())
    number, file = _number(error, text)
    if names & {"MemoryError", "OutOfMemoryError"} or number == errno.ENOMEM or MEMORY.search(text):
        size = SIZE.search(text)
        asked = f"{_readable(size[1])} more were asked for" if size else None
        return _told(doing, "the memory ran out", MEMORY_ADVICE.get(command or "", ELSE), asked)
    if number is None and TORCH_WRITES.search(text):  # torch does not say why
        return _told(doing, "the file could not be written to its end", "Is the disk full?", file)
    if number is None:
        return None
    happened, advice = TOLD.get(number, (os.strerror(number), ""))
    return _told(doing, happened, advice, file)


def _told(doing: str, happened: str, advice: str, detail: str | None) -> HeadsetError:
    more = f" ({detail})" if detail and detail not in doing else ""
    return HeadsetError(f"While {doing}: {happened}{more}. {advice}".strip())


def _number(error: BaseException, text: str) -> tuple[int | None, str | None]:
    """The number of an error of the system, and the file that it names; also where other libraries pass it on."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            file = seen.filename2 or seen.filename  # of a move, where to
            return seen.errno, None if file is None else os.fsdecode(file)
        seen = seen.__context__ if TORCH_WRITES.search(str(seen)) else seen.__cause__
    found = NUMBER.search(text)
    if found is not None:
        return int(found[1] or found["rust"]), found["file"]
    named = re.search(r"strerror: (.+)", text)  # as torch says it
    return next((number for number in TOLD if named and named[1].startswith(os.strerror(number))), None), None


def _readable(size: str) -> str:
    """A number of bytes as one reads it."""
    number, _, unit = size.partition(" ")
    return f"{int(number) / 2**30:.1f} GiB" if unit == "bytes" else size
