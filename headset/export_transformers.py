"""The format ``transformers``: a native head with its backbone, as the stock task model of its architecture."""

from pathlib import Path

from backbones.errors import HeadsetError
from heads.base import Head
from heads.native import NativeModel
from heads.targets import PairTarget
from headset.document_encoder import DocumentEncoder
from headset.model import Headset
from headset.prediction import encoder_for
from headset.verify import Loader

__all__ = ["TASKS", "check", "hub_task", "usage", "windows_usage", "write"]

# What the hub calls the tasks of transformers.
TASKS = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMultipleChoice": "multiple-choice",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForAudioClassification": "audio-classification",
}
# Examples for the model card.
INPUTS = {"fill-mask": "A {mask}.", "image-classification": "image.png", "audio-classification": "sound.wav"}
PIPELINE = """from transformers import pipeline

answer = pipeline("{task}", "path/to/{name}")("{text}")"""
PAIR = '{"text": "A query.", "text_pair": "A document."}'
# transformers has no pipeline for these tasks.
CHOICES = """import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/{name}")
model = AutoModelForMultipleChoice.from_pretrained("path/to/{name}")
text, choices = "{text}", ["A choice.", "Another one."]
inputs = tokenizer([text] * len(choices), choices, padding=True, return_tensors="pt")
with torch.inference_mode():
    scores = model(**{{key: value.unsqueeze(0) for key, value in inputs.items()}}).logits
print(choices[scores.argmax()])"""
QUESTION = """import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/{name}")
model = AutoModelForQuestionAnswering.from_pretrained("path/to/{name}")
inputs = tokenizer("Who lives in Oslo?", "Ann lives in Oslo.", return_tensors="pt")
with torch.inference_mode():
    output = model(**inputs)
start, end = output.start_logits.argmax(), output.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))"""
WINDOWS = """

# A text that is longer goes in as windows.
from transformers import {auto_class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/{name}")
model = {auto_class}.from_pretrained("path/to/{name}")
cut = {{"truncation": True, "max_length": {length}, "stride": {stride}, "return_overflowing_tokens": True}}
windows = tokenizer("A long text.", padding=True, return_tensors="pt", **cut)
"""
BY_HAND = """del windows["overflow_to_sample_mapping"]
scores = model(**windows).logits.{pool}(0)"""
USAGES = {"multiple-choice": CHOICES, "question-answering": QUESTION}


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
    model = head.scorer.whole(headset.backbone)
    model.config.update(head.export_settings())
    model.save_pretrained(folder)
    headset.processor.save_pretrained(folder)
    task = hub_task(head)
    how = usage(headset, name, task)
    if head.reads == "document":
        pool = {"mean": "mean", "max": "amax"}[head.windows]  # type: ignore[index]
        how += windows_usage(headset, name, head.auto_class) + BY_HAND.format(pool=pool)
    return Loader("transformers", head.auto_class, task, how)


def usage(headset: Headset, name: str, task: str) -> str:
    """How a model is used, for its card: by a pipeline, where transformers has one for the task."""
    text = INPUTS.get(task, "A text.").format(mask=getattr(headset.tokenizer, "mask_token", ""))
    told = USAGES.get(task, PIPELINE).format(task=task, name=name, text=text)
    return told.replace(f'"{text}"', PAIR) if headset.head(name).reads == "candidates" else told


def windows_usage(headset: Headset, name: str, auto_class: str) -> str:
    """How windows of a long text are made, where a head pools over them."""
    encoder = encoder_for(headset, name)
    assert isinstance(encoder, DocumentEncoder)
    return WINDOWS.format(name=name, auto_class=auto_class, length=encoder.length, stride=encoder.overlap)


def hub_task(head: Head) -> str:
    """What the hub calls the task of a built-in head, native or not, or of a head of one's own."""
    task = TASKS.get(head.auto_class or f"AutoModelFor{type(head).__name__}")
    return task or ("sentence-similarity" if isinstance(head.target(), PairTarget) else "feature-extraction")
