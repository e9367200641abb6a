"""Exports are loaded by their library in a fresh process without headset, and have to give the numbers of the head."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backbones.calls import model_inputs
from backbones.errors import HeadsetError
from headset.batches import make_batch
from headset.model import Headset
from headset.prediction import encoder_for

__all__ = ["Loader", "answer", "verify"]

# What the process that loads an export does without, whatever is installed.
BLOCKED = frozenset({"backbones", "heads", "headset", "lightning", "pytorch_lightning", "torchmetrics"})


@dataclass(frozen=True)
class Loader:
    """How an export is loaded by its users: what a format's ``write`` gives.

    Args:
        library: The library that loads it; a function of `headset.reload` for each.
        name: The class that loads it (``AutoModelForSequenceClassification``, ``SentenceTransformer``, ...).
        task: What it does, as the hub names it.
        usage: Code for the model card, with ``path/to/NAME`` as the folder.
        needs: Packages that the check would else do without.
        refused: Packages that its users need not have, beside those of headset.
        pairs: Whether it reads pairs of texts only.
        arguments: What its ``from_pretrained`` is given beside the folder.
    """

    library: str
    name: str
    task: str
    usage: str
    needs: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    pairs: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


def answer(headset: Headset, name: str, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the head gives for a batch, by the names that transformers has for it."""
    with torch.inference_mode():
        logits: Tensor = headset(batch, [name])[name].logits
    if headset.head(name).reads == "question":
        return dict(zip(("start_logits", "end_logits"), logits.unbind(-1), strict=True))
    return {"logits": logits}


def verify(headset: Headset, name: str, folder: Path, loader: Loader) -> None:
    """Load an export as its users will, and compare its numbers with the head's, for several inputs and for one.

    Raises:
        HeadsetError: It cannot be loaded, weights are missing or too many, or it gives other numbers.
    """
    encoder = encoder_for(headset, name).stock
    rows = list(encoder.samples)
    if loader.pairs and isinstance(rows[0], str):
        rows = list(zip(rows, [*rows[1:], rows[0]], strict=True))
    groups = [rows, rows[:1]]
    batches = [make_batch(encoder, group) for group in groups]
    ours = [answer(headset, name, batch) for batch in batches]
    theirs = _load_apart(headset, name, folder, loader, groups, batches)
    exact = _is_exact(headset)
    for index, answers in enumerate(ours):
        for key, value in answers.items():
            _compare(name, loader.library, value, theirs[f"{index}.{key}"], exact)


def _is_exact(headset: Headset) -> bool:
    """Whether the headset computes in full precision."""
    types = {str(headset.backbone.spec.dtype), (headset.backbone.quantization or {}).get("bnb_4bit_compute_dtype")}
    return types <= {"torch.float32", "torch.float64", "float32", None}


def _compare(name: str, library: str, ours: Tensor, theirs: Tensor, exact: bool) -> None:
    rtol, atol = (1e-4, 1e-5 * max(1.0, ours.abs().max().item())) if exact else (0.05, 0.05)
    try:
        torch.testing.assert_close(theirs.to(ours), ours, rtol=rtol, atol=atol)
    except AssertionError as error:
        raise HeadsetError(f"The export of '{name}' does not give the same numbers in {library}: {error}") from error


def _words(headset: Headset, name: str, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The word of each token, for heads whose scores are those of words together."""
    return {"word_ids": batch["meta"]["word_ids"]} if headset.head(name).decodes else {}


def _load_apart(
    headset: Headset,
    name: str,
    folder: Path,
    loader: Loader,
    groups: Sequence[Sequence[Any]],
    batches: Sequence[Mapping[str, Any]],
) -> dict[str, Tensor]:
    """The export's answers, ``"<batch>.<output>"``, from a process of its own."""
    own = type(headset.head(name)).__module__.partition(".")[0]
    with tempfile.TemporaryDirectory() as scratch:
        inputs, answers = os.path.join(scratch, "inputs.safetensors"), os.path.join(scratch, "answers.safetensors")
        tensors = {
            f"{index}.{key}": value.clone(memory_format=torch.contiguous_format)
            for index, batch in enumerate(batches)
            for key, value in (model_inputs(batch) | _words(headset, name, batch)).items()
        }
        save_file(tensors, inputs)
        job = {
            "folder": str(folder.resolve()),
            "library": loader.library,
            "class": loader.name,
            "arguments": loader.arguments,
            "exact": _is_exact(headset),
            "blocked": sorted((BLOCKED | loader.refused | {own}) - loader.needs),
            "texts": groups if loader.library == "sentence-transformers" else [],
            "inputs": inputs,
            "answers": answers,
        }
        env = {"HF_MODULES_CACHE": scratch, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "warning"}
        done = subprocess.run(
            [sys.executable, "-I", str(Path(__file__).with_name("reload.py")), json.dumps(job)],
            cwd=scratch,
            env={**os.environ, **env, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
            places = [f"{file}, line {line}: " for file, line in re.findall(r'(\w+\.py)", line (\d+)', done.stderr)]
            place = [place for place in places if (folder / place.partition(",")[0]).is_file()][-1:]
            raise HeadsetError(
                f"The export of '{name}' does not load in {loader.library}, in a process of its own: "
                f"{''.join(place)}{lines[-1][:500]}"
            )
        return load_file(answers)
