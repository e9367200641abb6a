"""Passes without padding: the tokens of all rows of a batch as one row, which attention takes apart again.

Everything in a transformer but its attention treats tokens one by one, so what padding costs there is for nothing (Zeng
et al. 2022, "Boosting Distributed Training Performance of the Unpadded BERT Model").
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from backbones.attention import PACKED, Layout, NotPackableError, laid_out

__all__ = ["PackedPass", "layout_of"]

LEAST_PADDING = 0.05  # of a batch: below it a padded pass costs less

Inputs = Mapping[str, Tensor]
Positions = Callable[[Inputs, PretrainedConfig], Tensor]


def layout_of(mask: Tensor) -> Layout | None:
    """How a batch with this mask, bool ``(B, T)`` on the CPU, is packed.

    None, where it is not worth it, a row has no tokens, or has padding between them.
    """
    lengths = mask.sum(1)
    if lengths.sum() > (1 - LEAST_PADDING) * mask.numel():
        return None
    starts = (mask[:, 1:] > mask[:, :-1]).sum(1) + mask[:, 0]
    return Layout.of(mask, lengths.tolist()) if bool((starts == 1).all()) else None


class PackedPass:
    """Runs a model on packed rows.

    Args:
        module: The model, or the part of it that is called.
    """

    def __init__(self, module: nn.Module) -> None:
        configs = {id(it.config): it.config for it in module.modules() if hasattr(it, "config")}.values()
        self.configs = [config for config in configs if isinstance(config, PretrainedConfig)]
        known = inspect.signature(module.forward).parameters
        # Who supports flash attention says all that attention needs to know in its arguments, and not in a mask.
        self.possible = (
            isinstance(module, PreTrainedModel)
            and bool(module._supports_flash_attn)
            and "position_ids" in known
            and all(config._attn_implementation == "sdpa" for config in self.configs)
        )
        self.layers = [it for it in module.modules() if hasattr(it, "gradient_checkpointing")]
        self.without_cache = {"use_cache": False} if "use_cache" in known else {}

    def __call__(
        self, module: nn.Module, inputs: Inputs, flags: Mapping[str, Any], layout: Layout, positions: Positions
    ) -> ModelOutput:
        """The output of the model, as for padded rows, but with zeros at padding and without caches.

        Args:
            module: The model.
            inputs: ``input_ids``, ``attention_mask`` and what else has a value a token, ``(B, T)``.
            flags: Other arguments.
            layout: Of the mask.
            positions: How the model numbers the tokens of padded rows.

        Raises:
            NotPackableError: The model asks for more than attention within rows, or gives other than values of tokens.
        """
        layout = layout.to(inputs["input_ids"].device)
        packed = {name: layout.pack(value) for name, value in inputs.items() if name != "attention_mask"}
        packed["position_ids"] = layout.pack(positions(inputs, self.configs[0]))
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._attention(layout))
            stack.enter_context(_padded_pooler(module, layout))
            stack.enter_context(_checkpoints(self.layers, functools.partial(self._attention, layout)))
            output: ModelOutput = module(**packed, **{**flags, **self.without_cache})
        return type(output)(**{name: _unpacked(value, layout) for name, value in output.items()})

    @contextlib.contextmanager
    def _attention(self, layout: Layout) -> Iterator[None]:
        """While this is open, the model attends within the rows of a layout."""
        try:
            for config in self.configs:
                config._attn_implementation = PACKED
            with laid_out(layout):
                yield
        finally:
            for config in self.configs:
                config._attn_implementation = "sdpa"


def _unpacked(value: Any, layout: Layout) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_unpacked(item, layout) for item in value)
    if not isinstance(value, Tensor):
        raise NotPackableError(f"an output of {type(value).__name__}")
    if value.shape[:2] == (1, len(layout.index)):
        return layout.unpack(value)
    if value.shape[:1] == layout.size[:1]:  # what the pooler made
        return value
    raise NotPackableError(f"an output of shape {tuple(value.shape)}")


@contextlib.contextmanager
def _padded_pooler(module: nn.Module, layout: Layout) -> Iterator[None]:
    """While this is open, the model's own pooler sees padded rows: it takes the first token of each."""
    pooler = getattr(module, "pooler", None)
    if not isinstance(pooler, nn.Module):
        yield
        return

    def unpack(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_unpacked(it, layout) if isinstance(it, Tensor) else it for it in args)

    handle = pooler.register_forward_pre_hook(unpack)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _checkpoints(layers: Iterable[Any], attention: Callable[[], Any]) -> Iterator[None]:
    """While this is open, what gradient checkpointing computes again later is computed with the same attention."""

    def within(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with attention():
                return forward(*args, **kwargs)

        return run

    def wrapped(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        return lambda forward, *args, **kwargs: checkpoint(within(forward), *args, **kwargs)

    name = "_gradient_checkpointing_func"
    checkpoints = [(layer, getattr(layer, name)) for layer in layers if layer.gradient_checkpointing]
    try:
        for layer, checkpoint in checkpoints:
            setattr(layer, name, wrapped(checkpoint))
        yield
    finally:
        for layer, checkpoint in checkpoints:
            setattr(layer, name, checkpoint)


def by_place(inputs: Inputs, config: PretrainedConfig) -> Tensor:
    """Tokens are numbered by their place in the padded row, as by BERT."""
    ids = inputs["input_ids"]
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)


def by_mask(inputs: Inputs, config: PretrainedConfig) -> Tensor:
    """Real tokens are counted, as by OPT."""
    return inputs["attention_mask"].long().cumsum(1) - 1


def by_tokens(inputs: Inputs, config: PretrainedConfig) -> Tensor:
    """Tokens other than the one for padding are counted, from the number of that one on, as by RoBERTa."""
    pad = getattr(config.get_text_config(), "pad_token_id", None) or 0
    real = inputs["input_ids"].ne(pad).long()
    return real.cumsum(1) * real + pad


NUMBERINGS: Iterable[Positions] = (by_place, by_mask, by_tokens)
