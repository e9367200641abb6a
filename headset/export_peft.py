"""The format ``peft``: LoRA and a native head as an adapter folder, for the base model that the run began with."""

import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backbones.adapters import adapted_layer, stock_name
from backbones.backbone import Backbone
from backbones.errors import HeadsetError
from backbones.loading import load_config, resolve_path
from backbones.parts import CONTAINERS, on_meta
from heads.base import Head
from heads.native import NativeModel
from heads.slots import Slot
from heads.task_models import is_stored
from headset.export_transformers import hub_task
from headset.model import Headset
from headset.verify import Loader

__all__ = ["check", "write"]

# Tasks that peft has classes for, and the modules that these save beside those named. Others go by the model's class.
TASK_TYPES = {
    "AutoModelForSequenceClassification": ("SEQ_CLS", ("classifier", "score")),
    "AutoModelForTokenClassification": ("TOKEN_CLS", ("classifier", "score")),
    # Not QUESTION_ANS: peft's class for it leaves out token_type_ids, and so gives other answers.
    "AutoModelForQuestionAnswering": (None, ("qa_outputs",)),
}
# How LoRA began or where it went, which the weights and the names of the layers say.
BEGINNINGS = ("exclude_modules", "init_lora_weights", "layers_pattern", "layers_to_transform")
CHANGES_BASE = ("pissa", "olora")


def check(headset: Headset, name: str) -> None:
    """Check that there is LoRA on a base that is still there, and that the rest is modules of a stock class.

    Raises:
        HeadsetError: There is none, or the head is not native or has parameters outside of modules.
    """
    head, backbone = headset.head(name), headset.backbone
    if backbone.lora is None:
        raise HeadsetError(
            "The backbone has no LoRA that an adapter folder could hold (backbone.lora). The whole model goes out with "
            "--format transformers."
        )
    if head.auto_class is None:
        raise HeadsetError(
            f"The head '{name}' ({type(head).__name__}) does not score with modules of transformers, so no stock class "
            "could load it beside LoRA. With LoRA merged it goes out with its code: --format custom."
        )
    if str(backbone.lora.get("init_lora_weights")).startswith(CHANGES_BASE) or "kasa_config" in backbone.lora:
        raise HeadsetError(
            "This LoRA began with a change of the backbone's own weights, so that it does not fit the model at "
            f"{backbone.path}. Merged into them it goes out with --format transformers."
        )
    adapters = {key for key, _ in backbone.model.named_parameters() if adapted_layer(key) is not None}
    if adapters <= head.unused(backbone):
        raise HeadsetError(f"LoRA is on parts of the backbone only that the head '{name}' does not use.")
    bare = _saved_modules(head, backbone)[1]
    if bare:
        raise HeadsetError(
            f"The head '{name}' ({type(head).__name__}) has weights outside of modules of its own: {', '.join(bare)}. "
            "An adapter folder holds modules. With LoRA merged it goes out with --format transformers."
        )
    try:
        load_config(backbone.path, revision=backbone.revision)
    except HeadsetError as error:
        raise HeadsetError(
            f"An adapter folder names its base model, and that is not there any more. {error} With LoRA merged the "
            "head goes out with --format transformers."
        ) from error


