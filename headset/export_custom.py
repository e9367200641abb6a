"""The format ``custom``: any other head with its backbone and its code, for transformers with trust_remote_code."""

import json
from pathlib import Path

from headset.custom import check_custom, write_custom
from headset.export_transformers import hub_task
from headset.model import Headset
from headset.verify import Loader, answer

__all__ = ["check", "write"]


def check(headset: Headset, name: str) -> None:
    """Check what can be checked before anything is written.

    Raises:
        HeadsetError: The head needs no code of its own, or it cannot be carried along.
    """
    check_custom(name, headset.head(name))


def write(headset: Headset, name: str, folder: Path) -> Loader:
    """Write configuration, code, weights and tokenizer."""
    write_custom(headset, name, folder, answer(headset, name, headset.sample(name))["logits"])
    config = json.loads((folder / "config.json").read_text())
    auto_class = list(config["auto_map"])[-1]
    needs = f"# pip install {' '.join(config['head_distributions'])}\n" if config["head_distributions"] else ""
    output = "pooler_output" if config["head_task"] == "vector" else "logits"
    usage = (
        f"{needs}from transformers import {auto_class}, AutoTokenizer\n\n"
        f"# trust_remote_code runs {config['auto_map']['AutoModel'].split('.')[0]}.py of that folder: read it first\n"
        f'model = {auto_class}.from_pretrained("path/to/{name}", trust_remote_code=True)\n'
        f'tokenizer = AutoTokenizer.from_pretrained("path/to/{name}")\n'
        f'print(model(**tokenizer("A text.", return_tensors="pt")).{output})'
    )
    task = hub_task(headset.head(name))
    return Loader("transformers", auto_class, task, usage, needs=frozenset(config["head_packages"]))
