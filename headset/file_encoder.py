"""What the encoders of images and of sounds share: a row holds a file or its path, opened when a batch is made."""

import importlib
import io
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, Dataset, Image

from backbones.errors import HeadsetError
from headset.checks import RowError
from headset.encoders import RAW, Encoder

__all__ = ["FileEncoder", "needed", "undecoded"]


@dataclass(frozen=True)
class FileEncoder(Encoder):
    """Reads the files that a column holds or names, each time that a batch is made of them.

    Args:
        processor: The model's own image processor or feature extractor.
        folder: Where relative paths start; by default the working directory.
    """

    processor: Any
    folder: str = ""

    lazy: ClassVar[bool] = True
    what: ClassVar[str] = ""  # "image" or "sound"

    @abstractmethod
    def load(self, value: Any) -> Any:
        """One image or sound, as the processor takes it.

        Args:
            value: A path; the bytes of a file; a dictionary with both, as ``datasets`` has it; or what else is read.

        Raises:
            HeadsetError: It is missing, damaged, or nothing that is read.
        """

    @abstractmethod
    def is_open(self, value: Any) -> bool:
        """Whether a value is an image or sound in memory, and not the path of one."""

    @abstractmethod
    def inputs(self, loaded: list[Any]) -> dict[str, Any]:
        """The model inputs of what ``load`` gave, as the processor makes them."""

    def columns(self, inputs: Sequence[Any]) -> list[Sequence[Any]]:
        """Paths, or what is in memory, as one column.

        Raises:
            HeadsetError: They are no list, there is no such file, or they are none of these.
        """
        if not isinstance(inputs, Sequence):
            raise HeadsetError(
                f"predict takes a list of {self.what}s, got one {type(inputs).__name__}. Give it in a list: [...]."
            )
        for one in inputs:
            if not self.is_open(one):
                self.source(one)
        return [inputs]

    def check(self, row: int, column: str, value: Any) -> None:
        """Open the file, and read it to its end."""
        try:
            self.load(value)
        except HeadsetError as error:
            raise RowError(row, f"column {column!r}: {error}") from error

    def encode(self, columns: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
        """The rows as they are: ``collate`` opens the files."""
        return {RAW: list(columns[0])}

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Open the files of B rows.

        Returns:
            What the processor gives, ``pixel_values`` ``(B, C, H, W)`` or ``input_values`` ``(B, T)``, and ``meta``
            with ``rows``, where the examples have them.

        Raises:
            HeadsetError: A file was changed since it was checked.
        """
        batch = self.inputs([self.load(example[RAW]) for example in examples])
        rows = [example["row"] for example in examples if "row" in example]
        return {**batch, "meta": {"rows": rows} if rows else {}}

    def identity(self) -> list[str]:
        """Where files are looked for."""
        return [self.folder]

    def stamps(self, rows: Dataset, column: str) -> Iterator[str]:
        """Size and time of the files that a column names, for the cache: a file may change, and its path stay."""
        for part in rows.select_columns([column]).with_format("arrow").iter(1000):
            values = part[column]
            if pa.types.is_struct(values.type):
                inside = pc.is_valid(pc.struct_field(values, "bytes"))
                values = pc.if_else(inside, None, pc.struct_field(values, "path"))
            texts = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
            for path in values.to_pylist() if texts else ():
                file = Path(self.folder, path or "")
                known = file.stat() if path and file.is_file() else None
                yield f"{path} {known and (known.st_size, known.st_mtime_ns)}"

    def source(self, value: Any) -> tuple[str | io.BytesIO, str]:
        """What to open, and what to call it in a message.

        Raises:
            HeadsetError: There is no such file, or the value is neither a path nor the content of a file.
        """
        path = value
        if isinstance(value, Mapping) and value.keys() <= {"bytes", "path"}:
            path = value.get("path")
            value = path if value.get("bytes") is None else value["bytes"]
        if isinstance(value, bytes):
            return io.BytesIO(value), f"the {self.what} {path if isinstance(path, str) else 'in this row'}"
        if value is None or value == "":
            raise HeadsetError(f"the {self.what} is missing (null).")
        if not isinstance(value, str | os.PathLike):
            raise HeadsetError(f"expected the path of a file, got {repr(value)[:60]}.")
        file = Path(self.folder, value)
        if not file.is_file():
            where = f" Relative paths start in {self.folder or os.getcwd()}." * (not Path(value).is_absolute())
            raise HeadsetError(f"there is no file {value}.{where}")
        return str(file), str(file)


def needed(module: str, package: str, extra: str) -> Any:
    """A module that only some heads need.

    Args:
        module: Its name.
        package: The package that brings it.
        extra: The extra of headset that brings the package.

    Raises:
        HeadsetError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise HeadsetError(
            f"{package} is needed for this, and cannot be imported: {error}. Install it: pip install 'headset[{extra}]'"
        ) from error


def undecoded(rows: Any) -> Any:
    """A table whose images and sounds are files, and not decoded by ``datasets`` on each access."""
    for name, feature in rows.features.items():
        for kind in (Image, Audio):
            if isinstance(feature, kind) and feature != kind(decode=False):
                rows = rows.cast_column(name, kind(decode=False))
    return rows