def write(headset: Headset, name: str, folder: Path) -> Loader:
    """Write the adapters, the head and how both go on the base model, and the tokenizer.

    Raises:
        HeadsetError: peft would save more than these.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    head, backbone = headset.head(name), headset.backbone
    scorer = _scorer(head)
    assert head.auto_class is not None and headset.processor is not None
    task = on_meta(type(scorer.task), scorer.config, backbone.spec.dtype)
    modules = _saved_modules(head, backbone)[0]
    config = LoraConfig(
        **_settings(scorer, backbone, {path for path, _ in task.named_modules()}),
        modules_to_save=modules,
        task_type=TASK_TYPES.get(head.auto_class, (None, ()))[0],
        base_model_name_or_path=_place(backbone.path),
        revision=backbone.revision,
    )
    model: Any = get_peft_model(task, config)
    config.modules_to_save = modules  # peft adds names that heads often have
    weights = _weights(scorer, backbone)
    state = {}
    for key, empty in model.state_dict().items():
        value = weights.get(_plain(key))
        if value is not None and value.shape == empty.shape:  # quantised weights have another, and are not saved
            state[key] = value
    model.load_state_dict(state, strict=False, assign=True)
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    lacking = [key for key, value in saved.items() if value.is_meta]
    if lacking:
        raise HeadsetError(f"peft would save more than LoRA and the head '{name}': {', '.join(lacking)}.")
    model.save_pretrained(folder, save_embedding_layers=False)
    if config.use_dora:
        _rename_magnitudes(folder / "adapter_model.safetensors")
    headset.processor.save_pretrained(folder)
    arguments = _arguments(head, backbone)
    given = "".join(f"    {key}={value!r},\n" for key, value in arguments.items())
    usage = (
        f"from transformers import {head.auto_class}  # with peft installed\n\n"
        f"# An adapter folder holds neither the base model, {config.base_model_name_or_path}, nor these arguments.\n"
        f'model = {head.auto_class}.from_pretrained(\n    "path/to/{name}",\n{given})'
    )
    return Loader("peft", head.auto_class, hub_task(head), usage, arguments=arguments)


def _scorer(head: Head) -> NativeModel:
    assert isinstance(head.scorer, NativeModel)
    return head.scorer


def _settings(scorer: NativeModel, backbone: Backbone, paths: set[str]) -> dict[str, Any]:
    """The LoRA of the backbone in the fields of LoraConfig, as it goes on the task model: layer by layer.

    Args:
        scorer: The head.
        backbone: Has LoRA.
        paths: Those of the modules of the task model; it may lack a pooler.
    """
    from peft.tuners.lora import LoraLayer, ParamWrapper

    modules: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for path, layer in backbone.model.named_modules():
        if isinstance(layer, LoraLayer):
            found = paths.intersection(_task_keys(scorer, stock_name(path)))
            if isinstance(layer, ParamWrapper):
                parameters |= {f"{path}.{layer.parameter_name}": layer for path in found}
            else:
                modules |= dict.fromkeys(found, layer)
    layers = modules | parameters
    settings = {field: value for field, value in (backbone.lora or {}).items() if field not in BEGINNINGS}
    rank, alpha = settings.get("r", 8), settings.get("lora_alpha", 8)
    return settings | {
        "target_modules": sorted(modules),
        "target_parameters": sorted(parameters) or None,
        "rank_pattern": {path: layer.r["default"] for path, layer in layers.items() if layer.r["default"] != rank},
        "alpha_pattern": {
            path: layer.lora_alpha["default"] for path, layer in layers.items() if layer.lora_alpha["default"] != alpha
        },
    }


def _place(path: str) -> str:
    """The path of the base model as peft, run from anywhere, finds it; a hub id as it is."""
    place = resolve_path(path)
    return os.path.abspath(place) if os.path.isdir(place) else place


def _task_keys(scorer: NativeModel, key: str) -> list[str]:
    """The names in the task model of what has a name in the backbone."""
    return [
        f"{part.task_path}.{key.removeprefix(f'{part.backbone_path}.')}"
        for part in scorer.parts
        if not part.backbone_path or key.startswith(f"{part.backbone_path}.")
    ]


def _saved_modules(head: Head, backbone: Backbone) -> tuple[list[str], list[str]]:
    """The largest modules that only the head has and that peft can name, and the weights of the head outside of them.

    peft saves every module whose path ends with a name, so no path in the backbone may, nor two in each other.
    """
    scorer = _scorer(head)
    others = {path for name, _ in backbone.model.named_modules() for path in _task_keys(scorer, stock_name(name))}
    added = TASK_TYPES.get(str(head.auto_class), (None, ()))[1]

    def is_whole(module: nn.Module, path: str) -> bool:
        if isinstance(module, CONTAINERS) or any(isinstance(part, Slot) for part in module.modules()):
            return False
        inside = [name for name, _ in module.named_modules() if name]
        return not any(other.endswith(path) for other in others) and not any(name.endswith(added) for name in inside)

    def visit(module: nn.Module, path: str) -> list[str]:
        found: list[str] = []
        for name, child in module.named_children():
            if not is_whole(child, f"{path}{name}"):
                found += visit(child, f"{path}{name}.")
            elif child.state_dict():
                found.append(f"{path}{name}")
        return found

    modules = visit(scorer.task, "")
    bare = [key for key in scorer.task.state_dict() if not key.startswith(tuple(f"{path}." for path in modules))]
    return modules, bare


def _weights(scorer: NativeModel, backbone: Backbone) -> dict[str, Tensor]:
    """The weights of the task model with its adapters."""
    weights = scorer.task.state_dict() | {tie.task_key: tie.weight.detach() for tie in scorer.ties}
    for key, value in backbone.model.state_dict().items():
        weights |= dict.fromkeys(_task_keys(scorer, key), value)
    return weights


def _rename_magnitudes(file: Path) -> None:
    """Give DoRA's vectors the names that they have in memory: peft reads either, transformers these."""
    weights = load_file(file)
    names = {key: f"{key}.weight" if key.endswith("lora_magnitude_vector") else key for key in weights}
    save_file({names[key]: value for key, value in weights.items()}, file, metadata={"format": "pt"})


def _plain(key: str) -> str:
    """The name that a weight of peft's model has in the task model with its adapters."""
    key = key.removeprefix("base_model.model.")
    return key.replace(".modules_to_save.default.", ".").replace(".original_module.", ".")


def _arguments(head: Head, backbone: Backbone) -> dict[str, Any]:
    """What an adapter folder cannot hold, and ``from_pretrained`` has to be told: labels, types, quantisation."""
    config, base = _scorer(head).config, load_config(backbone.path, revision=backbone.revision)
    arguments: dict[str, Any] = {"dtype": str(backbone.spec.dtype).removeprefix("torch.")}
    if head.labels is not None or config.num_labels != base.num_labels:
        arguments |= {"id2label": config.id2label, "label2id": config.label2id}
        if is_stored(str(head.auto_class), base) and base.num_labels != config.num_labels:
            arguments["ignore_mismatched_sizes"] = True
    if config.problem_type is not None:
        arguments["problem_type"] = config.problem_type
    if backbone.quantization is not None:
        kept = [*(backbone.quantization.get("llm_int8_skip_modules") or []), *_saved_modules(head, backbone)[0]]
        arguments["quantization_config"] = {**backbone.quantization, "llm_int8_skip_modules": kept}
    return arguments
