"""One answer an image: a class, several classes, or numbers."""

from typing import Any

from heads.classification import SINGLE, Classification
from heads.objective import plain_objective
from heads.scorers import NATIVE, check_pooling

__all__ = ["ImageClassification"]


class ImageClassification(Classification):
    """Images to a class, to several classes, or to numbers.

    With ``pooling="native"`` the scores come from the very modules that ``AutoModelForImageClassification`` has for
    the architecture, so that what is trained is a stock transformers model. Any other pooling is over the
    backbone's tokens, which are patches with what special tokens it has (``cls`` is the first), or over the points of
    a feature map; and feeds a linear layer.

    Args:
        problem_type: As in transformers: ``single_label_classification`` (cross entropy),
            ``multi_label_classification`` (binary cross entropy per label), or ``regression`` (mean squared error).
        num_outputs: How many numbers an image has, in regression.
        threshold: The probability from which a label counts as given, in multi-label classification: one for all, or
            by label, or ``tuned``: for each label the one with the best F1 on validation.
        pooling: ``native``; or ``cls``, ``mean``, ``max``, ``last``, ``attention``, or a list of these, concatenated.
        hidden_layers: Which hidden layers are pooled: ``last``, a number, a list of numbers (concatenated), or ``mix``,
            a learned mean of all. The native pooling reads the last one.
        dropout: Before the linear layer, where pooling is not native.
        temperature: What scores are divided by before they become probabilities, with one label; ``tuned``: what fits
            validation best.
        objective: The loss, by name or as ``{loss: ..., setting: ...}``; by default that of transformers. For one label
            ``cross_entropy``, ``focal``, ``coral`` or ``corn``; for several ``binary_cross_entropy`` or ``focal``; for
            numbers ``mse``, ``l1`` or ``huber``. Settings: ``label_smoothing``, ``class_weights``,
            ``positive_weights``, ``gamma``, ``delta``, ``soft_labels``.

    Raises:
        HeadsetError: An argument is not one of these.

    Example:
        >>> from transformers import ViTConfig, ViTModel
        >>> from backbones import Backbone
        >>> from heads import HeadContext
        >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        >>> head = ImageClassification()
        >>> head.attach(HeadContext(Backbone(ViTModel(config)), labels=("cat", "dog")))
        >>> type(head.scorer.task).__name__
        'ViTForImageClassification'
    """

    reads = "image"

    def __init__(
        self,
        problem_type: str = SINGLE,
        num_outputs: int = 1,
        threshold: float | str | dict[str, float] = 0.5,
        pooling: str | list[str] = NATIVE,
        hidden_layers: int | str | list[int] = "last",
        dropout: float = 0.1,
        temperature: float | str = 1.0,
        objective: str | dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_pooling(pooling, hidden_layers)
        self.problem_type = problem_type
        self.num_outputs = num_outputs
        self.threshold = threshold
        self.pooling = pooling
        self.hidden_layers = hidden_layers
        self.dropout = dropout
        self.temperature = temperature
        self.objective = plain_objective(objective)
        self.check_settings()

    @property
    def auto_class(self) -> str | None:
        """The task in transformers, where the scores are native."""
        return "AutoModelForImageClassification" if self.pooling == NATIVE else None
