"""The format ``transformers``: a native head with its backbone, as the stock task model of its architecture."""

from pathlib import Path

from backbones.errors import HeadsetError
from heads.native import NativeModel
from headset.model import Headset
from headset.verify import Loader

__all__ = ["TASKS", "check", "write"]

# What the hub calls the tasks of transformers.
TASKS = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForAudioClassification": "audio-classification",
}
INPUTS = {"image": "image.png", "audio": "sound.wav"}  # of the example in the model card


def check(headset: Headset, name: str) -> None:
    """Check that the head is native.

    Raises:
        HeadsetError: No stock class scores as it does.
    """
    head = headset.head(name)
    if head.auto_class is None:
        raise HeadsetError(
            f"The head '{name}' ({type(head).__name__}) does not score with modules of transformers, so no stock class "
            "could load it. A native head can be exported so: pooling: native, or native: true. This one goes out with "
            "its code: --format custom."
        )


def write(headset: Headset, name: str, folder: Path) -> Loader:
    """Write model and tokenizer."""
    head = headset.head(name)
    assert isinstance(head.scorer, NativeModel) and head.auto_class and headset.processor is not None
    head.scorer.whole(headset.backbone).save_pretrained(folder)
    headset.processor.save_pretrained(folder)
    task = TASKS[head.auto_class]
    given = INPUTS.get(head.reads, "A text.")
    usage = f'from transformers import pipeline\n\nanswer = pipeline("{task}", "path/to/{name}")("{given}")'
    return Loader("transformers", head.auto_class, task, usage)
