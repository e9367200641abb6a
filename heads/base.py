"""The contract of a head: what attaches to a backbone and turns hidden states into a task's answer."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone, BackboneSpec
from backbones.calls import BackboneCall, model_inputs
from backbones.errors import HeadsetError
from heads.class_answers import class_metrics, class_predictions
from heads.full_precision import FullPrecision
from heads.label_counts import LabelCounts
from heads.targets import ClassTarget, Target

__all__ = ["Head", "HeadContext", "HeadOutput", "attention_mask", "init_linear"]


@dataclass(frozen=True)
class HeadContext:
    """What a head may know when it makes its parameters.

    Args:
        backbone: The backbone that the head will sit on. Read from it, never register it.
        labels: The label set of the head, in the order of its outputs; None where the task has none.
        tokenizer: The model's tokenizer, where there is one.
        label_counts: How often each label is in the train split, for heads that ask for it and are made for training.
    """

    backbone: Backbone
    labels: tuple[str, ...] | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    label_counts: LabelCounts | None = None

    @property
    def spec(self) -> BackboneSpec:
        """What the backbone is: sizes, dtype, architecture."""
        return self.backbone.spec


@dataclass
class HeadOutput:
    """What a head gives for a batch.

    Args:
        logits: The raw answer: scores ``(B, C)``, token scores ``(B, T, C)``, or vectors ``(B, D)``.
        info: Whatever else ``loss``, ``predict`` and ``metric_inputs`` need.
    """

    logits: Tensor
    info: dict[str, Any] = field(default_factory=dict)


class Head(nn.Module, ABC):
    """A task on top of a backbone, made in two steps.

    ``__init__`` stores each argument under its own name and makes nothing, so that a head can be written into a
    configuration and a checkpoint as plain values. ``build`` makes the parameters, once the backbone and the label
    set are known.

    A head of your own needs ``build``, ``forward`` and ``loss``; the rest has defaults:

    >>> import torch
    >>> from heads import Head, HeadOutput, register_head
    >>> @register_head
    ... class FirstToken(Head):
    ...     def __init__(self, bias: bool = True) -> None:
    ...         super().__init__()
    ...         self.bias = bias
    ...     def build(self, context):
    ...         self.score = torch.nn.Linear(context.spec.hidden_size, len(context.labels), self.bias)
    ...     def forward(self, features, batch):
    ...         return HeadOutput(self.score(features.last_hidden_state[:, 0]))
    ...     def loss(self, output, labels):
    ...         return torch.nn.functional.cross_entropy(output.logits, labels)
    >>> FirstToken(bias=False).spec()
    {'class_path': 'heads.base.FirstToken', 'init_args': {'bias': False}}
    """

    # What a row is read as. "text": a text, or two of them as one input, [CLS] a [SEP] b [SEP]. "pair": each of two
    # texts for itself; a batch holds the first texts of all rows, then the second ones. "question": a question and its
    # context, in overlapping windows. "choices": a text with each of several choices. "candidates": a query with each
    # of one or more documents. "document": a text in as many overlapping windows as it needs; "documents": each of two
    # texts so. "image", "audio": one of these.
    reads: Literal["text", "pair", "question", "choices", "candidates", "document", "documents", "image", "audio"] = (
        "text"
    )

    # Whether a part of a long text teaches as much as the whole: long texts are then learnt in parts, and not cut.
    learns_in_parts: ClassVar[bool] = False

    # Whether `predict` makes the answer of all scores together, as of sequences and trees: no pipeline of transformers
    # does that, nor a graph.
    decodes: ClassVar[bool] = False

    labels: tuple[str, ...] | None = None
    encoder_path: str = ""

    @property
    def auto_class(self) -> str | None:
        """The task in transformers whose own modules score, as ``"AutoModelForSequenceClassification"``, or None."""
        return None

    @property
    def needs_word_ids(self) -> bool:
        """Whether ``meta["word_ids"]`` ``(B, T)`` has to say which word a token is of, also in plain strings."""
        return False

    @property
    def ordered(self) -> bool:
        """Whether the order of the labels is one of rank, such as that of grades, which has to be said."""
        return False

    @property
    def needs_label_counts(self) -> bool:
        """Whether ``HeadContext.label_counts`` is needed to train; what comes of it belongs into buffers."""
        return False

    @property
    def tunes(self) -> bool:
        """Whether ``tune`` is to be called with the answers to all rows of validation, while the head is trained."""
        return False

    @classmethod
    def stored_arguments(cls, config: PretrainedConfig) -> dict[str, Any]:
        """The arguments of the head that a task model of transformers with this configuration holds."""
        return {}

    def spec(self) -> dict[str, Any]:
        """The head as plain values: ``{"class_path": ..., "init_args": {...}}``.

        Raises:
            HeadsetError: ``__init__`` did not store an argument under its own name, or as it was, or an argument is
                not a plain value.
        """
        kind = type(self)
        arguments = self._arguments()
        for name, value in arguments.items():
            if not _is_plain(value):
                raise HeadsetError(
                    f"{kind.__name__} keeps {value!r} as its argument {name}, which a checkpoint cannot hold. Take and "
                    "keep plain values (numbers, strings, lists, dictionaries), and make the rest from them in build."
                )
        for name, value in kind(**arguments)._arguments().items():
            if value != arguments[name]:
                raise HeadsetError(
                    f"{kind.__name__}.__init__ changes its argument {name}: {arguments[name]!r} becomes {value!r}. "
                    "Keep arguments as they are, so that a checkpoint makes the same head again."
                )
        if "<locals>" in kind.__qualname__:
            raise HeadsetError(
                f"{kind.__name__} is made inside a function, so that no checkpoint could find it again. Move the class "
                f"to the top level of {kind.__module__}."
            )
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}

    def _arguments(self) -> dict[str, Any]:
        """What ``__init__`` was given, by the names that it has to be kept under."""
        kind = type(self)
        parameters = inspect.signature(kind).parameters.values()
        names = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        lost = [name for name in names if not hasattr(self, name)]
        if lost:
            raise HeadsetError(
                f"{kind.__name__}.__init__ takes {', '.join(lost)} and does not keep it. Store every argument under "
                f"its own name (self.{lost[0]} = {lost[0]}), so that the head can be written into a checkpoint."
            )
        return {name: getattr(self, name) for name in names}

    def attach(self, context: HeadContext) -> None:
        """Take the label set and make the parameters, in the backbone's dtype and on its device."""
        self.labels = context.labels
        self.encoder_path = context.backbone.encoder_path
        self.build(context)
        self.to(next(context.backbone.parameters()).device)
        exact = {id(part.value) for part in self.modules() if isinstance(part, FullPrecision)}
        for value in self.state_dict(keep_vars=True).values():  # what is computed, such as angles, keeps its precision
            if value.is_floating_point() and id(value) not in exact:
                value.data = value.data.to(context.spec.dtype)

    @abstractmethod
    def build(self, context: HeadContext) -> None:
        """Make the parameters."""

    def unused(self, backbone: Backbone) -> set[str]:
        """Names of the backbone's parameters that the head's requests do not reach, such as those of a pooler."""
        return set()

    def target(self) -> Target | None:
        """How the head's labels become a tensor; the default is one class a row. None: it learns without labels."""
        return ClassTarget()

    def prepare(self, batch: Mapping[str, Any], labels: Any) -> tuple[Mapping[str, Any], Any]:
        """What the head learns from and is measured on; the default takes a batch and its labels as they are.

        A head that makes its own task from a batch, such as masking tokens, gives a changed copy of the batch, and
        the labels that go with it. It is not called for prediction.

        Where only some rows have labels, ``labels`` has those of these rows, and ``batch["meta"]["labelled"]`` is the
        list of their numbers.
        """
        return batch, labels

    def request(self, batch: Mapping[str, Any]) -> BackboneCall | None:
        """The backbone call that this head needs for a batch; None where it makes its own in ``forward``.

        The default passes the model inputs as they are, to the encoder where the backbone has a decoder too.
        """
        return BackboneCall(model_inputs(batch), self.encoder_path)

    @abstractmethod
    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """The answer for a batch, from the backbone's output for this head's request."""

    @abstractmethod
    def loss(self, output: HeadOutput, labels: Any) -> Tensor:
        """The training loss, a scalar; ``labels`` is the tensor that ``target`` makes, None without a target column."""

    def loss_size(self, output: HeadOutput, labels: Any) -> Tensor | float:
        """How much ``loss`` is a mean over: rows by default, tokens of a tagger, weights of weighted rows.

        By it the losses of several processes and batches become the mean that one large batch would give. 0 says that
        there is nothing to learn from.
        """
        return float(len(output.logits))

    def select(self, output: HeadOutput, rows: Tensor) -> HeadOutput:
        """The answer for some rows of a batch, where the others have no label for this head.

        Args:
            output: The answer for B rows.
            rows: Their numbers in the batch, int64 ``(R,)``.

        Returns:
            ``logits``, and what of ``info`` has an item a row, for these rows; the loss that transformers computed for
            all rows is left out.
        """
        size = len(output.logits)
        info = {key: _rows_of(value, rows, size) for key, value in output.info.items() if key not in ("loss", "labels")}
        return HeadOutput(output.logits[rows], info)

    def predict(self, output: HeadOutput) -> list[dict[str, Any]]:
        """What a user reads, one dictionary a row; the default is the best class of ``logits`` ``(B, C)``."""
        return class_predictions(output.logits.float().softmax(-1), self.labels, output.logits.argmax(-1))

    def tune(self, logits: Tensor, labels: Tensor) -> None:
        """Choose what is not learnt, such as thresholds, after each validation in training; and keep it in buffers.

        Args:
            logits: Those of all rows of validation, of all processes.
            labels: What ``target`` makes of these rows.
        """

    def export_settings(self) -> dict[str, Any]:
        """What else an exported configuration has to hold, to make answers of scores: plain values by name."""
        return {}

    def metrics(self) -> MetricCollection:
        """Metrics of one stage; the default is accuracy and macro F1 over the label set."""
        return class_metrics(self.labels)

    def metric_inputs(self, output: HeadOutput, labels: Any) -> tuple[Any, ...]:
        """What ``metrics().update`` takes: predictions and targets."""
        return output.logits, labels


def _rows_of(value: Any, rows: Tensor, size: int) -> Any:
    """The items of some rows, where there is one for each of ``size`` rows."""
    if isinstance(value, Tensor) and value.dim() and len(value) == size:
        return value[rows]
    if isinstance(value, list | tuple) and len(value) == size:
        return [value[row] for row in rows.tolist()]
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def attention_mask(batch: Mapping[str, Any], hidden: Tensor) -> Tensor:
    """Which positions of ``hidden`` ``(B, T, D)`` are real, as bool ``(B, T)``; all, where the batch has no mask.

    Of sounds the mask has samples, and a hidden state is a frame of many: it is real if its middle is.
    """
    mask: Tensor | None = batch.get("attention_mask", batch.get("meta", {}).get("attention_mask"))
    if mask is None:
        return hidden.new_ones(hidden.shape[:2], dtype=torch.bool)
    if mask.shape[1] != hidden.shape[1]:
        mask = nn.functional.interpolate(mask.unsqueeze(1).float(), hidden.shape[1], mode="nearest-exact").squeeze(1)
    return mask.bool()


def init_linear(module: nn.Module, spec: BackboneSpec) -> None:
    """Start every linear layer in ``module`` as transformers does: normal weights, zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=spec.initializer_range)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
