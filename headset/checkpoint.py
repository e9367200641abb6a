"""What a checkpoint holds beside weights: everything that is needed to build the headset again, as plain values."""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from backbones.backbone import Backbone, BackboneOptions
from backbones.errors import HeadsetError, told_of
from heads.base import Head
from heads.registry import make_head
from headset.description import check_sizes, check_tensors, is_description, is_plain
from headset.model import Headset
from headset.processors import Processor, processor_from_files
from headset.sharded_files import open_folder
from headset.whole_files import check_whole, damaged

__all__ = [
    "build_headset",
    "check_backbone",
    "check_heads",
    "check_same",
    "describe",
    "fitting_weights",
    "load_checkpoint",
    "make_heads",
    "read_checkpoint",
    "read_hparams",
]

PREFIX = "headset."  # of the headset's weights among those of the LightningModule


def describe(headset: Headset) -> dict[str, Any]:
    """A headset without its weights and its processor: backbone, heads, labels, states and run, as plain values."""
    return {
        "backbone": dataclasses.asdict(headset.backbone.options()),
        "heads": {name: headset.head(name).spec() for name in headset.heads},
        "labels": {name: None if names is None else list(names) for name, names in headset.labels.items()},
        "states": dict(headset.states),
        "run": headset.run,
    }


def make_heads(description: Mapping[str, Any], trust_heads: bool) -> dict[str, Head]:
    """The heads that `describe` told of, not built yet.

    Raises:
        HeadsetError: A head's class is not known, and not trusted.
    """
    return {name: make_head(spec, trusted=trust_heads) for name, spec in description["heads"].items()}


def build_headset(description: Mapping[str, Any], heads: Mapping[str, Head], processor: Processor | None) -> Headset:
    """A headset as `describe` tells it, with random weights; nothing is loaded from elsewhere."""
    backbone = Backbone.from_options(BackboneOptions(**description["backbone"]))
    headset = Headset(backbone, heads, description["labels"], processor=processor)
    headset.states |= description["states"]
    headset.run = dict(description.get("run", {}))
    return headset


def read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint of a `LitHeadset`, with weights only: a file, memory-mapped, or a folder, in parts.

    Raises:
        HeadsetError: There is no such file or folder, it is damaged, or it is not of a headset.
    """
    check_whole(path)
    file = Path(path)
    try:
        if file.is_dir():
            content: dict[str, Any] = open_folder(file)
            content["state_dict"] = dict(content["state_dict"])
        else:
            content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except HeadsetError:
        raise
    except Exception as error:  # damaged files make torch fail in many ways
        raise damaged(
            file,
            "cannot be read as a checkpoint of weights and plain values; it is damaged, of another kind, or unsafe. "
            "Is it whole, and made by headset?",
        ) from error
    if not isinstance(content, dict) or not is_plain(content) or not is_description(content.get("hyper_parameters")):
        raise HeadsetError(f"{path} is not a checkpoint of a headset.")
    weights, data = content.get("state_dict"), content.get("datamodule_hyper_parameters", {})
    if not (isinstance(weights, dict) and isinstance(data, dict) and all(map(torch.is_tensor, weights.values()))):
        raise HeadsetError(f"{path} holds no weights, or its settings are damaged.")
    with told_of(path):
        check_tensors(weights)
        check_sizes(content["hyper_parameters"], [weight.shape for weight in weights.values()])
    return content


def read_hparams(path: str) -> dict[str, Any]:
    """The settings in a checkpoint: those of the model, and those of the data under ``data``.

    Raises:
        HeadsetError: As `read_checkpoint`.
    """
    content = read_checkpoint(path)
    return {**content["hyper_parameters"], "data": content.get("datamodule_hyper_parameters", {})}


def check_same(settings: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Check that settings do not ask for what a checkpoint fixes: its backbone, its heads, their labels.

    Args:
        settings: The settings of the run; heads in ``new_heads`` may be any.
        stored: The settings in the checkpoint.

    Raises:
        HeadsetError: They ask for something else.
    """
    check_backbone(settings, stored)
    new = set(settings["new_heads"])
    wanted, there = settings["heads"].keys() - new, stored["heads"].keys() - new
    if wanted != there:
        raise HeadsetError(
            f"The checkpoint has the heads {', '.join(sorted(there))}; the settings have {', '.join(sorted(wanted))}. "
            "A head that starts anew is named so: --model.new_heads '[NAME]'. To add heads to those of a checkpoint: "
            "--model.start_from CKPT"
        )
    check_heads(settings, stored, sorted(wanted))


