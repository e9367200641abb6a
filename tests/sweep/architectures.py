"""A tiny configuration and a batch for every architecture that transformers has for a task."""

import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

TINY: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "tiny.yaml").read_text())


def architectures(auto_class: str) -> list[str]:
    """The model types that transformers registers for a task."""
    return sorted({config.model_type for config in getattr(transformers, auto_class)._model_mapping})


def tiny_config(model_type: str) -> PretrainedConfig:
    """A configuration of a few thousand parameters."""
    kind = CONFIG_MAPPING[model_type]
    return kind(**_sizes(kind(), TINY["special"].get(model_type, {})))


def _sizes(config: PretrainedConfig, special: dict[str, Any]) -> dict[str, Any]:
    """Changes to a configuration, also to those nested in it."""
    sizes: dict[str, Any] = {}
    known = {key: value for key, value in vars(config).items() if not key.startswith("_")}
    for key, value in known.items():
        small = TINY["sizes"].get(key)
        if isinstance(value, PretrainedConfig):
            sizes[key] = _sizes(value, special.get(key, {}))
        elif key in TINY["derived"] or small is None or (value is None and key != "pad_token_id"):
            continue
        elif isinstance(value, list | tuple) == isinstance(small, list):
            sizes[key] = small
    heads, kv_heads = known.get("num_attention_heads"), known.get("num_key_value_heads")
    if kv_heads is not None:
        sizes["num_key_value_heads"] = 4 if kv_heads == heads else 2
    sizes |= {key: value for key, value in special.items() if not isinstance(sizes.get(key), dict)}
    return {key: value for key, value in sizes.items() if value is not None}


def text_batch(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Two rows of 16 tokens that end as texts do, with boxes where the architecture reads layouts."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, 100, (2, 16), generator=generator)
    ids[:, -1] = 2
    if "input_ids" not in inspect.signature(model.forward).parameters:
        return {model.main_input_name: torch.randn(2, 3, 32, 32, generator=generator)}
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "bbox" in inspect.signature(model.forward).parameters:
        corners = getattr(model.config, "dim_bbox", 4)
        batch["bbox"] = torch.zeros(2, 16, corners, dtype=torch.float if corners == 8 else torch.long)
    return batch
