"""The backbone: one transformers model that heads share, and what it says of itself."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from backbones.calls import BackboneCall
from backbones.freezing import freeze
from backbones.loading import load_base_model, load_config
from backbones.rebuild import config_from_dict, origin, plain_config, rebuild

__all__ = ["Backbone", "BackboneOptions", "BackboneSpec"]


@dataclass(frozen=True)
class BackboneSpec:
    """What a backbone is, known before any forward pass.

    Args:
        model_type: The architecture's name in transformers (``"bert"``).
        hidden_size: D, the width of the hidden states.
        num_layers: How many layers it has; ``hidden_states`` has one more, the embeddings.
        vocab_size: The number of rows of the input embeddings; 0 where there is no vocabulary.
        dtype: The type of its weights.
        initializer_range: The standard deviation of newly initialised weights.
        is_encoder_decoder: Whether it has a decoder beside the encoder.
    """

    model_type: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    dtype: torch.dtype
    initializer_range: float
    is_encoder_decoder: bool


@dataclass
class BackboneOptions:
    """A backbone as settings, for configuration files and checkpoints.

    Args:
        path: A folder, a hub id, or ``package://some_package/folder`` for a model inside an installed Python package.
        revision: The revision on the hub: a branch, a tag or a commit.
        freeze: What stays as it is: ``all``, ``embeddings``, or a number n for the embeddings and the lowest n layers.
        random_weights: Start from random weights, of the architecture that the folder's ``config.json`` describes.
        dtype: The type of the weights: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the checkpoint's own.
        attn_implementation: The attention kernel, as transformers names it (``sdpa``, ``eager``, ...).
        config: The backbone's configuration as a dictionary, written into checkpoints, so that loading one needs
            nothing from ``path``.
        class_name: The class of transformers that this configuration is for, written along with it.
    """

    path: str
    revision: str | None = None
    freeze: str | int | None = None
    random_weights: bool = False
    dtype: str = "float32"
    attn_implementation: str | None = None
    config: dict[str, Any] | None = None
    class_name: str = "AutoModel"


class Backbone(nn.Module):
    """A transformers model that turns a batch into hidden states, for any number of heads.

    It starts in train mode, as modules do: ``from_pretrained`` of transformers gives eval mode, in which a model
    trains without dropout. While every parameter is frozen it stays in eval mode.

    Args:
        model: Any base model of transformers (``BertModel``, not ``BertForSequenceClassification``).

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        >>> Backbone(BertModel(config)).spec.hidden_size
        32
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.frozen: str | int | None = None
        self.train()

    @classmethod
    def from_pretrained(cls, path: str, **kwargs: Any) -> "Backbone":
        """Load a base model, or the base inside a task checkpoint, with every weight from the file.

        Args:
            path: A folder, a hub id, or ``package://some_package/folder``.
            kwargs: Passed to ``from_pretrained`` of transformers (``revision``, ``dtype``, ...).

        Raises:
            HeadsetError: There is no such model, or its checkpoint lacks weights of the base model.
        """
        return cls(load_base_model(path, **kwargs))

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> "Backbone":
        """A backbone with random weights."""
        # Where an architecture has several base models, AutoModel looks for a name in this list, and fails on None.
        config.architectures = config.architectures or []
        return cls(AutoModel.from_config(config, **kwargs))

    @classmethod
    def from_options(cls, options: BackboneOptions) -> "Backbone":
        """A backbone as settings describe it: from the configuration they hold, or from the path that they name.

        Raises:
            HeadsetError: There is no such model, or its checkpoint lacks weights of the base model.
        """
        kwargs: dict[str, Any] = {"dtype": options.dtype}
        if options.attn_implementation is not None:
            kwargs["attn_implementation"] = options.attn_implementation
        if options.config is not None:
            model = rebuild(config_from_dict(options.config), options.class_name, **kwargs)
        elif options.random_weights:
            model = cls.from_config(load_config(options.path, revision=options.revision), **kwargs).model
        else:
            model = load_base_model(options.path, revision=options.revision, **kwargs)
        return cls(model).freeze(options.freeze)

    def options(self) -> BackboneOptions:
        """Settings that `from_options` rebuilds this backbone from, but for its weights; plain values only.

        Raises:
            HeadsetError: The model was changed by hand, so that no class of transformers builds it.
        """
        return BackboneOptions(
            path=self.config.name_or_path or "",
            freeze=self.frozen,
            dtype=str(self.spec.dtype).removeprefix("torch."),
            attn_implementation=self.config._attn_implementation,
            config=plain_config(self.config),
            class_name=origin(self.model),
        )

    @property
    def config(self) -> PretrainedConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def spec(self) -> BackboneSpec:
        """What the backbone is."""
        config = self.config.get_text_config()
        embeddings = _input_embeddings(self.model)
        return BackboneSpec(
            model_type=self.config.model_type,
            hidden_size=_first(config, "hidden_size", "hidden_dim", "embed_dim"),
            num_layers=_first(config, "num_hidden_layers", "num_layers"),
            vocab_size=0 if embeddings is None else embeddings.shape[0],
            dtype=next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point()),
            initializer_range=_first(config, "initializer_range", default=0.02),
            is_encoder_decoder=bool(self.config.is_encoder_decoder),
        )

    @property
    def encoder_path(self) -> str:
        """The sub-module that reads the input: the encoder of an encoder-decoder, else the whole model (``""``)."""
        if not self.config.is_encoder_decoder:
            return ""
        encoder = self.model.get_encoder()
        paths: list[str] = [name for name, module in self.model.named_modules() if module is encoder]
        return paths[0]

    @property
    def pooler_parameters(self) -> set[str]:
        """Names of the parameters of the model's own pooler, which transformers puts behind the last hidden state."""
        return {name for name, _ in self.model.named_parameters() if name.startswith("pooler.")}

    def forward(self, **inputs: Any) -> ModelOutput:
        """Run the model.

        Args:
            inputs: What the model takes: ``input_ids`` ``(B, T)``, ``attention_mask`` ``(B, T)``, ...;
                ``output_hidden_states=True`` asks for the hidden states of every layer.

        Returns:
            The model's own output: ``last_hidden_state`` ``(B, T, D)``, and ``hidden_states``, one such tensor for the
            embeddings and for each layer, where asked for.
        """
        return self.run(BackboneCall(inputs))

    def run(self, call: BackboneCall) -> ModelOutput:
        """Run a head's request."""
        output: ModelOutput = self.model.get_submodule(call.path)(**call.kwargs)
        return output

    def freeze(self, what: str | int | None) -> "Backbone":
        """Keep weights as they are: ``"all"``, ``"embeddings"``, or the embeddings and the lowest n layers.

        ``None`` makes all trainable again.

        Raises:
            HeadsetError: Neither of these, or more layers than there are.
        """
        if isinstance(what, str) and what.isdigit():  # a command line gives it so
            what = int(what)
        freeze(self.model, what)
        self.frozen = what
        return self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """Set train mode; a backbone that is frozen as a whole stays in eval mode, without dropout."""
        trainable = any(parameter.requires_grad for parameter in self.parameters())
        return super().train(mode and trainable)


def _first(config: PretrainedConfig, *names: str, default: Any = None) -> Any:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if value is not None), default)


def _input_embeddings(model: PreTrainedModel) -> Tensor | None:
    try:
        return getattr(model.get_input_embeddings(), "weight", None)
    except NotImplementedError:
        return None
