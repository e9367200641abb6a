"""Ways out: each head as a folder that other libraries load, checked before it is put in its place."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backbones.errors import HeadsetError, invalid_choice
from heads.base import Head
from heads.native import NativeModel
from heads.pooling import Pooling
from headset.batches import TextEncoder
from headset.card import write_card
from headset.checkpoint import load_checkpoint
from headset.custom import check_custom, load_apart, write_custom
from headset.folder import new_folder
from headset.model import Headset, evaluating, make_batch

__all__ = ["FORMATS", "export_checkpoint", "export_headset"]

SAMPLE = ["A short text.", "Another one, which is a little longer than the first, and has 2 numbers: 3.", "?"]


def export_headset(
    headset: Headset,
    output_dir: str,
    format: str | None = None,
    head: str | None = None,
    allow_untrained: bool = False,
    overwrite: bool = False,
) -> dict[str, str]:
    """Export each head, or one, to ``<output_dir>/<head>/``.

    Every folder is loaded by the library that it is for and gives the same numbers on a few texts, before any is moved
    into its place; if one fails, none is there.

    Args:
        headset: What to export.
        output_dir: Where the folders go.
        format: ``transformers``, ``sentence-transformers`` or ``custom``; by default the natural one of each head.
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
    formats = {name: format or natural_format(headset.head(name)) for name in names}
    for name, kind in formats.items():
        check_format(name, headset.head(name), kind)
    if not allow_untrained:
        headset.check_trained(names)
    if headset.tokenizer is None:
        raise HeadsetError(
            "An export holds the tokenizer too: Headset(..., tokenizer=AutoTokenizer.from_pretrained(...))."
        )
    places = {name: os.path.join(output_dir, name) for name in names}
    device = next(headset.parameters()).device
    with evaluating(headset.cpu()), contextlib.ExitStack() as stack:
        for name, kind in formats.items():
            draft = stack.enter_context(new_folder(places[name], overwrite))
            FORMATS[kind](headset, name, draft)
            write_card(headset, name, kind, draft)
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
        format: transformers, sentence-transformers or custom; by default the natural one of each head.
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


def natural_format(head: Head) -> str:
    """The format in which a head is most at home: one that needs no code of its own, where there is one."""
    if isinstance(head, Pooling):
        return "sentence-transformers" if _is_plain_pooling(head) else "custom"
    return "custom" if head.auto_class is None else "transformers"


def check_format(name: str, head: Head, format: str) -> None:
    """Check that a head can be written in a format.

    Raises:
        HeadsetError: It cannot, and why.
    """
    kind = type(head).__name__
    if format == "transformers" and head.auto_class is None:
        raise HeadsetError(
            f"The head '{name}' ({kind}) does not score with modules of transformers, so no stock class could load it. "
            "A native head can be exported so: pooling: native, or native: true. This one goes out with its code: "
            "--format custom."
        )
    if format == "sentence-transformers":
        if not isinstance(head, Pooling):
            raise HeadsetError(
                f"The head '{name}' ({kind}) gives no vectors; sentence-transformers takes Pooling heads."
            )
        if not _is_plain_pooling(head):
            raise HeadsetError(
                f"The head '{name}' has hidden_layers: {head.hidden_layers} and pooling: {head.pooling}; "
                "sentence-transformers has hidden_layers: last and the poolings cls, mean, max and last. "
                "This one goes out with its code: --format custom."
            )
    if format == "custom":
        check_custom(name, head)


def to_transformers(headset: Headset, name: str, folder: Path) -> None:
    """Write a native head with its backbone as the stock task model, and check it."""
    scorer = headset.head(name).scorer
    assert isinstance(scorer, NativeModel)
    model = scorer.whole(headset.backbone)
    model.save_pretrained(folder)
    assert headset.tokenizer is not None
    headset.tokenizer.save_pretrained(folder)
    dtype = headset.backbone.spec.dtype
    stock: PreTrainedModel
    info: dict[str, Any]
    stock, info = type(model).from_pretrained(folder, dtype=dtype, output_loading_info=True)  # type: ignore[misc]
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise HeadsetError(f"The export of '{name}' is not whole: {what} {sorted(map(str, info[what]))}.")
    batch, ours = _sample(headset, name)
    with torch.inference_mode():
        theirs = stock.eval()(**{key: value for key, value in batch.items() if key != "meta"}).logits
    _compare(name, "transformers", ours, theirs)


def to_sentence_transformers(headset: Headset, name: str, folder: Path) -> None:
    """Write a `Pooling` head with its backbone as a SentenceTransformer, and check it."""
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling
    except ImportError as error:
        raise HeadsetError(
            "This format is written by sentence-transformers: pip install 'headset[sentence-transformers]'"
        ) from error
    head = headset.head(name)
    assert isinstance(head, Pooling) and headset.tokenizer is not None
    base = folder / "base"
    headset.backbone.model.save_pretrained(base)
    headset.tokenizer.save_pretrained(base)
    modules: list[torch.nn.Module] = [Transformer(str(base), max_seq_length=TextEncoder(headset.tokenizer).length)]
    modules.append(TheirPooling(headset.backbone.spec.hidden_size, pooling_mode=_their_modes(head)))
    if head.dense is not None:
        dense = Dense(head.pooler.width, head.dense.out_features, activation_function=torch.nn.Identity())
        dense.linear.load_state_dict(head.dense.state_dict())
        modules.append(dense)
    if head.normalize:
        modules.append(Normalize())
    model = SentenceTransformer(modules=modules, device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    shutil.rmtree(base)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(SAMPLE, convert_to_tensor=True)
    try:
        _compare(name, "sentence-transformers", _sample(headset, name)[1], theirs)
    except HeadsetError as error:
        if not headset.backbone.config.is_encoder_decoder:
            raise
        raise HeadsetError(
            f"{error} sentence-transformers reads the decoder of this architecture, a Pooling head its encoder: "
            "export it with --format custom."
        ) from error


def to_custom(headset: Headset, name: str, folder: Path) -> None:
    """Write any other head with its backbone and its code, and check it where headset cannot be imported."""
    batch, ours = _sample(headset, name)
    write_custom(headset, name, folder, ours)
    _compare(name, "transformers", ours, load_apart(name, headset.head(name), folder, batch))


FORMATS = {"transformers": to_transformers, "sentence-transformers": to_sentence_transformers, "custom": to_custom}


def _is_plain_pooling(head: Pooling) -> bool:
    """Whether sentence-transformers has all that the head does."""
    return head.hidden_layers == "last" and "attention" not in head.pooler.modes


def _their_modes(head: Pooling) -> list[str]:
    names = {"last": "lasttoken"}
    return [names.get(mode, mode) for mode in head.pooler.modes]


def _sample(headset: Headset, name: str) -> tuple[Mapping[str, Any], Tensor]:
    """A few texts as a batch, and the head's answer to them."""
    assert headset.tokenizer is not None
    batch = make_batch(TextEncoder(headset.tokenizer), SAMPLE)
    with torch.inference_mode():
        return batch, headset(batch, [name])[name].logits


def _compare(name: str, library: str, ours: Tensor, theirs: Tensor) -> None:
    exact = ours.dtype in (torch.float32, torch.float64)
    rtol, atol = (1e-4, 1e-5) if exact else (0.05, 0.05)
    try:
        torch.testing.assert_close(theirs.to(ours), ours, rtol=rtol, atol=atol)
    except AssertionError as error:
        raise HeadsetError(f"The export of '{name}' does not give the same numbers in {library}: {error}") from error
