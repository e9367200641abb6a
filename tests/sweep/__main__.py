"""Every head with a task of transformers on every architecture that transformers has for it, against the stock model.

python -m tests.sweep [--write docs/architectures.md] [--processes 2]
"""

import argparse
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import transformers
from rich.progress import track

from heads.registry import list_heads, load_head_class
from tests.sweep.architectures import architectures
from tests.sweep.check import check


def heads_with_a_task() -> dict[str, str]:
    """The heads whose scores are those of a transformers task, and that task."""
    found = {name: load_head_class(name)() for name in list_heads()}
    return {name: head.auto_class for name, head in found.items() if head.auto_class}


def main() -> int:
    """Run the sweep, print a table, and write it where asked; 1 if a pair fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="a Markdown file for the result")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    pairs = [(name, kind) for name, auto_class in heads_with_a_task().items() for kind in architectures(auto_class)]
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        runs = [pool.submit(check, *pair) for pair in pairs]
        results = [run.result() for run in track(runs, "Comparing with stock")]
    table = report(pairs, results)
    print(table)
    if options.write:
        options.write.write_text(table, encoding="utf-8")
    return int(any(result.startswith("fails") for result in results))


def report(pairs: list[tuple[str, str]], results: list[str]) -> str:
    """The result as Markdown: a count a head, and every pair that is not exact."""
    lines = [
        "# Architectures",
        "",
        f"Every head that scores with the modules of transformers {transformers.__version__}, on every architecture",
        "that transformers has for its task (`make sweep`; tiny random models, CPU, float32). *Exact*: logits and loss",
        "in eval and in train mode and all gradients are the stock model's to the bit; *equal*: within 1e-4. Each pair",
        "went out to a stock checkpoint that loads without a missing or unexpected key, and came in again with the",
        "same weights.",
        "",
        "| head | architectures | exact | equal | not installed | fail |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for head in dict(pairs):
        own = [result for (name, _), result in zip(pairs, results, strict=True) if name == head]
        count = Counter(result.split(":")[0].split(" ")[0] for result in own)
        cells = [head, len(own), count["exact"], count["equal"], count["needs"], count["fails"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    others = [(pair, result) for pair, result in zip(pairs, results, strict=True) if result != "exact"]
    if others:
        lines += ["", "| head | architecture | |", "| --- | --- | --- |"]
        lines += [f"| {name} | {kind} | {result} |" for (name, kind), result in others]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
