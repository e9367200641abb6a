"""What a checkpoint, a saved headset or an export holds."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open

from backbones.errors import HeadsetError, told_of
from headset.folder import DESCRIPTION
from headset.sharded_files import is_folder

__all__ = ["describe_path", "info"]

SHOWN_LABELS = 12


def info(path: str) -> None:
    """Print what a path holds: its kind, the backbone, each head with labels and state, and the last metrics.

    Raises:
        HeadsetError: There is nothing at the path, or nothing that is known here, or it is damaged.
    """
    found = describe_path(path)
    console = Console()
    console.print(f"[bold]{path}[/bold]: {found['kind']}")
    console.print(f"backbone: {found['backbone']}")
    table = Table("Head", "Class", "Labels", "State")
    for name, head in found["heads"].items():
        table.add_row(name, head["class"], _shown(head["labels"]), head["state"])
    console.print(table)
    for metric, value in found.get("metrics", {}).items():
        console.print(f"{metric}: {value:.4g}")


def describe_path(path: str) -> dict[str, Any]:
    """What a path holds, as plain values: ``kind``, ``backbone``, ``heads`` by name, and ``metrics`` where it has them.

    Raises:
        HeadsetError: There is nothing at the path, or nothing that is known here, or it is damaged.
    """
    place = Path(path)
    if not place.exists():
        raise HeadsetError(f"There is nothing at {path}.")
    if place.is_file() or is_folder(place):
        from headset.checkpoint import read_checkpoint

        content = read_checkpoint(path)
        when = f"epoch {content.get('epoch')}, step {content.get('global_step')}"
        with told_of(path):
            return _described(content["hyper_parameters"]) | {"kind": f"checkpoint, {when}"}
    for mark, describe in KINDS.items():
        if (place / mark).is_file():
            with told_of(str(place / mark), "is not what it should be"):
                return describe(place)
    exports = [child for child in sorted(place.iterdir()) if any((child / mark).is_file() for mark in KINDS)]
    if not exports:
        raise HeadsetError(f"{path} holds no checkpoint, no saved headset and no export.")
    found = {child.name: describe_path(str(child)) for child in exports}
    return {
        "kind": "a folder of exports",
        "backbone": ", ".join(sorted({one["backbone"] for one in found.values()})),
        "heads": {name: head | {"state": one["kind"]} for name, one in found.items() for head in one["heads"].values()},
    }


def _saved(place: Path) -> dict[str, Any]:
    _check_weights(place)
    return _described(_json(place / DESCRIPTION)) | {"kind": "saved headset"}


def _described(description: Mapping[str, Any]) -> dict[str, Any]:
    config = description["backbone"]["config"]
    heads = {
        name: {
            "class": spec["class_path"].rsplit(".", 1)[-1],
            "labels": description["labels"].get(name),
            "state": description["states"].get(name, "new"),
        }
        for name, spec in description["heads"].items()
    }
    backbone = f"{config['model_type']}, from {description['backbone']['path']}"
    for what in ("quantization", "lora"):
        if description["backbone"].get(what):
            backbone += f", {what} {description['backbone'][what]}"
    return {"backbone": backbone, "heads": heads, "metrics": description.get("run", {}).get("metrics", {})}


def _transformers(place: Path) -> dict[str, Any]:
    _check_weights(place)
    config = _json(place / "config.json")
    if {"auto_map", "backbone_config", "head_class"} <= config.keys():
        kind = "transformers model with code of its own (trust_remote_code=True)"
        backbone = config["backbone_config"].get("model_type", "unknown")
        return _export(place, kind, backbone, config["head_class"], config.get("head_labels"))
    return _export(place, "transformers model", config["model_type"], _architecture(config), _labels(config))


def _sentence_transformers(place: Path) -> dict[str, Any]:
    _check_weights(place)
    modules = " + ".join(module["type"].rsplit(".", 1)[-1] for module in _json(place / "modules.json"))
    settings = place / "config_sentence_transformers.json"
    kind = _json(settings).get("model_type", "SentenceTransformer") if settings.is_file() else "SentenceTransformer"
    config = _json(place / "config.json")
    return _export(place, kind, config["model_type"], _architecture(config) if kind == "CrossEncoder" else modules)


def _adapter(place: Path) -> dict[str, Any]:
    _check_weights(place)
    adapter = _json(place / "adapter_config.json")
    heads = ", ".join(adapter.get("modules_to_save") or []) or "no head"
    base = adapter["base_model_name_or_path"] or "unknown"
    return _export(place, f"peft adapter ({adapter['peft_type']})", base, f"{adapter.get('task_type')}: {heads}")


def _onnx(place: Path) -> dict[str, Any]:
    config = _json(place / "config.json")
    if (place / "model.onnx").stat().st_size == 0:
        raise HeadsetError(f"{place / 'model.onnx'} is empty.")
    return _export(place, "ONNX model", config["model_type"], _architecture(config), _labels(config))


# By a file that only such a folder has, in this order.
KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    DESCRIPTION: _saved,
    "modules.json": _sentence_transformers,
    "adapter_config.json": _adapter,
    "model.onnx": _onnx,
    "config.json": _transformers,
}


def _export(place: Path, kind: str, backbone: str, name: str, labels: list[str] | None = None) -> dict[str, Any]:
    head = {"class": name, "labels": labels, "state": "as saved"}
    return {"kind": kind, "backbone": backbone, "heads": {place.resolve().name: head}}


def _architecture(config: Mapping[str, Any]) -> str:
    return ", ".join(config.get("architectures") or ["unknown"])


def _labels(config: Mapping[str, Any]) -> list[str] | None:
    return list(config["id2label"].values()) if "id2label" in config else None


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HeadsetError(f"{file} cannot be read as JSON: {error}.") from error


def _check_weights(place: Path) -> None:
    """Check that there are weights, and that they are whole."""
    files = sorted(place.glob("*.safetensors"))
    if not files:
        raise HeadsetError(f"{place} holds no weights: there is no .safetensors file in it.")
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise HeadsetError(f"{file} is damaged: {error}.") from error


def _shown(labels: list[str] | None) -> str:
    if labels is None:
        return "none"
    more = f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
    return ", ".join(labels[:SHOWN_LABELS]) + more
