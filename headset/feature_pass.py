"""One pass of a frozen backbone over rows: sequences of one length at a time, without padding."""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.backbone import Backbone
from backbones.calls import model_inputs
from headset.feature_plan import CallPlan
from headset.feature_store import FeatureWriter
from headset.steps import SourcePart, StepRows

__all__ = ["collated", "write_features"]

CHUNK = 64  # examples that are collated at once; of files one, since sounds cannot be taken apart again
WINDOW = 4096  # examples among which sequences of one length are looked for; of files as many as a chunk of others
TOKENS, FILES = 8192, 8  # of a pass
SHARE = 0.5  # of what is free on the disk, which features may take


@dataclass
class _Example:
    """An example, as the sequences that it is in the model's eyes."""

    counts: list[int]  # by text
    sequences: list[dict[str, Tensor]]


def write_features(
    backbone: Backbone,
    part: SourcePart,
    plan: CallPlan,
    folder: Path,
    examples: range,
    advance: Callable[[int], None],
) -> None:
    """Run the backbone on examples, and write what is kept.

    Args:
        backbone: The backbone.
        part: The examples of a source, and how they become batches.
        plan: The call, and what is kept of it.
        folder: A new folder for it.
        examples: Which examples.
        advance: Is told how many examples more are done.

    Raises:
        OSError: There is no room, or the disk fails.
        ValueError: The features of an example have other shapes than those of another.
    """
    lazy = part.collator.encoder.lazy
    writer, rows = FeatureWriter(folder), StepRows({"": part})
    size = CHUNK if lazy else WINDOW
    for start in range(examples.start, examples.stop, size):
        numbers = range(start, min(start + size, examples.stop))
        window = list(_examples(part, rows, numbers, 1 if lazy else CHUNK))
        sequences = [sequence for example in window for sequence in example.sequences]
        found = iter(_run(backbone, plan, sequences, FILES if lazy else None))
        for example in window:
            writer.write(example.counts, [next(found) for _ in example.sequences])
        if start == examples.start:
            _check_room(writer, len(window), len(examples))
        advance(len(window))
    writer.close()


def collated(part: SourcePart, numbers: list[int], rows: StepRows | None = None) -> dict[str, Any]:
    """A batch of examples, as a loader makes it; ``rows`` are all of them."""
    _, found = (StepRows({"": part}) if rows is None else rows)["", numbers]
    batch: dict[str, Any] = part.collator(found)
    return batch


def _check_room(writer: FeatureWriter, done: int, rows: int) -> None:
    needed = writer.size / done * rows
    free = shutil.disk_usage(writer.folder).free
    if needed > SHARE * free:
        raise OSError(
            f"they would take {needed / 1e9:.1f} GB, more than half of what is free in {writer.folder.parent}"
        )


def _examples(part: SourcePart, table: StepRows, numbers: range, chunk: int) -> Iterator[_Example]:
    """Examples taken apart into sequences, each without its padding."""
    for start in range(numbers.start, numbers.stop, chunk):
        rows = list(range(start, min(start + chunk, numbers.stop)))
        batch = collated(part, rows, table)
        inputs, meta = model_inputs(batch), batch["meta"]
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        mask = inputs.get("attention_mask", meta.get("attention_mask"))
        texts = meta.get("texts", 1)
        counts = meta.get("windows", [1] * (texts * len(rows)))  # of the first texts of all rows, then of the second
        ends = [sum(counts[: place + 1]) for place in range(len(counts))]
        for row in range(len(rows)):
            mine = range(row, len(counts), len(rows))
            places = [place for text in mine for place in range(ends[text] - counts[text], ends[text])]
            sequences = [_sequence(tensors, mask, place) for place in places]
            yield _Example([counts[text] for text in mine], sequences)


def _sequence(tensors: Mapping[str, Tensor], mask: Tensor | None, place: int) -> dict[str, Tensor]:
    if mask is None or mask.dim() != 2:
        return {name: value[place] for name, value in tensors.items()}
    real = mask[place].bool()
    return {
        name: value[place][real] if value.shape[:2] == mask.shape else value[place] for name, value in tensors.items()
    }


def _run(
    backbone: Backbone, plan: CallPlan, sequences: list[dict[str, Tensor]], size: int | None
) -> list[list[Tensor]]:
    """The kept tensors of each sequence."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for place, sequence in enumerate(sequences):
        groups[tuple((name, value.shape) for name, value in sequence.items())].append(place)
    weight = next(each for each in backbone.parameters() if each.is_floating_point())
    found: list[list[Tensor]] = [[] for _ in sequences]
    for alike in groups.values():
        first = sequences[alike[0]]
        most = size or max(1, TOKENS // max(value.shape[0] for value in first.values() if value.dim()))
        for start in range(0, len(alike), most):
            places = alike[start : start + most]
            inputs = {name: torch.stack([sequences[place][name] for place in places]) for name in first}
            inputs = {
                name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
                for name, value in inputs.items()
            }
            tensors = [tensor.cpu() for tensor in plan.read(backbone.run(plan.bound(inputs)))]
            for item, place in enumerate(places):
                found[place] = [tensor[item] for tensor in tensors]
    return found
