"""Loads an export as its users will: a script for a fresh process, in which headset cannot be imported.

It is given a job as JSON: the ``folder``, the ``library``, ``class`` and ``arguments`` that load it, a file of
``inputs`` (tensors by ``"<batch>.<name>"``) or ``texts`` (a list a batch) to answer, a file for the ``answers``, and
the names of packages that must not be found, ``blocked``.
"""

import importlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Batches = list[dict[str, Any]]


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


def transformers(job: Mapping[str, Any], batches: Batches) -> Batches:
    """Logits of an Auto class; vectors where it has none."""
    import torch
    import transformers as library

    load = getattr(library, job["class"]).from_pretrained
    model, info = load(job["folder"], trust_remote_code=True, output_loading_info=True)
    for what, keys in info.items():
        if keys:
            raise RuntimeError(f"{what}: {sorted(map(str, keys))}")
    with torch.inference_mode():
        outputs = [model.eval()(**batch) for batch in batches]
    answers = [_logits(output) or {"logits": output.pooler_output} for output in outputs]
    whole = {"memory_format": torch.contiguous_format}
    return [{name: value.clone(**whole) for name, value in answer.items()} for answer in answers]


def sentence_transformers(job: Mapping[str, Any], batches: Batches) -> Batches:
    """Vectors of a SentenceTransformer, or scores of a CrossEncoder."""
    import sentence_transformers as library

    model = getattr(library, job["class"])(job["folder"], device="cpu")
    if job["class"] == "SentenceTransformer":
        return [{"logits": model.encode(texts, convert_to_tensor=True)} for texts in job["texts"]]
    scores = [model.predict(pairs, convert_to_tensor=True).unsqueeze(-1) for pairs in job["texts"]]
    if type(model.activation_fn).__name__ == "Sigmoid":
        scores = [score.logit() for score in scores]
    return [{"logits": score} for score in scores]


def onnx(job: Mapping[str, Any], batches: Batches) -> Batches:
    """Logits, or vectors, of ONNX Runtime, which needs no torch."""
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(f"{job['folder']}/model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = [dict(zip(names, session.run(None, batch), strict=True)) for batch in batches]
    return [_logits(output) or {"logits": output["sentence_embedding"]} for output in outputs]


def peft(job: Mapping[str, Any], batches: Batches) -> Batches:
    """Logits of the base model with the adapter put on it by peft, which transformers alone has to give too."""
    import warnings

    import peft as library
    import torch
    import transformers

    warnings.filterwarnings("error", message=".*adapter keys")
    load, arguments = getattr(transformers, job["class"]).from_pretrained, job["arguments"]
    adapter = library.PeftConfig.from_pretrained(job["folder"])
    base = load(adapter.base_model_name_or_path, revision=adapter.revision, **arguments)
    model = library.PeftModel.from_pretrained(base, job["folder"]).eval()
    alone = load(job["folder"], **arguments).eval()
    for layer in [*model.modules(), *alone.modules()]:
        if hasattr(layer, "support_avx512bf16_for_cpu"):  # of bitsandbytes: as in backbones/quantization.py
            layer.support_avx512bf16_for_cpu = False
    answers = []
    with torch.inference_mode():
        for batch in batches:
            answers.append(_logits(model(**batch)))
            for key, value in _logits(alone(**batch)).items():
                difference = (value - answers[-1][key]).abs().max()
                if difference > (1e-3 if job["exact"] else 0.05) * answers[-1][key].abs().max():
                    raise RuntimeError(f"transformers alone gives other {key}: they differ by {difference:.2g}")
    return [{key: value.contiguous() for key, value in answer.items()} for answer in answers]


READERS = {
    "transformers": transformers,
    "sentence-transformers": sentence_transformers,
    "peft": peft,
    "onnx": onnx,
}


def main(argument: str) -> None:
    """Load the export, and write what it gives for the inputs."""
    job = json.loads(argument)
    sys.meta_path.insert(0, Blocker(job["blocked"]))
    if job["library"] != "peft":  # where the head is not in the base model, but beside it
        logging.getLogger("transformers").addHandler(Strict())
    tensors = importlib.import_module("safetensors.numpy" if job["library"] == "onnx" else "safetensors.torch")
    batches: dict[str, dict[str, Any]] = {}
    for key, value in sorted(tensors.load_file(job["inputs"]).items()):
        index, _, name = key.partition(".")
        batches.setdefault(index, {})[name] = value
    answers = READERS[job["library"]](job, list(batches.values()))
    named = {f"{index}.{name}": value for index, answer in enumerate(answers) for name, value in answer.items()}
    tensors.save_file(named, job["answers"])


def _logits(output: Mapping[str, Any]) -> dict[str, Any]:
    return {name: output[name] for name in ("logits", "start_logits", "end_logits") if name in output}


if __name__ == "__main__":
    main(*sys.argv[1:])
