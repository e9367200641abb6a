"""What a checkpoint keeps of its run, for the model cards of its heads: metrics, data, arguments and versions."""

import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from lightning.pytorch import LightningModule, Trainer

__all__ = ["hub_id", "record"]

PACKAGES = ("headset", "torch", "transformers", "lightning", "datasets")
SPLITS = ("train", "validation")
DATA_SETTINGS = ("batch_size", "max_length", "seed")
OPTIONAL_SETTINGS = ("scheduler_args", "head_learning_rate", "layer_decay", "parameter_groups", "reinitialize_layers")
TRAINER_SETTINGS = (
    "precision",
    "world_size",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "max_epochs",
    "max_steps",
)


def record(module: LightningModule, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """A run as it stands when it is saved, as plain values.

    Args:
        module: A `LitHeadset` in a run.
        earlier: The record of the run that this one goes on with; empty, if it is none.

    Returns:
        ``backbone``: what it started from; ``metrics``: the last ones, by their name in the log (``val/topic/f1``);
        ``data``: by head, what each split was; ``training``: the main arguments; ``versions``: of the packages.
    """
    trainer = module.trainer
    data = getattr(trainer.datamodule, "hparams", {})  # type: ignore[attr-defined]
    evaluated = {key: float(value) for key, value in trainer.callback_metrics.items() if not key.startswith("train/")}
    return {
        "backbone": earlier.get("backbone") or source_name(module.hparams["backbone"]["path"]),
        "metrics": evaluated,
        "data": earlier.get("data", {}) | _tables(trainer.datamodule),  # type: ignore[attr-defined]
        "training": _training(trainer, module.hparams, data),
        "versions": {package: version(package) for package in PACKAGES},
    }


def _tables(data: Any) -> dict[str, dict[str, str]]:
    """By head, what each split was, of all sources that it was trained on."""
    found: dict[str, dict[str, str]] = {}
    for source in getattr(data, "sources", {}).values():
        for head in source.heads:
            for split in SPLITS:
                given = getattr(source.settings, split)
                if given is not None:
                    splits = found.setdefault(head, {})
                    splits[split] = "; ".join(filter(None, [splits.get(split), source_name(given)]))
    return found


def source_name(source: Any) -> str:
    """What a model or a table may be called in public: a hub id, or a file's name without its folders."""
    if isinstance(source, Mapping):
        files = source.get("data_files") or source.get("data_dir")
        parts = [source.get("path"), source.get("name"), files if isinstance(files, str) else None, source.get("split")]
        return ", ".join(source_name(part) for part in parts if part)
    if not isinstance(source, str):
        return f"{source} of train"
    return source if hub_id(source) or "://" in source else os.path.basename(os.path.normpath(source))


def hub_id(source: str) -> str | None:
    """The source, if it can only be an id on the hub: ``owner/name``, and no folder or file here."""
    looks_so = re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", source) is not None
    return source if looks_so and not os.path.exists(source) else None


def _training(trainer: Trainer, settings: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that were in force, without those that were not given."""
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    arguments: dict[str, Any] = {"steps": trainer.global_step}
    if optimizer is not None:
        arguments["optimizer"] = type(optimizer).__name__
        arguments["learning_rate"] = optimizer.defaults.get("lr")
        arguments["weight_decay"] = optimizer.defaults.get("weight_decay")
    arguments |= {name: settings[name] for name in ("scheduler", "warmup")}
    arguments |= {name: settings.get(name) or None for name in OPTIONAL_SETTINGS}
    arguments |= {"freeze": settings["backbone"]["freeze"], "loss_weights": settings["loss_weights"] or None}
    arguments |= {name: data.get(name) for name in DATA_SETTINGS}
    arguments |= {"sampling": data["sampling"]} if data.get("sources") else {}
    arguments |= {name: getattr(trainer, name) for name in TRAINER_SETTINGS}
    unset = (None, -1)
    return {name: value for name, value in arguments.items() if value not in unset}
