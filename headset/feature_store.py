"""Features in files: there as a whole or not at all, checked by a digest, and read through a memory map."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["FeatureStore", "FeatureWriter", "finish"]

INDEX = "index.json"
LENGTHS, COUNTS = "lengths.npy", "counts.npy"
Kind = list[Any]  # the type of a tensor, whether it is one vector a sequence, and the shape of one position


class FeatureWriter:
    """Writes features of some examples, one after the other, into a folder of their own.

    Args:
        folder: The folder.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kinds: list[Kind] = []
        self.lengths: list[list[int]] = []  # of each sequence, by tensor
        self.counts: list[list[int]] = []  # of each example, by text, its sequences
        self._files: list[Any] = []
        folder.mkdir(parents=True)

    def write(self, counts: Sequence[int], sequences: Sequence[Sequence[Tensor]]) -> None:
        """Add an example.

        Args:
            counts: How many sequences each of its texts has.
            sequences: Of each sequence the tensors to keep: ``(T, ...)``, or one vector ``(D,)``.

        Raises:
            OSError: It cannot be written.
            ValueError: The tensors are of other types or shapes than those before.
        """
        self.counts.append(list(counts))
        for tensors in sequences:
            kinds = [_kind(tensor) for tensor in tensors]
            if not self.kinds:
                self.kinds = kinds
                self._files = [(self.folder / str(number)).open("wb") for number in range(len(kinds))]
            if kinds != self.kinds:
                raise ValueError(
                    f"the features of a row have other shapes than those of another: {kinds}, {self.kinds}"
                )
            self.lengths.append([1 if tensor.dim() == 1 else len(tensor) for tensor in tensors])
            for tensor, file in zip(tensors, self._files, strict=True):
                file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())

    @property
    def size(self) -> int:
        """How many bytes were written."""
        return sum(file.tell() for file in self._files)

    def close(self) -> None:
        """Write what is known of the examples.

        Raises:
            OSError: It cannot be written.
        """
        for file in self._files:
            file.close()
        np.save(self.folder / LENGTHS, np.array(self.lengths, dtype=np.int64).T)
        np.save(self.folder / COUNTS, np.array(self.counts, dtype=np.int64).T)
        (self.folder / INDEX).write_text(json.dumps(self.kinds))


def finish(parts: Sequence[Path], target: Path) -> None:
    """Join the parts that several writers made, in their order, and put the whole in its place.

    Args:
        parts: The folders of the parts; they lie in one, which becomes the target.
        target: What is here is replaced.

    Raises:
        OSError: It cannot be written.
        ValueError: The parts do not fit together.
    """
    first, folder = parts[0], parts[0].parent
    kinds = json.loads((first / INDEX).read_text())
    if any(json.loads((part / INDEX).read_text()) != kinds for part in parts):
        raise ValueError("the features of a row have other shapes than those of another")
    for number in range(len(kinds)):
        (first / str(number)).replace(folder / str(number))
        with (folder / str(number)).open("ab") as whole:
            for part in parts[1:]:
                with (part / str(number)).open("rb") as file:
                    shutil.copyfileobj(file, whole, 1 << 20)
                (part / str(number)).unlink()
    for name in (LENGTHS, COUNTS):
        np.save(folder / name, np.concatenate([np.load(part / name) for part in parts], axis=1))
    for part in parts:
        shutil.rmtree(part)
    (folder / INDEX).write_text(json.dumps({"kinds": kinds, "digest": _digest(folder, kinds)}))
    shutil.rmtree(target, ignore_errors=True)
    try:
        folder.rename(target)
    except OSError:
        if not (target / INDEX).exists():  # another run was faster, with the same
            raise
        shutil.rmtree(folder, ignore_errors=True)


