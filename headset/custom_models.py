"""A backbone of transformers with a head on it, as a configuration and a model of transformers.

Written by headset from the code of the head and the modules that it uses, which are the other files here.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.rebuild import rebuild
from heads.base import Head as TheHead
from heads.base import HeadContext, HeadOutput

__all__ = ["CustomConfig", "CustomModel"]

# Stands where a stock class looks for its weights, which stops there and does not start from random ones.
NO_WEIGHTS = "none for this class, load the model with AutoModel and trust_remote_code=True"
OUTPUTS = {
    "text-classification": SequenceClassifierOutput,
    "token-classification": TokenClassifierOutput,
    "question-answering": QuestionAnsweringModelOutput,
    "multiple-choice": MultipleChoiceModelOutput,
    "fill-mask": MaskedLMOutput,
    "image-classification": ImageClassifierOutput,
    "audio-classification": SequenceClassifierOutput,
    "feature-extraction": BaseModelOutputWithPooling,
}


class CustomConfig(PretrainedConfig):
    """A backbone, the arguments of the head on it, and the names of its labels.

    Args:
        backbone_config: The configuration of the backbone, or its values.
        backbone_class: The class of transformers that this configuration is for.
        head_args: The arguments of the head.
        head_labels: The label set that the head was made for.
        head_task: What the head does, as the hub calls it; empty if it has no name for it.
        kwargs: Those of every configuration of transformers.
    """

    model_type = "headset"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        backbone_config: PretrainedConfig | dict[str, Any] | None = None,
        backbone_class: str = "",
        head_args: dict[str, Any] | None = None,
        head_labels: list[str] | None = None,
        head_task: str = "",
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone_config, dict):
            backbone_config = AutoConfig.for_model(**backbone_config)
        self.backbone_config = backbone_config
        self.backbone_class = backbone_class
        self.head_args = head_args or {}
        self.head_labels = head_labels
        self.head_task = head_task
        kwargs.pop("transformers_weights", None)
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The values of ``config.json``."""
        values: dict[str, Any] = super().to_dict()
        return values | {"transformers_weights": NO_WEIGHTS}


class CustomModel(PreTrainedModel):
    """A backbone of transformers and the head on it.

    Args:
        config: What both are.
    """

    config_class = CustomConfig
    base_model_prefix = "backbone"
    accepts_loss_kwargs = False
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
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        word_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """The answer of the head, from the backbone's output for its request.

        Args:
            input_ids: Token ids ``(B, T)``, with choices ``(B, C, T)``.
            attention_mask: Which tokens, or parts of a sound, are real.
            token_type_ids: Which of two texts a token is of.
            pixel_values: Images ``(B, 3, H, W)``.
            input_values: Sounds ``(B, T)``.
            input_features: Spectrograms of sounds ``(B, T, D)``.
            labels: If given, the output has the head's loss.
            start_positions: Where answers start ``(B,)``; with ``end_positions`` in the place of ``labels``.
            end_positions: Where answers end ``(B,)``.
            word_ids: The word that each token is of ``(B, T)``, -1 for none; if not given, every token is a word.
            return_dict: Whether to give an output with names, and not a tuple.
            inputs: Whatever else the backbone takes. Where the head pools over the windows of long texts,
                ``overflow_to_sample_mapping`` ``(N,)``, as tokenizers give it, says which text a window is of.
        """
        inputs |= {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs |= {"pixel_values": pixel_values, "input_values": input_values, "input_features": input_features}
        batch = {name: value for name, value in inputs.items() if value is not None}
        if word_ids is not None:
            batch["meta"] = {"word_ids": word_ids}
        features, output = self._answer(batch)
        features = features or {}
        answer: dict[str, Any] = {"logits": output.logits}
        if self.config.head_task == "question-answering":
            answer = dict(zip(("start_logits", "end_logits"), output.logits.unbind(-1), strict=True))
        elif self.config.head_task == "feature-extraction":
            answer = {"last_hidden_state": features.get("last_hidden_state"), "pooler_output": output.logits}
        for name, flag in (("hidden_states", "output_hidden_states"), ("attentions", "output_attentions")):
            if batch.get(flag):
                answer[name] = features.get(name)
        if start_positions is not None and end_positions is not None:
            labels = torch.stack([start_positions, end_positions], dim=-1)
        if labels is not None:
            answer["loss"] = self.head.loss(output, labels)
        result: ModelOutput = OUTPUTS.get(self.config.head_task, ModelOutput)(**answer)
        return result.to_tuple() if return_dict is False else result

    @torch.no_grad()
    def predict(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What the head says in words, one dictionary a row.

        Args:
            inputs: What the tokenizer or processor gives. Where the head goes by words, it is that of a fast tokenizer
                for lists of words (``is_split_into_words=True``), which knows them.
        """
        encodings = getattr(inputs, "encodings", None) or ()
        pairs = [zip(encoding.word_ids, encoding.sequence_ids, strict=True) for encoding in encodings]
        ids = [[word if text == 0 else -1 for word, text in pair] for pair in pairs]
        _, output = self._answer({**inputs, "meta": {"word_ids": torch.tensor(ids, device=self.device)} if ids else {}})
        return self.head.predict(output)

    def _answer(self, batch: dict[str, Any]) -> tuple[Any, HeadOutput]:
        """The backbone's output and the head's."""
        batch = _counted(batch)
        call = self.head.request(batch)
        features: Any = None if call is None else self.backbone.get_submodule(call.path)(**call.kwargs)
        return features, self.head(features, batch)

    def _build_head(self) -> None:
        """Make the parameters of the head, on real memory: what it computes here is in no file."""
        backbone = Backbone(self.backbone, self.config.backbone_config)
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
        self._computed = {
            module: {name: module.get_buffer(name) for name in module._non_persistent_buffers_set}
            for module in self.head.modules()
        }
        for value in [*self.head.parameters(), *self.head.buffers()]:
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


def _counted(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of windows with the number of them that each text has, where the tokenizer says which text each is of."""
    texts: Tensor | None = batch.pop("overflow_to_sample_mapping", None)
    return batch if texts is None else batch | {"meta": {**batch.get("meta", {}), "windows": texts.bincount().tolist()}}
