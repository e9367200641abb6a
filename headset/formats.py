"""The file formats: each is read into Arrow tables, and each can say where in the file a row stands."""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from backbones.errors import HeadsetError

__all__ = ["SUFFIXES", "line_of", "tables"]

CHUNK = 10_000  # rows of a part at most,
CHUNK_SIZE = 2**22  # and characters, or bytes of Parquet, of a part, about
SEPARATORS = {"\t": "a tab", ";": "';'", "|": "'|'", ",": "a comma"}
UTF_16 = "UTF-16 text. Convert it: iconv -f UTF-16 -t UTF-8"
SIGNATURES = {
    b"PAR1": "Parquet. Name it .parquet",
    b"\x1f\x8b": "compressed with gzip. Unpack it first",
    b"BZh": "compressed with bzip2. Unpack it first",
    b"\xfd7zXZ": "compressed with xz. Unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd. Unpack it first",
    b"PK\x03\x04": "a zip archive or an Excel sheet. Unpack it, or save the sheet as CSV",
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
}
CONLLU_COLUMNS = ["id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc"]


@dataclass(frozen=True)
class Record:
    """One row of a file, the line that it begins on where that is how the row is found, and about its characters."""

    values: dict[str, Any]
    line: int | None = None
    size: int = 0


def tables(path: Path, conll_columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Read a file in parts.

    Args:
        path: A file with one of ``SUFFIXES``.
        conll_columns: The names of the columns of a CoNLL file.

    Raises:
        HeadsetError: The file is not what its suffix says; the message has the row or the line.
    """
    if path.suffix.lower() == ".parquet":
        yield from _parquet(path)
        return
    records = READERS[path.suffix.lower()](path, conll_columns)
    start = 0
    while part := _part(records):
        names = list(dict.fromkeys(name for record in part for name in record.values))
        for name in names:
            if odd := re.search("[\0\ud800-\udfff]", name):
                kind = "a NUL" if odd[0] == "\0" else "half a"
                raise HeadsetError(f"{path}: the name of a column has {kind} character in it: {name!r}.")
        yield pa.table({name: _column(path, start, part, name) for name in names})
        start += len(part)


def _part(records: Iterator[Record]) -> list[Record]:
    """The next records, so many as are well kept in memory."""
    part, size = [], 0
    for record in records:
        part.append(record)
        size += record.size
        if len(part) == CHUNK or size > CHUNK_SIZE:
            break
    return part


def line_of(path: Path, row: int, conll_columns: list[str] | None = None) -> int | None:
    """The line on which a row (from 0) begins; None in the formats whose rows are counted."""
    if path.suffix.lower() == ".parquet":
        return None
    records = READERS[path.suffix.lower()](path, conll_columns)
    return next(islice(records, row, None)).line


def _column(path: Path, start: int, records: list[Record], name: str) -> pa.Array:
    values = [record.values.get(name) for record in records]
    try:
        return pa.array(values)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        odd = next((i for i, value in enumerate(values) if not _storable(value)), None)
        wrong = "cannot be stored"
        advice = "Whole numbers have at most 64 bits, and texts are valid Unicode."
        if odd is None:
            kinds = [float if type(value) is int else type(value) for value in values]
            first = next(kind for kind in kinds if kind is not type(None))
            odd = next((i for i, kind in enumerate(kinds) if kind not in (first, type(None))), 0)
            wrong, advice = "does not fit the values before it", "A column holds values of one kind."
        where = f"line {records[odd].line}" if records[odd].line else f"row {start + odd + 1}"
        raise HeadsetError(
            f"{path}, {where}: column {name!r} holds {repr(values[odd])[:100]}, which {wrong} ({error}). {advice}"
        ) from error


def _storable(value: Any) -> bool:
    """Whether a value can be stored at all, whatever comes before it."""
    try:
        pa.array([value])
    except (pa.ArrowException, ValueError, OverflowError):
        return False
    return True


def _parquet(path: Path) -> Iterator[pa.Table]:
    try:
        file = pq.ParquetFile(path, memory_map=True)
        for batch in file.iter_batches(_parquet_rows(file)):
            table = pa.Table.from_batches([batch], file.schema_arrow)
            table.validate(full=True)
            for index, field in enumerate(table.schema):
                if pa.types.is_dictionary(field.type):
                    table = table.set_column(index, field.name, table.column(index).cast(field.type.value_type))
            yield table
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise HeadsetError(f"{path}: not a Parquet file that can be read: {error}") from error


def _parquet_rows(file: pq.ParquetFile) -> int:
    """The rows of a part, by the mean size of all and by that of the first ones, which no dictionary makes small."""
    stored = sum(file.metadata.row_group(index).total_byte_size for index in range(file.num_row_groups))
    first = next(file.iter_batches(100), None)
    row: int = max(stored // max(file.metadata.num_rows, 1), first.nbytes // max(len(first), 1) if first else 0, 1)
    return max(min(CHUNK, CHUNK_SIZE // row), 1)


def _open(path: Path) -> TextIO:
    """The file opened as UTF-8, once it is known to be that; a byte order mark is left out."""
    with path.open("rb") as file:
        start = file.read(6)
        if b"\0" in start[:2]:
            raise HeadsetError(f"{path}: not UTF-8; it seems to be {UTF_16}.")
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                for signature, kind in SIGNATURES.items():
                    if start.startswith(signature):
                        raise HeadsetError(f"{path}: not UTF-8 text; it seems to be {kind}.") from error
                raise HeadsetError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start + 1} "
                    f"of the line). Convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8 '{path}'"
                ) from error
    return path.open(encoding="utf-8-sig", newline="")


def _csv(path: Path, _: list[str] | None) -> Iterator[Record]:
    """Every cell is a string, and an empty one is null."""
    csv.field_size_limit(sys.maxsize)
    row = 0
    with _open(path) as file:
        lines = (cells for cells in csv.reader(file, _separator(path), strict=True) if cells)
        try:
            header = next(lines, [])
            _check_separator(path, header)
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise HeadsetError(
                    f"{path}: the header has {', '.join(map(repr, twice))} more than once. Rename a column."
                )
            for row, cells in enumerate(lines, 1):
                if len(cells) != len(header):
                    raise HeadsetError(
                        f"{path}, row {row}: {len(cells)} cells, and the header has {len(header)} columns: "
                        f"{', '.join(header)}. A cell with the separator or a line break in it must stand in double "
                        "quotes."
                    )
                values = dict(zip(header, (cell or None for cell in cells), strict=True))
                yield Record(values, size=sum(map(len, cells)))
        except csv.Error as error:
            raise HeadsetError(
                f"{path}, row {row + 1}: {error}. A cell that begins with a double quote must end with one, and "
                'each of its own be doubled: "say ""hi""".'
            ) from error