class FeatureStore:
    """The features of all examples of a table; it may be sent to worker processes.

    Args:
        folder: Where `finish` put them.
        left: Whether batches are padded on the left.

    Raises:
        OSError: There are none.
        ValueError: They are damaged.
    """

    def __init__(self, folder: Path, left: bool = False) -> None:
        self.folder = folder
        self.left = left
        try:
            index = json.loads((folder / INDEX).read_bytes())
            self.kinds: list[Kind] = index["kinds"]
            self.lengths: np.ndarray[Any, Any] = np.load(folder / LENGTHS)  # (K, S): of tensors and sequences
            self.counts: np.ndarray[Any, Any] = np.load(folder / COUNTS)  # (texts, B)
        except (ValueError, KeyError, TypeError, EOFError) as error:
            raise ValueError(f"damaged: {error}") from error
        self._digest = index.get("digest")
        self.starts = np.cumsum(self.lengths, axis=1) - self.lengths
        # The sequences of an example lie together, those of its first text first.
        totals = self.counts.sum(axis=0)
        self.firsts = (np.cumsum(totals) - totals) + (np.cumsum(self.counts, axis=0) - self.counts)
        self.single = bool((self.counts == 1).all()) and len(self.counts) == 1
        self.even = [bool((lengths == lengths[:1]).all()) for lengths in self.lengths]
        self._values: list[Tensor] | None = None

    def __len__(self) -> int:
        """The number of examples."""
        return int(self.counts.shape[1])

    def __getstate__(self) -> Mapping[str, Any]:
        """Without the memory map, which each process makes for itself."""
        return {**self.__dict__, "_values": None}

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def sizes(self) -> np.ndarray[Any, Any]:
        """How many positions the longest kept sequences of each example have ``(B,)``."""
        totals = self.counts.sum(axis=0)
        starts = np.cumsum(totals) - totals
        sizes: np.ndarray[Any, Any] = np.add.reduceat(self.lengths.max(axis=0), starts)
        return sizes

    def check(self) -> "FeatureStore":
        """Read all of it, and compare its digest.

        Raises:
            OSError: It cannot be read.
            ValueError: It is damaged.
        """
        if _digest(self.folder, self.kinds) != self._digest:
            raise ValueError("damaged: its digest differs")
        return self

    @property
    def values(self) -> list[Tensor]:
        """The kept tensors, all positions of all sequences behind each other: ``(positions, ...)``."""
        if self._values is None:
            self._values = [self._map(number) for number in range(len(self.kinds))]
        return self._values

    def gather(self, examples: Sequence[int]) -> list[Tensor]:
        """The features of some examples, as the backbone gives them for their batch.

        Returns:
            The kept tensors: ``(N, T, ...)`` with zeros as padding, or ``(N, D)``, for the N sequences of the batch:
            those of the first texts of all examples, then those of the second ones.
        """
        numbers = np.asarray(examples, dtype=np.int64)
        sequences = numbers if self.single else self._sequences(numbers)
        return [self._of(number, sequences) for number in range(len(self.kinds))]

    def _sequences(self, examples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        counts = self.counts[:, examples].reshape(-1)
        firsts = self.firsts[:, examples].reshape(-1)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        found: np.ndarray[Any, Any] = np.repeat(firsts, counts) + within
        return found

    def _of(self, number: int, sequences: np.ndarray[Any, Any]) -> Tensor:
        values, is_vector = self.values[number], self.kinds[number][1]
        if is_vector:
            return torch.index_select(values, 0, torch.from_numpy(sequences))
        lengths = torch.from_numpy(self.lengths[number, sequences])
        starts = torch.from_numpy(self.starts[number, sequences])
        longest = int(lengths.max())
        within = torch.arange(longest)
        place = within - (longest - lengths).unsqueeze(1) if self.left else within.expand(len(lengths), -1)
        real = (place >= 0) & (place < lengths.unsqueeze(1))
        index = torch.where(real, starts.unsqueeze(1) + place, 0)
        found = torch.index_select(values, 0, index.reshape(-1)).view(*index.shape, *values.shape[1:])
        if not self.even[number]:
            found[~real] = 0
        return found

    def _map(self, number: int) -> Tensor:
        dtype, _, shape = self.kinds[number]
        kind = getattr(torch, dtype)
        rows = int(self.lengths[number].sum())
        size = rows * int(np.prod(shape))
        path = self.folder / str(number)
        if path.stat().st_size != size * kind.itemsize:
            raise ValueError("damaged: a file has another size")
        values: Tensor = torch.from_file(str(path), shared=False, size=size, dtype=kind)
        view: Tensor = values.view(rows, *shape)
        return view


def _kind(tensor: Tensor) -> Kind:
    is_vector = tensor.dim() == 1
    return [str(tensor.dtype).removeprefix("torch."), is_vector, list(tensor.shape if is_vector else tensor.shape[1:])]


def _digest(folder: Path, kinds: Sequence[Kind]) -> str:
    digest = hashlib.sha256(json.dumps(kinds).encode())
    for name in (LENGTHS, COUNTS, *map(str, range(len(kinds)))):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