def check_backbone(settings: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Check that settings do not ask for another backbone than that of a checkpoint.

    Raises:
        HeadsetError: They do.
    """
    if settings["backbone"]["path"] != stored["backbone"]["path"]:
        raise HeadsetError(
            f"The checkpoint holds its own backbone, from {stored['backbone']['path']}, and cannot go on with "
            f"{settings['backbone']['path']}. Name it as it was: --model.backbone.path {stored['backbone']['path']}"
        )
    for what in ("lora", "quantization"):
        asked, fixed = settings["backbone"].get(what), stored["backbone"].get(what)
        if asked != fixed:
            raise HeadsetError(
                f"The checkpoint fixes the backbone's {what} setting: {fixed}, and cannot go on with {asked}."
            )


def check_heads(settings: Mapping[str, Any], stored: Mapping[str, Any], names: Iterable[str]) -> None:
    """Check that settings do not ask for other heads or labels than those of a checkpoint.

    Args:
        settings: The settings of the run.
        stored: The settings in the checkpoint.
        names: The heads that are of the checkpoint.

    Raises:
        HeadsetError: They do.
    """
    for name in names:
        for what in ("heads", "labels"):
            asked, fixed = settings[what].get(name), stored[what].get(name)
            if asked is not None and json.dumps(asked) != json.dumps(fixed):
                asked, fixed = _differing(asked, fixed)
                raise HeadsetError(
                    f"The checkpoint fixes the {what} setting of '{name}': {fixed}, and cannot go on with {asked}. To "
                    f"start this head anew: --model.new_heads '[{name}]'"
                )


def _differing(asked: Any, fixed: Any) -> tuple[Any, Any]:
    """Of two specifications of a head the arguments that differ; all of anything else."""
    if not (isinstance(asked, dict) and isinstance(fixed, dict)) or asked.get("class_path") != fixed.get("class_path"):
        return asked, fixed
    mine, theirs = asked["init_args"], fixed["init_args"]
    names = [name for name in {**theirs, **mine} if mine.get(name) != theirs.get(name)]
    return {name: mine.get(name) for name in names}, {name: theirs.get(name) for name in names}


def load_checkpoint(path: str, trust_heads: bool = False) -> Headset:
    """The headset in a checkpoint, in eval mode.

    Raises:
        HeadsetError: As `read_checkpoint`, or a head's class is not known and not trusted.
    """
    content = read_checkpoint(path)
    hparams = content["hyper_parameters"]
    weights = content["state_dict"]
    with told_of(path):
        heads, files = make_heads(hparams, trust_heads), hparams.get("processor")
        headset = build_headset(hparams, heads, processor_from_files(files, heads) if files else None)
        ours = {key.removeprefix(PREFIX): weights[key] for key in weights if key.startswith(PREFIX)}
        with fitting_weights():
            headset.load_state_dict(ours)
    return headset.eval()


@contextlib.contextmanager
def fitting_weights() -> Iterator[None]:
    """Say of weights that do not fit that they do not.

    Raises:
        HeadsetError: Weights are missing, too many, or of other shapes.
    """
    try:
        yield
    except RuntimeError as error:
        reasons = " ".join(str(error).split())
        raise HeadsetError(
            "The weights in the checkpoint do not fit the headset that it describes. Was the code of a head changed "
            f"since? {reasons[:500]}"
        ) from error
