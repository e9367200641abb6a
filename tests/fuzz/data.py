"""Damaged tables: what is read has to be what another reader finds, row for row, or a clear error."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from backbones.errors import HeadsetError
from headset.readers import read
from tests.fuzz.cases import Kind, Wrong, told_clearly
from tests.fuzz.mutators import mutated_bytes, mutated_tree

__all__ = ["KINDS", "same_rows"]

Row = dict[str, Any]
CSV = b"""text,label,score\r
"a ""quoted"" text, with a comma",good,1\r
"two
lines",bad,2.5\r
plain,,\r
\xc3\xa9t\xc3\xa9,good,\xe2\x88\x922\r
"""
TSV = b'text\tlabel\none two\tgood\nthree\tbad\n"a\tb"\tgood\n'
ROWS: list[Row] = [
    {"text": "one", "label": "good", "score": 1, "tags": ["a", "b"], "more": {"x": 1, "y": [None, 2.5]}},
    {"text": "zwei \U0001f600", "label": "bad", "score": 2, "tags": [], "more": {"x": None, "y": []}},
    {"text": 'three\n"3"', "label": None, "score": None, "tags": ["c"], "more": None},
    {"text": "", "label": "good", "score": -7, "tags": ["é"], "more": {"x": 2, "y": [1.0]}},
]
CONLL = b"""-DOCSTART- -X- O

EU NNP B-ORG
rejects VBZ O
call NN O

Peter NNP B-PER
Blackburn NNP I-PER
"""
CONLLU = b"""# text = They buy.
1\tThey\tthey\tPRON\tPRP\tCase=Nom\t2\tnsubj\t_\t_
2-3\tbuys\t_\t_\t_\t_\t_\t_\t_\t_
2\tbuy\tbuy\tVERB\tVBP\t_\t0\troot\t_\tSpaceAfter=No
3\t.\t.\tPUNCT\t.\t_\t2\tpunct\t_\t_

