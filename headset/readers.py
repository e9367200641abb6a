"""Reading data from wherever it is into a memory-mapped ``datasets.Dataset``."""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from backbones.errors import HeadsetError, did_you_mean
from headset import formats
from headset.file_encoder import undecoded
from headset.folders import load_dataset
from headset.formats import SUFFIXES, line_of
from headset.table_file import write_table

__all__ = ["Source", "cache_file", "cached", "open_stream", "place", "read"]

Source = str | dict[str, Any]

SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
    "predict": ("predict", "test"),
}
LARGE = 2**26  # bytes of a file that is not read again to see whether it has changed, where its times say so
SETTLED = 2 * 10**9  # nanoseconds after which a change of a file has another time
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def read(source: Source, split: str, conll_columns: list[str] | None = None) -> Dataset:
    """Read one split.

    Args:
        source: A file (CSV, TSV, JSONL, JSON, Parquet, CoNLL), a folder saved by ``datasets`` or laid out as on the
            hub, also one of images or sounds, a hub id, or a dictionary with the arguments of
            ``datasets.load_dataset``.
        split: ``train``, ``validation``, ``test`` or ``predict``: which part of a source that has several, and what an
            error calls it.
        conll_columns: The names of the columns of a CoNLL file; by default ``tokens`` the first, ``tags`` the last, and
            the names of the CoNLL-U format for ``.conllu``.

    Raises:
        HeadsetError: The source does not exist, cannot be read, has no such split, or has no rows.
    """
    if isinstance(source, dict):
        found = _load(source, split)
    elif Path(source).is_file():
        found = _file(Path(source), split, conll_columns)
    elif Path(source).is_dir() or (HUB_ID.fullmatch(source) and Path(source).suffix not in (*SUFFIXES, ".txt")):
        found = _load({"path": source}, split)
    else:
        raise HeadsetError(f"{split}: there is no file {source}.{_nearby(Path(source))}")
    rows = _part(found, source, split)
    if len(rows) == 0:
        raise HeadsetError(f"{split}: {place(source)} is empty, it has no rows.")
    return undecoded(rows)


def open_stream(source: dict[str, Any], split: str) -> IterableDataset:
    """Open one split as a stream, of which nothing is read yet.

    Args:
        source: The arguments of ``datasets.load_dataset``, with ``streaming``.
        split: Which part of a source that has several, and what an error calls it.

    Raises:
        HeadsetError: The source does not exist, or has no such split.
    """
    found = _load(source, split)
    if isinstance(found, IterableDatasetDict):
        found = found[_choose(SPLIT_NAMES[split], found, source, split)]
    if isinstance(found, DatasetDict | Dataset):
        found = _part(found, source, split).to_iterable_dataset()
    return undecoded(found) if found.features else found


def place(source: Source, row: int | None = None, conll_columns: list[str] | None = None) -> str:
    """Where a row (from 0) stands, for a message: ``train.csv, row 3``, counted from 1 and without the header.

    In JSONL and CoNLL files it is the line: ``train.jsonl, line 3``.
    """
    name = (
        source
        if isinstance(source, str)
        else " ".join(str(source[key]) for key in ("path", "name", "data_files") if source.get(key))
    )
    if row is None:
        return name
    path = Path(name)
    line = line_of(path, row, conll_columns) if path.is_file() and path.suffix.lower() in SUFFIXES else None
    return f"{name}, row {row + 1}" if line is None else f"{name}, line {line}"


