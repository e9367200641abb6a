"""Heads whose weights lie in the backbone's own checkpoint: a fine-tuned classifier is a backbone and a head."""

from collections.abc import Mapping, Sequence

from backbones.backbone import BackboneOptions
from backbones.errors import HeadsetError
from backbones.loading import load_config
from heads.base import Head
from heads.native import NativeModel
from heads.task_models import is_stored, label_settings
from headset.labels import other_labels

__all__ = ["find_stored_heads", "load_stored_head"]

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
    return {name: _agreed(name, stored, labels.get(name)) if _has_labels(heads[name]) else None for name in names}


def load_stored_head(head: Head, path: str) -> None:
    """Load the weights of a native head from the backbone's checkpoint.

    Raises:
        HeadsetError: They have other shapes, or are not whole.
    """
    scorer = head.scorer
    assert isinstance(scorer, NativeModel)
    scorer.load(path)


def _has_labels(head: Head) -> bool:
    target = head.target()
    return target is not None and target.find_labels([]) is not None


def _agreed(name: str, stored: Sequence[str], wanted: Labels) -> tuple[str, ...]:
    """The labels of a stored head; the settings may give names to labels that were saved without."""
    if wanted is None or set(wanted) == set(stored):
        return tuple(stored)
    if list(stored) != list(label_settings(None, len(wanted))["label2id"]):
        raise other_labels(name, stored, wanted)
    return wanted
