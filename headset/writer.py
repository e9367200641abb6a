"""Writing predictions beside their inputs, in the order of the rows, window by window."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

from backbones.errors import HeadsetError, invalid_choice
from headset.environment import environment
from headset.orders import WindowOrder
from headset.partial import PartialFile
from headset.result_files import FORMATS, ResultFile

__all__ = ["PredictionWriter"]


class PredictionWriter(BasePredictionWriter):
    """Writes what ``predict_step`` returns, one record a row, beside the row's own columns.

    A record has ``row`` (the number of the row, counted from 1), the columns of the data, and for each head what it
    predicts: nested under the head's name in JSON lines and Parquet, flat in CSV (``topic.label``, ``topic.score``).
    A column with the name of a head, or called ``row``, is written as ``input.<column>``.

    The file appears under its name when it is complete. Several processes write one part each:
    ``predictions-00000-of-00002.jsonl``. What was written before a run ended early is kept beside it, and the next run
    goes on behind the last whole window of rows, if all that the predictions follow from is the same.

    Args:
        output: The file to write; its suffix tells the format: ``.jsonl``, ``.csv`` or ``.parquet``.
        overwrite: Replace an earlier result.

    Raises:
        HeadsetError: The suffix is another one, or there is an earlier result.
    """

    def __init__(self, output: str | Path, overwrite: bool = False) -> None:
        super().__init__(write_interval="batch")
        self.output = Path(output)
        if self.output.suffix not in FORMATS:
            raise invalid_choice("suffix of --output", self.output.suffix, FORMATS)
        if self.output.is_dir():
            raise HeadsetError(f"{self.output} is a folder. Give --output the name of a file.")
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.output.parent).close()
        except OSError as error:
            raise HeadsetError(f"{self.output} cannot be written: {error.strerror}.") from error
        earlier = self._results()
        if earlier and not overwrite and not self._unnamed(earlier):
            raise HeadsetError(
                f"{earlier[0]} is there already, and nothing was computed. Choose another --output, or replace it with "
                "--overwrite true."
            )
        self._file: ResultFile | None = None
        self._ends: Iterator[int] = iter(())
        self._end = 0
        self._waiting: dict[int, dict[str, Any]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the data come in windows, from the first one on that is not written yet.

        Raises:
            HeadsetError: The result would replace the rows that it is made from.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        source = data.hparams.get("predict")
        if isinstance(source, str) and Path(source).resolve() == self.output.resolve():
            raise HeadsetError(f"{self.output} holds the rows to predict. Choose another --output.")
        data.begin_prediction = lambda order: self._begin(trainer, pl_module, order)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the data as it was."""
        trainer.datamodule.begin_prediction = None  # type: ignore[attr-defined]

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep the predictions of a batch, ``{head: [one dictionary a row]}``, until their window is whole."""
        if "filler" in batch["meta"]:
            return
        rows = batch["meta"]["rows"]
        if max(rows) >= self._end:
            self._write()
        by_row = zip(*prediction.values(), strict=True)
        self._waiting |= zip(rows, (dict(zip(prediction, heads, strict=True)) for heads in by_row), strict=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the complete file its name; earlier results of other numbers of processes go."""
        if self._file is None:
            return
        self._write()
        trainer.strategy.barrier("all predictions are written")
        with self._writing():
            self._file.finish()
        trainer.strategy.barrier("all files have their names")
        self._file.file.forget()
        if trainer.is_global_zero:
            for path in set(self._results()) - set(self.parts(trainer.world_size)):
                path.unlink()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what is whole, for the next run."""
        if self._file is None:
            return
        file = self._file.file
        file.leave()
        if file.parts:
            rank_zero_info(f"What is predicted so far is kept in {file.partial}; the same command goes on from there.")

    def parts(self, world: int) -> list[Path]:
        """The files of a prediction by so many processes."""
        stem, suffix = self.output.stem, self.output.suffix
        names = [f"{stem}-{rank:05d}-of-{world:05d}{suffix}" for rank in range(world)]
        return [self.output.with_name(name) for name in names] if world > 1 else [self.output]

    def _begin(self, trainer: Trainer, module: LightningModule, order: WindowOrder) -> int:
        """Open the file of this process; gives the number of batches that need not be run."""
        world, data = trainer.world_size, trainer.datamodule  # type: ignore[attr-defined]
        path = self.parts(world)[trainer.global_rank]
        partial = PartialFile(path, belongs_to(trainer, module, order))
        if other := partial.other():
            rank_zero_info(f"{partial.partial} is of other {', '.join(other)}: predictions begin anew.")
        whole = partial.found() if trainer.limit_predict_batches == 1.0 else 0
        done = int(trainer.strategy.reduce(torch.tensor(whole, device=module.device), reduce_op="min"))
        with self._writing():
            partial.open(done)
        ends = order.ends(world)
        if done:
            rank_zero_info(f"{ends[done - 1]} of {order.rows} rows are in {partial.partial}; the others follow.")
        self._file = FORMATS[self.output.suffix](partial, data.raw("predict"))
        self._ends = iter(ends[done:])
        self._end, self._waiting = ends[done - 1] if done else 0, {}
        return min(done * order.per_window(world), order.count(world))

    def _write(self) -> None:
        """Write the window whose rows have all come."""
        assert self._file is not None
        if self._waiting:
            rows = sorted(self._waiting)
            with self._writing():
                self._file.write(rows, [self._waiting[row] for row in rows])
                self._file.file.end_part()
        self._end, self._waiting = next(self._ends, self._end), {}

    def _writing(self) -> AbstractContextManager[None]:
        return environment(f"writing predictions to {self.output}")

    def _results(self) -> list[Path]:
        digits = "[0-9]" * 5
        parts = self.output.parent.glob(f"{self.output.stem}-{digits}-of-{digits}{self.output.suffix}")
        return [path for path in (self.output, *sorted(parts)) if path.exists()]

    def _unnamed(self, earlier: list[Path]) -> bool:
        """Whether an earlier run ended while its files got their names: some have, and others do not."""
        if self.output in earlier:
            return False
        every = self.parts(int(earlier[0].stem[-5:]))
        return not set(every) <= set(earlier) and all(PartialFile(path, {}).journal.exists() for path in earlier)


def belongs_to(trainer: Trainer, module: LightningModule, order: WindowOrder) -> dict[str, Any]:
    """What predictions follow from, to the last bit."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    weights = hashlib.sha256()
    for name, weight in module.state_dict().items():
        weights.update(name.encode())
        if isinstance(weight, torch.Tensor):
            local = weight.to_local() if hasattr(weight, "to_local") else weight
            weights.update(local.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    settings = {**module.hparams, "labels": getattr(module, "labels", None)}
    return {
        "weights": weights.hexdigest(),
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest(),
        "heads": list(getattr(module, "predicted_heads", ())),
        "rows": [data.raw("predict")._fingerprint, data.examples("predict")._fingerprint],
        "batch sizes": [order.size, order.per_window(trainer.world_size)],
        "precision": str(trainer.precision),
        "device": module.device.type,
        "versions": {name: version(name) for name in ("headset", "torch", "transformers")},
    }
