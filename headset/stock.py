"""A headset as stock libraries can hold it: LoRA merged into the backbone's weights, and these in full precision."""

import copy

from backbones.adapters import adapted_layer
from backbones.errors import HeadsetError
from heads.native import NativeModel
from headset.model import Headset

__all__ = ["stock_copy"]


def stock_copy(headset: Headset) -> Headset:
    """A copy with a stock backbone, which gives the same answers; the headset itself, where it has one already.

    Raises:
        HeadsetError: LoRA is on a weight that is tied to another, which does not have it.
    """
    backbone = headset.backbone
    if backbone.lora is None and backbone.quantization is None:
        return headset
    names: dict[int, list[str]] = {}
    for name, parameter in headset.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for name in headset.heads:
        scorer = getattr(headset.head(name), "scorer", None)
        for tie in scorer.ties if isinstance(scorer, NativeModel) else ():
            names[id(tie.weight)].append(f"{tie.task_key} of {name}")
    adapted = {adapted_layer(name) for name, _ in backbone.model.named_parameters()} - {None}
    for path in sorted(map(str, adapted)):
        for parameter in backbone.model.get_submodule(path).parameters():
            if len(names[id(parameter)]) > 1:
                raise HeadsetError(
                    f"LoRA on {path} cannot be merged: its weight is in several places, which would all change: "
                    f"{', '.join(names[id(parameter)])}. Export with --format peft, or leave it out of target_modules."
                )
    copied = copy.deepcopy(headset)
    copied.backbone.make_stock()
    return copied
