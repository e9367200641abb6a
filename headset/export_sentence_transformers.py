"""The format ``sentence-transformers``: vectors as a SentenceTransformer, one score a pair as a CrossEncoder."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones.errors import HeadsetError
from heads.base import Head
from heads.classification import REGRESSION
from heads.native import NativeModel
from heads.pooling import Pooling
from heads.reranking import Reranking
from heads.sequence_classification import SequenceClassification
from headset.model import Headset
from headset.prediction import encoder_for
from headset.verify import Loader

__all__ = ["check", "is_plain_pooling", "write"]


def check(headset: Headset, name: str) -> None:
    """Check that the library has all that the head does.

    Raises:
        HeadsetError: It lacks something, or the head gives neither vectors nor one score.
    """
    head = headset.head(name)
    if isinstance(head, Pooling):
        if not is_plain_pooling(head):
            raise HeadsetError(
                f"The head '{name}' has hidden_layers: {head.hidden_layers} and pooling: {head.pooling}, "
                f"windows: {head.windows}; sentence-transformers has hidden_layers: last, the poolings cls, mean, max "
                "and last, and no windows. "
                "This one goes out with its code: --format custom."
            )
        return
    scorer = head.scorer if isinstance(head, SequenceClassification | Reranking) else None
    if not isinstance(scorer, NativeModel) or scorer.config.num_labels != 1:
        raise HeadsetError(
            f"The head '{name}' ({type(head).__name__}) gives neither vectors, for a SentenceTransformer, nor one "
            "native score, for a CrossEncoder. sentence-transformers takes Pooling; Reranking with pooling: native; "
            "and SequenceClassification with problem_type: regression, pooling: native and num_outputs: 1."
        )


def is_plain_pooling(head: Head) -> bool:
    """Whether sentence-transformers has all that a head for vectors does."""
    if not isinstance(head, Pooling) or head.windows is not None:
        return False
    return head.hidden_layers == "last" and "attention" not in head.pooler.modes


def write(headset: Headset, name: str, folder: Path) -> Loader:
    """Write a SentenceTransformer or a CrossEncoder.

    Raises:
        HeadsetError: sentence-transformers is not installed, or reads another part of the backbone.
    """
    try:
        import sentence_transformers
    except ImportError as error:
        raise HeadsetError(
            "This format is written by sentence-transformers: pip install 'headset[sentence-transformers]'"
        ) from error
    head, base = headset.head(name), folder / "base"
    length = encoder_for(headset, name).length
    assert headset.tokenizer is not None
    headset.tokenizer.save_pretrained(base)
    if isinstance(head, Pooling):
        headset.backbone.model.save_pretrained(base)
        modules = _modules(headset, name, str(base), length)
        model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
        task, call, pairs = "sentence-similarity", 'encode(["A text."])', False
    else:
        assert isinstance(head, SequenceClassification | Reranking) and isinstance(head.scorer, NativeModel)
        head.scorer.whole(headset.backbone).save_pretrained(base)
        # A CrossEncoder puts a sigmoid on a lone score, unless its folder says otherwise.
        activation = nn.Identity() if getattr(head, "problem_type", None) == REGRESSION else nn.Sigmoid()
        model = sentence_transformers.CrossEncoder(str(base), device="cpu", max_length=length, activation_fn=activation)
        task, call, pairs = "text-ranking", 'predict([("A query.", "A text.")])', True
    model.save_pretrained(str(folder), create_model_card=False)
    shutil.rmtree(base)
    kind = type(model).__name__
    usage = f'from sentence_transformers import {kind}\n\nanswers = {kind}("path/to/{name}").{call}'
    return Loader("sentence-transformers", kind, task, usage, pairs=pairs)


def _modules(headset: Headset, name: str, base: str, length: int) -> list[nn.Module]:
    """The backbone, the pooling, the projection and the scaling as modules of sentence-transformers."""
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling

    head = headset.head(name)
    assert isinstance(head, Pooling)
    transformer: Any = Transformer(base, max_seq_length=length)
    if headset.backbone.config.is_encoder_decoder and hasattr(transformer.auto_model, "decoder"):
        raise HeadsetError(
            f"The head '{name}' reads the encoder of this architecture, sentence-transformers its decoder. This one "
            "goes out with its code: --format custom."
        )
    modes = [{"last": "lasttoken"}.get(mode, mode) for mode in head.pooler.modes]
    modules: list[nn.Module] = [transformer, TheirPooling(headset.backbone.spec.hidden_size, pooling_mode=modes)]
    if head.dense is not None:
        dense = Dense(head.pooler.width, head.dense.out_features, activation_function=torch.nn.Identity())
        dense.linear.load_state_dict(head.dense.state_dict())
        modules.append(dense)
    if head.normalize:
        modules.append(Normalize())
    return modules
