"""From sound files to model inputs, as the model's own feature extractor makes them."""

import inspect
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from backbones.errors import HeadsetError
from headset.file_encoder import FileEncoder, needed

__all__ = ["AudioEncoder"]

SHORTEST = 0.025  # seconds: one window of speech models
OGG_PAGE = 65307  # bytes, at most
WHOLE = 0.95  # of what a header promises; files that are written as a stream are not quite right there

_noise = np.random.default_rng(0)


@dataclass(frozen=True)
class AudioEncoder(FileEncoder):
    """Reads sounds, and gives them to the feature extractor: mono, at its sampling rate.

    Sounds of different lengths are padded as the extractor does it. Where that gives no ``attention_mask``, since its
    model takes none, a sound's scores depend a little on how long the others in its batch are.

    Args:
        processor: The model's feature extractor.
        folder: Where relative paths start; by default the working directory.
        max_seconds: What is longer is cut; None cuts nothing, but for what the extractor itself does.

    Raises:
        HeadsetError: The extractor is not for sounds, or ``max_seconds`` is shorter than any sound may be.
    """

    max_seconds: float | None = None

    what = "sound"
    samples = tuple(_noise.normal(0, 0.1, size).astype(np.float32) for size in (16000, 9000, 12000))

    def __post_init__(self) -> None:
        """Check the extractor and the limit."""
        if not hasattr(self.processor, "sampling_rate"):
            raise HeadsetError(f"{type(self.processor).__name__} is no feature extractor for sounds.")
        if self.max_seconds is not None and not self.max_seconds >= SHORTEST:
            raise HeadsetError(f"Invalid max_seconds: {self.max_seconds}. Give a number of at least {SHORTEST}.")

    @property
    def rate(self) -> int:
        """How many samples a second the model reads."""
        rate: int = self.processor.sampling_rate
        return rate

    @property
    def limit(self) -> str:
        """Where sounds are cut."""
        return f"{self.max_seconds:g} seconds" if self.max_seconds else ""

    def is_open(self, value: Any) -> bool:
        """Whether a value is an array ``(T,)`` at the model's sampling rate, or a tuple of one and its own rate."""
        return isinstance(value, np.ndarray | tuple)

    def load(self, value: Any) -> npt.NDArray[np.float32]:
        """The sound, float32 ``(T,)``."""
        if isinstance(value, np.ndarray):
            samples, rate = _as_float(value), self.rate
        elif isinstance(value, tuple):
            samples, rate = _with_rate(value)
        else:
            samples, rate = self._read(value)
        if rate != self.rate and len(samples):
            samples = needed("soxr", "soxr", "audio").resample(samples, rate, self.rate)
        if not np.isfinite(samples).all():
            raise HeadsetError("the sound has samples that are not finite numbers.")
        if len(samples) < SHORTEST * self.rate:
            seconds = len(samples) / self.rate
            raise HeadsetError(f"the sound is {seconds:g} seconds long; at least {SHORTEST} are needed.")
        most = len(samples) if self.max_seconds is None else int(self.max_seconds * self.rate)
        cut: npt.NDArray[np.float32] = samples[:most]
        return cut

    def _read(self, value: Any) -> tuple[npt.NDArray[np.float32], int]:
        """A file, mixed to mono, and its sampling rate."""
        soundfile = needed("soundfile", "soundfile", "audio")
        opened, name = self.source(value)
        try:
            with soundfile.SoundFile(opened) as file:
                samples = file.read(dtype="float32", always_2d=True)
                promised, told, kind, rate = file.frames, file.extra_info, file.format, file.samplerate
        except (RuntimeError, OSError, ValueError) as error:
            raise HeadsetError(f"{name} cannot be read: {error}") from error
        if len(samples) < WHOLE * promised or _is_cut(told) or (kind == "OGG" and not _ends(opened)):
            raise HeadsetError(f"{name} is not whole: its end is missing.")
        return samples.mean(axis=1), rate

    def encode(self, columns: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
        """The rows as they are; where there is a limit, with ``truncated``, whether a sound will be cut."""
        rows = super().encode(columns)
        if self.max_seconds is not None:
            info = needed("soundfile", "soundfile", "audio").info
            rows["truncated"] = [info(self.source(value)[0]).duration > self.max_seconds for value in columns[0]]
        return rows

    def inputs(self, loaded: list[Any]) -> dict[str, Any]:
        """What the feature extractor gives: ``input_values`` ``(B, T)`` or ``input_features`` ``(B, T, D)``."""
        settings: dict[str, Any] = {"sampling_rate": self.rate, "return_tensors": "pt"}
        padding = inspect.signature(type(self.processor).__call__).parameters.get("padding")
        if padding is not None and padding.default is False:  # else it pads by itself, to the size its model needs
            settings["padding"] = True
        return dict(self.processor(loaded, **settings))

    def identity(self) -> list[str]:
        """Where files are looked for, and the limit."""
        return [self.folder, repr((self.rate, self.max_seconds))]


def _as_float(samples: Any) -> npt.NDArray[np.float32]:
    """An array that a user gives, as float32 between -1 and 1.

    Raises:
        HeadsetError: It is not a mono sound.
    """
    array = np.asarray(samples)
    if array.ndim != 1 or array.dtype.kind not in "if":
        raise HeadsetError(
            f"expected an array (T,) of samples, got {array.dtype} {array.shape}. Mix several channels to one before."
        )
    scale = 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max) + 1
    return (array / scale).astype(np.float32)


def _with_rate(value: tuple[Any, ...]) -> tuple[npt.NDArray[np.float32], int]:
    """An array and its sampling rate.

    Raises:
        HeadsetError: They are not.
    """
    if len(value) != 2 or not isinstance(value[1], int | np.integer) or value[1] < 1:
        raise HeadsetError(f"expected a tuple of an array and its sampling rate, got {repr(value)[:60]}.")
    return _as_float(value[0]), int(value[1])


def _ends(opened: str | io.BytesIO) -> bool:
    """Whether the last page of an Ogg file says that it is the last (RFC 3533)."""
    with open(opened, "rb") if isinstance(opened, str) else io.BytesIO(opened.getvalue()) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - OGG_PAGE))
        tail = file.read()
    page = tail.rfind(b"OggS")
    return bool(tail[page + 5 : page + 6] and tail[page + 5] & 4)


def _is_cut(told: str) -> bool:
    """Whether libsndfile, reading a header, told of a chunk that is shorter than promised."""
    sizes = [(int(promised), int(real)) for promised, real in re.findall(r": (\d+) \(should be (\d+)\)", told)]
    unknown = 2**31 - 2**16  # written by programs that cannot go back to the header of a stream
    return any(real < WHOLE * promised and promised < unknown for promised, real in sizes)
