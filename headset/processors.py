"""What makes model inputs: tokenizers, image processors, feature extractors; from a folder, or from a checkpoint."""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    BaseImageProcessor,
    FeatureExtractionMixin,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from backbones.errors import HeadsetError
from backbones.loading import load_tokenizer, resolve_path
from heads.base import Head

__all__ = ["Processor", "agree_on_padding", "load_processor", "processor_files", "processor_from_files"]

LONGEST = 200  # characters of the name of a file
Processor = PreTrainedTokenizerBase | BaseImageProcessor | FeatureExtractionMixin
# By what heads read; all else is text.
LOADERS: dict[str, tuple[str, Any]] = {
    "image": ("image processor", AutoImageProcessor),
    "audio": ("feature extractor", AutoFeatureExtractor),
}


def load_processor(path: str, heads: Mapping[str, Head], **kwargs: Any) -> Processor:
    """What makes the inputs of some heads, from the folder or hub id of a model.

    Raises:
        HeadsetError: There is none, or the heads read different things.
    """
    kinds = {head.reads if head.reads in LOADERS else "text": name for name, head in heads.items()}
    if len(kinds) > 1:
        told = ", ".join(f"{name} reads {reads}" for reads, name in kinds.items())
        raise HeadsetError(f"One backbone takes one kind of inputs: {told}. Train these heads in different runs.")
    [reads] = kinds
    if reads not in LOADERS:
        return load_tokenizer(path, **kwargs)
    what, kind = LOADERS[reads]
    try:
        processor: Processor = kind.from_pretrained(resolve_path(path), trust_remote_code=False, **kwargs)
    except Exception as error:  # it is the file that decides what fails
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise HeadsetError(
            f"No {what} could be loaded from {path}: {reason} Say where there is one: --model.processor PATH"
        ) from error
    return processor


def processor_files(processor: Processor) -> dict[str, bytes]:
    """The files that a processor saves itself in, by name."""
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir()) if file.is_file()}


def processor_from_files(files: Mapping[str, bytes], heads: Mapping[str, Head]) -> Processor:
    """The processor that `processor_files` took apart.

    Raises:
        HeadsetError: A name is not that of a file in one folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            if not name or len(name) > LONGEST or {*name} & {"/", "\\", "\0"} or name in (".", ".."):
                raise HeadsetError(f"The checkpoint names a file {name!r}, which is not a plain file name.")
            (Path(folder) / name).write_bytes(content)
        return load_processor(folder, heads)


def agree_on_padding(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, heads: Mapping[str, Head]) -> None:
    """Native heads of decoders look for the last token that is not padding, by the id in the configuration."""
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    by_id = [name for name, head in heads.items() if head.auto_class == "AutoModelForSequenceClassification"]
    if by_id and tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        warnings.warn(
            f"The padding token is the end-of-text token ({tokenizer.pad_token}). On a decoder, native scores are read "
            "at the last token that is not it, as stock transformers does, so such a token in a text is skipped. "
            f"With pooling: last, the head {by_id[0]} goes by the attention mask.",
            stacklevel=3,
        )
