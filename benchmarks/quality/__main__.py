"""Headset against what else there is, on real data, with several seeds.

python -m benchmarks.quality [--write docs/quality.md] [--processes 2] [--only sequence pair ...]

Each run's result is kept in runs/quality, so that a benchmark that was stopped goes on where it was.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from benchmarks.quality import several_heads
from benchmarks.quality.report import report
from benchmarks.quality.runs import RUNS, jobs, prepare, result_of, run_job
from benchmarks.quality.tasks import TASKS


def main() -> None:
    """Run what has no result yet, print the tables, and write them where asked."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="a Markdown file for the result")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=[*TASKS, several_heads.NAME], help="some of the tasks")
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    chosen = options.only or [*TASKS, several_heads.NAME]
    missing = [job for job in jobs() if job[0] in chosen and result_of(job) is None]
    with ProcessPoolExecutor(options.processes, get_context("spawn"), initializer=prepare) as pool:
        running = {pool.submit(run_job, job): job for job in missing}
        for done, future in enumerate(as_completed(running), 1):
            future.result()
            print(f"{done} of {len(missing)}: {running[future]}", flush=True)
    results = {job: result for job in jobs() if (result := result_of(job)) is not None}
    text = report(results)
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    main()
