"""Checkpoints as folders, to which each process adds its part: the format of ``torch.distributed.checkpoint``.

Its own reader unpickles whatever it finds. This one reads tensors and plain values alone.
"""

import ctypes
import functools
import hashlib
import io
import json
import math
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_saver import save

from backbones.errors import HeadsetError

__all__ = ["is_folder", "open_folder", "write_folder"]

INDEX = ".metadata"  # of torch.distributed.checkpoint: where which part of which tensor is
REST = "meta.pt"  # of Lightning: all that is no tensor of the model or of an optimizer
DIGESTS = "digests.json"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of fcntl.h and stdio.h of Linux
CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "_MEM_FORMAT_ENCODING",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}


def is_folder(path: str | Path) -> bool:
    """Whether a path is a folder with such a checkpoint, whole or not."""
    return (Path(path) / REST).is_file() or (Path(path) / INDEX).is_file()


def write_folder(content: dict[str, Any], path: Path, names: Sequence[Sequence[Sequence[str]]]) -> None:
    """Write a checkpoint; every process has to call it. It is under its name when all of it is written.

    Args:
        content: What Lightning saves, with parts of tensors.
        path: The folder, which all processes see.
        names: Of each optimizer, the names of the parameters of each of its groups.
    """
    rank = distributed.get_rank()
    draft = path.with_name(f".{path.name}.partial")
    if rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
    distributed.barrier()
    rest = {key: value for key, value in content.items() if key not in ("state_dict", "optimizer_states")}
    tensors = {"state_dict": content["state_dict"]}
    for number, state in enumerate(content.get("optimizer_states", ())):
        tensors[f"optimizer_{number}"] = _by_name(state, names[number])
    save(tensors, storage_writer=FileSystemWriter(draft))
    mine = {file.name: _digest(file) for file in draft.glob(f"__{rank}_*")}
    digests: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(digests, mine)
    if rank == 0:
        torch.save(rest, draft / REST)
        every = {name: digest for part in digests for name, digest in part.items()}
        every |= {name: _digest(draft / name) for name in (INDEX, REST)}
        (draft / DIGESTS).write_text(json.dumps(every, indent=1))
        for file in [*draft.iterdir(), draft]:
            _sync(file)
        if path.is_dir() and not path.is_symlink():
            _exchange(draft, path)
            shutil.rmtree(draft)
        else:
            path.unlink(missing_ok=True)
            os.replace(draft, path)
        _sync(path.parent)
    distributed.barrier()


def open_folder(path: Path, check: bool = True) -> dict[str, Any]:
    """The content of a checkpoint, as that of a file; tensors are put together when they are asked for.

    Args:
        path: The folder.
        check: Read all of it to see whether it is as it was written.

    Raises:
        HeadsetError: It is damaged, or holds what is neither tensors nor plain values.
    """
    if not is_folder(path):
        raise HeadsetError(f"{path} is a folder without a checkpoint in it. Runs write theirs into **/checkpoints.")
    for name in (INDEX, REST):
        if not (path / name).is_file():
            raise HeadsetError(f"{path} is no whole checkpoint: it has no {name}. Take an earlier one.")
    if check and (path / DIGESTS).is_file():
        _check(path, (path / DIGESTS).stat().st_mtime_ns)
    try:
        with (path / INDEX).open("rb") as file:
            index = _Plain(file).load()
        content: dict[str, Any] = torch.load(path / REST, map_location="cpu", weights_only=True)
        tensors = _Tensors(path, index)
        content["state_dict"] = tensors.below("state_dict")
        numbers = [name for name in tensors.tops if name.startswith("optimizer_")]
        content["optimizer_states"] = [_by_number(tensors, name) for name in sorted(numbers)]
    except HeadsetError:
        raise
    except Exception as error:  # what a damaged pickle can raise is anything
        raise HeadsetError(
            f"{path} cannot be read as a checkpoint of weights and plain values; it is damaged, of another kind, or "
            f"unsafe. Is it whole, and made by headset? {' '.join(str(error).split())[:300]}"
        ) from error
    return content


