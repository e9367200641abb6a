"""The model card of an export: what it is, how good it is, how it was made, and how it is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from heads.base import Head
from headset.model import Headset
from headset.record import hub_id, source_name
from headset.verify import Loader

__all__ = ["write_card"]

# How answers are made of scores, by what is in config.json.
THRESHOLDS = """`config.json` has a threshold for each label, which is given where its probability is at least that:

```python
thresholds = torch.tensor([model.config.thresholds[label] for label in model.config.id2label.values()])
given = model(**inputs).logits.sigmoid() >= thresholds
```"""
TEMPERATURE = """`config.json` has the temperature at which probabilities are calibrated:

```python
probabilities = (model(**inputs).logits / model.config.calibration_temperature).softmax(-1)
```"""
ORDERED = """The labels are in their order, from the lowest to the highest, and the scores are logarithms of their
probabilities. The answer is the median, the first label up to which the probabilities sum to one half, and not the
likeliest label:

```python
median = (model(**inputs).logits.softmax(-1).cumsum(-1) < 0.5).sum(-1)
```"""
NOTES = {"thresholds": THRESHOLDS, "calibration_temperature": TEMPERATURE}
STAGES = {"val": "validation", "test": "test"}


def write_card(headset: Headset, name: str, folder: Path, loader: Loader) -> None:
    """Write ``README.md`` with the hub's metadata into the folder of an export."""
    run = headset.run
    base = run.get("backbone") or source_name(headset.backbone.config.name_or_path or "")
    metrics = _metrics(name, run)
    data = run.get("data", {}).get(name, {})
    results = _results(metrics, data, loader.task)
    metadata = ModelCardData(
        library_name=loader.library,
        pipeline_tag=loader.task,
        tags=_tags(headset, name, folder, loader),
        base_model=hub_id(base),
        datasets=sorted(_hub_ids(data)) or None,
        metrics=sorted({metric for found in metrics.values() for metric in found}) or None,
        eval_results=results or None,
        model_name=name if results else None,
    )
    head = headset.head(name)
    labels = ", ".join(f"`{label}`" for label in head.labels or ()) or "none"
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name}",
        f"The head `{name}` ({type(head).__name__}: {loader.task}) on a {headset.backbone.spec.model_type} backbone"
        f"{f' ({base})' if base else ''}, made with headset. `{loader.name}` loads it:",
        f"```python\n{loader.usage}\n```",
        f"## Labels\n\n{labels}",
        _decisions(head),
        *(_table(f"Metrics, {stage}", "metric", found) for stage, found in metrics.items()),
        _table("Data", "split", data),
        _table("Training", "argument", run.get("training", {})),
        _table("Versions", "package", run.get("versions", {})),
    ]
    content = "\n\n".join(part for part in parts if part) + "\n"
    ModelCard(content, ignore_metadata_errors=True).save(folder / "README.md")


def _tags(headset: Headset, name: str, folder: Path, loader: Loader) -> list[str]:
    tags = ["headset", type(headset.head(name)).__name__, headset.backbone.spec.model_type]
    return [*tags, "custom_code"] if any(folder.glob("modeling_*.py")) else tags


def _decisions(head: Head) -> str:
    """How answers are made of scores, where that is not as usual."""
    notes = [NOTES[name] for name in head.export_settings() if name in NOTES] + [ORDERED] * head.ordered
    return "\n\n".join(["## Answers", *notes]) if notes else ""


def _metrics(name: str, run: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics of a head, by stage and by their own names."""
    found: dict[str, dict[str, float]] = {}
    for key, value in run.get("metrics", {}).items():
        stage, _, rest = key.partition("/")
        if stage in STAGES and rest.startswith(f"{name}/"):
            found.setdefault(STAGES[stage], {})[rest.removeprefix(f"{name}/")] = value
    return found


def _results(metrics: Mapping[str, Mapping[str, float]], data: Mapping[str, str], task: str) -> list[EvalResult]:
    """The metrics as the hub's ``model-index`` has them."""
    return [
        EvalResult(
            task_type=task,
            dataset_type=data[stage] if hub_id(data[stage]) else "custom",
            dataset_name=data[stage],
            dataset_split=stage,
            metric_type=metric,
            metric_value=value,
        )
        for stage, found in metrics.items()
        if stage in data
        for metric, value in found.items()
    ]


def _hub_ids(data: Mapping[str, str]) -> set[str]:
    """The data sets on the hub among the splits, of which each may be of several sources."""
    sources = (source for split in data.values() for source in split.split("; "))
    return {found for source in sources if (found := hub_id(source.split(", ")[0]))}


def _table(title: str, what: str, rows: Mapping[str, Any]) -> str:
    """A section with a table, or nothing if there are no rows."""
    if not rows:
        return ""
    lines = [
        f"| {key} | {value:.4g} |" if isinstance(value, float) else f"| {key} | {value} |"
        for key, value in rows.items()
    ]
    return "\n".join([f"## {title}", "", f"| {what} | value |", "| --- | --- |", *lines])