def _check_separator(path: Path, header: list[str]) -> None:
    """A header of one column with another separator in it is no header of one column."""
    other = next((mark for mark in SEPARATORS if len(header) == 1 and mark in header[0]), None)
    if other is not None:
        raise HeadsetError(
            f"{path}: the file seems to be separated by {SEPARATORS[other]}: its header is one column, {header[0]!r}. "
            "A .csv file is read with commas, a .tsv file with tabs."
        )


def _separator(path: Path) -> type[csv.Dialect]:
    return csv.excel_tab if path.suffix.lower() == ".tsv" else csv.excel


def _jsonl(path: Path, _: list[str] | None) -> Iterator[Record]:
    """One object a line; blank lines are passed over."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                item = _checked_object(f"{path}, line {number}", _parsed(path, line, number))
                yield Record(item, number, len(line))


def _json(path: Path, _: list[str] | None) -> Iterator[Record]:
    """A list of objects, one object a line, or a file as SQuAD publishes them."""
    with _open(path) as file:
        text = file.read()
    if not text.lstrip().startswith("["):
        questions = _squad(path, text)
        yield from _jsonl(path, None) if questions is None else questions
        return
    items = _parsed(path, text)
    for row, item in enumerate(items, 1):
        yield Record(_checked_object(f"{path}, row {row}", item))


def _squad(path: Path, text: str) -> Iterator[Record] | None:
    """A row for each question of a SQuAD file, as ``datasets`` has them; None if it is none."""
    try:
        articles = json.loads(text)["data"]
        titled = [(article.get("title"), article["paragraphs"]) for article in articles]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None
    rows = []
    for number, (title, paragraphs) in enumerate(titled, 1):
        try:
            for paragraph in paragraphs:
                for entry in paragraph["qas"]:
                    answers = [] if entry.get("is_impossible") else entry.get("answers", [])
                    columns = {key: [answer[key] for answer in answers] for key in ("text", "answer_start")}
                    texts = {"title": title, "context": paragraph["context"], "question": entry["question"]}
                    rows.append(Record({"id": entry.get("id"), **texts, "answers": columns}))
        except (LookupError, TypeError, AttributeError) as error:
            raise HeadsetError(
                f"{path}, article {number}: not as SQuAD has it, paragraphs with a context and qas, each with a "
                f"question and answers: {type(error).__name__}: {error}."
            ) from error
    return iter(rows)


def _parsed(path: Path, text: str, line: int | None = None) -> Any:
    """What a JSON text holds; ``line`` is where it stands, if it is one line of a file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}, line {line or error.lineno}"
        raise HeadsetError(f"{where}: not JSON: {error.msg} (column {error.colno}).") from error
    except (ValueError, RecursionError) as error:
        where = f"{path}, line {line}" if line else str(path)
        raise HeadsetError(f"{where}: JSON that cannot be read: {error}.") from error


