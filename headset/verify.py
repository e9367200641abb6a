"""Exports are loaded by their library in a fresh process without headset, and have to give the numbers of the head."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backbones.errors import HeadsetError
from headset.model import Headset
from headset.text_encoder import TextEncoder

__all__ = ["Loader", "answer", "verify"]

# What the process that loads an export must do without, whatever is installed.
BLOCKED = frozenset({"backbones", "heads", "headset", "lightning", "pytorch_lightning", "torchmetrics"})


@dataclass(frozen=True)
class Loader:
    """How an export is loaded by its users: what a format's ``write`` gives.

    Args:
        library: The library, as the hub names it; a function of `headset.reload` for each.
        name: The class that loads it (``AutoModelForSequenceClassification``, ``SentenceTransformer``, ...).
        task: What it does, as the hub names it.
        usage: Code for the model card, with ``path/to/NAME`` as the folder.
        needs: Packages that the check would else do without.
        arguments: What its ``from_pretrained`` is given beside the folder.
    """

    library: str
    name: str
    task: str
    usage: str
    needs: frozenset[str] = frozenset()
    arguments: dict[str, Any] = field(default_factory=dict)


def answer(headset: Headset, name: str, batch: Mapping[str, Any]) -> Tensor:
    """What the head gives for a batch."""
    with torch.inference_mode():
        logits: Tensor = headset(batch, [name])[name].logits
    return logits


def verify(headset: Headset, name: str, folder: Path, loader: Loader) -> None:
    """Load an export as its users will, and compare its numbers with the head's.

    Raises:
        HeadsetError: It cannot be loaded, weights are missing or too many, or it gives other numbers.
    """
    batch = headset.sample(name)
    ours = answer(headset, name, batch)
    theirs = _load_apart(headset, name, folder, loader, batch)
    quantization = headset.backbone.quantization or {}
    computed = quantization.get("bnb_4bit_compute_dtype", "float32")
    exact = ours.dtype in (torch.float32, torch.float64) and computed == "float32"
    rtol, atol = (1e-4, 1e-5) if exact else (0.05, 0.05)
    try:
        torch.testing.assert_close(theirs.to(ours), ours, rtol=rtol, atol=atol)
    except AssertionError as error:
        raise HeadsetError(
            f"The export of '{name}' does not give the same numbers in {loader.library}: {error}"
        ) from error


def _load_apart(headset: Headset, name: str, folder: Path, loader: Loader, batch: Mapping[str, Any]) -> Tensor:
    """The export's answer, from a process of its own."""
    own = type(headset.head(name)).__module__.partition(".")[0]
    with tempfile.TemporaryDirectory() as scratch:
        inputs, answers = os.path.join(scratch, "inputs.safetensors"), os.path.join(scratch, "answers.safetensors")
        job = {
            "folder": str(folder.resolve()),
            "loader": asdict(loader) | {"needs": sorted(loader.needs)},
            "blocked": sorted({*BLOCKED, own} - loader.needs),
            "inputs": inputs,
            "texts": TextEncoder.samples,
            "answers": answers,
        }
        save_file({key: value.contiguous() for key, value in batch.items() if isinstance(value, Tensor)}, inputs)
        done = subprocess.run(
            [sys.executable, "-I", str(Path(__file__).with_name("reload.py")), json.dumps(job)],
            cwd=scratch,
            env={**os.environ, "HF_MODULES_CACHE": scratch, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise HeadsetError(
                f"The export of '{name}' does not load in {loader.library}, in a process of its own: {lines[-1]}"
            )
        return load_file(answers)["logits"]
