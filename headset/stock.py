"""A headset as stock libraries can hold it: LoRA merged into the backbone's weights, and these in full precision."""

import copy

from backbones.adapters import adapted_layer
from backbones.errors import HeadsetError
from headset.model import Headset

__all__ = ["stock_copy"]


def stock_copy(headset: Headset) -> Headset:
    """A copy with a stock backbone, which gives the same answers; the headset itself, where it has one already.

    Raises:
        HeadsetError: LoRA is on embeddings that a head is tied to, which a stock model has only once.
    """
    backbone = headset.backbone
    if backbone.lora is None and backbone.quantization is None:
        return headset
    model = backbone.model
    adapted = {adapted_layer(name) for name, _ in model.named_parameters()} - {None}
    weights = {id(value) for path in adapted for value in model.get_submodule(str(path)).parameters()}
    for name in headset.heads:
        if any(id(parameter) in weights for parameter in headset.head(name).parameters()):
            raise HeadsetError(
                f"The head '{name}' scores with the embeddings of the backbone as they are without LoRA; LoRA merged, "
                "a stock model has others. Export it with --format peft, or leave embeddings out of target_modules."
            )
    copied = copy.deepcopy(headset)
    copied.backbone.make_stock()
    return copied
