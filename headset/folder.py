"""A whole headset as a folder: ``headset.json``, ``model.safetensors``, and the processor's files."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_model, save_model

from backbones.errors import HeadsetError, told_of
from headset.checkpoint import build_headset, describe, make_heads
from headset.description import check_sizes, is_description
from headset.environment import environment
from headset.model import Headset
from headset.processors import load_processor

__all__ = ["load_folder", "new_folder", "save_folder"]

DESCRIPTION = "headset.json"
WEIGHTS = "model.safetensors"
PROCESSOR = "processor"
MARKS = (
    DESCRIPTION,
    "config.json",
    "modules.json",
    "adapter_config.json",
)  # one of these is in every folder that is written here


@contextmanager
def new_folder(folder: str, overwrite: bool) -> Iterator[Path]:
    """A folder that is there whole or not at all: made beside its place, moved into it at the end.

    Args:
        folder: Its place.
        overwrite: Replace a folder that is there already, if it holds a model.

    Raises:
        HeadsetError: There is one already, it holds something else, or nothing can be written there.
    """
    place = Path(folder)
    try:
        taken = place.exists() and (not place.is_dir() or any(place.iterdir()))
        if taken and not overwrite:
            raise HeadsetError(
                f"{folder} is there already, and nothing was written. Choose another folder, or replace it: "
                "overwrite=True (on the command line: --overwrite true)."
            )
        if taken and not any((place / name).is_file() for name in MARKS):
            raise HeadsetError(
                f"{folder} holds something else than a model, which would be lost. Choose another folder."
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    except OSError as error:
        raise HeadsetError(f"{folder} cannot be written: {error.strerror}.") from error
    try:
        with environment(f"writing {folder}"):
            yield draft
        old = Path(tempfile.mkdtemp(prefix=f".{place.name}-old-", dir=place.parent))
        if place.exists():
            os.replace(place, old / place.name)
        for file in [draft, *draft.rglob("*")]:  # temporary folders, and safetensors, are for their owner alone
            file.chmod(0o755 if file.is_dir() else 0o644)
        os.replace(draft, place)
        shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def save_folder(headset: Headset, folder: str) -> None:
    """Write a headset into a folder; an earlier one is replaced."""
    with new_folder(folder, overwrite=True) as draft:
        (draft / DESCRIPTION).write_text(json.dumps(describe(headset), indent=2))
        save_model(headset, str(draft / WEIGHTS))
        if headset.processor is not None:
            headset.processor.save_pretrained(draft / PROCESSOR)


def load_folder(folder: str, trust_heads: bool = False) -> Headset:
    """Load the headset in a folder, in eval mode.

    Raises:
        HeadsetError: There is none, or it names a head's class that is not known and not trusted.
    """
    place = Path(folder)
    if not (place / DESCRIPTION).is_file():
        raise HeadsetError(f"{folder} holds no headset: it has no {DESCRIPTION}. Headset.save_pretrained writes one.")
    try:
        description = json.loads((place / DESCRIPTION).read_text())
    except (ValueError, RecursionError):
        description = None
    if not is_description(description):
        raise HeadsetError(f"{place / DESCRIPTION} is damaged, or of another version of headset.")
    with told_of(folder):
        check_sizes(description, _shapes(place / WEIGHTS))
        heads, files = make_heads(description, trust_heads), place / PROCESSOR
        headset = build_headset(description, heads, load_processor(str(files), heads) if files.is_dir() else None)
        load_model(headset, place / WEIGHTS)
    return headset.eval()


def _shapes(file: Path) -> list[Sequence[int]]:
    with safe_open(file, "pt") as weights:
        return [weights.get_slice(name).get_shape() for name in weights.keys()]
