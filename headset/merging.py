"""Heads of several runs on one backbone: checkpoints whose backbones are the same become one."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backbones.errors import HeadsetError
from headset.checkpoint import PREFIX, build_headset, fitting_weights, make_heads, read_checkpoint
from headset.processors import processor_from_files
from headset.whole_files import save_checkpoint

__all__ = ["merge", "merged"]

BACKBONE = f"{PREFIX}backbone."
BY_HEAD = ("heads", "labels", "states")
# What is of one run alone, and is not for the next.
SETTINGS: dict[str, Any] = {
    "loss_weights": {},
    "detached_heads": [],
    "frozen_heads": [],
    "new_heads": [],
    "distillation": None,
}
OF_A_RUN = ("path", "revision", "freeze")
KEPT = ("pytorch-lightning_version", "epoch", "global_step", "datamodule_hparams_name", "datamodule_hyper_parameters")


def merge(ckpt_paths: Sequence[str], output: str, trust_heads: bool = False, overwrite: bool = False) -> None:
    """Write the heads of several checkpoints with their backbone, of which all have the same.

    Args:
        ckpt_paths: The checkpoints.
        output: The checkpoint to write (``*.ckpt``), or the folder, as `Headset.save_pretrained` writes it.
        trust_heads: For a folder: import head classes that the checkpoints name and that are not known.
        overwrite: Replace an earlier file or folder.

    Raises:
        HeadsetError: The backbones or tokenizers differ, two heads have one name, or the output is there already.
    """
    content = merged(ckpt_paths)
    if os.path.exists(output) and not overwrite:
        raise HeadsetError(f"{output} is there already. Choose another --output, or replace it: --overwrite true.")
    if output.endswith(".ckpt"):
        save_checkpoint(content, output)
        return
    hparams = content["hyper_parameters"]
    heads, files = make_heads(hparams, trust_heads), hparams["processor"]
    headset = build_headset(hparams, heads, processor_from_files(files, heads) if files else None)
    with fitting_weights():
        headset.load_state_dict({key.removeprefix(PREFIX): value for key, value in content["state_dict"].items()})
    headset.save_pretrained(output)


def merged(paths: Sequence[str]) -> dict[str, Any]:
    """One checkpoint's content from several, or from one; of the backbone no weight is there twice.

    Raises:
        HeadsetError: As `merge`.
    """
    contents = [read_checkpoint(path) for path in paths]
    first = contents[0]
    hparams = {**first["hyper_parameters"], **SETTINGS}
    weights = {key: value for key, value in first["state_dict"].items() if key.startswith(PREFIX)}
    run = dict(hparams.get("run", {}))
    for path, content in zip(paths[1:], contents[1:], strict=True):
        theirs = content["hyper_parameters"]
        _check_backbone(paths[0], first, path, content)
        twice = sorted(hparams["heads"].keys() & theirs["heads"].keys())
        if twice:
            raise HeadsetError(
                f"{path} and one before it both have a head called '{twice[0]}'. Each head needs a name of its own."
            )
        hparams |= {what: {**hparams[what], **theirs[what]} for what in BY_HEAD}
        own = tuple(f"{PREFIX}heads.{name}." for name in theirs["heads"])
        weights |= {key: value for key, value in content["state_dict"].items() if key.startswith(own)}
        run["metrics"] = run.get("metrics", {}) | theirs.get("run", {}).get("metrics", {})
    kept = {key: first[key] for key in KEPT if key in first}
    return {**kept, "hyper_parameters": hparams | {"run": run}, "state_dict": weights}


def _check_backbone(first: str, mine: Mapping[str, Any], path: str, other: Mapping[str, Any]) -> None:
    """Check that two checkpoints have one backbone: its settings, all of its weights, and what makes its inputs."""
    settings = [_lasting_settings(content["hyper_parameters"]["backbone"]) for content in (mine, other)]
    for key, value in settings[0].items():
        if settings[1].get(key) != value:
            raise HeadsetError(
                f"{first} and {path} have different backbones: the {key} of one is {value}, that of the other "
                f"{settings[1].get(key)}."
            )
    weights = [
        {key: value for key, value in content["state_dict"].items() if key.startswith(BACKBONE)}
        for content in (mine, other)
    ]
    for key in sorted(weights[0].keys() | weights[1].keys()):
        one, two = weights[0].get(key), weights[1].get(key)
        if one is None or two is None or not torch.equal(one, two):
            raise HeadsetError(
                f"{first} and {path} have different backbones: the first weight that differs is "
                f"{key.removeprefix(PREFIX)}. Heads can be merged that were trained on the same backbone while it was "
                "frozen: backbone: {path: ..., freeze: all}"
            )
    files = [content["hyper_parameters"].get("processor") or {} for content in (mine, other)]
    for name in sorted(files[0].keys() | files[1].keys()):
        if name not in files[0] or name not in files[1] or _lasting(files[0][name]) != _lasting(files[1][name]):
            raise HeadsetError(f"{first} and {path} have different tokenizers or processors: {name} is not the same.")


def _lasting_settings(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """What the settings of a backbone say of it, but where it was and what of it was trained."""
    kept = {key: value for key, value in backbone.items() if key not in OF_A_RUN}
    return kept | {"config": {**(backbone["config"] or {}), "_name_or_path": ""}}


def _lasting(content: bytes) -> Any:
    """What a file of a processor says, but how the last batch was cut and padded, which tokenizers write along."""
    try:
        value = json.loads(content)
    except ValueError:
        return content
    passing = ("truncation", "padding")
    return {key: its for key, its in value.items() if key not in passing} if isinstance(value, dict) else value
