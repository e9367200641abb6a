"""One run of a configuration in a process of its own, which may be killed at a point, and what it leaves behind."""

import contextlib
import multiprocessing
import os
import random
import signal
import string
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch.distributed.tensor import DTensor
from transformers import BertConfig, BertModel, BertTokenizer

from headset import whole_files
from headset.sharded_files import open_folder
from tests.torture import configurations

LIMIT = 120  # seconds for a run


def make_backbone(folder: Path) -> str:
    """A BertModel with 2 layers, 16 wide, with dropout, and its tokenizer."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *configurations.WORDS]
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=32)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=len(tokens), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def its_own(value: Any) -> Any:
    """What a process has of a tensor that is in parts."""
    return value.to_local() if isinstance(value, DTensor) else value


class Journal(Callback):
    """Writes what happens to a file: rows, losses and rates of each step, and the metrics of each validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, trainer: Trainer, line: str) -> None:
        number = os.open(self.folder / f"journal-{trainer.global_rank}", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(number, f"{line}\n".encode())
        os.close(number)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        parts = batch if isinstance(batch, list) else [batch]
        seen = [(part["meta"].get("source"), part["meta"]["rows"]) for part in parts]
        rates = [group["lr"].hex() for group in trainer.optimizers[0].param_groups]
        loss = outputs["loss"].item().hex()
        self.write(trainer, f"step {trainer.current_epoch} {batch_idx} {trainer.global_step} {seen} {loss} {rates}")

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            values = {name: float(value).hex() for name, value in sorted(trainer.callback_metrics.items())}
            loop = trainer.fit_loop.epoch_loop
            self.write(trainer, f"validation {trainer.current_epoch} {loop.total_batch_idx} {values}")

    def on_train_epoch_end(self, trainer, module):
        self.write(trainer, f"epoch {trainer.current_epoch} {trainer.global_step}")

    def on_fit_end(self, trainer, module):
        if trainer.global_rank == 0:
            torch.save(
                {name: its_own(value) for name, value in module.state_dict().items()}, self.folder / "weights.pt"
            )
            saver = trainer.checkpoint_callback
            scores = sorted(float(score).hex() for score in saver.best_k_models.values())
            best = str(saver.best_model_score), os.path.basename(saver.best_model_path)
            (self.folder / "saver").write_text(f"{scores} {best}")


class Kill(Callback):
    """Kills its process, or all of the run, at the n-th time that something happens; counts, where there is no n."""

    def __init__(self, what: str = "", number: int = 0, rank: int | None = None) -> None:
        self.what, self.number, self.rank = what, number, rank
        self.here = 0
        self.counts: Counter[str] = Counter()

    def setup(self, trainer, module, stage):
        self.here = trainer.global_rank

    def note(self, what: str) -> None:
        self.counts[what] += 1
        if (what, self.counts[what]) == (self.what, self.number):
            if self.rank is None:
                os.killpg(os.getpgid(0), signal.SIGKILL)
            elif self.here == self.rank:
                os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, *_):
        self.note("batch")

    def on_before_optimizer_step(self, *_):
        self.note("optimizer")

    def on_train_batch_end(self, *_):
        self.note("batch end")

    def on_validation_batch_start(self, *_):
        self.note("validation batch")

    def on_validation_batch_end(self, *_):
        self.note("validation batch end")

    def on_train_epoch_end(self, *_):
        self.note("epoch end")

    def on_fit_end(self, *_):
        self.note("end")

    def watch_files(self) -> None:
        """Notes also each piece of a checkpoint that is written, and what comes after."""
        write, sync, remove = whole_files._Digesting.write, os.fsync, os.unlink

        def noted(name: str, its_own: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                self.note(name)
                return its_own(*args, **kwargs)

            return call

        whole_files._Digesting.write = noted("write", write)  # type: ignore[method-assign]
        os.fsync, os.unlink = noted("sync", sync), noted("remove", remove)
        os.remove, os.symlink = noted("remove", os.remove), noted("link", os.symlink)
        os.replace, os.rmdir = noted("replace", os.replace), noted("remove", os.rmdir)


def fit(drawn: dict[str, Any], backbone: str, folder: Path, ckpt_path: str | None, kill: Kill) -> None:
    """The run itself, in this process."""
    seed_everything(drawn["seed"], verbose=False)
    kill.watch_files()
    callbacks = configurations.callbacks(drawn, folder / "kept")
    trainer = Trainer(
        default_root_dir=folder,
        logger=CSVLogger(str(folder)),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[*callbacks, Journal(folder), kill],
        **configurations.trainer_settings(drawn),
    )
    trainer.fit(configurations.model(drawn, backbone), configurations.data(drawn, folder), ckpt_path=ckpt_path)


def run(
    drawn: dict[str, Any],
    backbone: str,
    folder: Path,
    ckpt_path: str | None = None,
    kill: Kill | None = None,
    seconds: float = LIMIT,
) -> str:
    """A run in a process of its own, that is killed after so many seconds.

    Returns:
        ``done``, ``killed``, or what went wrong.
    """

    def target() -> None:
        os.setsid()
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        folder.mkdir(parents=True, exist_ok=True)
        output = os.open(folder / "output", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            fit(drawn, backbone, folder, ckpt_path, kill or Kill())
        except BaseException:
            (folder / "error").write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join(seconds)
    late = process.is_alive()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    if process.exitcode == 0:
        return "done"
    error = folder / "error"
    if error.exists() and not (kill and kill.rank is not None):
        return error.read_text()
    return "timed out" if late and seconds == LIMIT else "killed"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints below a folder, without links."""
    return [path for path in folder.rglob("*.ckpt") if path.exists() and not path.is_symlink()]


def read(path: Path) -> Any:
    """The content of a checkpoint, all of which is read.

    Raises:
        HeadsetError: It is not whole.
    """
    whole_files.check_whole(path)
    return open_folder(path) if path.is_dir() else torch.load(path, weights_only=True)


def newest(folder: Path) -> str | None:
    """The newest checkpoint below a folder; all of them have to be whole."""
    found = checkpoints(folder)
    for path in found:
        read(path)
    return str(max(found, key=lambda path: path.stat().st_mtime_ns)) if found else None


def events(folder: Path) -> list[list[str]]:
    """What the journals of a run say, by process."""
    return [path.read_text().splitlines() for path in sorted(folder.glob("journal-*"))]


def a_kill(counts: dict[str, int], dice: random.Random, processes: int) -> tuple[Kill, float]:
    """A point at which to kill a run, and after how many seconds at the latest."""
    if dice.random() < 0.15:
        return Kill(), dice.uniform(0.2, 2.0)
    what = dice.choice(sorted(counts))
    files = what in ("write", "sync", "remove", "link", "replace")  # of the first process
    rank = dice.randrange(1 if files else processes) if processes > 1 and dice.random() < 0.5 else None
    return Kill(what, dice.randint(1, counts[what]), rank), LIMIT


def clear(folder: Path) -> None:
    """Set the journals of a run aside, so that the next one begins new ones."""
    for path in [*folder.glob("journal-*"), folder / "error"]:
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_name(f"old-{path.name}-{time.monotonic_ns()}"))
