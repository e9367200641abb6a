"""The format ``custom``: any other head with its backbone and its code, for transformers with trust_remote_code."""

import json
import re
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_model
from torch import nn

from backbones.errors import HeadsetError
from heads.base import Head, HeadOutput
from heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, SoftTarget, TagTarget
from headset.custom_code import Code, needed_packages
from headset.custom_models import NO_WEIGHTS
from headset.export_transformers import TASKS, hub_task, usage, windows_usage
from headset.model import Headset
from headset.prediction import sample
from headset.verify import Loader

__all__ = ["check", "task_of", "write"]

AUTO_CLASSES = {task: auto_class for auto_class, task in TASKS.items()} | {"feature-extraction": "AutoModel"}
MODEL = """from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/{name}")
model = AutoModel.from_pretrained("path/to/{name}")
print(model(**tokenizer("A text.", return_tensors="pt")).{output})"""
DECODED = """from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/{name}")
model = AutoModel.from_pretrained("path/to/{name}")
words = [["A", "short", "text", "."]]
print(model.predict(tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt")))"""
PROBLEMS = {
    ClassTarget: "single_label_classification",
    SoftTarget: "single_label_classification",
    MultiLabelTarget: "multi_label_classification",
    NumberTarget: "regression",
}


def check(headset: Headset, name: str) -> None:
    """Check what can be checked before anything is written.

    Raises:
        HeadsetError: The head is a native one of ours, or its class or arguments cannot be carried along.
    """
    head = headset.head(name)
    kind = type(head)
    if head.auto_class is not None and kind.__module__.startswith("heads."):
        raise HeadsetError(
            f"The head '{name}' ({kind.__name__}) scores with modules of transformers, so it needs no code of its own: "
            "export it with --format transformers."
        )
    if kind.__module__ in ("__main__", "__mp_main__") or "." in kind.__qualname__:
        where = "a script or a notebook" if kind.__module__.startswith("__") else "a function or another class"
        raise _not_carried(
            name, kind, f"it is defined in {where}. Put it into a .py file of its own, at the top level, and import it"
        )
    if kind.attach is not Head.attach:
        raise _not_carried(name, kind, "it has an attach of its own. Do in build what attach does")
    head.spec()  # complains of arguments that are no plain values


def write(headset: Headset, name: str, folder: Path) -> Loader:
    """Write code, configuration, weights and processor.

    Raises:
        HeadsetError: The code reaches something that cannot be carried along.
    """
    head, backbone = headset.head(name), headset.backbone.options()
    kind = type(head).__name__
    with torch.inference_mode():
        output = headset(sample(headset, name), [name])[name]
    task = task_of(head, output, headset.backbone.spec.vocab_size)
    file, snake = f"modeling_{_snake(kind)}", _snake(kind).replace("_", "-")
    names = {"CustomConfig": f"{kind}Config", "CustomModel": f"{kind}Model", '"headset"': f'"headset-{snake}"'}
    try:
        Code(head, file, names).write(folder)
    except HeadsetError as error:
        raise _not_carried(name, type(head), str(error)) from error
    auto_class = AUTO_CLASSES.get(task, "AutoModel")
    config: dict[str, Any] = {
        "model_type": f"headset-{snake}",
        "architectures": [f"{kind}Model"],
        "auto_map": {"AutoConfig": f"{file}.{kind}Config"}
        | dict.fromkeys(("AutoModel", auto_class), f"{file}.{kind}Model"),
        "backbone_class": backbone.class_name,
        # A class of the backbone's architecture reads this part alone.
        "backbone_config": {**(backbone.config or {}), "_name_or_path": "", "transformers_weights": NO_WEIGHTS},
        "head_class": kind,
        "head_args": head.spec()["init_args"],
        "head_labels": None if head.labels is None else list(head.labels),
        "head_task": task,
        "dtype": backbone.dtype,
        "transformers_version": transformers.__version__,
        "transformers_weights": NO_WEIGHTS,
    }
    if head.labels is not None:
        config["id2label"] = dict(enumerate(head.labels))
        config["label2id"] = {label: index for index, label in enumerate(head.labels)}
    elif task.endswith("classification"):
        config["num_labels"] = output.logits.shape[-1]
    problems = [problem for target, problem in PROBLEMS.items() if isinstance(head.target(), target)]
    if task.endswith("classification") and problems:
        config["problem_type"] = problems[0]
    config |= head.export_settings()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    parts = nn.ModuleDict({"backbone": headset.backbone.model, "head": head})
    save_model(parts, str(folder / "model.safetensors"), metadata={"format": "pt"})
    assert headset.processor is not None
    headset.processor.save_pretrained(folder)
    packages, distributions = needed_packages(folder), packages_distributions()
    needs = sorted({distributions.get(package, [package])[0] for package in packages})
    how = f"# pip install {' '.join(needs)}\n" if needs else ""
    how += f"# trust_remote_code runs {file}.py and the files beside it: read them first\n"
    how += _usage(headset, name, task)
    hub = hub_task(head) if task in ("", "feature-extraction") else task
    return Loader("transformers", auto_class, hub, how, needs=frozenset(packages))


def task_of(head: Head, output: HeadOutput, vocab_size: int) -> str:
    """What a head does, by what it reads, its target, its labels and the shape of its answer.

    Returns:
        The task as the hub calls it, or an empty string for anything else.
    """
    if head.decodes:
        return ""
    target, shape = head.target(), output.logits.shape
    named = head.labels is not None and shape[-1] == len(head.labels)
    reads = "text" if head.reads == "document" else head.reads
    whole = reads in ("text", "image", "audio") and isinstance(target, tuple(PROBLEMS))
    if len(shape) == 2 and whole and (named or isinstance(target, NumberTarget)):
        return f"{reads}-classification"
    if len(shape) == 3 and named and isinstance(target, TagTarget):
        return "token-classification"
    if len(shape) == 3 and head.reads == "question" and shape[-1] == 2:
        return "question-answering"
    if len(shape) == 2 and head.reads == "candidates":
        return "text-classification"
    if len(shape) == 2 and head.reads == "choices":
        return "multiple-choice"
    if len(shape) == 3 and target is None and shape[-1] == vocab_size:
        return "fill-mask"
    return "feature-extraction" if len(shape) == 2 and head.labels is None else ""


def _usage(headset: Headset, name: str, task: str) -> str:
    """How the model is used, with consent to its code."""
    text = usage(headset, name, task)
    if headset.head(name).decodes:
        text = DECODED.format(name=name)
    elif task in ("", "feature-extraction"):
        text = MODEL.format(name=name, output="pooler_output" if task else "logits")
    if headset.head(name).reads in ("document", "documents"):
        auto_class = AUTO_CLASSES.get(task, "AutoModel")
        text += windows_usage(headset, name, auto_class) + "output = model(**windows)"
    return re.sub(rf'((AutoModel|AutoTokenizer|pipeline).*path/to/{name}")', r"\1, trust_remote_code=True", text)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _not_carried(name: str, kind: type, why: str) -> HeadsetError:
    return HeadsetError(f"The head '{name}' ({kind.__name__}) cannot be exported with its code: {why.rstrip('.')}.")