def cache_file(key: Iterable[str | bytes]) -> Path:
    """Where something made from ``key`` is kept, in the cache folder of ``datasets``.

    Raises:
        HeadsetError: It is not there, and the folder cannot be written to.
    """
    digest = hashlib.sha256()
    for part in key:
        digest.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    target = Path(datasets.config.HF_DATASETS_CACHE, "headset", f"{digest.hexdigest()[:32]}.arrow")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(target.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable and not target.exists():
        raise HeadsetError(
            f"The cache folder {target.parent} cannot be written to. Set HF_DATASETS_CACHE to a folder that can."
        )
    return target


def cached(target: Path) -> Dataset | None:
    """What was kept in a file of the cache; None where there is none, or it is damaged."""
    try:
        return Dataset.from_file(str(target)) if target.exists() else None
    except (pa.ArrowException, OSError):
        return None


def _file(path: Path, split: str, conll_columns: list[str] | None) -> Dataset:
    """Read a file, or take what was made of the same bytes by the same code before."""
    if path.suffix.lower() not in SUFFIXES:
        hint = " A .txt file does not say what its lines are: for words with tags, rename it to .conll." * (
            path.suffix == ".txt"
        )
        raise HeadsetError(f"{split}: {path} has none of the known suffixes: {', '.join(SUFFIXES)}.{hint}")
    code = Path(formats.__file__).read_bytes()
    target = cache_file([code, _digest(path), path.suffix.lower(), repr(conll_columns)])
    if (found := cached(target)) is not None:
        return found
    try:
        written = write_table(formats.tables(path, conll_columns), target)
    except pa.ArrowException as error:
        raise HeadsetError(f"{path}: a column holds values of different kinds: {error}") from error
    if not written:
        raise HeadsetError(f"{split}: {path} is empty, it has no rows.")
    return Dataset.from_file(str(target))


def _digest(path: Path) -> str:
    """The digest of a file's bytes; that of a large file is kept for as long as the file is the same.

    The kernel changes the last of the times with every change of a file, and nobody can set it. A time of just now may
    be that of a change to come as well, so that such a file is read again.
    """
    before = path.stat()
    stamp = [before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns]
    kept = cache_file(["digest", str(path.resolve())]).with_suffix(".json")
    if before.st_size >= LARGE:
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(kept.read_text(encoding="utf-8"))
            if found["stamp"] == stamp:
                return str(found["digest"])
    settled = time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > SETTLED
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if before.st_size >= LARGE and settled:
        unfinished = kept.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps({"stamp": stamp, "digest": digest}), encoding="utf-8")
        unfinished.replace(kept)
    return digest


def _load(arguments: dict[str, Any], split: str) -> Any:
    if "path" not in arguments:
        raise HeadsetError(f"{split}: {arguments!r} has no path. Give what datasets.load_dataset takes: {{path: ID}}.")
    if arguments["path"] == "pandas":
        raise HeadsetError(f"{split}: pandas reads pickles, which run code when they are loaded. Give a Parquet file.")
    folder = Path(arguments["path"])
    many, one = folder / "dataset_dict.json", folder / "state.json"
    if many.exists():
        names = (arguments["split"],) if "split" in arguments else SPLIT_NAMES[split]
        with _told(place(arguments), split):
            splits = json.loads(many.read_text(encoding="utf-8"))["splits"]
        return _saved(folder / _choose(names, splits, arguments, split), split)
    if one.exists():
        if "split" in arguments:
            raise HeadsetError(f"{split}: {folder} has no splits, it is a single table. Give the path alone.")
        return _saved(folder, split)
    with _told(place(arguments), split):
        return load_dataset(arguments)


def _saved(folder: Path, split: str) -> Dataset:
    """A table that ``datasets`` saved; it saves one without rows, but does not load it."""
    with _told(str(folder), split):
        empty = not json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]
        found = None if empty else datasets.load_from_disk(str(folder))
    if not isinstance(found, Dataset):
        raise HeadsetError(f"{split}: {folder} is empty, it has no rows.")
    return found


@contextmanager
def _told(name: str, split: str) -> Iterator[None]:
    """Turn what ``datasets`` raises into one message."""
    try:
        yield
    except Exception as error:
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        folder = Path(name).parent
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        hint = "" if Path(name).exists() else did_you_mean(Path(name).name, names)
        what = name if Path(name).exists() else f"{name} is not a file or folder here, and"
        raise HeadsetError(f"{split}: {what} could not be loaded as a dataset: {reason}{hint}") from error


def _part(found: Any, source: Source, split: str) -> Dataset:
    if isinstance(found, Dataset):
        return found
    if not isinstance(found, DatasetDict):
        raise HeadsetError(f"{split}: {place(source)} gives a {type(found).__name__}; only data.train can be a stream.")
    return found[_choose(SPLIT_NAMES[split], found, source, split)]


def _choose(wanted: Iterable[str], available: Iterable[str], source: Source, split: str) -> str:
    """The first of the wanted splits that is available."""
    wanted, available = list(wanted), list(available)
    found = next((name for name in wanted if name in available), None)
    if found is None:
        raise HeadsetError(
            f"{split}: {place(source)} has no split {wanted[0]!r}. It has: {', '.join(available)}. "
            f"Name the one you mean: {{path: {place(source)}, split: {next(iter(available), 'train')}}}."
        )
    return found


def _nearby(path: Path) -> str:
    """What the folder of a missing file has instead."""
    folder = path.parent
    if not folder.is_dir():
        return f" There is no folder {folder} either."
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES)
    shown = ", ".join(names[:10]) + ", ..." * (len(names) > 10)
    return did_you_mean(path.name, names) + (
        f" Files in {folder}: {shown}." if names else f" {folder} has no data files."
    )
