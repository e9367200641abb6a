"""One task on one architecture, against the stock model of transformers."""

import json
import random
import tempfile
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from backbones import Backbone
from heads import Head, HeadContext, HeadOutput
from heads.native import NativeModel
from heads.outputs import logits_of
from heads.registry import load_head_class, make_head
from headset import Headset
from headset.checkpoint import build_headset, describe
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


def compare(pair: Pair, backbone: Backbone, labels: tuple[str, ...] | None = ("x", "y", "z")) -> str:
    """The way out, logits, loss and gradients, the way in, and the way through a checkpoint."""
    names = None if pair.auto_class in WITHOUT_LABELS else labels
    head = head_for(pair.auto_class)
    head.attach(HeadContext(backbone, names))
    native = head.scorer
    assert isinstance(native, NativeModel) and type(native.task) is pair.kind
    stock = out(native, backbone)
    exact = answers_are_equal(pair, head, backbone, stock)

    Backbone.from_options(backbone.options()).load_state_dict(backbone.state_dict())

    again = Headset.from_transformers(stock, "again")
    before, after = stock.state_dict(), again.head("again").scorer.whole(again.backbone).state_dict()
    assert before.keys() == after.keys(), "in and out again it has other keys"
    assert all(torch.equal(after[key], before[key]) for key in before), "in and out again it has other weights"
    description = json.loads(json.dumps(describe(again)))
    heads = {name: make_head(spec, trusted=False) for name, spec in description["heads"].items()}
    built = build_headset(description, heads, None).eval()
    built.load_state_dict(again.state_dict())
    batch = a_batch(pair.auto_class, stock.eval())
    with torch.no_grad():
        theirs = logits_of(reproducible(stock, **batch))
        for headset in (again, built):
            ours = reproducible(headset, batch)["again"].logits
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
            exact &= torch.equal(ours, theirs)
    return "exact" if exact else "equal"


def head_for(auto_class: str) -> Head:
    """The built-in head for a task: the one of its name."""
    head = load_head_class(auto_class.removeprefix("AutoModelFor"))()
    assert head.auto_class == auto_class
    return head


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
        theirs = reproducible(stock, **batch, **as_stock(labels, stock))
        ours = reproducible(answer, head, backbone, {**batch, "labels": labels})
        compared.append(("logits", ours.logits, logits_of(theirs)))
        if theirs.get("loss") is not None:
            losses = head.loss(ours, labels), theirs["loss"]
            compared.append(("loss", *losses))
            if "logits" in theirs or "start_logits" in theirs:
                compared.append(("loss from logits", head.loss(HeadOutput(ours.logits), labels), losses[1]))
        else:
            losses = ours.logits.square().mean(), logits_of(theirs).square().mean()
    for loss in losses:
        reproducible(loss.backward)
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


def answer(head: Head, backbone: Backbone, batch: Mapping[str, Any]) -> HeadOutput:
    """What a headset does: a request, a pass of the backbone, the answer."""
    call = head.request(batch)
    output: HeadOutput = head(None if call is None else backbone.run(call), batch)
    return output


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


def reproducible(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A call with the same random numbers each time, also where an architecture draws a seed of its own."""
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    with mock.patch.object(torch, "seed", lambda: 7):
        return call(*args, **kwargs)
