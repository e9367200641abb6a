"""Damaged files by the thousand: each gives right work or a clear error.

python -m tests.fuzz [--minutes 10] [--kinds csv yaml ...] [--seed 0] [--cases 1000]
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.cases import Kind, run_case
from tests.fuzz.kinds import KINDS
from tests.fuzz.material import material

BATCH = 25  # cases of a process
MEMORY = 16 * 2**30  # of its address space


def main() -> int:
    """Run cases until the time is over, and print what came of them; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kinds", nargs="+", choices=[kind.name for kind in KINDS])
    parser.add_argument("--seed", type=int, default=0, help="the number of the first case of each kind")
    parser.add_argument("--cases", type=int, default=10**9, help="at most so many of each kind")
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if not options.kinds or kind.name in options.kinds]
    material()  # here, for all processes that are forked
    end, seed = time.monotonic() + options.minutes * 60, options.seed
    found: dict[str, Counter[str]] = {kind.name: Counter() for kind in kinds}
    while time.monotonic() < end and seed < options.seed + options.cases:
        for kind in kinds:
            for number, outcome in run_batch(kind, range(seed, seed + BATCH)).items():
                found[kind.name][outcome.split()[0]] += 1
                if outcome.startswith("WRONG"):
                    print(f"{kind.name} --seed {number}: {outcome[6:]}\n", flush=True)
        seed += BATCH
    for name, counts in found.items():
        print(f"{name}: {counts.total()} cases: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    print(f"{sum(map(Counter.total, found.values()))} cases, {sum(its['WRONG'] for its in found.values())} wrong")
    return int(any(counts["WRONG"] for counts in found.values()))


def run_batch(kind: Kind, seeds: range) -> dict[int, str]:
    """Run cases in a process of their own, which they may take with them."""
    context = multiprocessing.get_context("fork")
    outcomes: dict[int, str] = {}
    left = list(seeds)
    while left:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(kind, left, theirs))
        process.start()
        theirs.close()
        while left:
            try:
                outcomes[left[0]] = ours.recv()
            except EOFError:
                process.join()
                outcomes[left[0]] = f"WRONG the process died, exit code {process.exitcode}"
                left.pop(0)
                break
            left.pop(0)
        process.join()
    return outcomes


def _run(kind: Kind, seeds: list[int], answers: "multiprocessing.connection.Connection") -> None:  # type: ignore[name-defined]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            os.chdir(folder)
            answers.send(run_case(kind, seed, Path(folder)))
            os.chdir("/")


if __name__ == "__main__":
    raise SystemExit(main())
