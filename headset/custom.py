"""Custom exports: any head with its backbone as a folder with code of its own, which needs headset no more."""

import json
import re
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import save_model
from torch import Tensor, nn

from backbones.errors import HeadsetError
from backbones.rebuild import origin, plain_config
from heads.base import Head
from heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, TagTarget
from headset.custom_code import Code, needed_packages
from headset.custom_models import NO_WEIGHTS
from headset.model import Headset

__all__ = ["check_custom", "write_custom"]

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
    module, model_class = f"modeling_{_snake(kind)}", f"{kind}Model"
    names = {"CustomConfig": f"{kind}Config", "CustomModel": model_class, '"headset"': f'"{model_type(head)}"'}
    try:
        Code(type(head), module, names).write(folder)
    except HeadsetError as error:
        raise _not_carried(name, type(head), str(error)) from error
    packages, distributions = needed_packages(folder), packages_distributions()
    auto_map = {"AutoConfig": f"{module}.{kind}Config", "AutoModel": f"{module}.{model_class}"}
    if task in AUTO_CLASSES:
        auto_map[AUTO_CLASSES[task]] = auto_map["AutoModel"]
    # A class of the backbone's architecture reads this part alone.
    backbone_config = plain_config(headset.backbone.config) | {"transformers_weights": NO_WEIGHTS}
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
        "head_distributions": sorted({distributions.get(package, [package])[0] for package in packages}),
        "dtype": str(headset.backbone.spec.dtype).removeprefix("torch."),
        "transformers_version": transformers.__version__,
        "transformers_weights": NO_WEIGHTS,
    }
    if task in AUTO_CLASSES:
        labels = head.labels or [f"LABEL_{index}" for index in range(logits.shape[-1])]
        config |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if task == "sequence":
        config["problem_type"] = next(value for target, value in PROBLEMS.items() if isinstance(head.target(), target))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    parts = nn.ModuleDict({"backbone": headset.backbone.model, "head": head})
    save_model(parts, str(folder / "model.safetensors"), metadata={"format": "pt"})
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


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _not_carried(name: str, kind: type, why: str) -> HeadsetError:
    return HeadsetError(f"The head '{name}' ({kind.__name__}) cannot be exported with its code: {why.rstrip('.')}.")
