"""Answers for inputs as a user gives them, without a Trainer."""

from collections.abc import Sequence
from typing import Any

import torch

from backbones.errors import HeadsetError
from headset.batches import make_batch, make_encoder
from headset.checks import needs_words
from headset.encoders import ONE_TEXT, Encoder
from headset.model import Headset, evaluating

__all__ = ["encoder_for", "predict", "sample"]


def predict(
    headset: Headset,
    inputs: Sequence[Any],
    heads: Sequence[str] | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    stride: int | None = None,
    allow_untrained: bool = False,
    padding_free: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """Answers for inputs, as `Headset.predict` tells of them.

    Raises:
        HeadsetError: There is no tokenizer, or a head is untrained, or an input is nothing that the heads read.
    """
    names = list(headset.heads if heads is None else heads)
    if isinstance(inputs, str):
        raise HeadsetError(
            f"predict takes a list of texts, got one text. Give it in a list: predict([{inputs[:40]!r}])."
        )
    if not allow_untrained:
        headset.check_trained(names)
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    device = next(headset.parameters()).device
    with evaluating(headset), headset.backbone.without_padding(padding_free), torch.inference_mode():
        for group in _alike(headset, names, pairs=any(isinstance(its, tuple) for its in inputs)):
            encoder = encoder_for(headset, group[0], max_length, stride)
            encoder.columns(inputs)  # complains of all before it answers some
            for start in range(0, len(inputs), batch_size):
                batch = make_batch(encoder, inputs[start : start + batch_size], device)
                for name, output in headset(batch, group).items():
                    answers[name] += headset.head(name).predict(output)
    return answers


def encoder_for(headset: Headset, name: str, max_length: int | None = None, stride: int | None = None) -> Encoder:
    """What makes the inputs of a head, for prediction.

    Raises:
        HeadsetError: There is no tokenizer, or the length does not fit it.
    """
    if headset.processor is None:
        raise HeadsetError(
            "predict needs a tokenizer: Headset(..., tokenizer=AutoTokenizer.from_pretrained(...)); heads that "
            "read images or sounds need processor=, an image processor or a feature extractor."
        )
    head = headset.head(name)
    return make_encoder(head.reads, headset.processor, max_length, split_words=needs_words(head), stride=stride)


def sample(headset: Headset, name: str) -> dict[str, Any]:
    """A small batch for a head, as its exports take it, to compare answers on."""
    encoder = encoder_for(headset, name).stock
    return make_batch(encoder, encoder.samples)


def _alike(headset: Headset, names: Sequence[str], pairs: bool) -> list[list[str]]:
    """The heads in groups that read inputs, which may be pairs, in the same way, and texts by words or not."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in names:
        head = headset.head(name)
        reads = head.reads if pairs else ONE_TEXT.get(head.reads, head.reads)
        groups.setdefault((reads, needs_words(head)), []).append(name)
    return list(groups.values())
