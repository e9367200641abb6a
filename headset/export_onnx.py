"""The format ``onnx``: a head with its backbone as a graph for ONNX Runtime, for any batch size and length."""

import contextlib
import copy
import importlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PretrainedConfig

from backbones.calls import model_inputs
from backbones.errors import HeadsetError
from heads.native import NativeModel
from heads.targets import PairTarget
from heads.task_models import label_settings
from headset.export_transformers import hub_task
from headset.model import Headset
from headset.prediction import sample
from headset.verify import Loader

__all__ = ["check", "write"]

PACKAGES = {
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
    "transformers.exporters.metadata": "transformers>=5.23",
}
OUTPUTS = ("logits", "start_logits", "end_logits")
# What the axes of a model's inputs are, by what the head reads; where one is fixed it has a number and no name.
AXES = {
    "choices": ("batch_size", "num_choices", "sequence_length"),
    "image": ("batch_size", "num_channels", "height", "width"),
}
TEXT_AXES = ("batch_size", "sequence_length", "num_features")
FILE_LIMIT = 2**31 - 2**20  # of protobuf, with room for the graph
USAGE = """\
import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

session = InferenceSession("path/to/{name}/model.onnx")
text = Tokenizer.from_file("path/to/{name}/tokenizer.json").encode("A text.")
inputs = {{"input_ids": text.ids, "attention_mask": text.attention_mask, "token_type_ids": text.type_ids}}
inputs = {{one.name: np.array([inputs[one.name]]) for one in session.get_inputs()}}
answers = session.run(None, inputs)"""
OTHER_USAGE = """\
from onnxruntime import InferenceSession
from transformers import {processor}

session = InferenceSession("path/to/{name}/model.onnx")
processor = {processor}.from_pretrained("path/to/{name}")
answers = session.run(None, dict(processor(..., return_tensors="np")))  # inputs: {inputs}"""


Answer = Callable[[dict[str, Any]], dict[str, Any]]


class _Traced(nn.Module):
    """What is traced: inputs by name in, outputs by name out."""

    def __init__(self, model: nn.Module, config: PretrainedConfig, answer: Answer) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.answer = answer

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return self.answer(inputs)


def check(headset: Headset, name: str) -> None:
    """Check that all is installed that this needs.

    Raises:
        HeadsetError: Something is missing, or the head's answer is no graph.
    """
    kind = type(headset.head(name))
    if kind.decodes:
        raise HeadsetError(
            f"The head '{name}' ({kind.__name__}) makes its answer of all scores together, step by step, which is no "
            "graph. Export it with its code: --format custom"
        )
    missing = [requirement for module, requirement in PACKAGES.items() if not _is_there(module)]
    if missing:
        raise HeadsetError(f"This format needs {', '.join(missing)}: pip install 'headset[onnx]'")


def write(headset: Headset, name: str, folder: Path) -> Loader:
    """Write the graph, its configuration with the labels, and the tokenizer or what else makes inputs.

    Raises:
        HeadsetError: The graph cannot be made of this architecture.
    """
    head = headset.head(name)
    batch = model_inputs(sample(headset, name))
    traced = _other(headset, name) if head.auto_class is None else _native(headset, name)
    try:
        with _quiet():
            program = _program(traced.eval(), batch)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next(iter(str(cause).splitlines()), "")[:300]
        raise HeadsetError(
            f"The head '{name}' cannot be exported to ONNX: torch.onnx does not export this {type(head).__name__} on "
            f"{headset.backbone.spec.model_type} ({type(cause).__name__}: {reason})."
        ) from error
    _name_axes(program.graph, AXES.get(head.reads, TEXT_AXES))
    _save(program, folder / "model.onnx")
    traced.config.save_pretrained(folder)
    assert headset.processor is not None
    headset.processor.save_pretrained(folder)
    if head.reads in ("text", "pair") and (folder / "tokenizer.json").is_file():
        usage = USAGE.format(name=name)
    else:
        kind = {"image": "AutoImageProcessor", "audio": "AutoFeatureExtractor"}.get(head.reads, "AutoTokenizer")
        usage = OTHER_USAGE.format(name=name, processor=kind, inputs=", ".join(batch))
    return Loader(
        "onnx", "InferenceSession", hub_task(head), usage, refused=frozenset({"torch", "transformers", "onnx"})
    )


def _native(headset: Headset, name: str) -> _Traced:
    """The stock task model, loaded as its users would, in float32."""
    scorer = headset.head(name).scorer
    assert isinstance(scorer, NativeModel)
    with tempfile.TemporaryDirectory() as folder:
        scorer.whole(headset.backbone).save_pretrained(folder)
        model = type(scorer.task).from_pretrained(folder, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # the file goes

    def answer(inputs: dict[str, Any]) -> dict[str, Any]:
        output = model(**inputs)
        return {key: output[key] for key in OUTPUTS if key in output}

    return _Traced(model, model.config, answer)


def _other(headset: Headset, name: str) -> _Traced:
    """The backbone and a head with a scorer of ours, in float32."""
    if headset.backbone.spec.dtype != torch.float32:
        headset = copy.deepcopy(headset).float()
    head = headset.head(name)
    config = copy.deepcopy(headset.backbone.config)
    config.architectures = None
    config.update({"dtype": "float32"})
    if head.labels is not None:
        config.update(label_settings(head.labels, len(head.labels)))
    key = "sentence_embedding" if isinstance(head.target(), PairTarget) else "logits"
    return _Traced(headset, config, lambda inputs: {key: headset(inputs, [name])[name].logits})


def _program(traced: _Traced, batch: dict[str, Any]) -> Any:
    """The graph as onnx_ir has it: torch.onnx, with the corrections for architectures that transformers has for it."""
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    shapes = {key: dict.fromkeys(range(value.dim()), Dim.AUTO) for key, value in batch.items()}
    config = OnnxConfig(dynamic=True, dynamic_shapes=shapes)
    exporter: Any = OnnxExporter()
    return exporter.export(traced, batch, config=config).program


def _is_there(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _name_axes(graph: Any, names: tuple[str, ...]) -> None:
    """Give the symbols of axes the names that exports of transformers models have for them."""
    symbols: dict[str, str] = {}
    for value in graph.inputs:
        for size, name in zip(value.shape, names, strict=False):
            if not isinstance(size, int):
                symbols.setdefault(str(size), name)
    for value in [*graph.inputs, *graph.outputs, *(output for node in graph for output in node.outputs)]:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                value.shape[axis] = re.sub(r"\w+", lambda found: symbols.get(found[0], found[0]), str(size))


def _save(program: Any, path: Path) -> None:
    """One file; the weights beside it where they are more than such a file can hold."""
    import onnx_ir

    size = sum(value.const_value.nbytes for value in program.graph.initializers.values())
    onnx_ir.save(program, path, external_data=f"{path.name}_data" if size > FILE_LIMIT else None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters print and log of their own workings."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
