"""Batches: the encoder of what heads read; encoded rows and their labels, padded and stacked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor, FeatureExtractionMixin, PreTrainedTokenizerBase

from backbones.calls import model_inputs
from backbones.errors import HeadsetError
from heads.targets import Target
from headset.audio_encoder import AudioEncoder
from headset.choice_encoder import ChoiceEncoder
from headset.chunk_encoder import ChunkEncoder
from headset.columns import plain
from headset.document_encoder import DocumentEncoder
from headset.encoders import Encoder
from headset.image_encoder import ImageEncoder
from headset.question_encoder import QuestionEncoder
from headset.text_encoder import TextEncoder

__all__ = ["LABEL", "Collator", "in_dtype", "make_batch", "make_encoder", "moved"]

LABEL = "label:"  # with a head's name, the column of its encoded labels


@dataclass(frozen=True)
class Collator:
    """What a data loader calls: the rows of a batch in, the batch out.

    Args:
        encoder: Makes the inputs.
        targets: By head, what makes a tensor of its encoded labels.
        heads: The heads that the batch is for; None is all.
        source: The name of the source, where there are several.
    """

    encoder: Encoder
    targets: Mapping[str, Target]
    heads: tuple[str, ...] | None = None
    source: str = ""

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        """Pad and stack rows that come column by column.

        Returns:
            What ``Encoder.collate`` gives, and in ``labels`` a tensor for each head with labels. ``meta`` says which
            ``heads`` the batch is for, unless it is for all of them; in ``labelled``, by head, the positions of the
            rows with a label, where some have none: then the tensor is of these rows alone; and the ``source``, where
            there are several. A head for which no row has a label is none of the batch's.
        """
        batch = self.encoder.collate(
            [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        )
        length = batch["input_ids"].shape[-1] if "input_ids" in batch else 0
        columns = {name: list(map(plain, rows[LABEL + name])) for name in self.targets if LABEL + name in rows}
        present = {
            name: [place for place, value in enumerate(values) if value is not None] for name, values in columns.items()
        }
        batch["labels"] = {
            name: self.targets[name].collate(
                [columns[name][place] for place in places], length, self.encoder.padding_side
            )
            for name, places in present.items()
            if places
        }
        partly = {name: places for name, places in present.items() if 0 < len(places) < len(columns[name])}
        bare = [name for name, places in present.items() if not places]
        meta = batch["meta"]
        if self.heads is not None:
            meta["heads"] = [name for name in self.heads if name not in bare]
        if partly:
            meta["labelled"] = partly
        if self.source:
            meta["source"] = self.source
        return batch


def make_encoder(
    reads: str,
    processor: Any,
    max_length: int | None = None,
    split_words: bool = False,
    folder: str = "",
    max_seconds: float | None = None,
    stride: int | None = None,
    word_ids: bool = False,
    in_parts: bool = False,
    texts: int = 1,
    max_windows: int | None = None,
) -> Encoder:
    """The encoder for what heads read.

    Args:
        reads: What heads read a row as, as ``Head.reads`` has it.
        processor: The tokenizer, image processor or feature extractor of the model.
        max_length: The most tokens of a text.
        split_words: Whether plain strings are split into words.
        folder: Where relative paths of images and sounds start.
        max_seconds: Where sounds are cut.
        stride: How many tokens the windows of a long text or context have in common.
        word_ids: Whether to say which word a token is of, also in plain strings.
        in_parts: Whether a long text becomes several examples.
        texts: How many columns of texts come before the choices, where heads read such.
        max_windows: The most windows of a long text.

    Raises:
        HeadsetError: The processor is of another kind, or a number does not fit it.
    """
    kinds: dict[str, type] = {"image": BaseImageProcessor, "audio": FeatureExtractionMixin}
    if not issubclass(type(processor), kinds.get(reads, PreTrainedTokenizerBase)):
        raise HeadsetError(f"The heads read {reads}, and the processor is a {type(processor).__name__}.")
    if reads == "image":
        return ImageEncoder(processor, folder)
    if reads == "audio":
        return AudioEncoder(processor, folder, max_seconds)
    if reads == "question":
        return QuestionEncoder(processor, max_length, stride=stride)
    if reads in ("document", "documents"):
        return DocumentEncoder(processor, max_length, split_words=split_words, stride=stride, max_windows=max_windows)
    if reads in ("choices", "candidates"):
        ranked = reads == "candidates"
        return ChoiceEncoder(processor, max_length, texts=1 if ranked else texts, ranked=ranked)
    kind = ChunkEncoder if in_parts else TextEncoder
    return kind(processor, max_length, separate=reads == "pair", split_words=split_words, word_ids=word_ids)


def make_batch(encoder: Encoder, inputs: Sequence[Any], device: torch.device | str = "cpu") -> dict[str, Any]:
    """A batch of what a user gives to ``predict``."""
    encoded = encoder.encode(encoder.columns(inputs))
    batch = encoder.collate([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)])
    return {key: moved(value, device) for key, value in batch.items()}


def in_dtype(batches: Mapping[str, Mapping[str, Any]], dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Batches with pixels and sounds in the type of the backbone's weights; what they share they go on sharing."""
    inputs = {id(value): value for batch in batches.values() for value in model_inputs(batch).values()}
    cast = {
        key: value.to(dtype) for key, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()
    }
    return {name: {key: cast.get(id(value), value) for key, value in batch.items()} for name, batch in batches.items()}


def moved(value: Any, device: torch.device | str) -> Any:
    """A batch whose tensors are on a device; lists are not looked through."""
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
