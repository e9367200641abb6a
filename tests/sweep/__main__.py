"""Every task on every architecture that transformers has for it, against the stock model.

python -m tests.sweep [--write docs/architectures.md] [--processes 2] [--only bert ...]
"""

import argparse
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import transformers
from rich.progress import track

from tests.sweep.architectures import TASKS, Pair, pairs
from tests.sweep.check import check
from tests.sweep.sharing import TEXT_TASKS, check_sharing

OUTCOMES = ("exact", "equal", "needs", "fails")


def main() -> int:
    """Run the sweep, print a table, and write it where asked; 1 if a pair fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="a Markdown file for the result")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="architectures, by their model_type")
    options = parser.parse_args()
    wanted = [pair for task in TASKS for pair in pairs(task) if not options.only or pair.model_type in options.only]
    texts: dict[str, list[str]] = {}
    for pair in wanted:
        if pair.auto_class in TEXT_TASKS:
            texts.setdefault(pair.model_type, []).append(pair.auto_class)
    several = {model_type: tasks for model_type, tasks in texts.items() if len(tasks) > 1}
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        runs = [pool.submit(check, pair) for pair in wanted]
        shared_runs = {model_type: pool.submit(check_sharing, model_type, it) for model_type, it in several.items()}
        results = {pair: run.result() for pair, run in track([*zip(wanted, runs, strict=True)], "Comparing with stock")}
        shared = {model_type: run.result() for model_type, run in shared_runs.items()}
    table = report(results, shared)
    print(table)
    if options.write:
        options.write.write_text(table, encoding="utf-8")
    return int(any(result.startswith("fails") for result in results.values()))


def report(results: dict[Pair, str], shared: dict[str, str]) -> str:
    """The result as Markdown: a count a task, every pair that is not exact, and who shares a pass."""
    lines = [
        "# Architectures",
        "",
        f"Every task of transformers {transformers.__version__} that a head is for, on every architecture that has it",
        "(`make sweep`; tiny random models, CPU, float32, padding in the batch, dropout in train mode). *Exact*: the",
        "logits and the loss, in eval and in train mode, and all gradients are the stock model's to the bit; *equal*:",
        "within 1e-4. Each pair went out to a stock checkpoint that loads without a missing or unexpected key, came in",
        "again with the same keys and weights, and its backbone was built again from its configuration. Where",
        "transformers has several classes for a task and an architecture, each counts.",
        "",
        "| task | architectures | exact | equal | not installed | fail |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for task in TASKS:
        count = Counter(
            result.split(":")[0].split(" ")[0] for pair, result in results.items() if pair.auto_class == task
        )
        cells = [task.removeprefix("AutoModelFor"), count.total(), *(count[outcome] for outcome in OUTCOMES)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    others = {pair: result for pair, result in results.items() if result != "exact"}
    if others:
        lines += ["", "| task | class | |", "| --- | --- | --- |"]
        lines += [f"| {it.auto_class.removeprefix('AutoModelFor')} | {it.name} | {how} |" for it, how in others.items()]
    texts = ", ".join(it.removeprefix("AutoModelFor") for it in TEXT_TASKS)
    apart = {model_type: result for model_type, result in shared.items() if result != "one pass"}
    lines += [
        "",
        f"Heads for several of {texts} share one pass of the",
        f"backbone on {len(shared) - len(apart)} of the {len(shared)} architectures that have more than one of them.",
    ]
    if apart:
        lines += ["", "| architecture | |", "| --- | --- |"]
        lines += [f"| {model_type} | {result} |" for model_type, result in apart.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
