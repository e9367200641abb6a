"""Distillation: heads learn from the answers of a trained teacher, beside their labels (Hinton et al. 2015)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.errors import HeadsetError, invalid_choice
from heads.base import Head, HeadOutput
from heads.targets import IGNORE, ClassTarget, MultiLabelTarget, NumberTarget, SoftTarget, TagTarget, Target
from headset.checkpoint import load_checkpoint
from headset.folder import DESCRIPTION
from headset.model import Headset
from headset.sharded_files import is_folder

__all__ = ["Teacher", "check_distillation", "distillation_loss"]

SETTINGS = ("teacher", "temperature", "alpha", "heads")
KINDS: tuple[tuple[type[Target], ...], ...] = (
    (ClassTarget, SoftTarget),
    (MultiLabelTarget,),
    (NumberTarget,),
    (TagTarget,),
)


def check_distillation(settings: Mapping[str, Any] | None, heads: Mapping[str, Head]) -> None:
    """Check settings before anything is loaded.

    Raises:
        HeadsetError: One is unknown, out of range, or lacks.
    """
    if settings is None:
        return
    for name in settings:
        if name not in SETTINGS:
            raise invalid_choice("setting of distillation", name, SETTINGS)
    if not settings.get("teacher"):
        raise HeadsetError("Distillation needs a teacher: model.distillation.teacher: CHECKPOINT or FOLDER.")
    if not settings.get("temperature", 1.0) > 0:
        raise HeadsetError(f"Invalid temperature: {settings['temperature']}. Give a number above 0.")
    if not 0 <= settings.get("alpha", 0.5) <= 1:
        raise HeadsetError(f"Invalid alpha: {settings['alpha']}. Give the share of the teacher, from 0 to 1.")
    for name in settings.get("heads") or ():
        if name not in heads:
            raise invalid_choice("head in distillation", name, heads)


class Teacher:
    """A trained headset, or a stock model, whose answers heads learn from; it is in no checkpoint.

    The loss of a head becomes ``(1 - alpha) * loss + alpha * distillation_loss``.

    Args:
        settings: ``teacher``: a checkpoint, the folder of a headset, or that of a task model of transformers.
            ``temperature`` (default 2), ``alpha``: the share of the teacher (default 0.5), and ``heads``: those that
            learn from it (default: all that it has, by name; a single one of the teacher is for a single head here).
        headset: The heads that learn.

    Raises:
        HeadsetError: The teacher cannot be loaded, or its heads, labels or inputs are others.
    """

    def __init__(self, settings: Mapping[str, Any], headset: Headset) -> None:
        self.temperature = float(settings.get("temperature", 2.0))
        self.alpha = float(settings.get("alpha", 0.5))
        self.place = str(settings["teacher"])
        self.headset = _load(self.place)
        self.headset.requires_grad_(False)
        self.student = next(headset.parameters())
        self.names = self._names(headset, settings.get("heads"))
        self.heads = {name: headset.head(name) for name in self.names}
        self.orders = {name: self._order(name, head) for name, head in self.heads.items()}
        ours: Any = headset.processor
        theirs: Any = self.headset.processor
        _check_inputs(self.place, ours, theirs)
        self.unread = set(ours.model_input_names).difference(theirs.model_input_names)  # such as token_type_ids

    @torch.no_grad()
    def answers(self, batches: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
        """The scores of the teacher, in the order of the labels of the heads that learn.

        Args:
            batches: The batch of each head, as `Headset.answer` takes it.
        """
        asked = {
            self.names[name]: {**{key: value for key, value in batch.items() if key not in self.unread}, "labels": None}
            for name, batch in batches.items()
            if name in self.names
        }
        if not asked:
            return {}
        outputs = self.headset.to(self.student.device).answer(asked)
        found = {name: outputs[its].logits for name, its in self.names.items() if its in outputs}
        return {
            name: logits if self.orders[name] is None else logits[..., self.orders[name]]
            for name, logits in found.items()
        }

    def losses(
        self,
        batches: Mapping[str, Mapping[str, Any]],
        outputs: Mapping[str, HeadOutput],
        labels: Mapping[str, Any],
        losses: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """The losses of heads with those of distillation mixed in."""
        mixed = dict(losses)
        for name, theirs in self.answers({name: batches[name] for name in outputs}).items():
            target = self.heads[name].target()
            soft = distillation_loss(target, outputs[name].logits, theirs, labels[name], self.temperature)
            mixed[name] = (1 - self.alpha) * losses[name] + self.alpha * soft
        return mixed

    def _names(self, headset: Headset, wanted: list[str] | None) -> dict[str, str]:
        """The head of the teacher for each head that learns from it."""
        theirs, ours = list(self.headset.heads), wanted or list(headset.heads)
        if len(ours) == len(theirs) == 1:
            return {ours[0]: theirs[0]}
        lacking = [name for name in wanted or () if name not in theirs]
        found = {name: name for name in ours if name in theirs}
        if lacking or not found:
            missing = ", ".join(lacking or ours)
            raise HeadsetError(f"The teacher {self.place} has the heads {', '.join(theirs)}, and not {missing}.")
        return found

    def _order(self, name: str, head: Head) -> list[int] | None:
        """Where the labels of a head are among those of the teacher."""
        theirs = self.headset.head(self.names[name])
        kinds = [kind for kind in KINDS if isinstance(head.target(), kind) and isinstance(theirs.target(), kind)]
        if not kinds:
            raise HeadsetError(
                f"The head {name!r} ({type(head).__name__}) cannot learn from the answers of the teacher's "
                f"{self.names[name]!r} ({type(theirs).__name__}): they are of other kinds."
            )
        if isinstance(head.target(), NumberTarget):
            return None
        if set(head.labels or ()) != set(theirs.labels or ()):
            raise HeadsetError(
                f"The head {name!r} has the labels {', '.join(head.labels or ())}, and the teacher {self.place} has "
                f"{', '.join(theirs.labels or ())}. Distillation needs the same ones, in any order."
            )
        return [(theirs.labels or ()).index(label) for label in head.labels or ()]


def distillation_loss(
    target: Target | None, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """How far the answers of a student are from those of its teacher.

    Args:
        target: What the head learns. For classes and tags it is ``T**2 * KL(softmax(teacher / T), softmax(student /
            T))``, the mean over rows, or tokens with a tag; for several labels the same of the two probabilities of
            each, the mean over labels; for numbers the mean squared difference.
        student: Scores ``(B, C)`` or ``(B, T, C)``.
        teacher: Scores of the same shape.
        labels: Those of the rows.
        temperature: T.
    """
    student, teacher = student.float(), teacher.float()
    if isinstance(target, NumberTarget):
        return F.mse_loss(student, teacher)
    student, teacher = student / temperature, teacher / temperature
    if isinstance(target, TagTarget):
        student, teacher = student[labels != IGNORE], teacher[labels != IGNORE]
    if isinstance(target, MultiLabelTarget):
        student, teacher = (torch.stack([scores, torch.zeros_like(scores)], -1) for scores in (student, teacher))
        student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True)
    return temperature**2 * divergence / max(len(student), 1)


def _load(place: str) -> Headset:
    if Path(place).is_file() or is_folder(place):
        return load_checkpoint(place)
    if (Path(place) / DESCRIPTION).is_file():
        return Headset.from_pretrained(place)
    return Headset.from_transformers(place)


def _check_inputs(place: str, ours: Any, theirs: Any) -> None:
    """Check that a teacher reads what a student reads: the same tokens, the same pixels.

    Raises:
        HeadsetError: It does not.
    """
    if ours is None or theirs is None:
        raise HeadsetError(f"The tokenizer of the teacher {place}, or of the headset, is not known.")
    if hasattr(ours, "get_vocab") and hasattr(theirs, "get_vocab"):
        lacking = set(theirs.model_input_names) - set(ours.model_input_names)
        text = "42 naïve WORDS."
        same = not lacking and ours.get_vocab() == theirs.get_vocab() and _ids(ours, text) == _ids(theirs, text)
    else:
        same = type(ours) is type(theirs) and _settings(ours) == _settings(theirs)
    if not same:
        raise HeadsetError(
            f"The teacher {place} reads other inputs than the headset: their tokenizers or processors are not the "
            "same. Distil from a model with the same vocabulary."
        )


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, text, truncation=True)["input_ids"]
    return ids


def _settings(processor: Any) -> dict[str, Any]:
    return {key: value for key, value in processor.to_dict().items() if not key.startswith(("_", "name_or_path"))}
