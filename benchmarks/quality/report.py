"""The tables, from the results of the runs and nothing else."""

import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import yaml
from scipy.stats import ttest_ind

from benchmarks.quality.scores import METRICS
from benchmarks.quality.several_heads import COSTS, HEADS, NAME, SINGLE, TOGETHER
from benchmarks.quality.systems import BETTER, DEFAULT, LINEAR, SENTENCES, TRAINER
from benchmarks.quality.tasks import MODEL, TASKS, WARMUP, WEIGHT_DECAY, Task

__all__ = ["compare", "report", "spread"]

LESS_IS_BETTER = ("mse",)
UNKNOWN = "-"
PACKAGES = ("torch", "transformers", "sentence-transformers", "lightning", "scikit-learn")
Results = Mapping[tuple[str, str, int], Mapping[str, Any]]


def report(results: Results) -> str:
    """All tables as Markdown.

    Args:
        results: What each run gave, by task, system and seed.
    """
    cores = f"{os.cpu_count()} cores ({platform.machine()}), one thread a run"
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    seeds = sorted({seed for _, _, seed in results})
    lines = [
        "# Quality",
        "",
        "What headset reaches on real data, beside what else there is. `make quality` makes this page anew; it takes",
        "about 40 minutes on two cores, keeps each result in `runs/quality`, and goes on where it was stopped.",
        "",
        f"Every system has the same pretrained model (`{MODEL}`), rows (`examples/data`),",
        "learning rate, batch size, epochs, length and seeds, a linear schedule with a warm-up of",
        f"{WARMUP:.0%}, and a weight decay of {WEIGHT_DECAY}, and answers for the whole test split. The answers are",
        "measured by scikit-learn and numpy, the same for all. *Trainer* is the recipe of `run_glue.py` and",
        "`run_ner.py`; *sentence-transformers* is its own trainer with `MultipleNegativesRankingLoss`; *TF-IDF* is of",
        "words and of parts of words, with logistic or ridge regression; for pairs it is the cosine, and for tags a",
        "word and its neighbours take its place. The better options of headset were chosen once, on the validation",
        "splits with another seed. Pairs are looked for among all texts of the test split.",
        "",
        f"Mean ± standard deviation over {len(seeds)} seeds. *Ahead* and *behind* are against the reference, by",
        "Welch's t-test on the first metric at 5 %; *level* is all else. Matrices are multiplied in bfloat16 where the",
        "processor can. CPU seconds are of training and answering, on a shared machine: they tell the order of size.",
        "",
        f"Machine: {cores}. Versions: {versions}.",
    ]
    for task in TASKS.values():
        lines += ["", f"## {task.name.capitalize()}", "", *_task(task, results)]
    return "\n".join([*lines, "", "## Several heads", "", *_several(results)]) + "\n"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation; the mean alone of one value, and a dash of none."""
    if not values:
        return UNKNOWN
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def compare(values: Sequence[float], reference: Sequence[float], metric: str) -> str:
    """``ahead``, ``behind`` or ``level``: whether two means differ by more than the seeds do; a dash if unknown."""
    if len(values) < 2 or len(reference) < 2:
        return UNKNOWN
    difference = statistics.mean(values) - statistics.mean(reference)
    if statistics.stdev(values) == statistics.stdev(reference) == 0:
        differ = difference != 0
    else:
        differ = ttest_ind(values, reference, equal_var=False).pvalue < 0.05
    if not differ:
        return "level"
    return "ahead" if (difference > 0) != (metric in LESS_IS_BETTER) else "behind"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """A Markdown table."""
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *(list(map(str, row)) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _task(task: Task, results: Results) -> list[str]:
    metrics = METRICS[task.kind]
    reference = SENTENCES if task.kind == "pair" else TRAINER
    found = {
        name: [result for (its, system, _), result in results.items() if (its, system) == (task.name, name)]
        for name in (LINEAR, reference, DEFAULT, BETTER)
    }

    def scores(name: str, metric: str) -> list[float]:
        return [result["scores"][metric] for result in found[name]]

    rows = []
    for name, its in found.items():
        against = "reference" if name == reference else UNKNOWN
        if name in (DEFAULT, BETTER):
            against = compare(scores(name, metrics[0]), scores(reference, metrics[0]), metrics[0])
        measured = [spread(scores(name, metric)) for metric in metrics]
        rows.append([name, *measured, against, spread([result["seconds"] for result in its], 0), len(its)])
    rows_used = "all rows" if task.rows is None else f"the first {task.rows} rows"
    about = (
        f"`{task.source}`: {rows_used} of train, {task.epochs} epochs, batches of {task.batch_size}, learning rate "
        f"{task.learning_rate:g}, at most {task.max_length} tokens. The better options:"
    )
    better = {"model": {"heads": {"answer": task.better_head}, **task.better_model}}
    options = yaml.safe_dump(better, sort_keys=False, default_flow_style=False).strip().splitlines()
    head = ["system", *metrics, "against the reference", "CPU s", "seeds"]
    return [about, "", *("    " + line for line in options), "", *table(head, rows)]


def _several(results: Results) -> list[str]:
    rows = []
    for head, task in HEADS.items():
        metric = METRICS[task.kind][0]
        alone_at = SINGLE.get(head, (NAME, head))
        alone = [its["scores"][metric] for (*run, _), its in results.items() if tuple(run) == alone_at]
        row = [head, metric, spread(alone)]
        for name in TOGETHER:
            its = [
                result["scores"][head][metric] for (*run, _), result in results.items() if tuple(run) == (NAME, name)
            ]
            row += [spread(its), compare(its, alone, metric)]
        rows.append(row)
    costs = [its["scores"] for (*run, _), its in results.items() if tuple(run) == (NAME, COSTS)]
    columns = [column for name in TOGETHER for column in (name, "against alone")]
    ratios = {name: spread([its[name] for its in costs], 2) for name in ("training", "prediction")}
    return [
        "`intensity` (a number) and `source` (one of four) are of the texts in `sentiment_intensity`, `attack` (one of",
        "two) of those in `prompt_injection`: three heads on one encoder, in one run over both tables, against three",
        "runs with the settings above.",
        "",
        *table(["head", "metric", "alone", *columns], rows),
        "",
        "Processor time of one encoder with three heads over that of three encoders, measured in turn in one process:",
        f"**{ratios['training']}** for a step of training on a batch of each table, and **{ratios['prediction']}** to",
        "answer with all heads.",
    ]
