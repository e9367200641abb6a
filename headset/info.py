"""What a checkpoint, a saved headset or an export holds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from backbones.errors import HeadsetError
from headset.folder import DESCRIPTION

__all__ = ["describe_path", "info"]

SHOWN_LABELS = 12


def info(path: str) -> None:
    """Print what a path holds: its kind, the backbone, and each head with labels and state.

    Raises:
        HeadsetError: There is nothing at the path, or nothing that is known here.
    """
    found = describe_path(path)
    console = Console()
    console.print(f"[bold]{path}[/bold]: {found['kind']}")
    console.print(f"backbone: {found['backbone']}")
    table = Table("Head", "Class", "Labels", "State")
    for name, head in found["heads"].items():
        table.add_row(name, head["class"], _shown(head["labels"]), head["state"])
    console.print(table)


def describe_path(path: str) -> dict[str, Any]:
    """What a path holds, as plain values: ``kind``, ``backbone``, and ``heads`` by name.

    Raises:
        HeadsetError: There is nothing at the path, or nothing that is known here.
    """
    place = Path(path)
    if not place.exists():
        raise HeadsetError(f"There is nothing at {path}.")
    if place.is_file():
        from headset.checkpoint import read_checkpoint

        content = read_checkpoint(path)
        when = f"epoch {content.get('epoch')}, step {content.get('global_step')}"
        return {"kind": f"checkpoint, {when}", **_headset(content["hyper_parameters"])}
    if (place / DESCRIPTION).is_file():
        return {"kind": "saved headset", **_headset(json.loads((place / DESCRIPTION).read_text()))}
    if (place / "modules.json").is_file():
        modules = [module["type"].rsplit(".", 1)[-1] for module in json.loads((place / "modules.json").read_text())]
        return {"kind": "SentenceTransformer", **_export(place, " + ".join(modules))}
    if (place / "config.json").is_file():
        return _custom(place) or {"kind": "transformers model", **_export(place, None)}
    exports = sorted(child.name for child in place.iterdir() if (child / "config.json").is_file())
    hint = f" Its folders {', '.join(exports)} do: headset info {place / exports[0]}" if exports else ""
    raise HeadsetError(f"{path} holds no checkpoint, no saved headset and no export.{hint}")


def _headset(description: Mapping[str, Any]) -> dict[str, Any]:
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
    return {"backbone": backbone, "heads": heads}


def _export(place: Path, modules: str | None) -> dict[str, Any]:
    config = json.loads((place / "config.json").read_text())
    labels = config.get("id2label")
    head = {
        "class": modules or ", ".join(config.get("architectures") or ["unknown"]),
        "labels": None if labels is None or modules else list(labels.values()),
        "state": "as saved",
    }
    return {"backbone": config.get("model_type", "unknown"), "heads": {place.resolve().name: head}}


def _custom(place: Path) -> dict[str, Any] | None:
    """What a custom export holds; None for any other model of transformers."""
    config = json.loads((place / "config.json").read_text())
    if not {"auto_map", "backbone_config", "head_class"} <= config.keys():
        return None
    head = {"class": config["head_class"], "labels": config.get("head_labels"), "state": "as saved"}
    return {
        "kind": "transformers model with code of its own (trust_remote_code=True)",
        "backbone": config["backbone_config"].get("model_type", "unknown"),
        "heads": {place.resolve().name: head},
    }


def _shown(labels: list[str] | None) -> str:
    if labels is None:
        return "none"
    more = f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
    return ", ".join(labels[:SHOWN_LABELS]) + more
