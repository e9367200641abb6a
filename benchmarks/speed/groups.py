"""The groups of sides, each with its files, as they are measured on the processor."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from backbones.loading import load_tokenizer
from benchmarks.speed import texts
from benchmarks.speed.measuring import Side
from benchmarks.speed.scale import write_tiny
from benchmarks.speed.tables import Group, Row, Sizes
from benchmarks.speed.training import BATCH, headset_order, length_groups, train_checkpoint
from headset.precision import predict_precision

__all__ = ["GROUPS", "Files"]

TRAINING, PREDICTING = "benchmarks.speed.training", "benchmarks.speed.predicting"
OURS, RAW, LIGHTNING = "headset", "raw loop", "plain Lightning"
TRAINER, GROUPED = "Trainer", "Trainer, group_by_length"


class Files:
    """The files that groups share, each made when it is first asked for.

    Args:
        sizes: How much is measured.
        folder: Where files are written.
    """

    def __init__(self, sizes: Sizes, folder: Path) -> None:
        self.sizes = sizes
        self.folder = folder

    @cached_property
    def movies(self) -> texts.Texts:
        """Short texts, but the last ones."""
        return self._movies.some(0, -self.sizes.tested)

    @cached_property
    def mails(self) -> texts.Texts:
        """Long texts."""
        return texts.load_mails() if self.sizes.real else texts.made_up(60)

    @cached_property
    def _movies(self) -> texts.Texts:
        return texts.load_movies() if self.sizes.real else texts.made_up(20)

    @cached_property
    def test(self) -> str:
        """A file of short texts to measure on: the last ones."""
        return self.write(self._movies.some(-self.sizes.tested, None), "test")

    def lengths(self, rows: texts.Texts) -> list[int]:
        """How many tokens each text has."""
        encoded = load_tokenizer(self.sizes.model)(rows.texts, truncation=True, max_length=self.sizes.max_length)
        return [len(ids) for ids in encoded["input_ids"]]

    def grouped(self, rows: texts.Texts, batches: int, name: str) -> str:
        """A file with so many batches of texts of about one length, as group_by_length makes them of all texts."""
        return self.write(rows.of(length_groups(self.lengths(rows), batches)), name)

    def write(self, rows: texts.Texts, name: str) -> str:
        """Write rows to a file of that name."""
        return str(texts.write_jsonl(rows, self.folder / f"{name}.jsonl"))

    def work(self, train: str, name: str, **more: Any) -> dict[str, Any]:
        """The settings of a training."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        model, most = self.sizes.model, self.sizes.max_length
        return {"model": model, "train": train, "folder": str(folder), "max_length": most, **more}

    @cached_property
    def trained(self) -> tuple[str, str]:
        """A checkpoint, and the stock model that was exported from it."""
        from headset.main import main

        folder = self.folder / "trained"
        folder.mkdir(exist_ok=True)
        train = self.write(self.movies.some(0, 2 * BATCH), "few")
        checkpoint = train_checkpoint(self.sizes.model, train, str(folder), self.sizes.max_length)
        if main(["export", "--ckpt_path", checkpoint, "--output_dir", str(folder / "export")]):
            raise RuntimeError("The export failed.")
        [exported] = (folder / "export").iterdir()
        return checkpoint, str(exported)


def training(files: Files) -> Group:
    """Short texts, each side as it is configured by default, and what was learnt."""
    work = files.work(files.grouped(files.movies, files.sizes.short, "short"), "training", test=files.test)
    what = f"training as configured by default, {files.movies.name}"
    rows = [
        Row(what, OURS, TRAINER, 1.8),
        Row(what, OURS, GROUPED, 1.05),
        Row("accuracy of these trainings", OURS, TRAINER, 0.98, key="accuracy"),
    ]
    return Group(_defaults(work), rows, files.sizes.rounds)