def _checked_object(where: str, item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise HeadsetError(f'{where}: expected an object, such as {{"text": "..."}}, got {repr(item)[:60]}.')
    return item


def _conll(path: Path, columns: list[str] | None) -> Iterator[Record]:
    """One word a line with its tags beside it, one sentence up to a blank line."""
    conllu = path.suffix.lower() == ".conllu"
    names = columns or (CONLLU_COLUMNS if conllu else None)
    words: list[list[str]] = []
    start = 0
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            text = line.strip("\r\n ")
            if not text.strip("\t") or text.startswith("-DOCSTART-"):
                if words and names:
                    yield _sentence(names, words, start)
                words = []
                continue
            cells = text.split("\t") if "\t" in text else re.split(" +", text)
            # In CoNLL-U, comments begin with #, and 3-4 and 5.1 number what are not words of the text.
            if conllu and (text.startswith("#") or re.fullmatch(r"\d+[-.]\d+", cells[0])):
                continue
            names = names or _names(len(cells))
            if len(cells) != len(names) or not all(cells) or (conllu and not cells[0].isdecimal()):
                raise HeadsetError(
                    f"{path}, line {number}: expected {len(names)} columns ({', '.join(names)}) with tabs or spaces "
                    f"between them{', the first a number' * conllu}, got {text!r}."
                )
            start = start if words else number
            words.append(cells)
    if words and names:
        yield _sentence(names, words, start)


def _names(count: int) -> list[str]:
    """The columns of CoNLL files that nobody has named: words first, tags last."""
    return ["tokens", *(f"column_{number}" for number in range(2, count)), "tags"][:count]


def _sentence(names: list[str], words: list[list[str]], line: int) -> Record:
    columns = {name: list(column) for name, column in zip(names, zip(*words, strict=True), strict=True)}
    return Record(columns, line, sum(map(len, chain.from_iterable(words))))


READERS: dict[str, Callable[[Path, list[str] | None], Iterator[Record]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".json": _json,
    ".conll": _conll,
    ".conllu": _conll,
    ".bio": _conll,
    ".iob": _conll,
}
SUFFIXES = (*READERS, ".parquet")
