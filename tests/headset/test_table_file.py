"""Tables written part by part: equal to the whole, and in bounded memory."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from headset import formats, readers
from headset.readers import read
from headset.table_file import write_table

VALUES = st.one_of(st.none(), st.integers(-5, 5), st.floats(-1, 1))
ROWS = st.one_of(
    st.fixed_dictionaries({}, optional={"a": VALUES, "b": st.one_of(st.none(), st.text(max_size=3))}),
    st.fixed_dictionaries({"c": st.one_of(st.none(), st.lists(VALUES, max_size=2))}),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ROWS, min_size=1, max_size=3), min_size=1, max_size=6))
def test_equal_to_the_whole_table(tmp_path_factory, parts):
    names = [list(dict.fromkeys(name for row in part for name in row)) for part in parts]
    tables = [
        pa.table({name: [row.get(name) for row in part] for name in columns})
        for part, columns in zip(parts, names, strict=True)
        if columns
    ]
    target = tmp_path_factory.mktemp("table") / "a.arrow"
    assert write_table(iter(tables), target) == bool(tables)
    if not tables:
        assert not target.exists()
        return
    whole = pa.concat_tables(tables, promote_options="permissive")
    found = Dataset.from_file(str(target))
    assert found.column_names == whole.column_names
    assert found.to_list() == whole.to_pylist()
    for field in whole.schema:
        assert found.data.schema.field(field.name).type == (pa.string() if field.type == pa.null() else field.type)
    assert os.listdir(target.parent) == ["a.arrow"]


def test_kinds_that_do_not_go_together_leave_nothing(tmp_path):
    with pytest.raises(pa.ArrowException, match="incompatible types"):
        write_table(iter([pa.table({"a": [1]}), pa.table({"a": ["x"]})]), tmp_path / "a.arrow")
    assert not os.listdir(tmp_path)


def test_parts_are_as_large_as_memory_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "CHUNK_SIZE", 100)
    (tmp_path / "a.csv").write_text("text\n" + f"{'x' * 60}\n" * 5)
    (tmp_path / "a.jsonl").write_text(f'{{"text": "{"x" * 60}"}}\n' * 5)
    (tmp_path / "a.conll").write_text(f"{'x' * 60} O\n\n" * 5)
    Dataset.from_dict({"text": ["x" * 60] * 5}).to_parquet(tmp_path / "a.parquet")
    for suffix in ("csv", "jsonl", "conll", "parquet"):
        sizes = [len(part) for part in formats.tables(tmp_path / f"a.{suffix}")]
        assert sum(sizes) == 5 and max(sizes) <= 2


LIMITED = """
import resource, sys
from pathlib import Path
import datasets
from headset.readers import read

datasets.config.HF_DATASETS_CACHE = Path(sys.argv[1])
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, ((used << 10) + (60 << 20),) * 2)
for path in sys.argv[2:]:
    rows = read(path, "train")
    print(len(rows), len(rows[-1]["text"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts what a process allocates on Linux alone")
def test_a_file_larger_than_memory(tmp_path):
    """Files of 92 MB are read with 60 MB more than the imports take."""
    text = "the film was very good " * 1000
    with (tmp_path / "a.csv").open("w") as table, (tmp_path / "a.jsonl").open("w") as lines:
        table.write("text,label\n")
        for row in range(4_000):
            table.write(f"{text},{row % 2}\n")
            lines.write(json.dumps({"text": text, "label": row % 2 if row < 3_000 else 0.5}) + "\n")
    Dataset.from_dict({"text": [text] * 4_000}).to_parquet(tmp_path / "a.parquet")
    command = [
        sys.executable,
        "-c",
        LIMITED,
        str(tmp_path / "cache"),
        str(tmp_path / "a.csv"),
        str(tmp_path / "a.jsonl"),
        str(tmp_path / "a.parquet"),
    ]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    environment |= {"OMP_NUM_THREADS": "1"}  # the stacks of threads count too
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["4000", str(len(text))] * 3


def test_a_large_file_is_not_read_again_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LARGE", 1)
    monkeypatch.setattr(readers, "SETTLED", -1)
    path = tmp_path / "a.csv"
    path.write_text("text\na\n")
    assert read(str(path), "train")["text"][:] == ["a"]
    with monkeypatch.context() as patch:
        patch.setattr(readers.hashlib, "file_digest", None)
        assert read(str(path), "train")["text"][:] == ["a"]
    times = path.stat()
    path.write_text("text\nb\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert read(str(path), "train")["text"][:] == ["b"]
    monkeypatch.setattr(readers, "SETTLED", 10**12)
    path.write_text("text\nc\n")
    assert read(str(path), "train")["text"][:] == ["c"]
    with monkeypatch.context() as patch:
        patch.setattr(readers.hashlib, "file_digest", None)
        with pytest.raises(TypeError):  # the file has changed just now, and may do so again
            read(str(path), "train")
