"""The format ``sentence-transformers``: a `Pooling` head with its backbone, as a SentenceTransformer."""

import shutil
from pathlib import Path

import torch

from backbones.errors import HeadsetError
from heads.base import Head
from heads.pooling import Pooling
from headset.model import Headset
from headset.text_encoder import TextEncoder
from headset.verify import Loader

__all__ = ["check", "is_plain_pooling", "write"]


def check(headset: Headset, name: str) -> None:
    """Check that the library has all that the head does.

    Raises:
        HeadsetError: It lacks something, or the head gives no vectors.
    """
    head = headset.head(name)
    if not isinstance(head, Pooling):
        raise HeadsetError(
            f"The head '{name}' ({type(head).__name__}) gives no vectors; sentence-transformers takes Pooling heads."
        )
    if not is_plain_pooling(head):
        raise HeadsetError(
            f"The head '{name}' has hidden_layers: {head.hidden_layers} and pooling: {head.pooling}; "
            "sentence-transformers has hidden_layers: last and the poolings cls, mean, max and last. "
            "This one goes out with its code: --format custom."
        )


def is_plain_pooling(head: Head) -> bool:
    """Whether sentence-transformers has all that the head does."""
    return isinstance(head, Pooling) and head.hidden_layers == "last" and "attention" not in head.pooler.modes


def write(headset: Headset, name: str, folder: Path) -> Loader:
    """Write the backbone, the pooling, the projection and the scaling as modules of sentence-transformers.

    Raises:
        HeadsetError: sentence-transformers is not installed, or reads another part of the backbone.
    """
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling
    except ImportError as error:
        raise HeadsetError(
            "This format is written by sentence-transformers: pip install 'headset[sentence-transformers]'"
        ) from error
    head = headset.head(name)
    assert isinstance(head, Pooling) and headset.tokenizer is not None
    base = folder / "base"
    headset.backbone.model.save_pretrained(base)
    headset.tokenizer.save_pretrained(base)
    transformer = Transformer(str(base), max_seq_length=TextEncoder(headset.tokenizer).length)
    if transformer.auto_model.config.is_encoder_decoder:
        raise HeadsetError(
            f"The head '{name}' reads the encoder of this architecture, sentence-transformers its decoder. This one "
            "goes out with its code: --format custom."
        )
    modules: list[torch.nn.Module] = [transformer]
    modes = [{"last": "lasttoken"}.get(mode, mode) for mode in head.pooler.modes]
    modules.append(TheirPooling(headset.backbone.spec.hidden_size, pooling_mode=modes))
    if head.dense is not None:
        dense = Dense(head.pooler.width, head.dense.out_features, activation_function=torch.nn.Identity())
        dense.linear.load_state_dict(head.dense.state_dict())
        modules.append(dense)
    if head.normalize:
        modules.append(Normalize())
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder), create_model_card=False)
    shutil.rmtree(base)
    usage = (
        "from sentence_transformers import SentenceTransformer\n\n"
        f'vectors = SentenceTransformer("path/to/{name}").encode(["A text."])'
    )
    return Loader("sentence-transformers", "SentenceTransformer", "sentence-similarity", usage)
