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
from heads.label_counts import LabelCounts
from headset.batches import in_dtype, make_batch, make_encoder
from headset.checks import needs_words
from headset.encoders import Encoder
from headset.processors import Processor

__all__ = ["Headset", "check_name", "evaluating"]

Labels = Mapping[str, Sequence[str] | None]


class Headset(nn.Module):
    """Any number of heads on one backbone; heads that ask the backbone for the same share one pass.

    Args:
        backbone: The backbone.
        heads: The heads by name; they are built here.
        labels: The label set of each head that has one, in the order of its outputs.
        tokenizer: Makes the inputs of `predict`, and is kept in everything that is saved.
        processor: The same for other inputs than texts: an image processor, or a feature extractor.
        label_counts: How often each label is in the data to learn from, for heads with balanced weights.

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
        processor: Processor | None = None,
        label_counts: Mapping[str, LabelCounts] | None = None,
    ) -> None:
        super().__init__()
        labels, counts = labels or {}, label_counts or {}
        for name in labels:
            if name not in heads:
                raise invalid_choice("head in labels", name, heads)
        self.backbone = backbone
        self.processor = processor or tokenizer
        self.heads = nn.ModuleDict()
        # Of each head: "new" (random weights), "loaded" (from a checkpoint of others), or "trained" (here).
        self.states: dict[str, str] = {}
        # What is known of the run that trained it, for model cards.
        self.run: dict[str, Any] = {}
        if self.tokenizer is not None:
            limit_length(self.tokenizer, backbone.config)
            _agree_on_padding(backbone.config.get_text_config(), self.tokenizer, heads)
        for name, head in heads.items():
            check_name(name)
            names = None if labels.get(name) is None else tuple(map(str, labels[name] or ()))
            head.attach(HeadContext(backbone, names, self.tokenizer, counts.get(name)))
            self.heads[name] = head
            self.states[name] = "new"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The processor, if it is a tokenizer."""
        return self.processor if isinstance(self.processor, PreTrainedTokenizerBase) else None

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
            batch: The model inputs, ``input_ids`` ``(B, T)`` and so on; ``labels`` by head, if known; and ``meta``.
            heads: The heads to run; all, if not given.

        Returns:
            The output of each head.
        """
        labels = batch.get("labels", {})
        names = self.heads if heads is None else heads
        return self.answer({name: {**batch, "labels": labels.get(name)} for name in names})

    def answer(self, batches: Mapping[str, Mapping[str, Any]]) -> dict[str, HeadOutput]:
        """The answers of heads to batches of their own, which share a pass as far as their requests are the same.

        Args:
            batches: The batch of each head to run, as `forward` takes it, but with the labels of this head alone.

        Returns:
            The output of each head.
        """
        chosen = {name: self.head(name) for name in batches}
        dtype = next(weight.dtype for weight in self.backbone.parameters() if weight.is_floating_point())
        batches = in_dtype(batches, dtype)
        requests = {name: head.request(batches[name]) for name, head in chosen.items()}
        features: dict[str, Any] = dict.fromkeys(chosen)
        for call, names in merge_calls({name: call for name, call in requests.items() if call is not None}):
            features |= dict.fromkeys(names, self.backbone.run(call))
        if self.training and torch.is_grad_enabled():
            self.states |= dict.fromkeys(chosen, "trained")
        return {name: head(features[name], batches[name]) for name, head in chosen.items()}

    def freeze_unused(self) -> None:
        """Freeze what no head needs of the backbone, such as a pooler: DistributedDataParallel fails on it."""
        unused = [head.unused(self.backbone) for head in map(self.head, self.heads)]
        for name in set.intersection(*unused):
            self.backbone.model.get_parameter(name).requires_grad_(False)

    def prepare(self, batch: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], dict[str, Any]]:
        """What each head learns from and is measured on: its batch, and its labels; None where it learns without."""
        given = batch.get("labels", {})
        prepared = {name: self.head(name).prepare(batch, given.get(name)) for name in self.heads}
        labels = {name: its for name, (_, its) in prepared.items()}
        return {name: {**its, "labels": labels[name]} for name, (its, _) in prepared.items()}, labels

    def losses(self, outputs: Mapping[str, HeadOutput], labels: Mapping[str, Any]) -> dict[str, Tensor]:
        """The loss of each head, from its output and its labels."""
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
        inputs: Sequence[Any],
        heads: Sequence[str] | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        allow_untrained: bool = False,
        stride: int | None = None,
    ) -> dict[str, list[dict[str, Any]]]:
        """Answers for inputs, in their order.

        Args:
            inputs: Texts, or pairs of texts (tuples), or texts split into words (lists); or what else the heads read.
            heads: The heads to run; all, if not given.
            batch_size: How many inputs to run at once.
            max_length: The number of tokens that a text is cut at; by default what the tokenizer says.
            allow_untrained: Also run heads with random weights.
            stride: How many tokens the windows of a long text or context have in common.

        Returns:
            For each head one dictionary an input.

        Raises:
            HeadsetError: There is no tokenizer, or a head is untrained, or an input is nothing that the heads read.
        """
        names = list(self.heads if heads is None else heads)
        if isinstance(inputs, str):
            raise HeadsetError(
                f"predict takes a list of texts, got one text. Give it in a list: predict([{inputs[:40]!r}])."
            )
        if not allow_untrained:
            self.check_trained(names)
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        device = next(self.parameters()).device
        with evaluating(self), torch.inference_mode():
            for group in self._alike(names):
                encoder = self.encoder(group[0], max_length, stride)
                encoder.columns(inputs)  # complains of all before it answers some
                for start in range(0, len(inputs), batch_size):
                    batch = make_batch(encoder, inputs[start : start + batch_size], device)
                    for name, output in self(batch, group).items():
                        answers[name] += self.head(name).predict(output)
        return answers

    def _alike(self, names: Sequence[str]) -> list[list[str]]:
        """The heads in groups that read inputs in the same way, and texts by words or not."""
        groups: dict[tuple[str, bool], list[str]] = {}
        for name in names:
            head = self.head(name)
            groups.setdefault((head.reads, needs_words(head)), []).append(name)
        return list(groups.values())

    def encoder(self, name: str, max_length: int | None = None, stride: int | None = None) -> Encoder:
        """What makes the inputs of a head, for prediction.

        Raises:
            HeadsetError: There is no tokenizer, or the length does not fit it.
        """
        if self.processor is None:
            raise HeadsetError(
                "predict needs a tokenizer: Headset(..., tokenizer=AutoTokenizer.from_pretrained(...)); heads that "
                "read images or sounds need processor=, an image processor or a feature extractor."
            )
        head = self.head(name)
        return make_encoder(head.reads, self.processor, max_length, split_words=needs_words(head), stride=stride)

    def sample(self, name: str) -> dict[str, Any]:
        """A small batch for a head, as its exports take it, to compare answers on."""
        encoder = self.encoder(name).stock
        return make_batch(encoder, encoder.samples)

    def save_pretrained(self, folder: str) -> None:
        """Write the whole headset: backbone, heads, labels and processor, as safetensors and JSON."""
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
        cls, source: str | PreTrainedModel, head: str = "head", processor: Processor | None = None
    ) -> "Headset":
        """Take a fine-tuned task model of transformers apart into a backbone and a head, in eval mode.

        Args:
            source: A folder, a hub id, or the model itself, whose base is then shared and not copied.
            head: What the head is called.
            processor: The tokenizer, or what else makes inputs; by default the one beside the model, if that is a path.
        """
        from headset.stored import import_task_model

        return import_task_model(source, head, processor)

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
