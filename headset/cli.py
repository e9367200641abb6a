"""fit, validate, test and predict: LightningCLI, where a checkpoint's own settings come first."""

import argparse
import contextlib
import gc
import inspect
import json
import logging
import re
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only
from torch.multiprocessing.spawn import ProcessExitedException

from backbones.errors import HeadsetError, invalid_choice
from heads.registry import load_all_heads, make_head
from headset.allocator import FreedMemory
from headset.checkpoint import read_hparams
from headset.checkpoint_io import LastCheckpoints
from headset.data import TextData
from headset.fsdp2 import FSDP2Strategy
from headset.hosts import name_interface
from headset.interruption import end_others, is_lost_process, lost_process
from headset.logs import ConfigFile, MetricsLog
from headset.module import LitHeadset
from headset.parser import HeadsetParser
from headset.precision import predict_precision
from headset.resuming import check_callbacks
from headset.source_settings import whole_sources
from headset.writer import PredictionWriter

__all__ = ["HeadsetCLI", "run"]

# What Lightning says of its own inner workings, and of callbacks that only training needs.
IRRELEVANT = (
    ".*treespec.*",
    "Couldn't infer the batch indices",
    "You're using the WeightAveraging callback with a model that overrides the configure_model",
    "The dirpath has changed",
    "Total length of `list` across ranks is zero",
    "You have overridden `transfer_batch_to_device`",
    "It is recommended to use `self.log",  # metrics are over all processes already
)


def run(arguments: list[str]) -> None:
    """Run one of the four commands.

    Args:
        arguments: The command and its arguments.

    Raises:
        HeadsetError: A mistake in the settings or in the data.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.msg)
    missing = () if arguments[:1] == ["fit"] else ("Be aware that when using `ckpt_path`",)  # callbacks
    for message in (*IRRELEVANT, *missing):
        warnings.filterwarnings("ignore", message=message, module="lightning")
    name_interface()
    try:
        # The name of a class is found among imported classes.
        load_all_heads()
        HeadsetCLI(arguments)
    except MisconfigurationException as error:
        raise HeadsetError(f"Lightning says: {error}") from error
    except UnicodeDecodeError as error:
        raise HeadsetError(f"A configuration is not UTF-8: {_given(arguments)}: {error}.") from error
    except SyntaxError as error:
        raise HeadsetError(f"{error.filename}, line {error.lineno}: {error.msg}.") from error
    except ProcessExitedException as error:  # of a process that was forked or spawned
        raise SystemExit(error.exit_code if error.exit_code > 0 else 1) from error
    except RuntimeError as error:
        if is_lost_process(error):
            raise lost_process(error) from error
        if "conditioned on metric" not in str(error):
            raise
        raise HeadsetError(f"Lightning says: {' '.join(str(error).split())}") from error


def _given(arguments: list[str]) -> str:
    """The configurations on a command line."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("-c", "--config", action="append", default=[])
    return ", ".join(early.parse_known_args(arguments)[0].config)


