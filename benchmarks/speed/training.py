"""Training: headset, a raw loop of PyTorch, plain Lightning, and transformers' Trainer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
    set_seed,
)

from backbones.loading import resolve_path
from benchmarks.speed.clocks import Clock, Stamps, TrainerClock
from benchmarks.speed.measuring import Numbers
from benchmarks.speed.memory import forget_peak, peak_of_process, peak_of_tensors

__all__ = [
    "HeadsetSide",
    "LightningSide",
    "RawSide",
    "TrainerSide",
    "headset_order",
    "headset_settings",
    "length_groups",
    "read_rows",
    "train_checkpoint",
]

BATCH = 32
RATE, DECAY, WARMUP = 1e-4, 0.01, 0.1
HEAD = "answer"


@dataclass(frozen=True)
class Work:
    """A training, the same for all sides.

    Args:
        model: The backbone.
        train: A file of JSON lines with ``text`` and ``label``.
        test: Another one, to measure what was learnt; None where that is not asked.
        folder: Where what a run writes may be put.
        max_length: Where texts are cut, in tokens.
        batches: The rows of each batch, where they are to be the same on all sides.
        memory: Whether the peak of memory is measured, in the turn that warms up.
        batch: The rows of a batch.
        accelerator: What trains, as Lightning names it.
        half: Whether it computes in bfloat16 where that is safe, as autocast has it.
        workers: The processes that load.
    """

    model: str
    train: str
    folder: str
    test: str | None = None
    max_length: int = 512
    batches: list[list[int]] | None = None
    memory: bool = False
    batch: int = BATCH
    accelerator: str = "cpu"
    half: bool = False
    workers: int = 0

    @property
    def bare(self) -> bool:
        """Whether the model is a folder without weights, which are random then."""
        return Path(self.model).is_dir() and not list(Path(self.model).glob("*.safetensors"))


class _Training:
    """What the sides have in common.

    Attributes:
        epochs: How often it goes over the rows; where more than once, only what comes after the first time counts.
    """

    epochs = 1

    def __init__(self, **work: Any) -> None:
        self.work = Work(**work)
        self.peak: dict[str, float] = {}

    def run(self, turn: int) -> Numbers:
        """Train once; ``rate`` is the rows a second, ``accuracy`` that on the rows of ``test``."""
        set_seed(turn)
        if self.work.memory and not self.peak:
            forget_peak()  # before anything of an earlier training is left in this process
            self.train(turn)
            process = peak_of_process()
            with peak_of_tensors() as peak:
                self.train(turn)
            self.peak = {"process": process, **peak}
        elif turn == 0:
            self.train(turn, most=2)
        if turn == 0:
            return {}
        stamps, answer = self.train(turn)
        rows = len(read_rows(self.work.train)["text"])
        first = min(1, self.epochs - 1)
        rate = rows * (self.epochs - first) / stamps.seconds(first)
        numbers = {"rate": rate, **self.peak}
        if self.work.test is not None:
            test = read_rows(self.work.test)
            right = sum(given == label for given, label in zip(answer(test["text"]), test["label"], strict=True))
            numbers["accuracy"] = right / len(test["label"])
        return numbers

    def train(self, seed: int, most: int = -1) -> tuple[Stamps, Any]:
        """Train on all rows once, or for ``most`` steps; the times, and what answers for texts."""
        raise NotImplementedError

    def stock(self) -> tuple[Any, Any, Dataset]:
        """The stock model, its tokenizer, and the encoded rows."""
        path = resolve_path(self.work.model)
        tokenizer = AutoTokenizer.from_pretrained(path)
        rows = read_rows(self.work.train)
        names = sorted(set(rows["label"]))
        ids = {name: number for number, name in enumerate(names)}
        config = AutoConfig.from_pretrained(path, id2label=dict(enumerate(names)), label2id=ids)
        kind = AutoModelForSequenceClassification
        model = kind.from_config(config) if self.work.bare else kind.from_pretrained(path, config=config)
        encoded = tokenizer(rows["text"], truncation=True, max_length=self.work.max_length)
        labels = [names.index(label) for label in rows["label"]]
        return model, tokenizer, Dataset.from_dict({**encoded, "labels": labels})

    def answers(self, model: Any, tokenizer: Any, texts: Sequence[str]) -> list[str]:
        """The labels that a stock model gives."""
        found: list[str] = []
        model.eval()
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH):
                part = list(texts[start : start + BATCH])
                batch = tokenizer(
                    part, truncation=True, max_length=self.work.max_length, padding=True, return_tensors="pt"
                )
                logits = model(**batch.to(model.device)).logits
                found += [model.config.id2label[index] for index in logits.argmax(-1).tolist()]
        return found

    def loader(self, rows: Dataset, tokenizer: Any) -> DataLoader[Any]:
        """Batches of encoded rows: the given ones, or random ones."""
        collate = DataCollatorWithPadding(tokenizer)
        if self.work.batches is None:
            return DataLoader(rows, BATCH, shuffle=True, collate_fn=collate)
        return DataLoader(rows, batch_sampler=self.work.batches, collate_fn=collate)


class RawSide(_Training):
    """A loop of PyTorch as by hand: AdamW, clipped gradients, a linear schedule."""

    def train(self, seed: int, most: int = -1) -> tuple[Stamps, Any]:
        """Train."""
        model, tokenizer, rows = self.stock()
        loader = self.loader(rows, tokenizer)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
        schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP * len(loader)), len(loader))
        model.train()
        stamps = Stamps()
        for number, batch in enumerate(loader):
            if number == most:
                break
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            stamps.step(0)
        stamps.end()
        return stamps, lambda texts: self.answers(model, tokenizer, texts)


class LightningSide(_Training):
    """The smallest LightningModule around the stock model."""

    def train(self, seed: int, most: int = -1) -> tuple[Stamps, Any]:
        """Train."""
        import lightning.pytorch as lightning

        model, tokenizer, rows = self.stock()
        loader = self.loader(rows, tokenizer)

        class Plain(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = model.train()

            def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
                loss: Tensor = self.model(**batch).loss
                self.log("loss", loss, prog_bar=True)
                return loss

            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.AdamW(self.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
                schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP * len(loader)), len(loader))
                return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        clock = Clock()
        lightning.Trainer(
            max_epochs=1,
            max_steps=most,
            gradient_clip_val=1.0,
            accelerator="cpu",
            enable_checkpointing=False,
            default_root_dir=self.work.folder,
            callbacks=[clock],
        ).fit(Plain(), loader)
        return clock.stamps, lambda texts: self.answers(model, tokenizer, texts)


class TrainerSide(_Training):
    """transformers' Trainer with its defaults; ``sequential`` takes the rows as they stand in the file.

    Args:
        sampling: What ``TrainingArguments`` calls ``train_sampling_strategy``.
        frozen: Whether the base model is frozen.
        work: As `Work` has it.
    """

    def __init__(self, sampling: str = "random", frozen: bool = False, **work: Any) -> None:
        super().__init__(**work)
        self.sampling = sampling
        self.frozen = frozen

    def train(self, seed: int, most: int = -1) -> tuple[Stamps, Any]:
        """Train."""
        model, tokenizer, rows = self.stock()
        if self.frozen:
            model.base_model.requires_grad_(False)
        clock = TrainerClock()
        arguments = TrainingArguments(
            output_dir=self.work.folder,
            per_device_train_batch_size=self.work.batch,
            bf16=self.work.half,
            use_cpu=self.work.accelerator == "cpu",
            dataloader_num_workers=self.work.workers,
            num_train_epochs=1,
            max_steps=most,
            learning_rate=RATE,
            weight_decay=DECAY,
            warmup_steps=WARMUP,
            train_sampling_strategy=self.sampling,
            seed=seed,
            save_strategy="no",
            report_to="none",
        )
        Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
            callbacks=[clock],
        ).train()
        return clock.stamps, lambda texts: self.answers(model, tokenizer, texts)


class HeadsetSide(_Training):
    """``headset fit``, with its defaults.

    Args:
        epochs: How often it goes over the rows; where more than once, only what comes after the first time counts.
        backbone: More settings of the backbone.
        work: As `Work` has it.
    """

    def __init__(self, epochs: int = 1, backbone: Mapping[str, Any] | None = None, **work: Any) -> None:
        super().__init__(**work)
        self.epochs = epochs
        self.backbone = dict(backbone or {})

    def train(self, seed: int, most: int = -1) -> tuple[Stamps, Any]:
        """Train."""
        from headset.cli import run

        file = Path(self.work.folder) / "run.yaml"
        settings = headset_settings(self.work, seed, self.epochs, self.backbone)
        settings["trainer"] |= {"max_steps": most, "callbacks": [{"class_path": "benchmarks.speed.clocks.Clock"}]}
        file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        run(["fit", "-c", str(file)])
        clock = Clock.last
        return clock.stamps, lambda texts: _answers(clock.module.headset, texts, self.work.max_length)


def headset_settings(work: Work, seed: int, epochs: int, backbone: Mapping[str, Any]) -> dict[str, Any]:
    """What ``headset fit`` takes."""
    data = {"train": work.train, "max_length": work.max_length, "batch_size": work.batch, "num_workers": work.workers}
    return {
        "seed_everything": seed,
        "model": {
            "backbone": {"path": work.model, **backbone, **({"random_weights": True} if work.bare else {})},
            "heads": {HEAD: "SequenceClassification"},
            "learning_rate": RATE,
        },
        "data": {**data, "seed": 0 if work.batches else seed},
        "trainer": {
            "max_epochs": epochs,
            "accelerator": work.accelerator,
            **({"precision": "bf16-mixed"} if work.half else {}),
            "enable_checkpointing": False,
            "default_root_dir": work.folder,
        },
    }


def train_checkpoint(model: str, train: str, folder: str, max_length: int) -> str:
    """The checkpoint of a training of one step; a folder without weights gets random ones."""
    from headset.cli import run

    settings = headset_settings(Work(model, train, folder, max_length=max_length), 0, 1, {})
    settings["trainer"] |= {"max_steps": 1, "enable_checkpointing": True, "logger": False}
    checkpoint = {"dirpath": folder, "filename": "model", "enable_version_counter": False}
    callback = {"class_path": "ModelCheckpoint", "init_args": checkpoint}
    settings["trainer"]["callbacks"] = [callback]
    file = Path(folder) / "checkpoint.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    run(["fit", "-c", str(file)])
    return str(Path(folder) / "model.ckpt")


def headset_order(model: str, train: str, max_length: int) -> list[list[int]]:
    """The rows of each batch that ``headset fit`` trains on, with the seed 0, in the first epoch."""
    from backbones.loading import load_tokenizer
    from heads import SequenceClassification
    from headset import TextData

    data = TextData(train=train, max_length=max_length, seed=0)
    data.connect(load_tokenizer(model), {HEAD: SequenceClassification()}, {})
    data.setup("fit")
    return [batch["meta"]["rows"] for batch in data.train_dataloader()]


def length_groups(lengths: Sequence[int], batches: int, seed: int = 0) -> list[int]:
    """Rows of so many batches of Trainer's ``group_by_length``, taken at equal distances out of an epoch of all rows.

    So few rows have groups as alike as those of the whole table.
    """
    from transformers.trainer_pt_utils import LengthGroupedSampler

    generator = torch.Generator().manual_seed(seed)
    order = list(LengthGroupedSampler(BATCH, lengths=list(lengths), generator=generator))
    chosen = np.linspace(0, len(order) // BATCH - 1, batches).round().astype(int)
    return [row for batch in chosen for row in order[batch * BATCH : (batch + 1) * BATCH]]


def read_rows(file: str) -> dict[str, list[str]]:
    """The columns of a file of JSON lines."""
    with Path(file).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _answers(headset: Any, texts: Sequence[str], max_length: int) -> list[str]:
    rows = headset.predict(texts, batch_size=BATCH, max_length=max_length)[HEAD]
    return [row["label"] for row in rows]
