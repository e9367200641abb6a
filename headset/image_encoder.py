"""From image files to pixels, as the model's own image processor makes them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.image_utils import load_image

from backbones.errors import HeadsetError
from headset.file_encoder import FileEncoder, needed

__all__ = ["ImageEncoder"]

_noise = np.random.default_rng(0)


@dataclass(frozen=True)
class ImageEncoder(FileEncoder):
    """Opens images, and gives them to the image processor.

    They are turned as their Exif tag says and converted to RGB by transformers' own ``load_image``, as its pipelines
    do. It clips 16 bits a channel at 255; such images are scaled to 8 bits before.
    """

    what = "image"
    samples = tuple(_noise.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((48, 64), (64, 48), (56, 56)))

    def is_open(self, value: Any) -> bool:
        """Whether a value is an image of PIL, or an array of uint8, ``(H, W, 3)`` or ``(H, W)``."""
        return isinstance(value, needed("PIL.Image", "pillow", "image").Image | np.ndarray)

    def load(self, value: Any) -> Any:
        """An image of PIL, upright, in RGB."""
        pil = needed("PIL.Image", "pillow", "image")
        opened, name = (value, "the image") if self.is_open(value) else self.source(value)
        try:
            if isinstance(opened, np.ndarray):
                image = pil.fromarray(opened)
            else:
                image = opened if isinstance(opened, pil.Image) else pil.open(opened)
            image.load()
            if image.mode.startswith("I;16"):
                image = pil.fromarray((np.asarray(image) // 256).astype(np.uint8))
            return load_image(image)
        except Exception as error:  # Pillow raises whatever its decoders come upon in a damaged file
            raise HeadsetError(f"{name} cannot be read: {error or type(error).__name__}") from error

    def inputs(self, loaded: list[Any]) -> dict[str, Any]:
        """What the image processor gives: ``pixel_values`` ``(B, C, H, W)``.

        Raises:
            HeadsetError: It leaves images in different sizes.
        """
        try:
            return dict(self.processor(images=loaded, return_tensors="pt"))
        except ValueError as error:
            raise HeadsetError(
                f"{type(self.processor).__name__} does not make a batch of these images: {error} With images of "
                "different sizes, its preprocessor_config.json has to resize them."
            ) from error
