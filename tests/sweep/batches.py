"""A batch with labels for every task and architecture."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

Batch = dict[str, Tensor]


def a_batch(auto_class: str, model: PreTrainedModel) -> Batch:
    """Two inputs of a task, the second one shorter where there is a mask to say so."""
    generator = torch.Generator().manual_seed(1)
    if auto_class == "AutoModelForImageClassification":
        batch = _images(model, generator)
    elif auto_class == "AutoModelForAudioClassification":
        batch = _audio(model, generator)
    else:
        batch = _texts(model, (2, 3) if auto_class == "AutoModelForMultipleChoice" else (2,), generator)
    dtype = model.dtype
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}


def labels_for(auto_class: str, model: PreTrainedModel, batch: Batch) -> Tensor | None:
    """Labels as a head takes them; one answer lies outside of its text. None where the stock model takes no labels."""
    known, size = _parameters(model), model.config.num_labels
    if "start_positions" in known:
        return torch.tensor([[3, 5], [99, 4]])
    if auto_class == "AutoModelForMultipleChoice":
        return torch.tensor([2, 0])
    if auto_class == "AutoModelForTokenClassification":
        ids, mask = batch["input_ids"], batch["attention_mask"]
        return (torch.arange(ids.numel()).view_as(ids) % size).masked_fill(mask == 0, -100)
    if auto_class == "AutoModelForMaskedLM":
        labels = batch.get("input_ids", batch.get("inputs")).masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, ::3] = -100
        return labels
    if "labels" not in known or {"input_ids", "pixel_values"} <= batch.keys():  # it takes none, or those of a text
        return None
    return torch.tensor([0, size - 1])


def as_stock(labels: Tensor | None, model: PreTrainedModel) -> Batch:
    """The arguments of the stock model for labels."""
    if labels is None:
        return {}
    if "start_positions" in _parameters(model):
        return dict(zip(("start_positions", "end_positions"), labels.clone().unbind(-1), strict=True))
    return {"labels": labels.clone()}


def _parameters(model: PreTrainedModel) -> Any:
    return inspect.signature(model.forward).parameters


def _texts(model: PreTrainedModel, rows: tuple[int, ...], generator: torch.Generator) -> Batch:
    """Texts with three separators and an end, as encoders and decoders know them, and boxes where they are read."""
    config, parameters = model.config, _parameters(model)
    text = config.get_text_config()
    # A decoder of queries answers at each of its positions, so its texts have to have them all.
    length = text.max_position_embeddings if "inputs" in parameters else 16
    ids = torch.randint(10, 140, (*rows, length), generator=generator)
    mask = torch.ones_like(ids)
    ids[..., 3] = ids[..., 4] = ids[..., -1] = ids[-1:, ..., -5] = 2
    pad = getattr(text, "pad_token_id", None)
    ids[-1:, ..., -4:] = 1 if pad is None else pad
    mask[-1:, ..., -4:] = 0
    batch = {"inputs" if "input_ids" not in parameters else "input_ids": ids, "attention_mask": mask}
    if "bbox" in parameters:
        corners = getattr(config, "dim_bbox", 4)
        batch["bbox"] = torch.zeros(*ids.shape, corners, dtype=torch.float if corners == 8 else torch.long)
    if "visual_feats" in parameters:
        batch["visual_feats"] = torch.randn(2, 5, config.visual_feat_dim, generator=generator)
        batch["visual_pos"] = torch.rand(2, 5, config.visual_pos_dim, generator=generator)
    return batch


def _images(model: PreTrainedModel, generator: torch.Generator) -> Batch:
    config, parameters = model.config, _parameters(model)
    vision = getattr(config, "vision_config", config)
    if "pixel_values" not in parameters:  # an image as a text of clusters of colours
        return {"input_ids": torch.randint(0, config.vocab_size - 1, (2, config.n_positions), generator=generator)}
    channels = getattr(vision, "num_channels", 3)
    if "spatial_shapes" in parameters:
        side = math.isqrt(vision.num_patches)
        size = (2, vision.num_patches, channels * vision.patch_size**2)
        mask = torch.ones(2, vision.num_patches, dtype=torch.long)
        shapes = torch.tensor([[side, side]] * 2)
        pixels = torch.randn(size, generator=generator)
        return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}
    side = getattr(vision, "image_size", 64)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    batch = {"pixel_values": torch.randn(2, channels, height, width, generator=generator)}
    if "input_ids" in parameters:
        batch |= _texts(model, (2,), generator)
        batch["input_ids"][:, 6 : 6 + config.mm_tokens_per_image] = config.image_token_index
    return batch


def _audio(model: PreTrainedModel, generator: torch.Generator) -> Batch:
    config, parameters = model.config, _parameters(model)
    if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        size = (2, config.num_mel_bins, 2 * config.max_source_positions)
    elif hasattr(config, "frequency_stride"):
        size = (2, config.max_length, config.num_mel_bins)
    elif "input_features" in parameters:
        size = (2, 40, config.feature_projection_input_dim)
    else:
        size = (2, 3200)
    batch = {model.main_input_name: torch.randn(size, generator=generator)}
    if "attention_mask" in parameters and not hasattr(config, "frequency_stride"):
        mask = torch.ones(2, size[1], dtype=torch.long)
        mask[1, -size[1] // 4 :] = 0
        batch["attention_mask"] = mask
    return batch
