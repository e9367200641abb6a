"""One answer a text: a class, several classes, or numbers."""

from collections.abc import Mapping
from typing import Any

from transformers.utils.generic import ModelOutput

from heads.base import HeadContext, HeadOutput
from heads.classification import SINGLE, Classification
from heads.objective import plain_objective
from heads.scorers import NATIVE, Scorer, check_pooling
from heads.windows import WindowPooler, check_windows, without_labels

__all__ = ["SequenceClassification"]


class SequenceClassification(Classification):
    """Texts to a class, to several classes, or to numbers.

    With ``pooling="native"`` the scores come from the very modules that ``AutoModelForSequenceClassification`` has for
    the architecture, so that what is trained is a stock transformers model. Any other pooling goes by the attention
    mask and feeds a linear layer.

    Args:
        problem_type: As in transformers: ``single_label_classification`` (cross entropy),
            ``multi_label_classification`` (binary cross entropy per label), or ``regression`` (mean squared error).
        pooling: ``native``; or ``cls``, ``mean``, ``max``, ``last``, ``attention``, or a list of these, concatenated.
        hidden_layers: Which hidden layers are pooled: ``last``, a number, a list of numbers (concatenated), or ``mix``,
            a learned mean of all. The native pooling reads the last one.
        num_outputs: How many numbers a text has, in regression.
        threshold: The probability from which a label counts as given, in multi-label classification: one for all, or
            by label, or ``tuned``: for each label the one with the best F1 on validation.
        dropout: Before the linear layer, where pooling is not native.
        temperature: What scores are divided by before they become probabilities, with one label; ``tuned``: what fits
            validation best.
        objective: The loss, by name or as ``{loss: ..., setting: ...}``; by default that of transformers. For one label
            ``cross_entropy``, ``focal``, ``coral`` or ``corn``; for several ``binary_cross_entropy`` or ``focal``; for
            numbers ``mse``, ``l1`` or ``huber``. Settings: ``label_smoothing``, ``class_weights``,
            ``positive_weights``, ``gamma``, ``delta``, ``soft_labels``.
        windows: Read a text that is longer than ``max_length`` in overlapping windows, and pool over these: ``mean``,
            ``max``, or ``attention`` of their vectors; of their scores, where pooling is native, ``mean`` or ``max``.
            By default it is cut.

    Raises:
        HeadsetError: An argument is not one of these.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from backbones import Backbone
        >>> from heads import HeadContext
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        >>> head = SequenceClassification(pooling=["cls", "mean"])
        >>> head.attach(HeadContext(Backbone(BertModel(config)), labels=("ham", "spam")))
        >>> head.scorer.linear
        Linear(in_features=64, out_features=2, bias=True)
    """

    def __init__(
        self,
        problem_type: str = SINGLE,
        pooling: str | list[str] = NATIVE,
        hidden_layers: int | str | list[int] = "last",
        num_outputs: int = 1,
        threshold: float | str | dict[str, float] = 0.5,
        dropout: float = 0.1,
        temperature: float | str = 1.0,
        objective: str | dict[str, Any] | None = None,
        windows: str | None = None,
    ) -> None:
        super().__init__()
        check_pooling(pooling, hidden_layers)
        check_windows(windows, native=pooling == NATIVE)
        self.problem_type = problem_type
        self.pooling = pooling
        self.hidden_layers = hidden_layers
        self.num_outputs = num_outputs
        self.threshold = threshold
        self.dropout = dropout
        self.temperature = temperature
        self.objective = plain_objective(objective)
        self.windows = windows
        if windows is not None:
            self.reads = "document"
        self.over_windows: WindowPooler | None = None
        self.check_settings()

    @property
    def auto_class(self) -> str | None:
        """The task in transformers, where the scores are native."""
        return "AutoModelForSequenceClassification" if self.pooling == NATIVE else None

    def build(self, context: HeadContext) -> None:
        """Make the scorer, and what pools the scores of windows where it is native."""
        super().build(context)
        if self.windows is not None and self.auto_class:
            self.over_windows = WindowPooler(self.windows, self.size(context))

    def own_scorer(self, context: HeadContext) -> Scorer:
        """Layers, pooling and windows as they are set, and a linear layer."""
        size = self.size(context)
        return Scorer(context, size, self.hidden_layers, self.pooling, self.dropout, self.windows)

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """Scores ``(B, C)`` of inputs ``(B, T)``; or of windows ``(N, T)``, counted in ``meta["windows"]``."""
        if self.windows is None:
            return super().forward(features, batch)
        output = super().forward(features, without_labels(batch))
        if self.over_windows is None:
            return output
        return HeadOutput(self.over_windows(output.logits, batch.get("meta", {})), output.info)
