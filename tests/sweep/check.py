"""One head on one architecture, against the stock model of transformers."""

import tempfile

import torch
import transformers

from backbones import Backbone
from heads import Head, HeadContext
from heads.native import NativeModel
from heads.registry import load_head_class
from headset import Headset
from tests.sweep.architectures import text_batch, tiny_config

LABELS = ("x", "y", "z")


def check(name: str, model_type: str) -> str:
    """Compare a head with the stock model; how it went, in a few words."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = tiny_config(model_type)
        torch.manual_seed(0)
        backbone = Backbone.from_config(config)
    except ImportError as error:
        library = str(error).split("requires the ")[-1].split(" library")[0]
        return f"needs {library}"
    try:
        return compare(load_head_class(name)(), backbone)
    except Exception as error:
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0][:160]}"


def compare(head: Head, backbone: Backbone) -> str:
    """Logits and loss in eval mode, gradients in train mode, the way out and the way in."""
    torch.manual_seed(0)
    head.attach(HeadContext(backbone, LABELS))
    scorer = head.scorer
    assert isinstance(scorer, NativeModel)
    with tempfile.TemporaryDirectory() as folder:
        scorer.whole(backbone).save_pretrained(folder)
        stock, info = type(scorer.task).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], "the export has other keys than stock"
    for parameter in stock.parameters():
        parameter.data = parameter.data.clone()  # memory-mapped weights are aligned otherwise, and sum up otherwise

    batch = text_batch(stock)
    size = batch["input_ids"].shape if "Token" in type(head).__name__ else (2,)
    labels = torch.arange(torch.Size(size).numel()).view(size) % len(LABELS)
    exact = True
    for mode in (False, True):
        stock.train(mode)
        backbone.train(mode)
        head.train(mode)
        torch.manual_seed(7)
        theirs = stock(**batch, labels=labels)
        torch.manual_seed(7)
        call = head.request(batch)
        output = head(None if call is None else backbone.run(call), batch)
        loss = head.loss(output, labels)
        for what, mine, other in (("logits", output.logits, theirs.logits), ("loss", loss, theirs.loss)):
            exact &= torch.equal(mine, other)
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5, msg=lambda text, what=what: f"{what}: {text}")
    loss.backward()
    theirs.loss.backward()
    gradients = {key: parameter.grad for key, parameter in scorer.task.named_parameters()}
    for part in scorer.parts:
        shared = backbone.model.get_submodule(part.backbone_path)
        gradients |= {f"{part.task_path}.{key}": parameter.grad for key, parameter in shared.named_parameters()}
    for key, parameter in stock.named_parameters():
        if parameter.grad is not None:
            exact &= torch.equal(gradients[key], parameter.grad)
            torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-3, atol=1e-5)

    again = Headset.from_transformers(stock, "again")
    back = again.head("again").scorer.whole(again.backbone).state_dict()
    before = stock.state_dict()
    assert back.keys() == before.keys(), "in and out again it has other keys"
    assert all(torch.equal(back[key], before[key]) for key in before), "in and out again it has other weights"
    return "exact" if exact else "equal"
