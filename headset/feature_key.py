"""What the features of a frozen backbone depend on, as one digest: nothing of it can change and the digest stay."""

import hashlib
import importlib.metadata
import inspect
import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

import backbones
from backbones.backbone import Backbone
from headset.batches import LABEL
from headset.encoders import RAW, Encoder
from headset.file_encoder import FileEncoder

__all__ = ["code_digest", "input_columns", "inputs_digest", "weights_digest"]

ROWS = 1000  # of a table, at once
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow", "torchvision", "soundfile", "soxr")


def weights_digest(backbone: Backbone) -> bytes:
    """A digest of all that a backbone computes with: each parameter and buffer by its name, type, shape and bits."""
    model = backbone.model
    tensors: dict[str, Any] = {**model.state_dict(), **dict(model.named_buffers())}
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(_bits(value).data)
        else:
            digest.update(f"{name} {value!r}\n".encode())
    settings = json.dumps(_settings(model.config.to_dict()), sort_keys=True, default=repr)
    digest.update(repr((type(model), settings, _implementations(model.config), backbone.lora)).encode())
    return digest.digest()


def code_digest(backbone: Backbone, precision: str) -> bytes:
    """A digest of what else decides how a backbone computes: the code, its versions, and the precision."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        digest.update(f"{package} {_version(package)}\n".encode())
    ours = [*sorted(Path(backbones.__file__).parent.glob("*.py")), *sorted(Path(__file__).parent.glob("feature*.py"))]
    for file in ours:
        digest.update(file.read_bytes())
    device = next(backbone.parameters()).device
    parts = type(backbone.model).__module__, precision, torch.get_float32_matmul_precision(), device.type
    digest.update(repr(parts).encode())
    for module in sorted({type(part).__module__ for part in backbone.model.modules()}):
        if module.partition(".")[0] not in ("torch", "transformers"):
            digest.update(_source(module))
    return digest.digest()


def input_columns(rows: Dataset) -> list[str]:
    """The columns of examples that inputs are made of."""
    return sorted(name for name in rows.column_names if name != "row" and not name.startswith(LABEL))


def inputs_digest(rows: Dataset, encoder: Encoder) -> bytes:
    """A digest of the inputs of all rows, in their order, and of what makes batches of them."""
    digest = hashlib.sha256()
    for part in rows.select_columns(input_columns(rows)).with_format("arrow").iter(ROWS):
        for batch in part.combine_chunks().to_batches():
            digest.update(batch.schema.remove_metadata().serialize())
            digest.update(batch.serialize())
    if isinstance(encoder, FileEncoder):
        for content in _contents(rows, encoder):
            digest.update(hashlib.sha256(content).digest())
        digest.update(repr(sorted(encoder.processor.to_dict().items())).encode())
    settings = type(encoder).__qualname__, encoder.padding_side, *encoder.identity()
    digest.update(json.dumps(settings).encode())
    return digest.digest()


def _contents(rows: Dataset, encoder: FileEncoder) -> Iterator[bytes]:
    """What is in the files that rows name; of those that are in the table itself nothing more."""
    for part in rows.select_columns([RAW]).with_format("arrow").iter(ROWS):
        for value in part[RAW].to_pylist() if _may_be_paths(part[RAW].type) else ():
            if isinstance(value, dict):
                value = value.get("path") if value.get("bytes") is None else None
            if value:
                yield Path(encoder.folder, value).read_bytes()


def _may_be_paths(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _bits(value: Tensor) -> np.ndarray[Any, Any]:
    flat = value.detach().cpu().contiguous().reshape(-1)
    bits: np.ndarray[Any, Any] = flat.view(torch.uint8).numpy()
    return bits


def _settings(value: Any) -> Any:
    """A configuration without where it came from."""
    if isinstance(value, dict):
        return {str(key): _settings(item) for key, item in value.items() if key != "_name_or_path"}
    return value


def _implementations(config: Any) -> Sequence[Any]:
    """How attention is computed, also in the parts of a model that have a configuration of their own."""
    its = {key: value for key, value in vars(config).items() if key.endswith("_implementation_internal")}
    parts = [value for value in vars(config).values() if hasattr(value, "to_dict")]
    return [getattr(config, "_attn_implementation", None), sorted(its.items()), *map(_implementations, parts)]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _source(module: str) -> bytes:
    """The source of a module; where it has none, nothing that is kept is of it."""
    try:
        return inspect.getsource(sys.modules[module]).encode()
    except (OSError, TypeError, KeyError):
        return uuid.uuid4().bytes
