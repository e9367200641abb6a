"""One check for every head: those built in, and yours."""

import copy
import json
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
from heads.base import Head, HeadContext, HeadOutput
from heads.choice_target import ChoiceTarget
from heads.targets import MultiLabelTarget, NumberTarget, PairTarget, TagTarget

__all__ = ["check_head", "tiny_backbone", "tiny_tokenizer"]

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


def check_head(
    head: Head,
    labels: tuple[str, ...] | None = ("O", "B-X", "I-X"),
    backbone: Backbone | None = None,
    target: Tensor | None = None,
) -> None:
    """Check that a head keeps its contract, on a tiny backbone.

    - Its specification makes the same head again.
    - It answers a batch of B rows with B predictions, its loss is a finite scalar, and a training step's gradients
      are finite and reach the backbone and every parameter of the head.
    - Its predictions are dictionaries of plain values, its metrics are numbers, and a row's answer is the same whatever
      rows are beside it. It changes neither the batch nor the features, which other heads read too.
    - The amount of padding does not change its answers; nor does the side, where its scorer is not transformers' own.
    - It works in bfloat16, and saved and loaded it gives the same answers to the bit.

    Args:
        head: The head, not attached yet.
        labels: Its label set; None if it has none.
        backbone: The backbone to check it on; that of `tiny_backbone` if not given.
        target: Labels for a batch of 4 rows (2 pairs, 2 rows with 2 choices, or 3 questions with 2, 1 and 1 windows)
            with up to 7 tokens; made from ``head.target()`` if not given.

    Raises:
        AssertionError: What does not hold.
    """
    backbone = backbone or tiny_backbone(head.reads)
    twin = _again(head)
    assert twin.spec() == head.spec(), f"made again from its spec, the head says {twin.spec()}, not {head.spec()}"
    context = HeadContext(backbone, labels if _has_labels(head) else None, tiny_tokenizer())
    torch.manual_seed(0)
    head.attach(context)
    twin.attach(context)
    batch = _batch(head)
    if target is None:
        target = _labels(head, context.labels)

    _check_training(head, backbone, batch, target)
    head.eval()
    backbone.eval()
    answer = _answer(head, backbone, batch)
    assert isinstance(answer, HeadOutput), f"forward must give a HeadOutput, got {type(answer).__name__}"
    again = _answer(head, backbone, batch)
    assert torch.equal(again.logits, answer.logits), "in eval mode the head gives another answer at the second time"
    rows = len(WINDOWS) if head.reads == "question" else len(LENGTHS) // (2 if _by_twos(head) else 1)
    _check_predictions(head, answer, rows)
    _check_metrics(head, backbone, batch, target)
    _check_sharing(head, backbone, batch)
    if not isinstance(head.target(), PairTarget):
        _check_rows(head, backbone, batch, answer)
    if "attention_mask" in batch:
        _check_padding(head, backbone, batch, answer)

    twin.load_state_dict(head.state_dict())
    again = _answer(twin.eval(), backbone, batch)
    assert torch.equal(again.logits, answer.logits), "saved and loaded, the head gives other answers"

    half = tiny_backbone(head.reads).to(torch.bfloat16).eval()
    fresh = _again(head)
    fresh.attach(HeadContext(half, context.labels, context.tokenizer))
    floats = {key: value.bfloat16() for key, value in batch.items() if key in ("pixel_values", "input_values")}
    logits = _answer(fresh.eval(), half, {**batch, **floats}).logits
    assert logits.isfinite().all(), "in bfloat16 the head gives answers that are not finite"


def _check_training(head: Head, backbone: Backbone, batch: Mapping[str, Any], target: Tensor | None) -> None:
    head.train()
    backbone.train()
    inputs = _copied(batch)
    prepared, labels = head.prepare(batch, target)
    assert all(torch.equal(batch[key], value) for key, value in inputs.items()), "prepare changes the batch in place"
    loss = head.loss(_answer(head, backbone, prepared), labels)
    assert loss.dim() == 0, f"the loss must be a scalar, got the shape {tuple(loss.shape)}"
    assert loss.isfinite(), f"the loss is {loss.item()}"
    loss.backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, f"no gradient reaches the parameter {name}"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
    assert any(parameter.grad is not None for parameter in backbone.parameters()), "no gradient reaches the backbone"
    head.zero_grad()
    backbone.zero_grad()


def _check_predictions(head: Head, answer: HeadOutput, rows: int) -> None:
    predictions = head.predict(answer)
    assert len(predictions) == rows, f"{rows} rows, but predict gives {len(predictions)}"
    try:
        json.dumps(predictions)
    except TypeError as error:
        raise AssertionError(f"predict must give plain values, that a file can hold: {error}") from error
    assert all(isinstance(row, dict) for row in predictions), "predict must give a dictionary for each row"


def _check_metrics(head: Head, backbone: Backbone, batch: Mapping[str, Any], target: Tensor | None) -> None:
    metrics = head.metrics()
    prepared, labels = head.prepare(batch, target)
    before = copy.deepcopy(labels)
    metrics.update(*head.metric_inputs(_answer(head, backbone, prepared), labels))
    for name, value in metrics.compute().items():
        assert value.numel() == 1, f"the metric {name} must be one number, got the shape {tuple(value.shape)}"
    torch.testing.assert_close(before, labels, rtol=0, atol=0, msg="metric_inputs changes the labels in place")


