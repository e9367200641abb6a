"""A tiny configuration for every architecture that transformers has for a task."""

from pathlib import Path
from typing import Any, NamedTuple

import transformers
import yaml
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

TINY: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "tiny.yaml").read_text())
TASKS = (
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
    "AutoModelForMaskedLM",
    "AutoModelForImageClassification",
    "AutoModelForAudioClassification",
)


class Pair(NamedTuple):
    """A task and an architecture; and which of its classes, where transformers has several for the task."""

    auto_class: str
    model_type: str
    variant: int = 0

    @property
    def kind(self) -> type[PreTrainedModel]:
        """The class of transformers."""
        kinds = getattr(transformers, self.auto_class)._model_mapping[CONFIG_MAPPING[self.model_type]]
        found: type[PreTrainedModel] = kinds[self.variant] if isinstance(kinds, tuple) else kinds
        return found

    @property
    def name(self) -> str:
        """The name of that class."""
        return self.kind.__name__


def pairs(auto_class: str) -> list[Pair]:
    """Every architecture that transformers registers for a task."""
    mapping = getattr(transformers, auto_class)._model_mapping
    found = []
    for model_type in mapping._model_mapping:
        kinds = mapping[CONFIG_MAPPING[model_type]]
        found += [Pair(auto_class, model_type, index) for index in range(len(kinds) if isinstance(kinds, tuple) else 1)]
    return found


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """A configuration of a few thousand parameters."""
    kind = CONFIG_MAPPING[model_type]
    return kind(**(_sizes(kind(), TINY["special"].get(model_type, {})) | changes))


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
