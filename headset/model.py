"""A headset: heads on one backbone, as a plain module that needs no Trainer."""

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from backbones.backbone import Backbone
from backbones.calls import merge_calls
from backbones.errors import HeadsetError, invalid_choice
from backbones.loading import limit_length
from heads.base import Head, HeadContext, HeadOutput
from heads.targets import TagTarget
from headset.batches import TextEncoder

__all__ = ["Headset", "Text", "check_name", "evaluating", "make_batch"]

Labels = Mapping[str, Sequence[str] | None]
# What a row of `predict` may be: a text, a pair of texts, or a text split into words.
Text = str | tuple[str, str] | list[str]


class Headset(nn.Module):
    """Any number of heads on one backbone; heads that ask the backbone for the same share one pass.

    Args:
        backbone: The backbone.
        heads: The heads by name; they are built here.
        labels: The label set of each head that has one, in the order of its outputs.
        tokenizer: Needed for `predict`, and kept in everything that is saved.

    Raises:
        HeadsetError: A name is taken or unknown, or a head does not fit the backbone.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from heads import SequenceClassification
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        >>> labels = {"topic": ["sport", "politics"]}
        >>> headset = Headset(Backbone(BertModel(config)), {"topic": SequenceClassification()}, labels=labels)
        >>> headset({"input_ids": torch.tensor([[2, 7, 3]])})["topic"].logits.shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Mapping[str, Head],
        labels: Labels | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        labels = labels or {}
        for name in labels:
            if name not in heads:
                raise invalid_choice("head in labels", name, heads)
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.heads = nn.ModuleDict()
        # Of each head: "new" (random weights), "loaded" (from a checkpoint of others), or "trained" (here).
        self.states: dict[str, str] = {}
        if tokenizer is not None:
            limit_length(tokenizer, backbone.config)
            _agree_on_padding(backbone.config.get_text_config(), tokenizer, heads)
        for name, head in heads.items():
            check_name(name)
            names = labels.get(name)
            head.attach(HeadContext(backbone, None if names is None else tuple(map(str, names))))
            self.heads[name] = head
            self.states[name] = "new"

    @property
    def labels(self) -> dict[str, tuple[str, ...] | None]:
        """The label set of each head."""
        return {name: self.head(name).labels for name in self.heads}

    def head(self, name: str) -> Head:
        """A head by its name.

        Raises:
            HeadsetError: There is no such head.
        """
        if name not in self.heads:
            raise invalid_choice("head", name, self.heads)
        head = self.heads[name]
        assert isinstance(head, Head)
        return head

    def forward(self, batch: Mapping[str, Any], heads: Sequence[str] | None = None) -> dict[str, HeadOutput]:
        """The answers of the heads.

        Args:
            batch: The model inputs, ``input_ids`` ``(B, T)`` and so on; ``labels`` and ``meta`` are not for the model.
            heads: The heads to run; all, if not given.

        Returns:
            The output of each head.
        """
        chosen = {name: self.head(name) for name in (self.heads if heads is None else heads)}
        requests = {name: head.request(batch) for name, head in chosen.items()}
        features: dict[str, Any] = dict.fromkeys(chosen)
        for call, names in merge_calls({name: call for name, call in requests.items() if call is not None}):
            features |= dict.fromkeys(names, self.backbone.run(call))
        if self.training and torch.is_grad_enabled():
            self.states |= dict.fromkeys(chosen, "trained")
        return {name: head(features[name], batch) for name, head in chosen.items()}

    def freeze_unused(self) -> None:
        """Freeze what no head needs of the backbone, such as a pooler: DistributedDataParallel fails on it."""
        unused = [head.unused(self.backbone) for head in map(self.head, self.heads)]
        for name in set.intersection(*unused):
            self.backbone.model.get_parameter(name).requires_grad_(False)

    def losses(self, outputs: Mapping[str, HeadOutput], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The loss of each head, from its output and ``batch["labels"][name]``, None where it learns without labels."""
        labels = batch.get("labels", {})
        return {name: self.head(name).loss(output, labels.get(name)) for name, output in outputs.items()}

    def check_trained(self, heads: Sequence[str] | None = None) -> None:
        """Refuse heads whose weights are as random as they started.

        Raises:
            HeadsetError: A head is new.
        """
        for name in self.heads if heads is None else heads:
            if self.states[name] == "new" and any(True for _ in self.head(name).parameters()):
                raise HeadsetError(
                    f"The head '{name}' is newly initialised: its answers would be random. Train it first, or say that "
                    "this is what you want: allow_untrained=True (on the command line: --allow_untrained true)."
                )

    def predict(
        self,
        texts: Sequence[Text],
        heads: Sequence[str] | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        allow_untrained: bool = False,
    ) -> dict[str, list[dict[str, Any]]]:
        """Answers for texts, in their order.

        Args:
            texts: Texts, or pairs of texts (tuples), or texts split into words (lists).
            heads: The heads to run; all, if not given.
            batch_size: How many texts to run at once.
            max_length: The number of tokens that a text is cut at; by default what the tokenizer says.
            allow_untrained: Also run heads with random weights.

        Returns:
            For each head one dictionary a text.

        Raises:
            HeadsetError: There is no tokenizer, or a head is untrained.
        """
        if self.tokenizer is None:
            raise HeadsetError("predict needs a tokenizer: Headset(..., tokenizer=AutoTokenizer.from_pretrained(...)).")
        names = list(self.heads if heads is None else heads)
        _check_texts(texts)
        if not allow_untrained:
            self.check_trained(names)
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        device = next(self.parameters()).device
        with evaluating(self), torch.inference_mode():
            for group in self._alike(names):
                first = self.head(group[0])
                encoder = TextEncoder(self.tokenizer, max_length, separate=first.texts == "separate")
                rows = [_words(text) for text in texts] if _by_word(first) else texts
                for start in range(0, len(texts), batch_size):
                    batch = make_batch(encoder, rows[start : start + batch_size], device)
                    for name, output in self(batch, group).items():
                        answers[name] += self.head(name).predict(output)
        return answers

    def _alike(self, names: Sequence[str]) -> list[list[str]]:
        """The heads in groups that read texts in the same way: in pairs or each for itself, and by words or not."""
        groups: dict[tuple[str, bool], list[str]] = {}
        for name in names:
            head = self.head(name)
            groups.setdefault((head.texts, _by_word(head)), []).append(name)
        return list(groups.values())

    def save_pretrained(self, folder: str) -> None:
        """Write the whole headset: backbone, heads, labels and tokenizer, as safetensors and JSON."""
        from headset.folder import save_folder

        save_folder(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str, trust_heads: bool = False) -> "Headset":
        """Load what `save_pretrained` wrote, in eval mode.

        Args:
            folder: The folder.
            trust_heads: Import head classes that the folder names and that are neither built in nor imported yet.
        """
        from headset.folder import load_folder

        return load_folder(folder, trust_heads)

    @classmethod
    def from_checkpoint(cls, path: str, trust_heads: bool = False) -> "Headset":
        """Load the headset inside a Lightning checkpoint, in eval mode.

        Args:
            path: The checkpoint.
            trust_heads: Import head classes that the file names and that are neither built in nor imported yet.
        """
        from headset.checkpoint import load_checkpoint

        return load_checkpoint(path, trust_heads)

    @classmethod
    def from_transformers(
        cls, source: str | PreTrainedModel, head: str = "head", tokenizer: PreTrainedTokenizerBase | None = None
    ) -> "Headset":
        """Take a fine-tuned task model of transformers apart into a backbone and a head, in eval mode.

        Args:
            source: A folder, a hub id, or the model itself, whose base is then shared and not copied.
            head: What the head is called.
            tokenizer: The tokenizer; by default the one beside the model, if the source is a path.
        """
        from headset.stored import import_task_model

        return import_task_model(source, head, tokenizer)

    def export(self, folder: str, **kwargs: Any) -> dict[str, str]:
        """Export each head to a folder that other libraries load; the arguments are those of `export_headset`.

        Returns:
            The folder of each head.
        """
        from headset.export import export_headset

        return export_headset(self, folder, **kwargs)


