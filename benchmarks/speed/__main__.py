"""How fast headset is, beside what else there is.

python -m benchmarks.speed [--write docs/speed.md] [--only training predict ...] [--rounds 3]
python -m benchmarks.speed --gpu [--write docs/speed.md] [--peak 989]
"""

import argparse
import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.speed.gpu import CARDS, Card, gpu_section, kept_section, measure_gpu, peak_of_card
from benchmarks.speed.groups import GROUPS, Files
from benchmarks.speed.machine import machine, versions
from benchmarks.speed.measuring import measure
from benchmarks.speed.report import Line, lines_of, report, table
from benchmarks.speed.tables import FULL, Sizes, quick

__all__ = ["main", "run_groups"]


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    """Measure, print the table, and write the page where asked."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="a Markdown file for the result")
    parser.add_argument("--only", nargs="+", choices=GROUPS, help="some of the groups")
    parser.add_argument("--rounds", type=int, help="how often each side has its turn")
    parser.add_argument("--quick", metavar="MODEL", help="next to nothing of each, with a tiny model, in this process")
    parser.add_argument("--gpu", action="store_true", help="the models that are measured on a GPU, instead of all else")
    parser.add_argument("--peak", type=float, help="what the card can do, in bfloat16 operations a second times 1e12")
    options = parser.parse_args(arguments)
    if options.gpu:
        peak = options.peak * 1e12 if options.peak else peak_of_card()
        return run_gpu(CARDS, peak, options.write)
    sizes = FULL if options.quick is None else quick(options.quick)
    if options.rounds:
        sizes = dataclasses.replace(sizes, rounds=options.rounds, start_rounds=options.rounds)
    lines = run_groups(options.only or list(GROUPS), sizes, here=options.quick is not None)
    _print(lines)
    if options.write:
        text = report(lines, machine(), versions(), date.today(), kept_section(options.write))
        options.write.write_text(text, encoding="utf-8")
    return lines


def run_gpu(card: Card, peak: float | None, page: Path | None, here: bool = False) -> list[Line]:
    """Measure models on a GPU, print the table, and write it into a page, whose other parts stay as they are.

    Args:
        card: How much is measured.
        peak: The operations a second that the card can do; None where that is not known.
        page: The page; None where nothing is written.
        here: Whether all sides run in this process.
    """
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="headset-speed-") as name:
        os.environ["HF_DATASETS_CACHE"] = str(Path(name) / "datasets")
        lines = measure_gpu(card, Path(name), _log(), peak, here, console.print)
    _print(lines)
    if page:
        before = page.read_text(encoding="utf-8").split(gpu_section([]).splitlines()[0])[0] if page.exists() else ""
        page.write_text(before + gpu_section(lines), encoding="utf-8")
    return lines


def run_groups(names: Sequence[str], sizes: Sizes, here: bool) -> list[Line]:
    """Measure groups one after the other, with a bar that tells how far it is."""
    lines: list[Line] = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:60}"), BarColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="headset-speed-") as name, Progress(*columns, console=console) as progress:
        folder = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")  # what is cached was cached in this run
        log = _log()
        files = Files(sizes, folder)
        bar = progress.add_task("", total=len(names))
        for group in names:
            progress.update(bar, description=f"{group}: its files")
            made = GROUPS[group](files)

            def tell(text: str, group: str = group) -> None:
                progress.update(bar, description=f"{group}: {text}")

            found, failures = measure(made.sides, made.rounds, log, here, tell)
            lines += lines_of(group, made.rows, found, failures)
            progress.advance(bar)
            (log.parent / "speed.json").write_text(json.dumps(lines, indent=1), encoding="utf-8")
    return lines


def _log() -> Path:
    """An empty file for what the sides print."""
    log = Path("runs") / "speed.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("", encoding="utf-8")
    return log


def _print(lines: Sequence[Line]) -> None:
    Console(soft_wrap=True, markup=False, highlight=False).print("\n".join(table(lines)))


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    main()