def mails(files: Files) -> Group:
    """Long texts, each side as it is configured by default."""
    work = files.work(files.grouped(files.mails, files.sizes.long, "long"), "mails")
    what = f"training as configured by default, long {files.mails.name}"
    rows = [Row(what, OURS, TRAINER, 1.3), Row(what, OURS, GROUPED, 1.05)]
    return Group(_defaults(work), rows, files.sizes.rounds)


def _defaults(work: dict[str, Any]) -> list[Side]:
    return [
        Side(OURS, f"{TRAINING}:HeadsetSide", work),
        Side(TRAINER, f"{TRAINING}:TrainerSide", work),
        Side(GROUPED, f"{TRAINING}:TrainerSide", {**work, "sampling": "sequential"}),
    ]


def same(files: Files) -> Group:
    """The same batches on all sides, as they come."""
    train = files.grouped(files.movies, files.sizes.same, "same")
    return _same(files, train, "same", "training, identical batches")


def even(files: Files) -> Group:
    """The same batches on all sides, of texts of one length, so that there is no padding to be spared."""
    lengths = files.lengths(files.movies)
    common = max(set(lengths), key=lambda length: (min(lengths.count(length), BATCH * files.sizes.same), length))
    rows = [row for row, length in enumerate(lengths) if length == common][: BATCH * files.sizes.same]
    train = files.write(files.movies.of(rows), "even")
    return _same(files, train, "even", f"training, identical batches of {common} tokens each, without padding")


def _same(files: Files, train: str, name: str, what: str) -> Group:
    order = headset_order(files.sizes.model, train, files.sizes.max_length)
    work = files.work(train, name, batches=order, memory=True)
    sides = [
        Side(OURS, f"{TRAINING}:HeadsetSide", work),
        Side(RAW, f"{TRAINING}:RawSide", work),
        Side(LIGHTNING, f"{TRAINING}:LightningSide", work),
    ]
    rows = [
        Row(what, OURS, RAW, 0.98),
        Row(what, OURS, LIGHTNING),
        Row("its peak memory, of tensors", OURS, RAW, 1.03, key="tensors", most=True),
        Row("its peak memory, of the process", OURS, RAW, 1.03, key="process", most=True),
    ]
    return Group(sides, rows, files.sizes.rounds)


def predict(files: Files) -> Group:
    """From file to file, in float32; and where the machine is faster in bfloat16, as it is by default there."""
    checkpoint, exported = files.trained
    source = files.write(files.movies.some(0, files.sizes.predicted), "predicted")
    work = {"file": source, "folder": str(files.folder), "max_length": files.sizes.max_length}
    what, ours, loop = "predict from file to file", f"{PREDICTING}:HeadsetFiles", f"{PREDICTING}:SortedFiles"
    sides = [
        Side("headset, fp32", ours, {**work, "model": checkpoint, "precision": "fp32"}),
        Side("pipeline", f"{PREDICTING}:PipelineFiles", {**work, "model": exported}),
        Side("sorted loop, fp32", loop, {**work, "model": exported, "precision": "fp32"}),
    ]
    rows = [
        Row(what, "headset, fp32", "pipeline", 1.5),
        Row(what, "headset, fp32", "sorted loop, fp32", 0.97),
    ]
    if predict_precision("cpu", None) == "bf16-mixed":
        sides += [
            Side("headset, default", ours, {**work, "model": checkpoint}),
            Side("sorted loop, bf16-mixed", loop, {**work, "model": exported, "precision": "bf16-mixed"}),
            Side("sorted loop, all in bf16", loop, {**work, "model": exported, "precision": "bf16"}),
        ]
        rows += [
            Row(what, "headset, default", "pipeline", 2.5),
            Row(what, "headset, default", "sorted loop, bf16-mixed", 0.97),
            Row(what, "headset, default", "sorted loop, all in bf16"),
        ]
    return Group(sides, rows, files.sizes.rounds)


def vectors(files: Files) -> Group:
    """Vectors of texts."""
    source = files.write(files.movies.some(0, files.sizes.predicted), "vectors")
    work = {"model": files.sizes.model, "file": source, "max_length": files.sizes.max_length}
    sides = [
        Side("Pooling head", f"{PREDICTING}:HeadsetVectors", work),
        Side("sentence-transformers", f"{PREDICTING}:EncodeSide", work),
    ]
    return Group(sides, [Row("vectors of texts", "Pooling head", "sentence-transformers", 0.97)], files.sizes.rounds)


