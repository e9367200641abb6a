"""Heads whose weights lie in the backbone's own checkpoint: a fine-tuned classifier is a backbone and a head."""

from collections.abc import Mapping, Sequence

from transformers import PretrainedConfig, PreTrainedModel

from backbones.backbone import Backbone, BackboneOptions
from backbones.errors import HeadsetError
from backbones.loading import load_config, load_task_model, own_class
from heads.base import Head
from heads.native import NativeModel
from heads.registry import BUILT_IN, list_heads, load_head_class
from heads.targets import NumberTarget
from heads.task_models import are_numbered, is_stored, is_task_model
from headset.labels import other_labels
from headset.model import Headset
from headset.processors import Processor, load_processor

__all__ = ["POLICIES", "find_stored_heads", "import_task_model", "load_stored_head"]

POLICIES = ("keep", "replace", "drop")
Labels = tuple[str, ...] | None


def find_stored_heads(
    options: BackboneOptions, heads: Mapping[str, Head], labels: Mapping[str, Labels], policy: str | None = None
) -> dict[str, Labels]:
    """The heads whose weights lie in the backbone's checkpoint and are taken from there.

    Args:
        options: The backbone.
        heads: The heads that may be loaded.
        labels: The label sets that the settings name.
        policy: ``keep``: a head takes the weights. ``replace``: a head of the same task starts anew. ``drop``: none is
            of that task. None: they are taken where a head is of that task.

    Returns:
        The label set of each head that is stored, in the order there; None if the head has no label set.

    Raises:
        HeadsetError: Several heads could take the same weights, the settings name other labels, or the heads are not
            what the policy says.
    """
    if options.config is not None or options.random_weights:
        return {}
    config = load_config(options.path, revision=options.revision)
    names = [name for name, head in heads.items() if head.auto_class and is_stored(head.auto_class, config)]
    if policy is not None:
        _check_policy(policy, options.path, names, config)
    if policy in ("replace", "drop"):
        return {}
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
            _check_numbers(name, heads[name], config)
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


def import_task_model(source: str | PreTrainedModel, name: str, processor: Processor | None = None) -> Headset:
    """A fine-tuned task model of transformers as a headset: its base is the backbone, the rest a native head.

    Args:
        source: A folder, a hub id, or the model itself, whose base is then shared and not copied.
        name: What the head is called.
        processor: What makes its inputs; by default that beside the model, if the source is a path.

    Raises:
        HeadsetError: The checkpoint is not whole, or its task has no head here.
    """
    if isinstance(source, str):
        kind = own_class(load_config(source))
        if kind is None:
            raise HeadsetError(f"The config.json at {source} names no model class of transformers under architectures.")
        place, source = source, load_task_model(source, kind)
        head = _head_for(source)
        processor = processor or load_processor(place, {name: head})
    else:
        head = _head_for(source)
    config = source.config
    names = tuple(map(str, (config.id2label or {}).values()))
    named_numbers = isinstance(head.target(), NumberTarget) and not are_numbered(names)
    labels = names if named_numbers or _has_labels(head) else None
    headset = Headset(Backbone.from_task_model(source), {name: head}, {name: labels}, processor=processor)
    scorer = head.scorer
    assert isinstance(scorer, NativeModel)
    scorer.take(source)
    headset.states[name] = "loaded"
    return headset.eval()


def _head_for(model: PreTrainedModel) -> Head:
    """The built-in head for the task of a model, which bears its name."""
    tasks: list[str] = []
    for entry in list_heads().values():
        if entry.origin == BUILT_IN:
            kind = load_head_class(entry.class_path)
            head = kind(**kind.stored_arguments(model.config))
            if head.auto_class != f"AutoModelFor{kind.__name__}":
                continue
            if is_task_model(head.auto_class, model):
                return head
            tasks.append(head.auto_class)
    raise HeadsetError(
        f"There is no head here for {type(model).__name__}. Heads are imported from: {', '.join(tasks)}."
    )


def _check_policy(policy: str, path: str, names: Sequence[str], config: PretrainedConfig) -> None:
    """Check that the heads of the stored task are what the settings say of them.

    Raises:
        HeadsetError: They are not.
    """
    stored = f"{path} holds {' '.join(config.architectures or ['a base model'])}"
    if policy == "drop" and names:
        raise HeadsetError(
            f"{stored}, and the head '{names[0]}' is of that task. It takes those weights with stored_head: keep, and "
            "starts anew with stored_head: replace."
        )
    if policy != "drop" and not names:
        raise HeadsetError(
            f"{stored}, and no head is of that task, so none can {policy} its weights. To do without them: "
            "stored_head: drop. (Heads in new_heads do not count: use stored_head: replace instead.)"
        )


def _has_labels(head: Head) -> bool:
    target = head.target()
    return target is not None and target.find_labels([]) is not None


def _check_numbers(name: str, head: Head, config: PretrainedConfig) -> None:
    """Check that a head for numbers does not take the weights of one with labels."""
    if isinstance(head.target(), NumberTarget) and config.problem_type != "regression" and config.num_labels != 1:
        raise other_labels(name, list((config.id2label or {}).values()), ["no labels, but numbers"])


def _agreed(name: str, stored: Sequence[str], wanted: Labels) -> tuple[str, ...]:
    """The labels of a stored head; the settings may give names to labels that were saved without."""
    if wanted is None or set(wanted) == set(stored):
        return tuple(stored)
    if list(stored) != [f"LABEL_{index}" for index in range(len(wanted))]:
        raise other_labels(name, stored, wanted)
    return wanted