class HeadsetCLI(LightningCLI):
    """LightningCLI over `LitHeadset` and `TextData`.

    With ``--ckpt_path`` the settings in the checkpoint have the lowest priority: a configuration file goes before
    them, and the command line before both. A configuration for ``fit`` is taken to be complete.

    Args:
        arguments: The command and its arguments.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.hparams: dict[str, Any] | None = None
        self.command = arguments[0]
        super().__init__(
            LitHeadset,
            TextData,
            save_config_callback=ConfigFile,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_class=HeadsetParser,
            args=arguments,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # the checkpoints of LitHeadset say all that it needs
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The command, with the arguments of Trainer's method that are not settings; parsers take time to make."""
        arguments = LightningCLI.subcommands()[self.command]
        return {self.command: arguments | {"weights_only", "return_predictions"}}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.add_argument(
            "--trust_heads",
            type=bool,
            default=False,
            help="Import the modules of head classes that a checkpoint names.",
        )
        if subcommand == "fit":
            # As transformers' Trainer: three epochs, and gradients clipped to a norm of 1.
            defaults = {"max_epochs": 3, "gradient_clip_val": 1.0, "log_every_n_steps": 10}
            parser.set_defaults({f"trainer.{name}": value for name, value in defaults.items()})
        if subcommand == "predict":
            parser.add_argument(
                "--output", default="predictions.jsonl", help="The file to write: .jsonl, .csv or .parquet."
            )
            parser.add_argument("--overwrite", type=bool, default=False, help="Replace an earlier file.")
            parser.add_argument("--heads", default=None, help="The heads to run, as a,b; all of them by default.")
            parser.add_argument(
                "--allow_untrained", type=bool, default=False, help="Predict also with heads that were never trained."
            )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line, behind the settings of the checkpoint that it names."""
        command, *rest = args
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        early.add_argument("--ckpt_path", nargs="?")
        early.add_argument("--trust_heads", nargs="?", default="false")
        early.add_argument("-c", "--config", nargs="?")
        known, _ = early.parse_known_args(rest)
        self.configured = bool(known.config)
        if known.ckpt_path and not (command == "fit" and known.config):
            self.hparams = read_hparams(known.ckpt_path)
            settings = _settings(self.hparams, command, trusted=known.trust_heads == "true")
            rest = ["--config", json.dumps(settings), *rest]
        rest = whole_sources(rest, lambda others: parser.parse_args([command, *others])[command].data.sources)
        self.config = parser.parse_args([command, *rest])

    def _parse_ckpt_path(self) -> None:
        """Replaces a method of LightningCLI, by which the checkpoint's settings go before the command line."""
        path = self.config[self.config.subcommand].ckpt_path
        if path and self.hparams is None:  # else it was read before the settings were
            self.hparams = read_hparams(path)

    def instantiate_classes(self) -> None:
        """Make data, module and trainer; from a checkpoint the module gets what must not come from anywhere else."""
        try:
            super().instantiate_classes()
        except HeadsetError:
            raise
        except (ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
            raise HeadsetError(f"A setting cannot be used: {' '.join(str(error).split())[:500]}") from error
        gc.freeze()  # what imports and settings made stays: not to be looked through again and again
        if self.hparams is not None:
            self.model.restore(self.hparams)
            if self.subcommand == "fit" and not self.configured:
                check_callbacks(self.trainer, self._get(self.config, "ckpt_path"))
        if self.subcommand == "predict":
            self.model.allow_untrained = self._get(self.config, "allow_untrained")
            if heads := self._get(self.config, "heads"):
                self.model.predict_only([name.strip() for name in str(heads).strip("[]").split(",")])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, with a logger, a checkpoint and a progress bar where the settings name none."""
        settings = self._get(self.config_init, "trainer")
        if isinstance(settings.strategy, str) and settings.strategy not in ("auto", *StrategyRegistry):
            raise invalid_choice("strategy of trainer", settings.strategy, ["auto", "ddp", "fsdp2"])
        given = settings.callbacks or []
        callbacks: list[Callback] = [given] if isinstance(given, Callback) else list(given)
        callbacks.append(FreedMemory())
        logger = settings.logger
        if self.subcommand == "fit":
            if logger in (None, True):
                logger = MetricsLog(settings.default_root_dir or ".")
            saves = settings.enable_checkpointing is not False and not settings.fast_dev_run
            if saves and not _has(callbacks, Checkpoint):
                callbacks.append(LastCheckpoints())
        else:
            logger = logger or False
            if settings.enable_checkpointing is None:
                kwargs["enable_checkpointing"] = False
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter(self._get(self.config, "output"), self._get(self.config, "overwrite")))
            if settings.precision is None:
                kwargs["precision"] = predict_precision(settings.accelerator, self.hparams)
        if settings.enable_progress_bar is not False and not _has(callbacks, ProgressBar) and not sys.stdout.isatty():
            callbacks.append(TQDMProgressBar(refresh_rate=10))  # the rich one shows nothing in a log file
        if self.subcommand != "fit" or logger is False:
            self.save_config_callback = None
        if isinstance(settings.strategy, ModelParallelStrategy) and not isinstance(settings.strategy, FSDP2Strategy):
            kwargs["strategy"] = FSDP2Strategy.of(settings.strategy)
        return super().instantiate_trainer(callbacks=callbacks, logger=logger, **kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        """Leave no process behind, however the run ends."""
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            end_others(self.trainer)
            raise

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}
        return kwargs | {"return_predictions": False} if subcommand == "predict" else kwargs

    @rank_zero_only
    def after_fit(self) -> None:
        """Say where the checkpoint is: the best one, where a metric says so, else the last one."""
        saved = [each for each in self.trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
        best = [each.best_model_path for each in saved if each.monitor]
        last = [path for each in saved for path in (each.last_model_path, each.best_model_path)]
        written = [path for path in (*best, *last) if path]
        if written:
            print(f"Checkpoint: {written[0]}")
        elif saved:
            print("No checkpoint was written: the run ended before there was one to keep.")

    @rank_zero_only
    def after_predict(self) -> None:
        """Say where the predictions are."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        [writer] = [each for each in callbacks if isinstance(each, PredictionWriter)]
        print(f"Predictions: {', '.join(map(str, writer.parts(self.trainer.world_size)))}")


def _settings(hparams: Mapping[str, Any], command: str, trusted: bool) -> dict[str, Any]:
    """A checkpoint's settings as a configuration.

    Parsing imports what is named as a class, wherever that is. So its heads are made before, which asks for consent,
    and nothing else may name one.

    Raises:
        HeadsetError: A head is not known and not trusted, or a class is named where none belongs.
    """
    parts = [(name, value) for name, value in hparams.items() if name not in ("heads", "optimizer", "processor")]
    parts.append(("optimizer", (hparams.get("optimizer") or {}).get("init_args")))
    for name, spec in hparams["heads"].items():
        make_head(spec, trusted)
        if not trusted:
            parts.append((name, spec.get("init_args")))
    for name, value in parts:
        if _names_class(value):
            raise HeadsetError(f"The checkpoint names a class in {name}, which is not imported from a file.")
    model = {name: hparams[name] for name in inspect.signature(LitHeadset).parameters if name in hparams}
    optimizer = model.pop("optimizer", None)
    model.pop("start_from", None)  # what came from there is in the checkpoint
    if command == "fit" and optimizer and re.fullmatch(r"torch\.optim\.[A-Z]\w*", optimizer["class_path"]):
        model["optimizer"] = optimizer
    del model["processor"]  # its files are in the checkpoint
    return {"model": model, "data": hparams["data"]}


def _names_class(value: Any) -> bool:
    """Whether a value names a class, also inside of a string, which the parser may read as YAML."""
    if isinstance(value, str):
        with contextlib.suppress(yaml.YAMLError):
            parsed = yaml.load(value, Loader=yaml.BaseLoader)
            return not isinstance(parsed, str) and _names_class(parsed)
    if isinstance(value, Mapping):
        return any("class_path" in str(key) or _names_class(item) for key, item in value.items())
    return isinstance(value, list | tuple) and any(map(_names_class, value))


def _has(callbacks: list[Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