def check_name(name: str) -> None:
    """Check the name of a head, which becomes the name of a module, of a metric and of a folder.

    Raises:
        HeadsetError: It has other characters than letters, digits, _ and -, or a module has an attribute of that name.
    """
    if not re.fullmatch(r"[\w-]+", name) or hasattr(nn.ModuleDict(), name) or name == "row":
        raise HeadsetError(
            f"A head cannot be named {name!r}: a name has letters, digits, _ and -, and is none that torch uses, nor "
            "'row', which numbers the rows of predictions."
        )


def make_batch(encoder: TextEncoder, texts: Sequence[Text], device: torch.device | str = "cpu") -> dict[str, Any]:
    """A batch of texts, pairs of texts (tuples), or texts split into words (lists)."""
    columns = list(zip(*texts, strict=True)) if isinstance(texts[0], tuple) else [texts]
    encoded = encoder.encode(columns)
    rows = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    batch = encoder.collate(rows)
    return {key: _moved(value, device) for key, value in batch.items()}


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while; then each sub-module is in the mode that it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _check_texts(texts: Sequence[Text]) -> None:
    if isinstance(texts, str):
        raise HeadsetError(
            f"predict takes a list of texts, got one text. Give it in a list: predict([{texts[:40]!r}])."
        )
    kinds = {type(text) for text in texts}
    lengths = {len(text) for text in texts if isinstance(text, tuple)}
    if len(kinds) > 1 or not kinds <= {str, tuple, list} or not lengths <= {2}:
        raise HeadsetError(
            "predict takes texts (strings), or pairs of texts (tuples of two), or texts split into words (lists), all "
            f"of one kind; got {', '.join(sorted(kind.__name__ for kind in kinds))}."
        )


def _by_word(head: Head) -> bool:
    return isinstance(head.target(), TagTarget)


def _words(text: Text) -> Text:
    return text.split() if isinstance(text, str) else text


def _agree_on_padding(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, heads: Mapping[str, Head]) -> None:
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
