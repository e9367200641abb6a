"""Reading data from wherever it is into a memory-mapped ``datasets.Dataset``."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict

from backbones.errors import HeadsetError, did_you_mean
from headset import formats
from headset.formats import SUFFIXES, line_of

__all__ = ["Source", "cache_file", "place", "read"]

Source = str | dict[str, Any]

SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
    "predict": ("predict", "test"),
}
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def read(source: Source, split: str, conll_columns: list[str] | None = None) -> Dataset:
    """Read one split.

    Args:
        source: A file (CSV, TSV, JSONL, JSON, Parquet, CoNLL), a folder saved by ``datasets`` or laid out as on the
            hub, a hub id, or a dictionary with the arguments of ``datasets.load_dataset``.
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
    return rows


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
    """Where something made from ``key`` is kept, in the cache folder of ``datasets``."""
    digest = hashlib.sha256()
    for part in key:
        digest.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return Path(datasets.config.HF_DATASETS_CACHE, "headset", f"{digest.hexdigest()[:32]}.arrow")


def _file(path: Path, split: str, conll_columns: list[str] | None) -> Dataset:
    """Read a file, or take what was made of the same bytes by the same code before."""
    if path.suffix.lower() not in SUFFIXES:
        hint = " A .txt file does not say what its lines are: for words with tags, rename it to .conll." * (
            path.suffix == ".txt"
        )
        raise HeadsetError(f"{split}: {path} has none of the known suffixes: {', '.join(SUFFIXES)}.{hint}")
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").digest()
    code = Path(formats.__file__).read_bytes()
    target = cache_file([code, content, path.suffix.lower(), repr(conll_columns)])
    if not target.exists():
        parts = list(formats.tables(path, conll_columns))
        if not parts:
            raise HeadsetError(f"{split}: {path} is empty, it has no rows.")
        _write(path, target, parts)
    return Dataset.from_file(str(target))


def _write(path: Path, target: Path, parts: list[pa.Table]) -> None:
    try:
        table = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise HeadsetError(f"{path}: a column holds values of different kinds: {error}") from error
    for index, field in enumerate(table.schema):
        if pa.types.is_null(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(pa.string()))
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(f".{os.getpid()}")
    with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, formats.CHUNK)
    unfinished.replace(target)


def _load(arguments: dict[str, Any], split: str) -> Any:
    if "path" not in arguments:
        raise HeadsetError(f"{split}: {arguments!r} has no path. Give what datasets.load_dataset takes: {{path: ID}}.")
    folder = Path(arguments["path"])
    with _told(place(arguments), split):
        if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(str(folder))
            return saved[arguments["split"]] if "split" in arguments else saved
        return datasets.load_dataset(**arguments)


@contextmanager
def _told(name: str, split: str) -> Iterator[None]:
    """Turn what ``datasets`` raises into one message."""
    try:
        yield
    except Exception as error:
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise HeadsetError(
            f"{split}: {name} is not a file here, and could not be loaded as a dataset: {reason}{_nearby(Path(name))}"
        ) from error


def _part(found: Any, source: Source, split: str) -> Dataset:
    if isinstance(found, Dataset):
        return found
    if not isinstance(found, DatasetDict):
        raise HeadsetError(f"{split}: {place(source)} gives a {type(found).__name__}; streaming is not supported.")
    for name in SPLIT_NAMES[split]:
        if name in found:
            return found[name]
    raise HeadsetError(
        f"{split}: {place(source)} has no split {split!r}. It has: {', '.join(found)}. "
        f"Name the one you mean: {{path: {place(source)}, split: {next(iter(found), 'train')}}}."
    )


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