def heads(files: Files) -> Group:
    """One head, four heads on one backbone, and four models."""
    source = files.write(files.movies.some(0, files.sizes.answered), "answered")
    work = {"model": files.sizes.model, "file": source, "max_length": files.sizes.max_length}
    sides = [
        Side("four heads", f"{PREDICTING}:HeadsSide", {**work, "heads": 4, "together": True}),
        Side("one head", f"{PREDICTING}:HeadsSide", {**work, "heads": 1, "together": True}),
        Side("four models", f"{PREDICTING}:HeadsSide", {**work, "heads": 4, "together": False}),
    ]
    what = "time of four heads in one pass"
    rows = [
        Row(what, "four heads", "one head", 1.1, key="seconds", most=True),
        Row(what, "four heads", "four models", 0.3, key="seconds", most=True),
    ]
    return Group(sides, rows, files.sizes.rounds)


def frozen(files: Files) -> Group:
    """A frozen backbone, from the second epoch on."""
    work = files.work(files.grouped(files.movies, files.sizes.short, "frozen"), "frozen")
    ours = {**work, "epochs": files.sizes.epochs, "backbone": {"freeze": "all"}}
    sides = [
        Side(OURS, f"{TRAINING}:HeadsetSide", ours),
        Side("Trainer, frozen base", f"{TRAINING}:TrainerSide", {**work, "frozen": True}),
    ]
    rows = [Row("training on a frozen backbone, second epoch on", OURS, "Trainer, frozen base", 50)]
    return Group(sides, rows, files.sizes.rounds)


def start(files: Files) -> Group:
    """Until something happens."""
    where = "benchmarks.speed.starting"
    work = files.work(files.write(files.movies.some(0, 2 * BATCH), "start"), "start")
    sides = [
        Side("headset --help", f"{where}:HelpStart"),
        Side("headset fit to its first step", f"{where}:FitStart", work),
        Side("imports and model", f"{where}:BareStart", {"model": files.sizes.model}),
    ]
    rows = [
        Row("start, in seconds", "headset --help", "", 0.3, key="seconds", most=True),
        Row("start", "headset fit to its first step", "imports and model", 1.1, key="seconds", most=True),
    ]
    return Group(sides, rows, files.sizes.start_rounds)


def scale(files: Files) -> Group:
    """What a row costs in tables of several sizes, and the memory."""
    folder = files.folder / "tiny"
    folder.mkdir(exist_ok=True)
    tiny = write_tiny(files.sizes.model, folder)
    source = files.write(files.movies, "rows")
    work = {"model": tiny, "file": source, "folder": str(files.folder), "max_length": files.sizes.max_length}
    names = {rows: f"{rows:,} rows" for rows in files.sizes.rows}
    sides = [Side(name, "benchmarks.speed.scale:RowsSide", {**work, "rows": rows}) for rows, name in names.items()]
    kinds = {
        "batching": "µs a row: from the file to its first batch",
        "encoding": "µs a row, of it: reading and tokenising",
        "order": "µs a row, of it: the order of an epoch",
        "loading": "µs a row, of it: loading batches",
        "predicting": "µs a row: predicting with a tiny model, from file to file",
        "memory": "MiB of memory, without mapped files",
    }
    least, *others = names.values()
    rows = [
        Row(what, name, least, 1.1 if name == others[-1] else None, key=key, most=True)
        for key, what in kinds.items()
        for name in others
    ]
    return Group(sides, rows, 1)


GROUPS: dict[str, Callable[[Files], Group]] = {
    "training": training,
    "mails": mails,
    "same": same,
    "even": even,
    "predict": predict,
    "vectors": vectors,
    "heads": heads,
    "frozen": frozen,
    "start": start,
    "scale": scale,
}