class _Plain(pickle.Unpickler):
    """Loads an index, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name in CLASSES.get(module, ()) or (module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into an index of tensors")


class _Tensors:
    """The entries of a folder by their paths, such as ``("state_dict", "headset.heads.topic.weight")``."""

    def __init__(self, folder: Path, index: Metadata) -> None:
        self.folder = folder
        self.kinds = dict(index.state_dict_metadata)
        self.places = dict(index.storage_data)
        self.names = {tuple(path): name for name, path in index.planner_data.items()}
        self.tops = {str(path[0]) for path in self.names}

    def below(self, *start: str | int) -> "_Lazy":
        """The entries whose paths begin so, by the rest of it."""
        size = len(start)
        return _Lazy(self, {path[size]: path for path in self.names if path[:size] == start and len(path) == size + 1})

    def read(self, path: tuple[Any, ...]) -> Any:
        """An entry: a tensor, put together of its parts, or a plain value."""
        name = self.names[path]
        kind = self.kinds[name]
        if not isinstance(kind, TensorStorageMetadata):
            return self._load(MetadataIndex(name))
        sizes = [chunk.sizes for chunk in kind.chunks]
        if sum(map(math.prod, sizes)) != math.prod(kind.size):
            raise HeadsetError(f"{self.folder} is damaged: parts of {path[-1]} are missing.")
        whole = torch.empty(kind.size, dtype=kind.properties.dtype)
        for number, chunk in enumerate(kind.chunks):
            part = self._load(MetadataIndex(name, chunk.offsets, number))
            target = whole
            for dim, (start, length) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                target = target.narrow(dim, start, length)
            if not isinstance(part, torch.Tensor) or part.shape != target.shape:
                raise HeadsetError(f"{self.folder} is damaged: a part of {path[-1]} is of another shape.")
            target.copy_(part)
        return whole

    def _load(self, index: MetadataIndex) -> Any:
        place = self.places[index]
        if Path(place.relative_path).name != place.relative_path or place.transform_descriptors:
            raise HeadsetError(f"{self.folder} names {place.relative_path}, which is no file that belongs to it.")
        with (self.folder / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            content = file.read(place.length)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


class _Lazy(Mapping[str, Any]):
    """Entries that are read each time they are asked for."""

    def __init__(self, tensors: _Tensors, paths: dict[str, tuple[Any, ...]]) -> None:
        self.tensors = tensors
        self.paths = paths

    def __getitem__(self, key: str) -> Any:
        path = self.paths[key]
        try:
            return self.tensors.read(path)
        except HeadsetError:
            raise
        except Exception as error:
            raise HeadsetError(
                f"{self.tensors.folder} is damaged: {key} cannot be read. {' '.join(str(error).split())[:300]}"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


class _States(Mapping[int, dict[str, Any]]):
    """The state of each parameter of an optimizer, by its number."""

    def __init__(self, entries: dict[int, _Lazy]) -> None:
        self.entries = entries

    def __getitem__(self, number: int) -> dict[str, Any]:
        return dict(self.entries[number])

    def __iter__(self) -> Iterator[int]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def _by_name(state: Mapping[str, Any], names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The state of an optimizer with names in the place of numbers, as torch.distributed.checkpoint has it."""
    groups = [{**group, "params": list(its)} for group, its in zip(state["param_groups"], names, strict=True)]
    numbered = [name for its in names for name in its]
    return {"state": {numbered[number]: values for number, values in state["state"].items()}, "param_groups": groups}


def _by_number(tensors: _Tensors, top: str) -> dict[str, Any]:
    """The state of an optimizer as the optimizer gives it."""
    count = len({path[2] for path in tensors.names if path[:2] == (top, "param_groups")})
    groups: list[dict[str, Any]] = [dict(tensors.below(top, "param_groups", place)) for place in range(count)]
    names = [name for group in groups for name in group["params"]]
    starts = [sum(len(group["params"]) for group in groups[:place]) for place in range(len(groups))]
    known = {path[2] for path in tensors.names if path[:2] == (top, "state") and len(path) == 4}
    states = {number: tensors.below(top, "state", name) for number, name in enumerate(names) if name in known}
    numbered = [
        {**group, "params": list(range(start, start + len(group["params"])))}
        for group, start in zip(groups, starts, strict=True)
    ]
    return {"state": _States(states), "param_groups": numbered}


@functools.cache
def _check(path: Path, written: int) -> None:
    """Compare all files with their digests, once.

    Raises:
        HeadsetError: One is missing, or not as it was.
    """
    try:
        digests: dict[str, str] = json.loads((path / DIGESTS).read_text())
        for name, digest in digests.items():
            if Path(name).name != name or _digest(path / name) != digest:
                raise HeadsetError(
                    f"{path / name} is damaged: it is not as it was written. Take an earlier checkpoint."
                )
    except (OSError, ValueError, AttributeError) as error:
        raise HeadsetError(f"{path} is damaged: {error}. Take an earlier checkpoint.") from error


def _exchange(one: Path, other: Path) -> None:
    """Swap the names of two folders at once, where the system can: there is no moment without one."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is None or swap(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE) != 0:
        aside = one.with_suffix(".before")
        os.replace(other, aside)
        os.replace(one, other)
        os.replace(aside, one)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
