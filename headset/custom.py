"""Custom exports: any head with its backbone as a folder with code of its own, which needs headset no more."""

import json
import re
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from backbones.errors import HeadsetError
from backbones.rebuild import origin, plain_config
from heads.base import Head
from heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, TagTarget
from headset.bundle import Bundle
from headset.model import Headset
from headset.resolver import Carried
from headset.rewrite import requirements, write_module

__all__ = ["check_custom", "write_custom"]

TEMPLATE = "headset.custom_models"
PROBLEMS = {
    ClassTarget: "single_label_classification",
    MultiLabelTarget: "multi_label_classification",
    NumberTarget: "regression",
}
AUTO_CLASSES = {"sequence": "AutoModelForSequenceClassification", "token": "AutoModelForTokenClassification"}


def check_custom(name: str, head: Head) -> None:
    """Check what can be checked before anything is written.

    Raises:
        HeadsetError: The head is native, or its class or arguments cannot be carried along.
    """
    kind = type(head)
    if head.auto_class is not None:
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


def write_custom(headset: Headset, name: str, folder: Path, logits: Tensor) -> None:
    """Write configuration, code, weights and tokenizer.

    Args:
        headset: What to export.
        name: The head.
        folder: An empty folder.
        logits: An answer of the head, by whose shape its task is told.

    Raises:
        HeadsetError: The code reaches something that cannot be carried along, or the backbone is not of transformers.
    """
    head = headset.head(name)
    kind = type(head).__name__
    class_name = origin(headset.backbone.model)
    if not hasattr(transformers, class_name):
        raise HeadsetError(f"The backbone of '{name}', {class_name}, is not a class of transformers.")
    task = task_of(head, logits)
    module = "modeling_" + _snake(kind)
    code, packages = _code(name, head, task, f"{kind} on {headset.backbone.spec.model_type}")
    model_class = f"{kind}Model"
    auto_map = {"AutoConfig": f"{module}.{kind}Config", "AutoModel": f"{module}.{model_class}"}
    if task in AUTO_CLASSES:
        auto_map[AUTO_CLASSES[task]] = auto_map["AutoModel"]
    backbone_config = plain_config(headset.backbone.config)
    backbone_config.pop("_name_or_path", None)
    config: dict[str, Any] = {
        "model_type": model_type(head),
        "architectures": [model_class],
        "auto_map": auto_map,
        "backbone_class": class_name,
        "backbone_config": backbone_config,
        "head_class": kind,
        "head_args": head.spec()["init_args"],
        "head_labels": None if head.labels is None else list(head.labels),
        "head_task": task,
        "head_packages": packages,
        "head_distributions": _distributions(packages),
        "dtype": str(headset.backbone.spec.dtype).removeprefix("torch."),
        "transformers_version": transformers.__version__,
    }
    if task in AUTO_CLASSES:
        labels = head.labels or [f"LABEL_{index}" for index in range(logits.shape[-1])]
        config |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if task == "sequence":
        config["problem_type"] = next(value for target, value in PROBLEMS.items() if isinstance(head.target(), target))
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(_weights(headset, name), folder / "model.safetensors", metadata={"format": "pt"})
    assert headset.processor is not None
    headset.processor.save_pretrained(folder)


def task_of(head: Head, logits: Tensor) -> str:
    """What a head does, by its target, its labels and the shape of its answer.

    Returns:
        ``sequence``, ``token``, ``vector``, or an empty string for anything else.
    """
    target = head.target()
    fits = head.labels is None or logits.shape[-1] == len(head.labels)
    if logits.dim() == 2 and fits and isinstance(target, ClassTarget | MultiLabelTarget | NumberTarget):
        return "sequence" if head.labels is not None or isinstance(target, NumberTarget) else "vector"
    if logits.dim() == 3 and fits and head.labels is not None and isinstance(target, TagTarget):
        return "token"
    return "vector" if logits.dim() == 2 and head.labels is None else ""


def model_type(head: Head) -> str:
    """The name of the model in its configuration, which no model of transformers has."""
    return "headset-" + _snake(type(head).__name__).replace("_", "-")


def _code(name: str, head: Head, task: str, title: str) -> tuple[str, list[str]]:
    """The file of the model, and the packages that it needs; with the loss where that needs no more of them."""
    kind = type(head)
    bare = _bundle(name, kind, task, carries_loss=False)
    best = bare
    if task in AUTO_CLASSES:
        try:
            whole = _bundle(name, kind, task, carries_loss=True)
            best = whole if requirements(whole) == requirements(bare) else bare
        except HeadsetError:
            pass
    packages = requirements(best)
    needs = ", ".join(["torch and transformers", *_distributions(packages)])
    loader = AUTO_CLASSES.get(task, "AutoModel")
    docstring = (
        f"{title}: {loader}.from_pretrained(folder, trust_remote_code=True).\n\n"
        f"Written by headset, from the code of the head and what it uses. Needs {needs}.\n"
    )
    names = {
        Carried(TEMPLATE, "CustomModel"): f"{kind.__name__}Model",
        Carried(TEMPLATE, "CustomConfig"): f"{kind.__name__}Config",
        Carried(kind.__module__, kind.__name__): kind.__name__,
    }
    try:
        return write_module(best, docstring, names, {Carried(TEMPLATE, "MODEL_TYPE"): model_type(head)}), packages
    except HeadsetError as error:
        raise _not_carried(name, kind, str(error)) from error


def _distributions(packages: list[str]) -> list[str]:
    """The names under which packages are installed."""
    distributions = packages_distributions()
    return sorted({distributions.get(package, [package])[0] for package in packages})


def _bundle(name: str, kind: type[Head], task: str, carries_loss: bool) -> Bundle:
    tasks = {f"TASK == {one!r}": task == one for one in ("sequence", "token", "vector")}
    known = {"self.auto_class": False, "not self.auto_class": True, "CARRIES_LOSS": carries_loss} | tasks
    known |= {"self.auto_class is None": True, "self.auto_class is not None": False}
    try:
        return Bundle(
            Carried(TEMPLATE, "CustomModel"),
            kind.__module__.partition(".")[0],
            known,
            {Carried(TEMPLATE, "TheHead"): Carried(kind.__module__, kind.__name__)},
            frozenset({"loss"}) if carries_loss else frozenset(),
        )
    except HeadsetError as error:
        raise _not_carried(name, kind, str(error)) from error


def _weights(headset: Headset, name: str) -> dict[str, Tensor]:
    """Every weight once: those that the backbone ties to each other under the first of their names."""
    weights: dict[str, Tensor] = {}
    seen: dict[int, tuple[torch.Size, tuple[int, ...]]] = {}
    for key, value in headset.backbone.model.state_dict().items():
        place, shape = value.data_ptr(), (value.shape, value.stride())
        if seen.get(place) == shape and value.numel():
            continue
        weights[f"backbone.{key}"] = value.clone() if place in seen else value.contiguous()
        seen[place] = shape
    for key, value in headset.head(name).state_dict().items():
        if not isinstance(value, Tensor):
            raise HeadsetError(f"The state of the head '{name}' has {key}, which is no tensor: {type(value).__name__}.")
        weights[f"head.{key}"] = value.clone(memory_format=torch.contiguous_format)
    return weights


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _not_carried(name: str, kind: type, why: str) -> HeadsetError:
    return HeadsetError(f"The head '{name}' ({kind.__name__}) cannot be exported with its code: {why.rstrip('.')}.")
