"""What `check_head` runs heads on: tiny backbones, batches for whatever heads read, and labels for them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    PreTrainedTokenizerBase,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from backbones.backbone import Backbone
from heads.answers import NOWHERE, AnswerTarget
from heads.base import Head
from heads.choice_target import ChoiceTarget
from heads.dependency_target import DependencyTarget
from heads.relevance import NO_DOCUMENT, RelevanceTarget
from heads.span_target import SpanTarget
from heads.targets import IGNORE, MultiLabelTarget, NumberTarget, PairTarget, SoftTarget, TagTarget

__all__ = ["make_batch", "make_labels", "padded", "row_count", "tiny_backbone", "tiny_tokenizer"]

LENGTHS = (7, 4, 1, 5)
SAMPLES = 500  # of a sound, for each token that a text would have
WINDOWS = (2, 1, 1)  # those of a question each; in each of them the third token is the first of the context


def tiny_backbone(reads: str = "text") -> Backbone:
    """A model with 2 layers, 32 wide, with random weights: small enough for any test.

    Args:
        reads: What its heads read: for ``image`` it is a ViT for 16 x 16 pixels, for ``audio`` a Wav2Vec2, else a BERT.
    """
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    if reads == "image":
        return Backbone(ViTModel(ViTConfig(**size, image_size=16, patch_size=4)))
    if reads == "audio":
        size |= {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
        size |= {"feat_extract_norm": "layer", "mask_time_prob": 0.0, "layerdrop": 0.0, "classifier_proj_size": 16}
        return Backbone(Wav2Vec2Model(Wav2Vec2Config(**size)))
    return Backbone(BertModel(BertConfig(**size, vocab_size=64, max_position_embeddings=64)))


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer for `tiny_backbone`: special tokens, of which one is a mask, and the words ``w5`` to ``w63``."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(5, 64))]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=64)


def row_count(head: Head) -> int:
    """How many rows the batch of a head has."""
    return len(WINDOWS) if head.reads in ("question", "document") else len(LENGTHS) // (2 if _by_twos(head) else 1)


def make_batch(head: Head) -> dict[str, Any]:
    """Rows of different lengths, padded on the right, with the position of each token said."""
    generator = torch.Generator().manual_seed(0)
    if head.reads in ("image", "audio"):
        return _media(head.reads, generator)
    width = max(LENGTHS)
    mask = torch.tensor([[1] * length + [0] * (width - length) for length in LENGTHS])
    ids = torch.randint(5, 64, mask.shape, generator=generator) * mask
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(width).expand(len(LENGTHS), -1)}
    meta: dict[str, Any] = {"texts": 2 if isinstance(head.target(), PairTarget) else 1}
    meta["rows"] = list(range(len(LENGTHS) // (2 if _by_twos(head) else 1)))
    if head.needs_word_ids:
        meta["word_ids"] = (torch.arange(width) // 2).masked_fill(mask == 0, -1)
    if head.reads in ("choices", "candidates"):
        batch = {key: value.unflatten(0, (-1, 2)) for key, value in batch.items()}
    if head.reads == "document":
        meta |= {"windows": list(WINDOWS), "rows": [0, 1, 2]}
    if head.reads == "documents":
        meta |= {"windows": [1] * len(LENGTHS)}
    if head.reads == "question":
        starts = torch.arange(-2, width - 2) + torch.tensor([[0], [5], [0], [0]])
        context = mask.bool() & (torch.arange(width) > 1)
        offsets = torch.stack([starts, starts + 1], -1).masked_fill(~context.unsqueeze(-1), NOWHERE)
        meta |= {"windows": list(WINDOWS), "rows": [0, 1, 2], "contexts": ["abcdefg", "abc", "abc"]}
        meta |= {"offsets": offsets, "no_answer": torch.zeros(len(LENGTHS), dtype=torch.long)}
    return batch | {"meta": meta}


def make_labels(head: Head, labels: tuple[str, ...] | None) -> Tensor | None:
    """Labels for the batch of a head, as its target makes them; None where it learns without."""
    target = head.target()
    rows, width = len(WINDOWS) if head.reads == "document" else len(LENGTHS), max(LENGTHS)
    size = len(labels or ())
    if isinstance(target, MultiLabelTarget):
        return (torch.arange(rows * size) % 2).view(rows, size).float()
    if isinstance(target, SoftTarget):
        return torch.rand(rows, size).softmax(-1)
    if isinstance(target, NumberTarget):
        return torch.randn(rows, target.size).squeeze(-1)
    if isinstance(target, PairTarget):
        return torch.rand(rows // 2)
    if isinstance(target, RelevanceTarget):
        return torch.tensor([[0.0, 1.0], [1.0, NO_DOCUMENT]])
    if isinstance(target, ChoiceTarget):
        return torch.arange(rows // 2) % 2
    if target is None:
        return None
    if isinstance(target, AnswerTarget):
        return torch.tensor([[[1, 3], [0, 2]], [[0, 1], [NOWHERE, NOWHERE]], [[0, 2], [1, 2]]])
    if isinstance(target, DependencyTarget):
        heads = torch.arange(width).expand(rows, -1)  # of each word the one before
        real = heads < torch.tensor(LENGTHS).unsqueeze(1)
        return torch.stack([heads, heads % size], dim=-1).masked_fill(~real.unsqueeze(-1), IGNORE)
    if isinstance(target, SpanTarget):
        return torch.tensor(
            [[[0, 7, 0], [1, 3, 1 % size]], [[2, 4, 0], [3, 4, 0]], [[0, 1, 0], [-1] * 3], [[-1] * 3] * 2]
        )
    if isinstance(target, TagTarget):
        padding = torch.arange(width) >= torch.tensor(LENGTHS).unsqueeze(1)
        return (torch.arange(rows * width).view(rows, width) % size).masked_fill(padding, IGNORE)
    return torch.arange(rows) % size


def padded(batch: Mapping[str, Any], amount: int, side: str) -> dict[str, Any]:
    """The same rows with more padding, pushed to one side."""
    result: dict[str, Any] = dict(batch)
    if "input_values" in batch:
        more = (0, amount * SAMPLES)
        return result | {key: nn.functional.pad(batch[key], more) for key in ("input_values", "attention_mask")}
    *sizes, width = batch["attention_mask"].shape
    lengths = batch["attention_mask"].sum(-1).flatten().tolist()
    width += amount
    for key in ("input_ids", "attention_mask", "position_ids"):
        rows = torch.zeros(len(lengths), width, dtype=torch.long)
        for row, length in enumerate(lengths):
            place = slice(0, length) if side == "right" else slice(width - length, width)
            rows[row, place] = batch[key].flatten(0, -2)[row, :length]
        result[key] = rows.view(*sizes, width)
    return result


def _media(reads: str, generator: torch.Generator) -> dict[str, Any]:
    """Images of one size, or sounds of different lengths."""
    meta = {"rows": list(range(len(LENGTHS)))}
    if reads == "image":
        return {"pixel_values": torch.randn(len(LENGTHS), 3, 16, 16, generator=generator), "meta": meta}
    lengths = torch.tensor(LENGTHS).unsqueeze(1) * SAMPLES
    mask = (torch.arange(int(lengths.max())) < lengths).long()
    return {"input_values": torch.randn(mask.shape, generator=generator) * mask, "attention_mask": mask, "meta": meta}


def _by_twos(head: Head) -> bool:
    """Whether two inputs make a row: the texts of a pair, or two choices."""
    return isinstance(head.target(), PairTarget) or head.reads in ("choices", "candidates")
