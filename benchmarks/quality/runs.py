"""The runs of the benchmark, and their results on disk."""

import json
import warnings
from pathlib import Path
from typing import Any

from benchmarks.quality import several_heads
from benchmarks.quality.systems import LINEAR, run, settings_of, systems_of
from benchmarks.quality.tasks import TASKS

__all__ = ["RUNS", "SEEDS", "Job", "jobs", "prepare", "result_of", "run_job"]

RUNS = Path("runs") / "quality"
SEEDS = (1, 2, 3)
Job = tuple[str, str, int]


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


def prepare() -> None:
    """One thread a process, so that processes do not wait for each other, and no progress bars."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")  # twice as fast where the processor multiplies in bfloat16
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="lightning")


def run_job(job: Job) -> None:
    """Make a run, and keep its result."""
    task, system, seed = job
    file = _file(job)
    folder = file.with_suffix("")
    if task == several_heads.NAME:
        result = several_heads.run(system, seed, folder)
    else:
        result = run(TASKS[task], system, seed, folder)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1), encoding="utf-8")
    part.replace(file)