1\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\t_
"""
SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "T",
            "paragraphs": [
                {
                    "context": "The sky is blue.",
                    "qas": [
                        {"id": "1", "question": "What?", "answers": [{"text": "The sky", "answer_start": 0}]},
                        {"id": "2", "question": "Why?", "is_impossible": True, "answers": []},
                    ],
                }
            ],
        }
    ],
}


def csv_rows(text: str, separator: str) -> list[Row] | None:
    """The rows of a CSV text by RFC 4180, cell by cell; None where it is not of that form."""
    records: list[list[str]] = []
    record: list[str] = []
    place, size = 0, len(text)
    while place < size:
        if text[place] == '"':
            cell, place = "", place + 1
            while True:
                end = text.find('"', place)
                if end < 0:
                    return None
                cell, place = cell + text[place:end], end + 1
                if text[place : place + 1] != '"':
                    break
                cell, place = cell + '"', place + 1
        else:
            found = re.compile(f"[{separator}\r\n]").search(text, place)
            end = found.start() if found else size
            cell, place = text[place:end], end
        record.append(cell)
        if place < size and text[place] == separator:
            place += 1
            if place < size and text[place] not in "\r\n":
                continue
            record.append("")
        if place < size and text[place] not in "\r\n":
            return None
        place += 2 if text[place : place + 2] == "\r\n" else 1
        records.append(record)
        record = []
    records = [its for its in records if its != [""]]
    if not records:
        return []
    header, *rest = records
    if len(set(header)) != len(header) or any(len(its) != len(header) for its in rest):
        return None
    return [dict(zip(header, (cell or None for cell in its), strict=True)) for its in rest]


def conll_rows(text: str, names: list[str] | None) -> list[Row]:
    """The sentences of a CoNLL text, column by column."""
    rows = []
    numbered = names is not None
    kept = [
        line for line in re.split("\r\n|\r|\n", text) if not (numbered and re.match(r" *(#|\d+[-.]\d+[\t ])", line))
    ]
    for block in re.split(r"\n(?:[ \t]*\n)+", "\n" + re.sub(r"(?m)^-DOCSTART-.*$", "", "\n".join(kept)) + "\n\n"):
        words = [re.split("\t" if "\t" in line.strip(" ") else " +", line.strip(" ")) for line in block.split("\n")]
        words = [cells for cells in words if any(cells)]
        if words:
            width = len(words[0])
            columns = names or ["tokens", *(f"column_{number}" for number in range(2, width)), "tags"][:width]
            rows.append({name: [cells[place] for cells in words] for place, name in enumerate(columns)})
    return rows


def json_rows(text: str) -> list[Row]:
    """The objects of a JSON text: of a list, or line by line."""
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    return [json.loads(line) for line in re.split("\r\n|\r|\n", text) if line.strip()]


def squad_rows(text: str) -> list[Row]:
    """The questions of a SQuAD text."""
    rows = []
    for article in json.loads(text)["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                given = [] if entry.get("is_impossible") else entry.get("answers", [])
                answers = {"text": [it["text"] for it in given], "answer_start": [it["answer_start"] for it in given]}
                rows.append(
                    {
                        "id": entry.get("id"),
                        "title": article.get("title"),
                        "context": paragraph["context"],
                        "question": entry["question"],
                        "answers": answers,
                    }
                )
    return rows


def same_rows(found: list[Row], expected: list[Row]) -> bool:
    """Whether rows are the same, where a table has null for what a row lacks."""
    return len(found) == len(expected) and all(map(_same, found, expected))


def _same(found: Any, expected: Any) -> bool:
    if isinstance(found, dict) and isinstance(expected, dict):
        return all(_same(found.get(key), expected.get(key)) for key in found.keys() | expected.keys())
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_same, found, expected))
    if isinstance(found, float) and isinstance(expected, float) and math.isnan(found):
        return math.isnan(expected)
    if (found is None and expected == {}) or (found == {} and expected is None):
        return True
    # Arrow has 1.0 for true among numbers.
    kinds = (int, float) if isinstance(found, int | float) else type(found)
    return isinstance(expected, kinds) and found == expected


def _read(path: Path) -> list[Row] | None:
    """What is read; None after a clear error."""
    try:
        return list(read(str(path), "train").to_list())
    except HeadsetError as error:
        told_clearly(error, path.name)
        return None


def _compare(path: Path, found: list[Row] | None, expected: Any) -> str:
    if found is None:
        return "error"
    try:
        rows = expected()
    except Exception as error:
        raise Wrong(
            f"read, and no other reader reads it ({error!r}): {found!r:.300} of {path.read_bytes()!r:.600}"
        ) from error
    if rows is None or not same_rows(found, rows):
        raise Wrong(f"read {found!r:.600}, and it holds {rows!r:.600}: {path.read_bytes()!r:.600}")
    return "read"


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")


def _csv(rng: random.Random, folder: Path) -> str:
    suffix, content, separator = rng.choice(((".csv", CSV, ","), (".tsv", TSV, "\t")))
    path = folder / f"table{suffix}"
    path.write_bytes(mutated_bytes(rng, content))
    return _compare(path, _read(path), lambda: csv_rows(_text(path), separator))


def _jsonl(rng: random.Random, folder: Path) -> str:
    rows = mutated_tree(rng, ROWS) if rng.random() < 0.5 else ROWS
    rows = rows if isinstance(rows, list) else [rows]
    content = "\n".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in rows)
    path = folder / "table.jsonl"
    path.write_bytes(_bytes(rng, content))
    return _compare(
        path, _read(path), lambda: [json.loads(line) for line in re.split("[\r\n]", _text(path)) if line.strip()]
    )


def _json(rng: random.Random, folder: Path) -> str:
    path = folder / "table.json"
    if rng.random() < 0.5:
        path.write_bytes(_bytes(rng, json.dumps(mutated_tree(rng, ROWS))))
        return _compare(path, _read(path), lambda: json_rows(_text(path)))
    path.write_bytes(_bytes(rng, json.dumps(mutated_tree(rng, SQUAD))))

    def expected() -> list[Row]:
        try:
            return squad_rows(_text(path))
        except (LookupError, TypeError, AttributeError, ValueError):
            return json_rows(_text(path))

    return _compare(path, _read(path), expected)


def _bytes(rng: random.Random, text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return mutated_bytes(rng, content) if rng.random() < 0.6 else content


def _conll(rng: random.Random, folder: Path) -> str:
    suffix, content = rng.choice(((".conll", CONLL), (".bio", CONLL), (".conllu", CONLLU)))
    path = folder / f"words{suffix}"
    path.write_bytes(mutated_bytes(rng, content))
    names = "id form lemma upos xpos feats head deprel deps misc".split() if suffix == ".conllu" else None
    return _compare(path, _read(path), lambda: conll_rows(_text(path), names))


def _parquet(rng: random.Random, folder: Path) -> str:
    path = folder / "table.parquet"
    import pyarrow as pa

    table = pa.Table.from_pylist(ROWS * rng.choice((1, 50)))
    if rng.random() < 0.3:
        table = table.set_column(1, "label", table.column("label").dictionary_encode())
    pq.write_table(table, path, compression=rng.choice(("snappy", "none", "zstd")))
    path.write_bytes(mutated_bytes(rng, path.read_bytes()))
    return _compare(path, _read(path), lambda: pq.read_table(path).to_pylist())


KINDS = [
    Kind("csv", _csv),
    Kind("jsonl", _jsonl),
    Kind("json", _json),
    Kind("conll", _conll),
    Kind("parquet", _parquet),
]
