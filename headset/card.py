"""The model card of an export: what it is, and how it is loaded."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from headset.model import Headset

__all__ = ["write_card"]

TASKS = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}


def write_card(headset: Headset, name: str, format: str, folder: Path) -> None:
    """Write ``README.md`` with the hub's metadata into the folder of an export."""
    head = headset.head(name)
    task = TASKS.get(head.auto_class or "", "sentence-similarity")
    data = ModelCardData(library_name=format, pipeline_tag=task, tags=["headset", type(head).__name__])
    labels = ", ".join(f"`{label}`" for label in head.labels or ()) or "none"
    if format == "transformers":
        code = f'from transformers import pipeline\n\nanswer = pipeline("{task}", "path/to/{name}")("A text.")'
    else:
        code = (
            "from sentence_transformers import SentenceTransformer\n\n"
            f'vectors = SentenceTransformer("path/to/{name}").encode(["A text."])'
        )
    content = (
        f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n"
        f"The head `{name}` ({type(head).__name__}) on a {headset.backbone.spec.model_type} backbone, made with "
        f"headset.\n\n"
        f"Labels: {labels}\n\n```python\n{code}\n```\n"
    )
    ModelCard(content, ignore_metadata_errors=True).save(folder / "README.md")
