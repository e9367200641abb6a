"""What a row costs, of few rows and of many: reading and encoding, an epoch's order and loading, predicting."""

import csv
import random
import time
from collections.abc import Mapping
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from transformers import BertConfig

from backbones.loading import load_tokenizer
from benchmarks.speed.measuring import Numbers
from benchmarks.speed.memory import Watch
from benchmarks.speed.training import BATCH, HEAD, read_rows, train_checkpoint
from heads import SequenceClassification
from headset import TextData

__all__ = ["RowsSide", "write_tiny"]

BATCHES = 3000  # that are loaded, of as many epochs as it takes: what each part of a file costs once does not count
PREDICTED = 256  # the rows of a batch that is predicted


class RowsSide:
    """A table of so many rows, each of them another text.

    Args:
        rows: How many.
        model: The folder of a tiny model, as `write_tiny` makes it.
        file: The texts that they are made of, as JSON lines.
        folder: Where files are written.
        max_length: Where texts are cut, in tokens.
    """

    def __init__(self, rows: int, model: str, file: str, folder: str, max_length: int = 64) -> None:
        self.rows = rows
        self.model = model
        self.file = file
        self.max_length = max_length
        self.folder = Path(folder) / f"rows-{rows}"
        self.folder.mkdir(exist_ok=True)
        self.checkpoint = train_checkpoint(model, file, str(self.folder), max_length)

    def run(self, turn: int) -> Numbers:
        """Microseconds a row of each kind of work, and the MiB of ``memory``."""
        if turn == 0:
            return {}
        tables = [self.folder / f"{name}-{turn}.csv" for name in ("train", "predict")]
        for place, table in enumerate(tables):
            write_table(table, self.rows, read_rows(self.file), 2 * turn + place)
        with Watch() as watch:
            moments = self.work(str(tables[0]), str(tables[1]), turn)
        for table in tables:
            table.unlink()
        return {**moments, "memory": watch.most}

    def work(self, train: str, predict: str, seed: int) -> dict[str, float]:
        """Microseconds a row of each kind of work."""
        moments = [time.perf_counter()]
        data = TextData(train=train, max_length=self.max_length, batch_size=BATCH, seed=seed)
        data.connect(load_tokenizer(self.model), {HEAD: SequenceClassification()}, {})
        data.setup("fit")
        moments.append(time.perf_counter())
        loader: Any = data.train_dataloader()
        for _ in loader.sampler:
            pass
        moments.append(time.perf_counter())
        batches = chain.from_iterable(repeat(loader))
        loaded = sum(len(batch["labels"][HEAD]) for batch in islice(batches, BATCHES))
        moments.append(time.perf_counter())
        self.predict(predict)
        moments.append(time.perf_counter())
        kinds = {"encoding": self.rows, "order": self.rows, "loading": loaded, "predicting": self.rows}
        costs = {
            kind: (later - earlier) / count * 1e6
            for (kind, count), earlier, later in zip(kinds.items(), moments[:-1], moments[1:], strict=True)
        }
        return {**costs, "batching": costs["encoding"] + costs["order"] + costs["loading"]}

    def predict(self, table: str) -> None:
        """Predict all rows with the tiny model, from file to file."""
        from headset.cli import run

        output = str(self.folder / "predictions.jsonl")
        settings = ["--data.predict", table, "--output", output, "--overwrite", "true"]
        settings += ["--data.eval_batch_size", str(PREDICTED), "--trainer.accelerator", "cpu"]
        run(["predict", "--ckpt_path", self.checkpoint, *settings])


def write_table(file: Path, rows: int, texts: Mapping[str, list[str]], seed: int) -> None:
    """Write a CSV file whose rows are all different, and different with each seed."""
    chosen = random.Random(seed)
    pairs = list(zip(texts["text"], texts["label"], strict=True))
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["text", "label"])
        for row in range(rows):
            text, label = pairs[chosen.randrange(len(pairs))] if row >= len(pairs) else pairs[row]
            writer.writerow([f"{text} {seed} {row}", label])


def write_tiny(model: str, folder: Path) -> str:
    """Write the folder of a model with next to nothing to compute, and random weights, on the vocabulary of another."""
    tokenizer: Any = load_tokenizer(model)
    tokenizer.save_pretrained(folder)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    BertConfig(vocab_size=len(tokenizer), **sizes).save_pretrained(folder)
    return str(folder)
