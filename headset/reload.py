"""Loads an export as its users will: a script for a fresh process, in which headset cannot be imported.

It is given a job as JSON: ``folder``, ``loader`` (the `headset.verify.Loader` of the export), ``inputs`` and ``texts``
to answer, a file for the ``answers``, and the names of packages that must not be found, ``blocked``.
"""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Blocker(MetaPathFinder):
    """Packages that cannot be imported.

    Args:
        names: Their top-level names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = set(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Nothing; an error for what is blocked."""
        if fullname.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


class Strict(logging.Handler):
    """Makes an error of what transformers only reports: weights that a file lacks, or has too many."""

    def emit(self, record: logging.LogRecord) -> None:
        """Stop at a report."""
        message = record.getMessage()
        if "LOAD REPORT" in message:
            raise RuntimeError(" ".join(message.split()))


def transformers(job: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Logits of an Auto class."""
    import transformers as library

    kind = getattr(library, job["loader"]["name"])
    model, info = kind.from_pretrained(job["folder"], trust_remote_code=True, output_loading_info=True)
    for what, keys in info.items():
        if keys:
            raise RuntimeError(f"{what}: {sorted(map(str, keys))}")
    return {"logits": _logits(model.eval()(**inputs))}


def sentence_transformers(job: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Vectors."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(job["folder"], device="cpu")
    return {"logits": model.encode(job["texts"], convert_to_tensor=True)}


def peft(job: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Logits of the base model with the adapter put on it by peft, which transformers alone has to give too."""
    import warnings

    import peft as library
    import transformers

    warnings.filterwarnings("error", message=".*adapter keys")
    load, arguments = getattr(transformers, job["loader"]["name"]).from_pretrained, job["loader"]["arguments"]
    adapter = library.PeftConfig.from_pretrained(job["folder"])
    base = load(adapter.base_model_name_or_path, revision=adapter.revision, **arguments)
    model = library.PeftModel.from_pretrained(base, job["folder"]).eval()
    alone = load(job["folder"], **arguments).eval()
    logits, same = _logits(model(**inputs)), _logits(alone(**inputs))
    if (same - logits).abs().max() > 1e-3 * logits.abs().max():
        raise RuntimeError(f"transformers alone gives other logits: they differ by {(same - logits).abs().max():.2g}")
    return {"logits": logits}


def _logits(output: Any) -> Any:
    """Logits; those of starts and ends side by side, and vectors where there are neither."""
    import torch

    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return output.logits if "logits" in output else output.pooler_output


READERS = {"peft": peft, "transformers": transformers, "sentence-transformers": sentence_transformers}


def main(argument: str) -> None:
    """Load the export, and write what it gives for the inputs."""
    job = json.loads(argument)
    sys.meta_path.insert(0, Blocker(job["blocked"]))
    import torch
    from safetensors.torch import load_file, save_file

    if job["loader"]["library"] != "peft":  # where the head is not in the base model, but beside it
        logging.getLogger("transformers").addHandler(Strict())
    with torch.inference_mode():
        answers = READERS[job["loader"]["library"]](job, load_file(job["inputs"]))
    save_file({key: value.contiguous() for key, value in answers.items()}, job["answers"])


if __name__ == "__main__":
    main(*sys.argv[1:])
