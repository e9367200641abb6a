"""A headset: heads on one backbone, as a plain module that needs no Trainer."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backbones.backbone import Backbone
from backbones.calls import merge_calls
from backbones.errors import HeadsetError, invalid_choice
from backbones.loading import limit_length
from heads.base import Head, HeadContext, HeadOutput
from heads.label_counts import LabelCounts
from headset.batches import in_dtype
from headset.detached import detached, without_gradients
from headset.modes import evaluating
from headset.processors import Processor, agree_on_padding

if TYPE_CHECKING:
    from headset.features import KeptFeatures

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
        # In training, heads whose gradient stops at the backbone, and heads whose own weights stay as they are.
        self.detached: frozenset[str] = frozenset()
        self.frozen: frozenset[str] = frozenset()
        # In training, what answers for a backbone that is frozen.
        self.kept: KeptFeatures | None = None
        # Where weights are in parts, what is told before passes which parts of the backbone they are of.
        self.agree: Callable[[Sequence[str]], None] | None = None
        # What is known of the run that trained it, for model cards.
        self.run: dict[str, Any] = {}
        if self.tokenizer is not None:
            limit_length(self.tokenizer, backbone.config)
            agree_on_padding(backbone.config.get_text_config(), self.tokenizer, heads)
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
        passes = merge_calls({name: call for name, call in requests.items() if call is not None})
        if self.agree is not None:
            self.agree([call.path for call, _ in passes])
        for call, names in passes:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detached.issuperset(names)):
                kept = None if self.kept is None else self.kept.output(call, batches[names[0]])
                features |= dict.fromkeys(names, self.backbone.run(call) if kept is None else kept)
        if self.training and torch.is_grad_enabled():
            self.states |= dict.fromkeys(chosen.keys() - self.frozen, "trained")
        return {name: self._answer(name, features[name], batches[name]) for name in chosen}

    def _answer(self, name: str, features: Any, batch: Mapping[str, Any]) -> HeadOutput:
        """The answer of a head; for the rows that have labels, where its batch says which these are."""
        head = self.head(name)
        if name in self.detached:
            with without_gradients(self.backbone):
                output: HeadOutput = head(detached(features), batch)
        else:
            output = head(features, batch)
        rows = batch.get("meta", {}).get("labelled")
        if not isinstance(rows, list):
            return output
        return head.select(output, torch.tensor(rows, device=output.logits.device))

    def freeze_unused(self) -> None:
        """Freeze what no head needs of the backbone, such as a pooler: DistributedDataParallel fails on it."""
        every = {name for name, _ in self.backbone.model.named_parameters()}
        unused = [every if name in self.detached else self.head(name).unused(self.backbone) for name in self.heads]
        for name in set.intersection(*unused):
            self.backbone.model.get_parameter(name).requires_grad_(False)

    def train(self, mode: bool = True) -> "Headset":
        """Set train mode; frozen heads stay in eval mode, without dropout."""
        super().train(mode)
        for name in self.frozen:
            self.head(name).eval()
        return self

    def prepare(self, batch: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], dict[str, Any]]:
        """What each head learns from and is measured on: its batch, and its labels; None where it learns without.

        Args:
            batch: As `forward` takes it. ``meta["heads"]`` names the heads that it is for; all, if it is not there.
                ``meta["labelled"]`` has, for heads where some rows lack a label, the numbers of the rows that have one,
                and ``labels`` those of these rows. Such a head sees all rows, and answers for these.
        """
        batch = batch if self.kept is None else self.kept.bound(batch)
        given, meta = batch.get("labels", {}), batch.get("meta", {})
        batches: dict[str, Mapping[str, Any]] = {}
        labels: dict[str, Any] = {}
        for name in meta.get("heads", self.heads):
            rows = meta.get("labelled", {}).get(name)
            its = {**batch, "meta": {**meta, "labelled": rows}} if rows is not None else batch
            its, labels[name] = self.head(name).prepare(its, given.get(name))
            # With labels of some rows, no architecture could compute a loss of its own.
            batches[name] = {**its, "labels": labels[name] if rows is None else None}
        return batches, labels

    def losses(self, outputs: Mapping[str, HeadOutput], labels: Mapping[str, Any]) -> dict[str, Tensor]:
        """The loss of each head, from its output and its labels."""
        return {name: self.head(name).loss(output, labels.get(name)) for name, output in outputs.items()}

    def loss_sizes(self, outputs: Mapping[str, HeadOutput], labels: Mapping[str, Any]) -> dict[str, Tensor | float]:
        """How much the loss of each head is a mean over."""
        return {name: self.head(name).loss_size(output, labels.get(name)) for name, output in outputs.items()}

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
        padding_free: bool = True,
    ) -> dict[str, list[dict[str, Any]]]:
        """Answers for inputs, in their order.

        Args:
            inputs: Texts, or pairs of texts (tuples), or texts split into words (lists); or what else the heads read.
            heads: The heads to run; all, if not given.
            batch_size: How many inputs to run at once.
            max_length: The number of tokens that a text is cut at; by default what the tokenizer says.
            allow_untrained: Also run heads with random weights.
            stride: How many tokens the windows of a long text or context have in common.
            padding_free: Run texts without their padding, where the architecture gives the same without.

        Returns:
            For each head one dictionary an input.

        Raises:
            HeadsetError: There is no tokenizer, or a head is untrained, or an input is nothing that the heads read.
        """
        from headset.prediction import predict

        return predict(self, inputs, heads, batch_size, max_length, stride, allow_untrained, padding_free)

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
