"""Sides that are measured in turn: each in a process of its own, or all in this one where it has to be quick."""

import contextlib
import importlib
import os
import statistics
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Failed", "Found", "Side", "cores", "measure", "median_ratio"]

Numbers = Mapping[str, float]
Found = dict[str, list[Numbers]]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM")


class Runs(Protocol):
    """What the class of a side has, beside an ``__init__`` that takes the settings."""

    def run(self, turn: int) -> Numbers:
        """Do the work once; the numbers that were measured. Turn 0 warms up, and is not counted."""


@dataclass(frozen=True)
class Side:
    """One way to do a piece of work.

    Args:
        name: What it is called in tables.
        where: The class that does it, as ``module:Class``.
        settings: What the class takes; plain values.
    """

    name: str
    where: str
    settings: dict[str, Any] = field(default_factory=dict)


class Failed(Exception):
    """A side could not do its work; the message is its traceback."""


def cores() -> int:
    """The cores that this process may use, and the threads that torch gets on every side."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure(
    sides: Sequence[Side],
    rounds: int,
    log: Path,
    here: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Found, dict[str, str]]:
    """Measure sides in turn, so that a slow moment of the machine meets all of them.

    Every round has each side once, in the order of the sides, and in the opposite order in every other round.

    Args:
        sides: The sides.
        rounds: How often each is measured, after a turn that warms up.
        log: The file for what they print.
        here: Whether all run in this process, which spares their imports, and without warming up.
        tell: Is told what runs now, once for each turn of each side.

    Returns:
        By side the numbers of each round, and by side that failed why.
    """
    found: Found = {side.name: [] for side in sides}
    failures: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        runners = {side.name: stack.enter_context((_here if here else _apart)(side, log)) for side in sides}
        for turn in range(1 if here else 0, rounds + 1):
            for side in sides if turn % 2 else reversed(sides):
                tell(f"{side.name}, {f'round {turn} of {rounds}' if turn else 'warming up'}")
                if side.name in failures:
                    continue
                try:
                    numbers = runners[side.name](turn)
                except Failed as failure:
                    failures[side.name] = str(failure)
                else:
                    found[side.name] += [numbers] if turn else []
    return {name: numbers for name, numbers in found.items() if name not in failures}, failures


def median_ratio(ours: Sequence[Numbers], theirs: Sequence[Numbers], key: str) -> tuple[float, float, float]:
    """The median of a number of ours over theirs, round by round; and the least and the most."""
    ratios = [our[key] / their[key] for our, their in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


@contextlib.contextmanager
def _here(side: Side, log: Path) -> Iterator[Callable[[int], Numbers]]:
    made: list[Runs] = []

    def run(turn: int) -> Numbers:
        with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            with contextlib.redirect_stderr(file):
                return _guarded(side, made, turn)

    yield run


@contextlib.contextmanager
def _apart(side: Side, log: Path) -> Iterator[Callable[[int], Numbers]]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(side, log, theirs), daemon=False)
    with _threads():
        process.start()
    theirs.close()

    def run(turn: int) -> Numbers:
        try:
            ours.send(turn)
            answer = ours.recv()
        except (EOFError, OSError) as error:
            raise Failed(f"The process of {side.name} died.") from error
        if isinstance(answer, str):
            raise Failed(answer)
        numbers: Numbers = answer
        return numbers

    try:
        yield run
    finally:
        ours.close()
        process.join(20)
        if process.is_alive():
            process.kill()


@contextlib.contextmanager
def _threads() -> Iterator[None]:
    """An environment without limits of threads, which the caller may have for itself."""
    kept = {name: os.environ.pop(name) for name in THREADS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _serve(side: Side, log: Path, connection: Connection) -> None:
    with log.open("a", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    import torch

    from benchmarks.speed.memory import give_back

    torch.set_num_threads(cores())
    made: list[Runs] = []
    while True:
        try:
            turn = connection.recv()
        except EOFError:
            return
        answer: Numbers | str
        try:
            answer = _guarded(side, made, turn)
        except Failed as failure:
            answer = str(failure)
        give_back()
        connection.send(answer)


def _guarded(side: Side, made: list[Runs], turn: int) -> Numbers:
    """A turn of a side, which is made before its first one."""
    try:
        if not made:
            module, name = side.where.split(":")
            made.append(getattr(importlib.import_module(module), name)(**side.settings))
        return made[0].run(turn)
    except (Exception, SystemExit) as error:
        raise Failed(traceback.format_exc()) from error