def _check_sharing(head: Head, backbone: Backbone, batch: Mapping[str, Any]) -> None:
    call = head.request(batch)
    if call is None:
        return
    features = backbone.run(call)
    before = features["last_hidden_state"].clone()
    inputs = _copied(batch)
    head(features, batch)
    unchanged = torch.equal(before, features["last_hidden_state"])
    assert unchanged, "forward changes the features in place, which other heads read too"
    assert all(torch.equal(batch[key], value) for key, value in inputs.items()), "forward changes the batch in place"


def _check_rows(head: Head, backbone: Backbone, batch: Mapping[str, Any], answer: HeadOutput) -> None:
    """A row is answered as it is alone."""
    for row in range(len(answer.logits)):
        meta = {"texts": 1, "rows": [row]}
        alone = {key: value[row : row + 1] for key, value in batch.items() if isinstance(value, Tensor)} | {
            "meta": meta
        }
        got, wanted = _answer(head, backbone, alone).logits[0], answer.logits[row]
        assert torch.allclose(got, wanted, atol=1e-5), "the rows of a batch change each other's answers"


def _check_padding(head: Head, backbone: Backbone, batch: Mapping[str, Any], answer: HeadOutput) -> None:
    wanted = _real(answer.logits, batch)
    sides = ("right",) if head.auto_class or head.reads == "audio" else ("right", "left")
    for side in sides:
        padded = _padded(batch, 3, side)
        got = _real(_answer(head, backbone, padded).logits, padded)
        assert torch.allclose(got, wanted, atol=1e-5), f"3 more tokens of padding on the {side} change the answers"


def _answer(head: Head, backbone: Backbone, batch: Mapping[str, Any]) -> HeadOutput:
    call = head.request(batch)
    output: HeadOutput = head(None if call is None else backbone.run(call), batch)
    return output


def _again(head: Head) -> Head:
    return type(head)(**head.spec()["init_args"])


def _copied(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in batch.items() if isinstance(value, Tensor)}


def _has_labels(head: Head) -> bool:
    target = head.target()
    return target is not None and target.find_labels([]) is not None


def _by_twos(head: Head) -> bool:
    """Whether two inputs make a row: the texts of a pair, or two choices."""
    return isinstance(head.target(), PairTarget) or head.reads == "choices"


def _batch(head: Head) -> dict[str, Any]:
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
    if head.reads == "choices":
        batch = {key: value.unflatten(0, (-1, 2)) for key, value in batch.items()}
    if head.reads == "question":
        starts = torch.arange(-2, width - 2) + torch.tensor([[0], [5], [0], [0]])
        context = mask.bool() & (torch.arange(width) > 1)
        offsets = torch.stack([starts, starts + 1], -1).masked_fill(~context.unsqueeze(-1), NOWHERE)
        meta |= {"windows": list(WINDOWS), "rows": [0, 1, 2], "contexts": ["abcdefg", "abc", "abc"]}
        meta |= {"offsets": offsets, "no_answer": torch.zeros(len(LENGTHS), dtype=torch.long)}
    return batch | {"meta": meta}


def _media(reads: str, generator: torch.Generator) -> dict[str, Any]:
    """Images of one size, or sounds of different lengths."""
    meta = {"rows": list(range(len(LENGTHS)))}
    if reads == "image":
        return {"pixel_values": torch.randn(len(LENGTHS), 3, 16, 16, generator=generator), "meta": meta}
    lengths = torch.tensor(LENGTHS).unsqueeze(1) * SAMPLES
    mask = (torch.arange(int(lengths.max())) < lengths).long()
    return {"input_values": torch.randn(mask.shape, generator=generator) * mask, "attention_mask": mask, "meta": meta}


def _padded(batch: Mapping[str, Any], amount: int, side: str) -> dict[str, Any]:
    """The same rows with more padding, pushed to one side."""
    padded: dict[str, Any] = dict(batch)
    if "input_values" in batch:
        more = (0, amount * SAMPLES)
        return padded | {key: nn.functional.pad(batch[key], more) for key in ("input_values", "attention_mask")}
    *sizes, width = batch["attention_mask"].shape
    lengths = batch["attention_mask"].sum(-1).flatten().tolist()
    width += amount
    for key in ("input_ids", "attention_mask", "position_ids"):
        rows = torch.zeros(len(lengths), width, dtype=torch.long)
        for row, length in enumerate(lengths):
            place = slice(0, length) if side == "right" else slice(width - length, width)
            rows[row, place] = batch[key].flatten(0, -2)[row, :length]
        padded[key] = rows.view(*sizes, width)
    return padded


def _real(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Answers without those at padding."""
    mask = batch["attention_mask"].bool()
    return logits[mask] if logits.shape[:2] == mask.shape else logits


def _labels(head: Head, labels: tuple[str, ...] | None) -> Tensor | None:
    target = head.target()
    rows, width = len(LENGTHS), max(LENGTHS)
    size = len(labels or ())
    if isinstance(target, MultiLabelTarget):
        return (torch.arange(rows * size) % 2).view(rows, size).float()
    if isinstance(target, NumberTarget):
        return torch.randn(rows, target.size).squeeze(-1)
    if isinstance(target, PairTarget):
        return torch.rand(rows // 2)
    if isinstance(target, ChoiceTarget):
        return torch.arange(rows // 2) % 2
    if target is None:
        return None
    if isinstance(target, AnswerTarget):
        return torch.tensor([[[1, 3], [0, 2]], [[0, 1], [NOWHERE, NOWHERE]], [[0, 2], [1, 2]]])
    if isinstance(target, TagTarget):
        return torch.arange(rows * width).view(rows, width) % size
    return torch.arange(rows) % size
