"""The model card of an export: what it is, and how it is loaded."""

import json
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
    auto_class = _custom_class(folder) if format == "custom" else head.auto_class
    task = TASKS.get(auto_class or "", "feature-extraction" if format == "custom" else "sentence-similarity")
    tags = ["headset", type(head).__name__, *(["custom_code"] if format == "custom" else [])]
    library = "transformers" if format == "custom" else format
    data = ModelCardData(library_name=library, pipeline_tag=task, tags=tags)
    labels = ", ".join(f"`{label}`" for label in head.labels or ()) or "none"
    if format == "custom":
        code = _custom_code(name, auto_class or "", folder)
    elif format == "transformers":
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


def _custom_class(folder: Path) -> str:
    """The class of transformers that loads a custom export."""
    return str(list(json.loads((folder / "config.json").read_text())["auto_map"])[-1])


def _custom_code(name: str, auto_class: str, folder: Path) -> str:
    """How a custom export is loaded; it runs the file ``modeling_*.py`` in its folder."""
    config = json.loads((folder / "config.json").read_text())
    needs = f"# pip install {' '.join(config['head_distributions'])}\n" if config["head_distributions"] else ""
    answer = "pooler_output" if config["head_task"] == "vector" else "logits"
    return (
        f"{needs}from transformers import {auto_class}, AutoTokenizer\n\n"
        f"# trust_remote_code runs {config['auto_map']['AutoModel'].split('.')[0]}.py of that folder: read it first\n"
        f'model = {auto_class}.from_pretrained("path/to/{name}", trust_remote_code=True)\n'
        f'tokenizer = AutoTokenizer.from_pretrained("path/to/{name}")\n'
        f'print(model(**tokenizer("A text.", return_tensors="pt")).{answer})'
    )
