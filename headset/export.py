"""Ways out: each head as a folder that other libraries load, checked before it is put in its place."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Protocol

from backbones.errors import HeadsetError, invalid_choice
from headset import export_custom, export_onnx, export_peft, export_sentence_transformers, export_transformers
from headset.card import write_card
from headset.checkpoint import load_checkpoint
from headset.folder import new_folder
from headset.model import Headset, evaluating
from headset.stock import stock_copy
from headset.verify import Loader, verify

__all__ = ["FORMATS", "Format", "export_checkpoint", "export_headset"]

logger = logging.getLogger(__name__)


class Format(Protocol):
    """What a format is: a module with two functions."""

    def check(self, headset: Headset, name: str) -> None:
        """Raise a `HeadsetError` that says why the head cannot be written so; before anything is written."""

    def write(self, headset: Headset, name: str, folder: Path) -> Loader:
        """Write the head with its backbone into an empty folder, and say how it is loaded."""


FORMATS: dict[str, Format] = {
    "transformers": export_transformers,
    "sentence-transformers": export_sentence_transformers,
    "onnx": export_onnx,
    "custom": export_custom,
    "peft": export_peft,
}


def export_headset(
    headset: Headset,
    output_dir: str,
    format: str | None = None,
    head: str | None = None,
    allow_untrained: bool = False,
    overwrite: bool = False,
) -> dict[str, str]:
    """Export each head, or one, to ``<output_dir>/<head>/``.

    Every folder is loaded by the library that it is for, in a process of its own, and has to give the same numbers
    before any is moved into its place; if one fails, none is there.

    Args:
        headset: What to export.
        output_dir: Where the folders go.
        format: ``transformers``, ``sentence-transformers``, ``peft``, ``onnx`` or ``custom``; by default the natural
            one of each head. In all but ``peft`` LoRA is merged into the weights, and these are in full precision.
        head: The one head to export; all, if not given.
        allow_untrained: Also export heads with random weights.
        overwrite: Replace earlier exports.

    Returns:
        The folder of each head.

    Raises:
        HeadsetError: A head is untrained, has no such format, or its folder does not give the same numbers.
    """
    if format is not None and format not in FORMATS:
        raise invalid_choice("format", format, FORMATS)
    names = list(headset.heads) if head is None else [head]
    formats = {name: format or natural_format(headset, name) for name in names}
    for name, kind in formats.items():
        FORMATS[kind].check(headset, name)
    if not allow_untrained:
        headset.check_trained(names)
    if headset.processor is None:
        raise HeadsetError(
            "An export holds the tokenizer too: Headset(..., tokenizer=AutoTokenizer.from_pretrained(...))."
        )
    places = {name: os.path.join(output_dir, name) for name in names}
    device = next(headset.parameters()).device
    try:
        with evaluating(headset.cpu()), contextlib.ExitStack() as stack:
            # As the stock model, which gives something at padding too.
            stack.enter_context(headset.backbone.without_padding(False))
            source = headset if format == "peft" else stock_copy(headset)
            for name, kind in formats.items():
                draft = stack.enter_context(new_folder(places[name], overwrite))
                logger.info("head %s: writing it for %s", name, kind)
                loader = FORMATS[kind].write(source, name, draft)
                logger.info("head %s: loading it with %s, in a process of its own", name, loader.name)
                verify(headset, name, draft, loader)
                write_card(headset, name, draft, loader)
    finally:
        headset.to(device)
    return places


def export_checkpoint(
    ckpt_path: str,
    output_dir: str,
    format: str | None = None,
    head: str | None = None,
    allow_untrained: bool = False,
    trust_heads: bool = False,
    overwrite: bool = False,
) -> dict[str, str]:
    """Export the heads of a checkpoint.

    Args:
        ckpt_path: The checkpoint.
        output_dir: Where the folders go, one a head.
        format: As in `export_headset`.
        head: The one head to export; all, if not given.
        allow_untrained: Also export heads with random weights.
        trust_heads: Import head classes that the checkpoint names and that are not known.
        overwrite: Replace earlier exports.

    Returns:
        The folder of each head.

    Raises:
        HeadsetError: As `export_headset`, or the file is not a checkpoint of a headset.
    """
    return export_headset(load_checkpoint(ckpt_path, trust_heads), output_dir, format, head, allow_untrained, overwrite)


def natural_format(headset: Headset, name: str) -> str:
    """The format in which a head is most at home: one that needs no code of its own, where there is one."""
    head = headset.head(name)
    encoder_decoder = headset.backbone.config.is_encoder_decoder  # sentence-transformers reads the decoder of most
    if export_sentence_transformers.is_plain_pooling(head) and not encoder_decoder:
        return "sentence-transformers"
    return "custom" if head.auto_class is None else "transformers"
