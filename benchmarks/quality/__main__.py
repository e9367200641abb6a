"""Headset against what else there is, on real data, with several seeds.

python -m benchmarks.quality [--write docs/quality.md] [--processes 2] [--only sequence pair ...]

Each run's result is kept in runs/quality, so that a benchmark that was stopped goes on where it was.
"""

import argparse
import json
import os
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.quality import several_heads
from benchmarks.quality.report import report
from benchmarks.quality.systems import LINEAR, run, settings_of, systems_of
from benchmarks.quality.tasks import TASKS

RUNS = Path("runs") / "quality"
SEEDS = (1, 2, 3)
Job = tuple[str, str, int]


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
    with ProcessPoolExecutor(options.processes, get_context("spawn"), initializer=_prepare) as pool:
        running = {pool.submit(_run, job): job for job in missing}
        for done, future in enumerate(as_completed(running), 1):
            future.result()
            print(f"{done} of {len(missing)}: {running[future]}", flush=True)
    results = {job: result for job in jobs() if (result := result_of(job)) is not None}
    text = report(results)
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


def jobs() -> list[Job]:
    """All runs: task, system and seed; those of the first seed first. What draws nothing has one seed."""
    found: list[Job] = []
    for seed in SEEDS:
        for task in TASKS.values():
            found += [(task.name, name, seed) for name in systems_of(task) if name != LINEAR or seed == SEEDS[0]]
        runs = several_heads.RUNS if seed == SEEDS[0] else (*several_heads.RUNS[:-1],)
        found += [(several_heads.NAME, name, seed) for name in runs]
    return found


def result_of(job: Job) -> dict[str, Any] | None:
    """The result of a run that was made with the settings of now."""
    file = _file(job)
    if not file.exists():
        return None
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result if result["settings"] == json.loads(json.dumps(_settings(job))) else None


def _settings(job: Job) -> dict[str, Any]:
    task, system, _ = job
    return several_heads.settings_of(system) if task == several_heads.NAME else settings_of(TASKS[task], system)


def _file(job: Job) -> Path:
    return RUNS / ("-".join(map(str, job)).replace(" ", "_").replace(",", "").replace("'", "") + ".json")


def _prepare() -> None:
    """One thread a process, so that processes do not wait for each other, and no progress bars."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")  # twice as fast where the processor multiplies in bfloat16
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="lightning")


def _run(job: Job) -> None:
    task, system, seed = job
    file = _file(job)
    folder = file.with_suffix("")
    if task == several_heads.NAME:
        result = several_heads.run(system, seed, folder)
    else:
        result = run(TASKS[task], system, seed, folder)
    file.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    main()
