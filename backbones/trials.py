"""Which models may run on packed rows: those that were tried out, and gave what they give for padded ones.

No list says which architectures that are. What is not known to be right is run as it always was.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from backbones.attention import NotPackableError
from backbones.calls import BackboneCall
from backbones.packing import NUMBERINGS, Inputs, PackedPass, layout_of

__all__ = ["Packing"]

TENSORS = ("input_ids", "attention_mask", "token_type_ids")
FLAGS = ("output_hidden_states", "return_dict", "use_cache", "output_attentions")
CACHES = ("past_key_values",)  # outputs that a packed pass does without
FIRST_LENGTH = 64
COARSE, FINE = 0.05, 1e-4  # how far a token's values may be from those of a padded pass, in shares of their norm


class Packing:
    """Runs a model without padding, where that gives what it gives with padding.

    A model is tried out at the first batch with padding, and again when rows are more than twice as long as before, so
    that no window of attention is overlooked. What is found holds for rows up to that length: whether a batch is packed
    depends on the batch alone, so that a resumed run does as an uninterrupted one.
    """

    def __init__(self) -> None:
        self._trials: dict[tuple[str, ...], dict[bool, Trial]] = {}

    def run(self, module: nn.Module, call: BackboneCall) -> ModelOutput | None:
        """The output for a call, as the module has it for padded rows, but with zeros at padding and without caches.

        Args:
            module: The model, or the part of it that is called.
            call: The call.

        Returns:
            None, if it is to be run as it is: there is too little padding, or this architecture, or what is asked of
            it, is none for this.
        """
        inputs = {name: value for name, value in call.kwargs.items() if name in TENSORS}
        flags = {name: value for name, value in call.kwargs.items() if name in FLAGS}
        if len(inputs) + len(flags) < len(call.kwargs) or not _plain(inputs, flags):
            return None
        key = call.path, *sorted(inputs), *(name for name, value in flags.items() if value)
        if key not in self._trials:
            self._trials[key] = {left: Trial(module, left) for left in (False, True)}
        mask = inputs["attention_mask"].to("cpu").bool()
        trial = self._trials[key][not bool(mask[:, 0].all())]
        layout = layout_of(mask) if trial.possible else None
        if layout is None or not trial.passed(module, inputs, flags):
            return None
        try:
            return trial.run(module, inputs, flags, layout, trial.numbering)
        except NotPackableError:
            trial.possible = False
            return None


class Trial:
    """What is known of one kind of call.

    Args:
        module: The model, or the part of it that is called.
        left: Whether padding is on the left.
    """

    def __init__(self, module: nn.Module, left: bool) -> None:
        self.left = left
        self.run = PackedPass(module)
        self.possible = self.run.possible
        self.numbering, *self._others = NUMBERINGS
        self.limit = _most_positions(module) if self.possible else 0
        self.right = 0  # the most tokens of a row that it was right for
        self.wrong = float("inf")  # the fewest that it was not right for

    def passed(self, module: nn.Module, inputs: Inputs, flags: Mapping[str, Any]) -> bool:
        """Whether packed rows of this length give what padded ones give."""
        length = inputs["input_ids"].shape[1]
        if length <= self.limit:
            length = min(max(1 << (length - 1).bit_length(), FIRST_LENGTH), self.limit)
        if self.right < length < self.wrong:
            self.hold(module, inputs, flags, length)
        return length <= self.right

    def hold(self, module: nn.Module, inputs: Inputs, flags: Mapping[str, Any], length: int) -> None:
        """Run rows of some length in both ways, and keep whether they agree."""
        rows = _rows(inputs, length, self.left)
        layout = layout_of(rows["attention_mask"].to("cpu").bool())
        assert layout is not None
        with _undisturbed(module, rows["input_ids"].device):
            numberings = [self.numbering, *self._others]
            for self.numbering in numberings:
                try:
                    packed = self.run(module, rows, flags, layout, self.numbering)
                    if _agree(packed, module(**rows, **flags), rows["attention_mask"].bool()):
                        self.right, self._others = length, []
                        return
                except Exception:  # whatever an architecture does with what it was not written for
                    continue
        self.wrong = length


def _plain(inputs: Inputs, flags: Mapping[str, Any]) -> bool:
    """Whether a call is one for tokens and nothing else."""
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None or mask is None or mask.is_floating_point():
        return False
    same = all(isinstance(value, Tensor) and value.shape == ids.shape for value in inputs.values())
    asked = flags.get("use_cache") or flags.get("output_attentions") or flags.get("return_dict") is False
    return same and ids.dim() == 2 and ids.shape[0] > 1 and not asked


def _rows(inputs: Inputs, length: int, left: bool) -> dict[str, Tensor]:
    """Three rows of the tokens of a batch: a whole one, and two that are padded."""
    real = inputs["attention_mask"].bool()
    ids = inputs["input_ids"]
    filler = int(ids[~real][0]) if not bool(real.all()) else 0
    made: dict[str, Tensor] = {}
    for name, value in inputs.items():
        tokens = value[real]
        tokens = tokens.repeat(-(-length // len(tokens)))[:length]
        rows = value.new_full((3, length), filler if name == "input_ids" else 0)
        for row, size in enumerate((length, length // 2 + 1, length // 3 + 1)):
            rows[row, slice(length - size, length) if left else slice(size)] = tokens.roll(row)[:size]
        made[name] = rows
    return made


def _agree(packed: ModelOutput, padded: ModelOutput, real: Tensor) -> bool:
    """Whether two outputs are the same, but for rounding, and but for padding."""
    wanted = {name: value for name, value in padded.items() if name not in CACHES}
    return packed.keys() == wanted.keys() and all(_alike(packed[name], wanted[name], real) for name in wanted)


def _alike(packed: Any, padded: Any, real: Tensor) -> bool:
    if isinstance(packed, tuple):
        return len(packed) == len(padded) and all(_alike(*pair, real) for pair in zip(packed, padded, strict=True))
    if packed.shape != padded.shape:
        return False
    ours, theirs = (it[real] if it.shape[:2] == real.shape else it for it in (packed, padded))
    exact = theirs.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    ours, theirs = ours.float(), theirs.float()
    size = theirs.norm(dim=-1)
    size = size.clamp(min=0.01 * size.max())
    return bool(((ours - theirs).norm(dim=-1) <= (FINE if exact else COARSE) * size).all())


@contextlib.contextmanager
def _undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, no gradients, full precision; afterwards all is as before, random numbers too."""
    modes = {part: part.training for part in module.modules()}
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.autocast(device.type, enabled=False), torch.random.fork_rng(devices=devices):
        try:
            for part in modes:
                part.training = False
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode


def _most_positions(module: nn.Module) -> int:
    """How long rows may be, where the configuration says so; some architectures keep rows for padding."""
    config: Any = module.config.get_text_config()  # type: ignore[union-attr, operator]
    most = getattr(config, "max_position_embeddings", None)
    return most - (getattr(config, "pad_token_id", None) or 0) - 1 if isinstance(most, int) else 0
