"""One answer a sound: a class, several classes, or numbers."""

from collections.abc import Mapping
from typing import Any

from transformers.utils.generic import ModelOutput

from backbones.calls import model_inputs
from heads.base import HeadContext, HeadOutput
from heads.classification import SINGLE, Classification

__all__ = ["AudioClassification"]


class AudioClassification(Classification):
    """Sounds to a class, to several classes, or to numbers.

    The scores come from the very modules that ``AutoModelForAudioClassification`` has for the architecture, so that
    what is trained is a stock transformers model.

    Args:
        problem_type: As in transformers: ``single_label_classification`` (cross entropy),
            ``multi_label_classification`` (binary cross entropy per label), or ``regression`` (mean squared error).
        num_outputs: How many numbers a sound has, in regression.
        threshold: The probability from which a label counts as given, in multi-label classification.

    Raises:
        HeadsetError: The problem type is none of these.

    Example:
        >>> from transformers import Wav2Vec2Config, Wav2Vec2Model
        >>> from backbones import Backbone
        >>> from heads import HeadContext
        >>> config = Wav2Vec2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        >>> head = AudioClassification()
        >>> head.attach(HeadContext(Backbone(Wav2Vec2Model(config)), labels=("yes", "no")))
        >>> type(head.scorer.task).__name__
        'Wav2Vec2ForSequenceClassification'
    """

    reads = "audio"

    def __init__(self, problem_type: str = SINGLE, num_outputs: int = 1, threshold: float = 0.5) -> None:
        super().__init__()
        self.problem_type = problem_type
        self.check_problem_type()
        self.num_outputs = num_outputs
        self.threshold = threshold

    @property
    def auto_class(self) -> str:
        """The task in transformers."""
        return "AutoModelForAudioClassification"

    def build(self, context: HeadContext) -> None:
        """Make the scorer."""
        self.scorer = self.native_model(context)

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """Scores ``(B, C)``; with transformers' own loss for one class, the only one that most architectures have."""
        return super().forward(features, batch if self.problem_type == SINGLE else model_inputs(batch))
