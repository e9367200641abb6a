"""What a case is, and what its outcome may be: right work, or a clear error; nothing else."""

import contextlib
import io
import logging
import random
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones.errors import HeadsetError

__all__ = ["SECONDS", "Kind", "Wrong", "command", "run_case", "told_clearly"]

SECONDS = 60  # of the processor, that no case may take longer than,
WAITED = 600  # and of the clock
LONGEST = 4000  # characters of a message


class Wrong(Exception):
    """An outcome that is neither right work nor a clear error."""


@dataclass(frozen=True)
class Kind:
    """Cases of one kind.

    Args:
        name: What they are called.
        run: Makes a damaged file in a folder, uses it, and checks what came out: raises `Wrong`, or says in a word
            what came out.
    """

    name: str
    run: Callable[[random.Random, Path], str]


def run_case(kind: Kind, seed: int, folder: Path) -> str:
    """Run a case.

    Returns:
        ``error`` or what the kind says; or what is wrong, after ``WRONG``.
    """
    rng = random.Random(f"{kind.name} {seed}")
    try:
        with _limited():
            return kind.run(rng, folder)
    except Wrong as wrong:
        return f"WRONG {wrong}"
    except (Exception, SystemExit):
        return f"WRONG {traceback.format_exc()}"


def told_clearly(error: HeadsetError, *names: str) -> str:
    """Check that an error is one line, which names the file.

    Raises:
        Wrong: It is not.
    """
    message = str(error)
    if "Traceback" in message or len(message) > LONGEST or len(message.splitlines()) != 1:
        raise Wrong(f"not one line: {message[:600]!r}")
    if not any(name in message for name in names):
        raise Wrong(f"no name of the file: {message[:600]!r}")
    return "error"


def command(*arguments: str) -> tuple[int, str]:
    """Run a command line here; its exit code, and the line that it ends with.

    Raises:
        Wrong: It ended with an error other than one line.
    """
    from headset.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
    lines = [line for line in err.getvalue().splitlines() if line.strip()]
    if code not in (0, 1, 2) or "Traceback" in err.getvalue():
        raise Wrong(f"exit code {code}: {err.getvalue()[-600:]}")
    if code and not (lines and lines[-1].startswith("headset: error: ") and len(lines[-1]) < LONGEST):
        raise Wrong(f"exit code {code}, and no line that says why: {err.getvalue()[-600:]}")
    return code, lines[-1] if lines else ""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Quiet, and no longer than a minute."""

    def stop(*_: Any) -> None:
        raise Wrong(f"it hangs: more than {SECONDS} seconds")

    before = [signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITED)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)
