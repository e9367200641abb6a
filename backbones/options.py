"""A backbone as settings, for configuration files and checkpoints."""

from dataclasses import dataclass
from typing import Any

from backbones.adapters import check_lora
from backbones.quantization import check_quantization

__all__ = ["BackboneOptions"]


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
        lora: LoRA on the backbone, whose own weights are frozen then: fields of peft's LoraConfig, such as ``{r: 8,
            lora_alpha: 16, target_modules: all-linear}``.
        quantization: The backbone in 4 bits, with its own weights frozen: fields of transformers' BitsAndBytesConfig,
            such as ``{load_in_4bit: true, bnb_4bit_quant_type: nf4}``.
        padding_free: Whether a run spares itself the padding of texts, where the architecture gives the same without.
        compile: Whether ``torch.compile`` makes kernels for the model.
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
    lora: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None
    padding_free: bool = True
    compile: bool = False
    config: dict[str, Any] | None = None
    class_name: str = "AutoModel"

    def of_the_run(self) -> dict[str, Any]:
        """The settings of how a run computes, which a checkpoint keeps and does not fix."""
        return {name: getattr(self, name) for name in ("padding_free", "compile")}

    def check(self) -> None:
        """Check the settings of other libraries, before anything is loaded.

        Raises:
            HeadsetError: A field is unknown, has no use here, or cannot have its value; or a library is missing.
        """
        if self.lora is not None:
            check_lora(self.lora)
        if self.quantization is not None:
            check_quantization(self.quantization)
