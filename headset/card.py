"""The model card of an export: what it is, and how it is loaded."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from headset.model import Headset
from headset.verify import Loader

__all__ = ["write_card"]


def write_card(headset: Headset, name: str, folder: Path, loader: Loader) -> None:
    """Write ``README.md`` with the hub's metadata into the folder of an export."""
    head = headset.head(name)
    custom = any(folder.glob("modeling_*.py"))
    tags = ["headset", type(head).__name__, *(["custom_code"] if custom else [])]
    data = ModelCardData(library_name=loader.library, pipeline_tag=loader.task, tags=tags)
    labels = ", ".join(f"`{label}`" for label in head.labels or ()) or "none"
    content = (
        f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n"
        f"The head `{name}` ({type(head).__name__}) on a {headset.backbone.spec.model_type} backbone, made with "
        f"headset.\n\n"
        f"Labels: {labels}\n\n```python\n{loader.usage}\n```\n"
    )
    ModelCard(content, ignore_metadata_errors=True).save(folder / "README.md")
