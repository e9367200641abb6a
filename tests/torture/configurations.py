"""Random configurations of tiny runs, out of everything that a resumed run has to go on with."""

import random
from datetime import timedelta
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher, _WorkerOutput

from backbones import BackboneOptions
from heads import MaskedLM, SequenceClassification
from headset import FSDP2Strategy, GradualUnfreezing, LitHeadset, TextData
from headset.checkpoint_io import LastCheckpoints

WORDS = ["the", "good", "bad", "film", "book", "was", "is", "not", "very"]
CHOICES: dict[str, list[Any]] = {
    "processes": [1, 1, 1, 2],
    "workers": [0, 0, 2],
    "accumulate": [1, 2, 3],
    "validation": [1.0, 0.5, 3, "every second epoch", None],
    "saves": ["epochs", "steps", "two steps", "time", "best of validation", "best by steps", "best, in new folders"],
    "scheduler": ["linear", "cosine", "reduce_lr_on_plateau"],
    "sources": ["one", "one", "size", "all", "temperature"],
    "heads": ["plain", "masked", "tuned"],
    "loss_weights": [None, "uncertainty", "gradnorm"],
    "callbacks": [(), (), ("stop",), ("average",), ("unfreeze",), ("stop", "average", "unfreeze")],
    "length": ["epochs", "epochs", "steps"],
    "max_norm": [None, 1.0],
    "strategy": ["ddp", "fsdp2", "fsdp2, folders"],  # of two processes
}


def draw(seed: int, processes: int | None = None) -> dict[str, Any]:
    """A configuration, the same with the same seed."""
    dice = random.Random(seed)
    drawn = {name: dice.choice(values) for name, values in CHOICES.items()}
    drawn["seed"] = seed
    if processes:
        drawn["processes"] = processes
    if drawn["validation"] is None:  # what needs one
        drawn |= {"heads": "plain" if drawn["heads"] == "tuned" else drawn["heads"]}
        drawn |= {"scheduler": "linear" if drawn["scheduler"] == "reduce_lr_on_plateau" else drawn["scheduler"]}
        drawn |= {"saves": "steps" if drawn["saves"].startswith("best") else drawn["saves"]}
        drawn |= {"callbacks": tuple(each for each in drawn["callbacks"] if each != "stop")}
    if drawn["processes"] == 2 and drawn["strategy"] != "ddp":  # what it has not
        drawn |= {"callbacks": tuple(each for each in drawn["callbacks"] if each != "average")}
        drawn |= {"loss_weights": "uncertainty" if drawn["loss_weights"] == "gradnorm" else drawn["loss_weights"]}
    return drawn


class Forks(_MultiProcessingLauncher):
    """Forks processes, and brings nothing back: each of them has a part of the weights."""

    def _collect_rank_zero_results(self, trainer: Any, results: Any) -> Any:
        return _WorkerOutput(None, None, trainer.state, results, {})

    def _recover_results_in_main_process(self, worker_output: Any, trainer: Any) -> None:
        pass


class ForkedFSDP2(FSDP2Strategy):
    """fsdp2 in processes that are forked, as ``ddp_fork`` has them."""

    def _configure_launcher(self) -> None:
        self._launcher = Forks(self, start_method="fork")


def rows(path: Any, count: int, seed: int) -> str:
    """A CSV file of so many rows."""
    dice = random.Random(seed)
    lines = [f"{' '.join(dice.choices(WORDS, k=dice.randint(3, 8)))},{dice.choice('ab')}" for _ in range(count)]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return str(path)


