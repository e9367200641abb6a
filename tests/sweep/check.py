"""One task on one architecture, against the stock model of transformers."""

import contextlib
import random
import tempfile
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from backbones import Backbone
from heads import Head, HeadContext, HeadOutput
from heads.native import NativeModel, logits_of
from heads.registry import list_heads, load_head_class
from tests.sweep.architectures import Pair, tiny_config
from tests.sweep.batches import a_batch, as_stock, labels_for

WITHOUT_LABELS = ("AutoModelForQuestionAnswering", "AutoModelForMultipleChoice", "AutoModelForMaskedLM")


def check(pair: Pair) -> str:
    """Compare a task on an architecture with the stock model; how it went, in a few words."""
    quiet()
    config = tiny_config(pair.model_type)
    config.architectures = [pair.kind.__name__]
    try:
        torch.manual_seed(0)
        backbone = Backbone.from_config(config)
    except ImportError as error:
        library = str(error).split("requires the ")[-1].split(" library")[0]
        return f"needs {library}"
    try:
        return compare(pair, backbone)
    except Exception as error:
        return f"fails: {type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"


def compare(pair: Pair, backbone: Backbone) -> str:
    """The way out, logits, loss and gradients, the way in, and the way through a checkpoint."""
    names = None if pair.auto_class in WITHOUT_LABELS else ("x", "y", "z")
    head = head_for(pair.auto_class)
    head.attach(HeadContext(backbone, names))
    native = head.scorer
    assert isinstance(native, NativeModel) and type(native.task) is pair.kind
    stock = out(native, backbone)
    exact = answers_are_equal(pair, head, backbone, stock)

    again = Backbone.from_task_model(stock)
    head = head_for(pair.auto_class)
    head.attach(HeadContext(again, names))
    head.scorer.take(stock)
    before, after = stock.state_dict(), head.scorer.whole(again).state_dict()
    assert before.keys() == after.keys(), "in and out again it has other keys"
    assert all(torch.equal(after[key], before[key]) for key in before), "in and out again it has other weights"
    for each in (backbone, again):
        Backbone.from_options(each.options()).load_state_dict(each.state_dict())
    return "exact" if exact else "equal"


def head_for(auto_class: str) -> Head:
    """The built-in head for a task."""
    heads = (load_head_class(name)() for name in list_heads())
    return next(head for head in heads if head.auto_class == auto_class)


def out(native: NativeModel, backbone: Backbone) -> PreTrainedModel:
    """The stock model that a head goes out to, which a backbone can be loaded from again."""
    with tempfile.TemporaryDirectory() as folder:
        native.whole(backbone).save_pretrained(folder)
        stock, info = type(native.task).from_pretrained(folder, output_loading_info=True)
        loaded = Backbone.from_pretrained(folder).model.state_dict()
    assert not info["missing_keys"] and not info["unexpected_keys"], "the export has other keys than stock"
    base = Backbone.from_task_model(stock).model.state_dict()
    assert all(key in base and torch.equal(value, base[key]) for key, value in loaded.items()), "it loads other weights"
    for parameter in stock.parameters():
        parameter.data = parameter.data.clone()  # memory-mapped weights are aligned otherwise, and sum up otherwise
    model: PreTrainedModel = stock
    return model


def answers_are_equal(pair: Pair, head: Head, backbone: Backbone, stock: PreTrainedModel) -> bool:
    """Whether logits and loss in both modes, and all gradients, are stock's to the bit; an error if not even close."""
    batch = a_batch(pair.auto_class, stock)
    labels = labels_for(pair.auto_class, stock, batch)
    compared: list[tuple[str, Tensor, Tensor]] = []
    for training in (False, True):
        for model in (stock, backbone, head):
            model.train(training)
        with reproducible():
            theirs = stock(**batch, **as_stock(labels, stock))
        with reproducible():
            call = head.request({**batch, "labels": labels})
            ours = head(None if call is None else backbone.run(call), {**batch, "labels": labels})
        compared.append(("logits", ours.logits, logits_of(theirs)))
        if theirs.get("loss") is not None:
            losses = head.loss(ours, labels), theirs["loss"]
            compared.append(("loss", *losses))
            if "logits" in theirs or "start_logits" in theirs:
                compared.append(("loss from logits", head.loss(HeadOutput(ours.logits), labels), losses[1]))
        else:
            losses = ours.logits.square().mean(), logits_of(theirs).square().mean()
    for loss in losses:
        with reproducible():
            loss.backward()
    mine = gradients(head.scorer, backbone)
    for key, parameter in stock.named_parameters():
        if parameter.grad is not None:
            assert mine[key] is not None, f"no gradient reaches {key}"
            compared.append((f"gradient of {key}", mine[key], parameter.grad))
        else:
            assert mine[key] is None, f"a gradient reaches {key} here alone"
    for what, left, right in compared:
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5, msg=lambda text, what=what: f"{what}: {text}")
    return all(torch.equal(left, right) for _, left, right in compared)


def gradients(native: NativeModel, backbone: Backbone) -> dict[str, Tensor | None]:
    """The gradients of the head and of what it uses of the backbone, by the names of the stock model."""
    found = {key: parameter.grad for key, parameter in native.task.named_parameters()}
    for part in native.parts:
        shared = backbone.model.get_submodule(part.backbone_path)
        found |= {f"{part.task_path}.{key}": parameter.grad for key, parameter in shared.named_parameters()}
    return found | {tie.task_key: tie.weight.grad for tie in native.ties}


def quiet() -> None:
    """One thread a process, and no warnings of transformers."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """The same random numbers for all who draw them, also where an architecture draws a seed of its own."""
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    with mock.patch.object(torch, "seed", lambda: 7):
        yield
