"""One answer an image: a class, several classes, or numbers."""

from heads.base import HeadContext
from heads.classification import SINGLE, Classification

__all__ = ["ImageClassification"]


class ImageClassification(Classification):
    """Images to a class, to several classes, or to numbers.

    The scores come from the very modules that ``AutoModelForImageClassification`` has for the architecture, so that
    what is trained is a stock transformers model.

    Args:
        problem_type: As in transformers: ``single_label_classification`` (cross entropy),
            ``multi_label_classification`` (binary cross entropy per label), or ``regression`` (mean squared error).
        num_outputs: How many numbers an image has, in regression.
        threshold: The probability from which a label counts as given, in multi-label classification.

    Raises:
        HeadsetError: The problem type is none of these.

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

    def __init__(self, problem_type: str = SINGLE, num_outputs: int = 1, threshold: float = 0.5) -> None:
        super().__init__()
        self.problem_type = problem_type
        self.check_problem_type()
        self.num_outputs = num_outputs
        self.threshold = threshold

    @property
    def auto_class(self) -> str:
        """The task in transformers."""
        return "AutoModelForImageClassification"

    def build(self, context: HeadContext) -> None:
        """Make the scorer."""
        self.scorer = self.native_model(context)
