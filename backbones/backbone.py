"""The backbone: one transformers model that heads share, and what it says of itself."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from backbones.adapters import adapted_layer, inject_lora
from backbones.calls import BackboneCall
from backbones.dropout import FastDropout
from backbones.errors import HeadsetError, told_of
from backbones.freezing import freeze
from backbones.loading import base_of, load_base_model, load_config
from backbones.options import BackboneOptions
from backbones.quantization import dequantize, is_quantized, keep_loadable, quantization_config, quantize
from backbones.rebuild import config_from_dict, new_base_model, origin, plain_config, rebuild_empty
from backbones.stock import stock_layers
from backbones.trials import Packing

__all__ = ["Backbone", "BackboneOptions", "BackboneSpec"]


@dataclass(frozen=True)
class BackboneSpec:
    """What a backbone is, known before any forward pass.

    Args:
        model_type: The architecture's name in transformers (``"bert"``).
        hidden_size: D, the width of the last hidden state; 0 where the configuration does not say.
        num_layers: How many layers it has, or stages; ``hidden_states`` has one more, the embeddings.
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


class Backbone(nn.Module):
    """A transformers model that turns a batch into hidden states, for any number of heads.

    It starts in train mode, as modules do: ``from_pretrained`` of transformers gives eval mode, in which a model
    trains without dropout. While every parameter is frozen it stays in eval mode.

    Args:
        model: Any base model of transformers (``BertModel``, not ``BertForSequenceClassification``).
        config: The configuration that it comes from, where that is not its own: that of a task model around it.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        >>> Backbone(BertModel(config)).spec.hidden_size
        32
    """

    _tuner: Any  # of peft

    def __init__(self, model: PreTrainedModel, config: PretrainedConfig | None = None) -> None:
        super().__init__()
        self.model = model
        self._config = None if config is None or type(config) is type(model.config) else config
        self.path: str = model.config.name_or_path or ""
        self.revision: str | None = None
        self.frozen: str | int | None = None
        self.lora: dict[str, Any] | None = None
        self.padding_free = False  # whether rows are run without their padding, where that gives the same
        self._packing = Packing()
        self._adapters: set[str] = set()
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
        model, config = load_base_model(path, **kwargs)
        if getattr(model.config, "quantization_config", None) is not None:
            keep_loadable(model)
        backbone = cls(model, config)
        backbone.path, backbone.revision = path, kwargs.get("revision")
        return backbone

    @classmethod
    def from_task_model(cls, task: PreTrainedModel) -> "Backbone":
        """The base inside a task model of transformers, which is shared and not copied.

        Raises:
            HeadsetError: It has none.
        """
        task.config.architectures = [type(task).__name__]  # as save_pretrained does
        return cls(base_of(task), task.config)

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> "Backbone":
        """A backbone with random weights, all of them trainable.

        Raises:
            HeadsetError: transformers has no model for this configuration.
        """
        return cls(new_base_model(config, **kwargs), config).freeze(None)

    @classmethod
    def from_options(cls, options: BackboneOptions) -> "Backbone":
        """A backbone as settings describe it: from the configuration they hold, or from the path that they name.

        Raises:
            HeadsetError: There is no such model, or its checkpoint lacks weights of the base model.
        """
        options.check()
        kwargs: dict[str, Any] = {"dtype": options.dtype}
        if options.attn_implementation is not None:
            kwargs["attn_implementation"] = options.attn_implementation
        if options.config is not None:
            with told_of("The backbone's configuration"):
                config = config_from_dict(options.config)
                kwargs["dtype"] = getattr(torch, options.dtype)
                backbone = cls(rebuild_empty(config, options.class_name, **kwargs), config)
        elif options.random_weights:
            backbone = cls.from_config(load_config(options.path, revision=options.revision), **kwargs)
        else:
            if options.quantization is not None:
                kwargs["quantization_config"] = quantization_config(options.quantization)
            backbone = cls.from_pretrained(options.path, revision=options.revision, **kwargs)
        backbone.path, backbone.revision = options.path, options.revision
        if options.quantization is not None and backbone.quantization is None:
            quantize(backbone.model, options.quantization)
        if options.lora is not None:
            backbone.add_lora(options.lora)
        backbone.freeze(options.freeze)
        if options.lora is not None and options.config is None and not backbone.training:
            raise HeadsetError(
                f"freeze: {options.freeze} leaves nothing of LoRA to train. With backbone.lora the backbone's own "
                "weights are frozen anyway: leave freeze out."
            )
        return backbone

    def add_lora(self, settings: Mapping[str, Any]) -> "Backbone":
        """Put LoRA into the model, in place, and freeze its own weights. Heads are not touched, before or after.

        Args:
            settings: Fields of peft's LoraConfig.

        Raises:
            HeadsetError: There is LoRA already, peft refuses a field or a value, or the model has no such layers.
        """
        if self.lora is not None:
            raise HeadsetError("This backbone has LoRA already.")
        object.__setattr__(self, "_tuner", inject_lora(self.model, settings))
        self.lora = dict(settings)
        self._adapters = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        return self.freeze(self.frozen)

    def make_stock(self) -> "Backbone":
        """Make the model a stock one, in place: its weights in full precision, and LoRA merged into them."""
        lora, learned = self.lora, {}
        if self.quantization is not None:
            # LoRA that is merged into quantised weights is rounded as they are, so it is put aside meanwhile.
            learned = {name: value for name, value in self.model.state_dict().items() if adapted_layer(name)}
            if lora is not None:
                self._tuner.unload()
            dequantize(self.model)
            if lora is not None:
                self.lora = None
                self.add_lora({**lora, "init_lora_weights": True})
                self.model.load_state_dict(learned, strict=False)
        if lora is not None:
            self._tuner.merge_and_unload()
        self.lora, self._adapters = None, set()
        return self

    def options(self) -> BackboneOptions:
        """Settings that `from_options` rebuilds this backbone from, but for its weights; plain values only.

        Raises:
            HeadsetError: The model was changed by hand, so that no class of transformers builds it.
        """
        if self.lora is None and any(adapted_layer(name) for name, _ in self.model.named_parameters()):
            raise HeadsetError(
                "The model has adapters that were put into it by hand, so that their settings are not known. "
                "Backbone.add_lora does it: Backbone(model).add_lora({'r': 8, 'target_modules': 'all-linear'})."
            )
        with stock_layers(self.model):
            class_name = origin(self.model, self.config)
        return BackboneOptions(
            path=self.path,
            revision=self.revision,
            freeze=self.frozen,
            dtype=str(self.spec.dtype).removeprefix("torch."),
            attn_implementation=self.config._attn_implementation,
            lora=self.lora,
            quantization=self.quantization,
            config=plain_config(self.config),
            class_name=class_name,
        )

    @property
    def quantization(self) -> dict[str, Any] | None:
        """How the model is quantised, in the fields of transformers' BitsAndBytesConfig; None if it is not."""
        if not any(map(is_quantized, self.model.modules())):
            return None
        settings: dict[str, Any] = self.config.quantization_config.to_diff_dict()
        return {name: value for name, value in settings.items() if not name.startswith("_")}

    @property
    def config(self) -> PretrainedConfig:
        """The configuration: the model's, or that of the task model around it which the model comes from."""
        return self._config or self.model.config

    @property
    def spec(self) -> BackboneSpec:
        """What the backbone is."""
        config = self.model.config.get_text_config()
        embeddings = _input_embeddings(self.model)
        sizes = _first(config, "hidden_size", "hidden_sizes", "hidden_dim", "embed_dim", "embed_dims", default=0)
        depths = _first(config, "num_hidden_layers", "num_layers", "depths", "depth", default=0)
        return BackboneSpec(
            model_type=self.model.config.model_type,
            hidden_size=sizes[-1] if isinstance(sizes, list | tuple) else sizes,
            num_layers=len(depths) if isinstance(depths, list | tuple) else depths,
            vocab_size=0 if embeddings is None or embeddings.dim() != 2 else embeddings.shape[0],
            dtype=self.model.dtype,
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
        """Run a head's request.

        With ``padding_free`` the tokens of all rows run as one row, and there are zeros at padding, if the model gives
        the same for it.
        """
        module = self.model.get_submodule(call.path)
        with self._dropout():
            packs = self.padding_free and not call.padded
            output: ModelOutput | None = self._packing.run(module, call) if packs else None
            return module(**call.kwargs) if output is None else output

    def _dropout(self) -> contextlib.AbstractContextManager[Any]:
        """How values are dropped; what is computed again in the backward pass, or compiled, is left to torch."""
        model = self.model
        if not (self.padding_free and self.training and model.device.type == "cpu"):
            return contextlib.nullcontext()
        again = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        return contextlib.nullcontext() if again or model._compiled_call_impl is not None else FastDropout()

    @contextlib.contextmanager
    def without_padding(self, padding_free: bool = True) -> Iterator[None]:
        """Set ``padding_free`` for a while."""
        before, self.padding_free = self.padding_free, padding_free
        try:
            yield
        finally:
            self.padding_free = before

    def freeze(self, what: str | int | None) -> "Backbone":
        """Keep weights as they are: ``"all"``, ``"embeddings"``, or the embeddings and the lowest n layers.

        ``None`` makes all trainable again. With LoRA that is all of LoRA: the model's own weights stay frozen, and so
        do those of a quantised model.

        Raises:
            HeadsetError: Neither of these, or more layers than there are.
        """
        if isinstance(what, str) and what.isdigit():  # a command line gives it so
            what = int(what)
        freeze(self.model, what)
        if self.lora is not None or self.quantization is not None:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and name in self._adapters)
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
