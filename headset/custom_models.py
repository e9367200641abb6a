"""What a custom export holds beside its head: a configuration and a model of transformers.

`headset.custom` writes these classes, with the head and what it needs, into the export as one file. Here they stand as
ordinary code, with `TheHead` in the place of the head's class.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.rebuild import rebuild
from heads.base import Head as TheHead
from heads.base import HeadContext

__all__ = ["CustomConfig", "CustomModel"]

MODEL_TYPE = "headset"
TASK = ""
CARRIES_LOSS = False


class CustomConfig(PretrainedConfig):
    """A backbone, the arguments of the head on it, and the names of its labels.

    Args:
        backbone_config: The configuration of the backbone, or its values.
        backbone_class: The class of transformers that this configuration is for.
        head_args: The arguments of the head.
        head_labels: The label set that the head was made for.
        kwargs: Those of every configuration of transformers.
    """

    model_type = MODEL_TYPE
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        backbone_config: PretrainedConfig | dict[str, Any] | None = None,
        backbone_class: str = "",
        head_args: dict[str, Any] | None = None,
        head_labels: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone_config, dict):
            backbone_config = AutoConfig.for_model(**backbone_config)
        self.backbone_config = backbone_config
        self.backbone_class = backbone_class
        self.head_args = head_args or {}
        self.head_labels = head_labels
        super().__init__(**kwargs)


class CustomModel(PreTrainedModel):
    """A backbone of transformers and the head on it.

    Args:
        config: What both are.
    """

    config_class = CustomConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: CustomConfig) -> None:
        super().__init__(config)
        assert config.backbone_config is not None
        self.backbone = rebuild(config.backbone_config, config.backbone_class)
        self.main_input_name = self.backbone.main_input_name
        self.head = TheHead(**config.head_args)  # type: ignore[abstract]
        self._build_head()
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """The answer of the head, from the backbone's output for its request.

        Args:
            input_ids: Token ids ``(B, T)``.
            attention_mask: Which tokens are real ``(B, T)``.
            token_type_ids: Which of two texts a token is of ``(B, T)``.
            labels: If given, the output has the head's loss.
            return_dict: Whether to give an output with names, and not a tuple.
            inputs: Whatever else the backbone takes.
        """
        inputs |= {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        batch = {name: value for name, value in inputs.items() if value is not None}
        call = self.head.request(batch)
        features: Any = None if call is None else self.backbone.get_submodule(call.path)(**call.kwargs)
        output = self.head(features, batch)
        answer: dict[str, Any] = {}
        for name, flag in (("hidden_states", "output_hidden_states"), ("attentions", "output_attentions")):
            if batch.get(flag) and features is not None:
                answer[name] = features.get(name)
        if labels is not None:
            if CARRIES_LOSS:
                answer["loss"] = self.head.loss(output, labels)
            else:
                raise NotImplementedError("The loss of this head is not in the file: give no labels.")
        if TASK == "sequence":
            result: ModelOutput = SequenceClassifierOutput(logits=output.logits, **answer)
        elif TASK == "token":
            result = TokenClassifierOutput(logits=output.logits, **answer)
        elif TASK == "vector":
            answer["last_hidden_state"] = None if features is None else features.get("last_hidden_state")
            result = BaseModelOutputWithPooling(pooler_output=output.logits, **answer)
        else:
            result = ModelOutput(logits=output.logits, **answer)
        return result.to_tuple() if return_dict is False else result

    def _build_head(self) -> None:
        """Make the parameters of the head, on real memory: what it computes here is in no file."""
        backbone = Backbone(self.backbone)
        labels = self.config.head_labels
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.device("cpu"):
                self.head.labels = None if labels is None else tuple(labels)
                self.head.encoder_path = backbone.encoder_path
                self.head.build(HeadContext(backbone, self.head.labels))
                self.head.to(backbone.spec.dtype)
        finally:
            torch.set_default_dtype(default)
        self._computed: dict[nn.Module, dict[str, Tensor]] = {}
        for module in self.head.modules():
            buffers = dict(module.named_buffers(recurse=False))
            self._computed[module] = {name: buffers[name] for name in module._non_persistent_buffers_set & set(buffers)}
            for value in [*module.parameters(recurse=False), *buffers.values()]:
                value._is_hf_initialized = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Nothing of the head is made up: what it does not compute has to be in the file."""
        computed = self._computed.get(module, {})
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if name in computed:
                value.copy_(computed[name])
            elif not getattr(value, "_is_hf_initialized", False):
                raise ValueError(f"The file lacks the weight {name!r} of the head's {type(module).__name__}.")
