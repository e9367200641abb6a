"""Heads whose weights lie in the backbone's own checkpoint: a fine-tuned classifier is a backbone and a head."""

from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from backbones.backbone import Backbone, BackboneOptions
from backbones.errors import HeadsetError
from backbones.loading import base_of, load_config, load_task_model, load_tokenizer, own_class
from heads.base import Head
from heads.native import NativeModel
from heads.sequence_classification import SequenceClassification
from heads.task_models import is_stored, task_class
from heads.token_classification import TokenClassification
from headset.labels import other_labels
from headset.model import Headset

__all__ = ["find_stored_heads", "import_task_model", "load_stored_head"]

Labels = tuple[str, ...] | None


def find_stored_heads(
    options: BackboneOptions, heads: Mapping[str, Head], labels: Mapping[str, Labels]
) -> dict[str, Labels]:
    """The heads whose weights lie in the backbone's checkpoint.

    Args:
        options: The backbone.
        heads: The heads that may be loaded.
        labels: The label sets that the settings name.

    Returns:
        The label set of each head that is stored, in the order there; None if the head has no label set.

    Raises:
        HeadsetError: Several heads could take the same weights, or the settings name other labels.
    """
    if options.config is not None or options.random_weights:
        return {}
    config = load_config(options.path, revision=options.revision)
    names = [name for name, head in heads.items() if head.auto_class and is_stored(head.auto_class, config)]
    if len(names) > 1:
        raise HeadsetError(
            f"{options.path} has the weights of one head, and {' and '.join(names)} could take them. Name those that "
            f"start anew: --model.new_heads '[{', '.join(names[1:])}]'"
        )
    stored = tuple(map(str, (config.id2label or {}).values()))
    found: dict[str, Labels] = {}
    for name in names:
        if _has_labels(heads[name]):
            found[name] = _agreed(name, stored, labels.get(name))
        else:
            found[name] = None
            _check_numbers(name, config)
    return found


def load_stored_head(name: str, head: Head, path: str) -> None:
    """Load the weights of a native head from the backbone's checkpoint.

    Raises:
        HeadsetError: They have other shapes, or are not whole.
    """
    scorer = head.scorer
    assert isinstance(scorer, NativeModel)
    try:
        scorer.take(load_task_model(path, type(scorer.task)))
    except HeadsetError as error:
        raise HeadsetError(f"{error} To start the head '{name}' anew: --model.new_heads '[{name}]'") from error


def import_task_model(
    source: str | PreTrainedModel, name: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> Headset:
    """A fine-tuned task model of transformers as a headset: its base is the backbone, the rest a native head.

    Args:
        source: A folder, a hub id, or the model itself, whose base is then shared and not copied.
        name: What the head is called.
        tokenizer: The tokenizer; by default the one beside the model, if the source is a path.

    Raises:
        HeadsetError: The checkpoint is not whole, or its task has no head here.
    """
    if isinstance(source, str):
        kind = own_class(load_config(source))
        if kind is None:
            raise HeadsetError(f"The config.json at {source} names no model class of transformers under architectures.")
        tokenizer = tokenizer or load_tokenizer(source)
        source = load_task_model(source, kind)
    head = _head_for(source)
    config = source.config
    labels = tuple(map(str, (config.id2label or {}).values())) if _has_labels(head) else None
    headset = Headset(Backbone(base_of(source)), {name: head}, {name: labels}, tokenizer)
    scorer = head.scorer
    assert isinstance(scorer, NativeModel)
    scorer.take(source)
    headset.states[name] = "loaded"
    return headset.eval()


def _head_for(model: PreTrainedModel) -> Head:
    """The built-in head for the task of a model."""
    settings = _sequence_settings(model.config)
    known: list[Head] = [SequenceClassification(**settings), TokenClassification()]
    for head in known:
        mapping = getattr(transformers, head.auto_class or "")._model_mapping
        if type(model.config) in mapping and task_class(head.auto_class or "", model.config) is type(model):
            return head
    names = ", ".join(str(head.auto_class) for head in known)
    raise HeadsetError(f"There is no head here for {type(model).__name__}. Heads are imported from: {names}.")


def _sequence_settings(config: PretrainedConfig) -> dict[str, Any]:
    """As transformers reads a configuration: one output without a problem type is regression."""
    kind = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    return {"problem_type": kind, "num_outputs": config.num_labels if kind == "regression" else 1}


def _has_labels(head: Head) -> bool:
    target = head.target()
    return target is not None and target.find_labels([]) is not None


def _check_numbers(name: str, config: PretrainedConfig) -> None:
    """Check that a head without labels does not take the weights of one with labels."""
    if config.problem_type != "regression" and config.num_labels != 1:
        raise other_labels(name, list((config.id2label or {}).values()), ["no labels, but numbers"])


def _agreed(name: str, stored: Sequence[str], wanted: Labels) -> tuple[str, ...]:
    """The labels of a stored head; the settings may give names to labels that were saved without."""
    if wanted is None or set(wanted) == set(stored):
        return tuple(stored)
    if list(stored) != [f"LABEL_{index}" for index in range(len(wanted))]:
        raise other_labels(name, stored, wanted)
    return wanted