def model(drawn: dict[str, Any], backbone: str) -> LitHeadset:
    """The model of a configuration."""
    heads: dict[str, Any] = {"mood": SequenceClassification(), "topic": SequenceClassification(pooling="mean")}
    if drawn["heads"] == "masked":
        heads["words"] = MaskedLM()
    if drawn["heads"] == "tuned":
        heads["mood"] = SequenceClassification(temperature="tuned")
    if drawn["loss_weights"] is None and drawn["sources"] == "one":
        del heads["topic"]
    return LitHeadset(
        BackboneOptions(backbone),
        heads,
        learning_rate=1e-2,
        scheduler=drawn["scheduler"],
        scheduler_args={"patience": 0} if drawn["scheduler"] == "reduce_lr_on_plateau" else None,
        loss_weights=drawn["loss_weights"],
    )


def data(drawn: dict[str, Any], folder: Any) -> TextData:
    """The data of a configuration."""
    names = ["mood", "topic"] if drawn["loss_weights"] or drawn["sources"] != "one" else ["mood"]
    labels: Any = dict.fromkeys(names, "label")
    if drawn["heads"] == "masked":
        labels["words"] = None
    files = {split: rows(folder / f"{split}.csv", count, count) for split, count in (("train", 22), ("validation", 9))}
    if drawn["validation"] is None:
        del files["validation"]
    both = {"batch_size": 2, "eval_batch_size": 3, "num_workers": drawn["workers"], "seed": drawn["seed"]}
    if drawn["sources"] == "one":
        return TextData(**files, labels=labels, **both)
    more = {"train": rows(folder / "more.csv", 9, 5), "labels": {"topic": "label"}}
    sampling: Any = {"temperature": 2.0}.get(drawn["sources"], drawn["sources"])
    first = {**files, "labels": {name: column for name, column in labels.items() if name != "topic"}}
    return TextData(sources={"first": first, "more": more}, sampling=sampling, **both)


def callbacks(drawn: dict[str, Any], folder: Any) -> list[Any]:
    """The callbacks of a configuration, with what saves checkpoints to a folder."""
    made = {
        "stop": lambda: EarlyStopping("val/loss", patience=1),
        "average": lambda: EMAWeightAveraging(decay=0.8),
        "unfreeze": lambda: GradualUnfreezing(start=2, every=3, unit="step"),
    }
    every = {"dirpath": str(folder), "filename": "{epoch}-{step}"}
    saves: dict[str, Any] = {
        "steps": lambda: ModelCheckpoint(**every, every_n_train_steps=1, save_top_k=-1),
        "two steps": lambda: ModelCheckpoint(**every, every_n_train_steps=2, save_last="link"),
        "time": lambda: ModelCheckpoint(**every, train_time_interval=timedelta(milliseconds=30), save_last=True),
        "best of validation": lambda: ModelCheckpoint(**every, monitor="val/loss", save_top_k=2, save_last="link"),
        "best by steps": lambda: ModelCheckpoint(**every, monitor="val/loss", save_top_k=3, every_n_train_steps=2),
        "best, in new folders": lambda: ModelCheckpoint(monitor="val/loss", save_top_k=2, save_last="link"),
        "epochs": lambda: LastCheckpoints(),
    }
    return [*(made[name]() for name in drawn["callbacks"]), saves[drawn["saves"]]()]


def trainer_settings(drawn: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the Trainer."""
    when: dict[Any, dict[str, Any]] = {
        "every second epoch": {"check_val_every_n_epoch": 2},
        None: {},
    }
    length = {"epochs": {"max_epochs": 3}, "steps": {"max_epochs": -1, "max_steps": 17}}[drawn["length"]]
    strategies = {
        "ddp": lambda: "ddp_fork",
        "fsdp2": lambda: ForkedFSDP2(),
        "fsdp2, folders": lambda: ForkedFSDP2(save_distributed_checkpoint=True),
    }
    parallel = (
        {"devices": 2, "strategy": strategies[drawn["strategy"]]()} if drawn["processes"] == 2 else {"devices": 1}
    )
    validation = when.get(drawn["validation"], {"val_check_interval": drawn["validation"]})
    return {
        **length,
        **parallel,
        **validation,
        "accumulate_grad_batches": drawn["accumulate"],
        "gradient_clip_val": drawn["max_norm"],
    }
