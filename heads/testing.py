"""One check for every head: those built in, and yours."""

import copy
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backbones.backbone import Backbone
from heads.base import Head, HeadContext, HeadOutput
from heads.dependency_target import DependencyTarget
from heads.label_counts import LabelCounts
from heads.targets import PairTarget
from heads.testing_inputs import make_batch, make_labels, padded, row_count, tiny_backbone, tiny_tokenizer

__all__ = ["check_head", "tiny_backbone", "tiny_tokenizer"]


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
    - ``select`` gives the answers of some rows, and the loss of these and of the other rows, each weighted by its
      ``loss_size``, is the loss of all; but that of pairs without scores, which are told from each other.
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
    names = labels if _has_labels(head) else None
    counts = None if names is None else LabelCounts(names, tuple(range(1, len(names) + 1)), 2 * len(names))
    context = HeadContext(backbone, names, tiny_tokenizer(), counts)
    torch.manual_seed(0)
    head.attach(context)
    twin.attach(context)
    batch = make_batch(head)
    if target is None:
        target = make_labels(head, context.labels)

    _check_training(head, backbone, batch, target)
    head.eval()
    backbone.eval()
    answer = _answer(head, backbone, batch)
    assert isinstance(answer, HeadOutput), f"forward must give a HeadOutput, got {type(answer).__name__}"
    again = _answer(head, backbone, batch)
    assert torch.equal(again.logits, answer.logits), "in eval mode the head gives another answer at the second time"
    _check_predictions(head, answer, row_count(head))
    _check_metrics(head, backbone, batch, target)
    _check_selection(head, backbone, batch, target)
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


def _check_selection(head: Head, backbone: Backbone, batch: Mapping[str, Any], target: Tensor | None) -> None:
    whole, labels = head.prepare(batch, target)
    answer = _answer(head, backbone, {**whole, "labels": None})
    wanted, rows = head.predict(answer), row_count(head)
    parts = [list(range(0, rows, 2)), list(range(1, rows, 2))]
    losses, sizes = [], []
    for numbers in parts:
        its, taught = _labels_of(head, batch, target, numbers)
        some = head.select(_answer(head, backbone, {**its, "labels": None}), torch.tensor(numbers))
        got = head.predict(some)
        assert len(got) == len(numbers), f"select gives {len(got)} rows of {len(numbers)}"
        for row, number in zip(got, numbers, strict=True):
            assert _alike(row, wanted[number]), f"select gives row {number} another answer: {row}, not {wanted[number]}"
        losses.append(head.loss(some, taught))
        sizes.append(float(head.loss_size(some, taught)))
        head.metrics().update(*head.metric_inputs(some, taught))
    kind = head.target()
    if isinstance(kind, PairTarget) and not kind.scored:
        return
    counted = [loss * size for loss, size in zip(losses, sizes, strict=True) if size > 0]
    mean, total = torch.stack(counted).sum() / sum(sizes), head.loss(answer, labels)
    told = f"by loss_size the losses of parts {sizes} make {mean.item()}, and the loss of the whole is {total.item()}"
    assert torch.allclose(mean, total, atol=1e-5), told
    assert abs(sum(sizes) - float(head.loss_size(answer, labels))) < 1e-3, "loss_size of parts is not that of the whole"


def _labels_of(
    head: Head, batch: Mapping[str, Any], target: Tensor | None, rows: list[int]
) -> tuple[Mapping[str, Any], Any]:
    """A batch in which some rows have labels, and these labels."""
    if target is None:  # made from the rows themselves
        its, labels = head.prepare(batch, None)
        return its, labels[rows] if isinstance(labels, Tensor) else labels
    return head.prepare({**batch, "meta": {**batch["meta"], "labelled": rows}}, target[rows])


def _alike(left: Any, right: Any) -> bool:
    """Whether plain values are the same, up to the last digits of numbers."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_alike(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_alike, left, right))
    return abs(left - right) <= 1e-5 if isinstance(left, float) and isinstance(right, float) else bool(left == right)


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
    sizes = batch["meta"]["windows"] if head.reads == "document" else [1] * len(answer.logits)
    for row, size in enumerate(sizes):
        start = sum(sizes[:row])
        meta = {"texts": 1, "rows": [row]} | ({"windows": [size]} if head.reads == "document" else {})
        alone = {key: value[start : start + size] for key, value in batch.items() if isinstance(value, Tensor)} | {
            "meta": meta
        }
        got, wanted = _answer(head, backbone, alone).logits[0], answer.logits[row]
        assert torch.allclose(got, wanted, atol=1e-5), "the rows of a batch change each other's answers"


def _check_padding(head: Head, backbone: Backbone, batch: Mapping[str, Any], answer: HeadOutput) -> None:
    wanted = _real(head, answer.logits, batch)
    sides = ("right",) if head.auto_class or head.reads == "audio" else ("right", "left")
    for side in sides:
        more = padded(batch, 3, side)
        got = _real(head, _answer(head, backbone, more).logits, more)
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


def _real(head: Head, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Answers without those at padding."""
    mask = batch["attention_mask"].bool()
    if isinstance(head.target(), DependencyTarget):  # scores of each token with the root and each token
        pairs = mask.unsqueeze(2) & torch.nn.functional.pad(mask, (1, 0), value=True).unsqueeze(1)
        return logits[pairs]
    return logits[mask] if logits.shape[:2] == mask.shape else logits
