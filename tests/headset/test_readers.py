import csv
import gzip
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backbones.errors import HeadsetError
from headset.readers import place, read

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8)
SPECIAL = ["NA", "None", "null", "nan", "N/A", "", '"', "two\r\nlines", "a,b", "a\tb"]


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def rows(path, split="train", **kwargs):
    return read(path, split, **kwargs).to_list()


def error(path, split="train", **kwargs):
    with pytest.raises(HeadsetError) as caught:
        read(path, split, **kwargs)
    return str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    table=st.lists(st.tuples(CELLS | st.sampled_from(SPECIAL), CELLS), min_size=1),
    ends=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    separator=st.sampled_from([",", "\t"]),
)
def test_csv_and_tsv_as_pandas_reads_them(tmp_path, table, ends, bom, separator):
    content = io.StringIO()
    csv.writer(content, delimiter=separator, lineterminator=ends).writerows([("text", "label"), *table])
    content = content.getvalue().encode()
    path = write(tmp_path, "rows.csv" if separator == "," else "rows.tsv", b"\xef\xbb\xbf" * bom + content)
    truth = pd.read_csv(io.BytesIO(content), sep=separator, dtype=object, keep_default_na=False, na_values=[""])
    assert rows(path) == truth.where(truth.notna(), None).to_dict("records")
    assert rows(path) == [{"text": text or None, "label": label or None} for text, label in table]


def test_csv_cells_stay_text(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\nNA,1\nnull,\n"two\nlines",007\n\n"",x\n')
    assert rows(path) == [
        {"text": "NA", "label": "1"},
        {"text": "null", "label": None},
        {"text": "two\nlines", "label": "007"},
        {"text": None, "label": "x"},
    ]


def test_a_long_cell(tmp_path):
    assert len(rows(write(tmp_path, "a.csv", "text\n" + "x" * 200_000))[0]["text"]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "text,label\n", "a.csv is empty"),
        ("a.csv", "text,text\n1,2\n", "the header has 'text' more than once"),
        ("a.csv", 'text,label\n"1\n2",2\nx\n', "a.csv, row 2: 1 cells, and the header has 2 columns: text, label"),
        ("a.csv", "text,label\n1,2,3\n", "a.csv, row 1: 3 cells"),
        ("a.csv", 'text,label\n1,2\n"x,y\n', "a.csv, row 2: unexpected end of data"),
        (
            "a.csv",
            "text,label\n1,2\ncaf\xe9,2\n".encode("latin-1"),
            "a.csv, line 3: not UTF-8 (byte 0xe9 at position 4",
        ),
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', "a.jsonl, line 3: not JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "a.jsonl, line 2: expected an object"),
        ("a.jsonl", '{"a": 1}\n\n{"a": "x"}\n', "a.jsonl, line 3: column 'a' holds 'x', which does not fit"),
        ("a.jsonl", "\n\n", "a.jsonl is empty"),
        ("a.jsonl", b'{"a": "\xff"}', "a.jsonl, line 1: not UTF-8"),
        ("a.json", '[{"a": 1},\n 2]', "a.json, row 2: expected an object"),
        ("a.json", '[{"a": 1},\n {', "a.json, line 2: not JSON"),
        ("a.parquet", "no", "a.parquet: not a Parquet file"),
        ("a.conll", "a B\n\nb\n", "a.conll, line 3: expected 2 columns (tokens, tags)"),
        ("a.conll", "-DOCSTART- -X- O\n\n", "a.conll is empty"),
        ("a.conll", b"a B\n\xff C\n", "a.conll, line 2: not UTF-8"),
        ("a.txt", "hello", "A .txt file does not say what its lines are"),
        (
            "a.jsonl",
            '{"a": 1}\n\n{"a": 18446744073709551616}\n',
            "a.jsonl, line 3: column 'a' holds 18446744073709551616",
        ),
        ("a.jsonl", '{"a": "\\ud800"}\n', "a.jsonl, line 1: column 'a' holds '\\ud800', which cannot be stored"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}\n", "a.jsonl, line 1: JSON that cannot be read"),
        ("a.csv", "text,la\0bel\na,b\n", "a.csv: the name of a column has a NUL character in it: 'la\\x00bel'"),
        ("a.csv", "text;label\nwell, yes;b\n", "a.csv: the file seems to be separated by ';'"),
        ("a.csv", "text\tlabel\na\tb\n", "a.csv: the file seems to be separated by a tab"),
        ("a.tsv", "text,label\na,b\n", "a.tsv: the file seems to be separated by a comma"),
        ("a.csv", "text,label\né,b\n".encode("utf-16"), "it seems to be UTF-16 text. Convert it: iconv -f UTF-16"),
        ("a.csv", "text,label\né,b\n".encode("utf-16-le"), "it seems to be UTF-16 text. Convert it: iconv -f UTF-16"),
        ("a.csv", gzip.compress(b"text,label\na,b\n", mtime=0), "it seems to be compressed with gzip. Unpack it first"),
        ("a.xlsx", "hello", "none of the known suffixes: .csv, .tsv, .jsonl"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    assert message in error(write(tmp_path, name, content))


def test_missing_file(tmp_path):
    write(tmp_path, "train.csv", "a\n1\n")
    message = error(str(tmp_path / "trian.csv"))
    assert "there is no file" in message
    assert "Did you mean 'train.csv'? Files in" in message
    assert "There is no folder" in error(str(tmp_path / "no" / "x.csv"))


def test_unknown_hub_id():
    message = error("nobody/nothing")
    assert "nobody/nothing is not a file or folder here, and could not be loaded as a dataset" in message
    assert "no data files" not in message


def test_unknown_hub_id_offers_close_names_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews").mkdir()
    write(tmp_path, "other.csv", "a\n1\n")
    message = error("revews")
    assert message.endswith("Did you mean 'reviews'?")
    assert "other.csv" not in message


def test_jsonl_as_pandas_reads_it(tmp_path):
    frame = pd.DataFrame({"text": ["a\u2028b", "é"], "n": [1.5, 2.0], "words": [["x"], ["y", "z"]]})
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "a.json", orient="records")
    for name in ("a.jsonl", "a.json"):
        assert rows(str(tmp_path / name)) == frame.to_dict("records")


def test_jsonl_dates_stay_text_and_missing_keys_are_null(tmp_path):
    lines = [{"text": "2020-01-01"}, {"label": 1}, {"label": 2.5}]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert rows(path) == [
        {"text": "2020-01-01", "label": None},
        {"text": None, "label": 1.0},
        {"text": None, "label": 2.5},
    ]


def test_kinds_that_differ_only_far_apart(tmp_path):
    lines = [{"a": None, "b": 1}] * 10_000 + [{"a": "x", "b": 0.5}]
    table = read(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines))), "train")
    assert table[0] == {"a": None, "b": 1.0}
    assert table[-1] == {"a": "x", "b": 0.5}


def test_parquet_as_pandas_wrote_it(tmp_path):
    frame = pd.DataFrame({"text": ["a", None], "label": pd.Categorical(["x", "y"])})
    frame.to_parquet(tmp_path / "a.parquet")
    assert rows(str(tmp_path / "a.parquet")) == [{"text": "a", "label": "x"}, {"text": None, "label": "y"}]


def test_parquet_keeps_class_names(tmp_path):
    table = Dataset.from_dict({"label": [1, 0]}).cast_column("label", ClassLabel(names=["z", "a"]))
    table.to_parquet(tmp_path / "a.parquet")
    assert read(str(tmp_path / "a.parquet"), "train").features["label"].names == ["z", "a"]


def test_parquet_under_another_name_or_damaged(tmp_path):
    pd.DataFrame({"text": [f"text {number} é" for number in range(5000)]}).to_parquet(tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    assert "it seems to be Parquet. Name it .parquet" in error(write(tmp_path, "a.csv", bytes(content)))
    content[100:2000] = bytes(1900)
    assert "b.parquet: not a Parquet file that can be read" in error(write(tmp_path, "b.parquet", bytes(content)))


def test_conll(tmp_path):
    content = "-DOCSTART- -X- O\n\nNew NNP B-LOC\r\nYork NNP I-LOC\r\n\r\n \n# # O\nx\xa0y NN O"
    path = write(tmp_path, "a.conll", content)
    assert rows(path) == [
        {"tokens": ["New", "York"], "column_2": ["NNP", "NNP"], "tags": ["B-LOC", "I-LOC"]},
        {"tokens": ["#", "x\xa0y"], "column_2": ["#", "NN"], "tags": ["O", "O"]},
    ]
    assert list(rows(path, conll_columns=["w", "p", "t"])[0]) == ["w", "p", "t"]
    assert rows(write(tmp_path, "b.bio", "New York\tB-LOC\n"))[0]["tokens"] == ["New York"]
    assert rows(write(tmp_path, "c.iob", "New\nYork\n")) == [{"tokens": ["New", "York"]}]


def test_conllu(tmp_path):
    rest = "\t_" * 6
    content = (
        "# text = Im Haus\n1-2\tIm\t_\t_"
        + rest
        + "\n1\tin\tin\tADP"
        + rest
        + "\n2\tdem\tder\tDET"
        + rest
        + "\n3\tHaus\tHaus\tNOUN"
        + rest
        + "\n3.1\tx\tx\tX"
        + rest
        + "\n\n"
    )
    table = rows(write(tmp_path, "a.conllu", content))
    assert table[0]["form"] == ["in", "dem", "Haus"]
    assert table[0]["upos"] == ["ADP", "DET", "NOUN"]


def test_places(tmp_path):
    assert place("x/rows.csv", 2) == "x/rows.csv, row 3"
    lines = write(tmp_path, "a.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    assert place(lines, 1) == f"{lines}, line 3"
    words = write(tmp_path, "a.conll", "a B\nb B\n\n\nc B\n")
    assert place(words, 1) == f"{words}, line 5"
    assert place({"path": "nyu-mll/glue", "name": "mrpc", "split": "train"}, 0) == "nyu-mll/glue mrpc, row 1"


def test_saved_folders(tmp_path):
    table = Dataset.from_dict({"text": ["a"]})
    table.save_to_disk(tmp_path / "one")
    DatasetDict(train=table, dev=Dataset.from_dict({"text": ["b"]})).save_to_disk(tmp_path / "many")
    assert rows(str(tmp_path / "one"), "test") == [{"text": "a"}]
    assert rows(str(tmp_path / "many"), "train") == [{"text": "a"}]
    assert rows(str(tmp_path / "many"), "validation") == [{"text": "b"}]
    assert rows({"path": str(tmp_path / "many"), "split": "dev"}, "predict") == [{"text": "b"}]
    assert "has no split 'test'. It has: train, dev." in error(str(tmp_path / "many"), "test")
    wrong = error({"path": str(tmp_path / "many"), "split": "fo"}, "test")
    assert "has no split 'fo'. It has: train, dev." in wrong
    assert "it is a single table" in error({"path": str(tmp_path / "one"), "split": "fo"}, "test")


def test_saved_folders_without_rows(tmp_path):
    table, empty = Dataset.from_dict({"text": ["a"]}), Dataset.from_dict({"text": []})
    empty.save_to_disk(tmp_path / "one")
    DatasetDict(train=table, test=empty).save_to_disk(tmp_path / "many")
    assert f"test: {tmp_path / 'one'} is empty, it has no rows" in error(str(tmp_path / "one"), "test")
    assert f"test: {tmp_path / 'many' / 'test'} is empty" in error(str(tmp_path / "many"), "test")
    assert rows(str(tmp_path / "many"), "train") == [{"text": "a"}]


def test_folder_as_on_the_hub(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    write(folder, "train.jsonl", '{"text": "a", "label": 0}\n')
    write(folder, "test.jsonl", '{"text": "b", "label": 1}\n')
    assert rows(str(folder), "train") == [{"text": "a", "label": 0}]
    assert rows({"path": str(folder), "split": "test"}, "train") == [{"text": "b", "label": 1}]


def test_files_are_memory_mapped_and_read_once(tmp_path, cache, monkeypatch):
    path = write(tmp_path, "a.csv", "text\na\n")
    first = read(path, "train")
    assert Path(first.cache_files[0]["filename"]).is_relative_to(cache)
    with monkeypatch.context() as patch:
        patch.setattr("headset.formats.tables", lambda *_: pytest.fail("read again"))
        again = read(path, "train")
        assert again._fingerprint == first._fingerprint
    write(tmp_path, "a.csv", "text\nb\n")  # as long, and perhaps within the same tick of the clock
    assert rows(path) == [{"text": "b"}]
    assert first.to_list() == [{"text": "a"}]


@pytest.mark.parametrize("damage", [b"", b"ARROW1 no more"])
def test_a_damaged_cache_is_made_anew(tmp_path, cache, damage):
    path = write(tmp_path, "a.csv", "text\na\n")
    read(path, "train")
    for file in cache.rglob("*.arrow"):
        file.unlink()  # the rows of the first are still mapped
        file.write_bytes(damage)
    assert rows(path) == [{"text": "a"}]


def test_a_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", write(tmp_path, "cache", "a file"))
    message = error(write(tmp_path, "a.csv", "text\na\n"))
    assert f"The cache folder {tmp_path / 'cache' / 'headset'} cannot be written to. Set HF_DATASETS_CACHE" in message


def test_a_line_without_a_number_in_conllu_is_told_and_not_passed_over(tmp_path):
    words = "1\tin\n\tdem\n3\tHaus\n"
    with pytest.raises(HeadsetError, match=r"line 2: expected 2 columns.*the first a number"):
        read(write(tmp_path, "a.conllu", words), "train", ["id", "form"])


def test_half_a_character_in_the_name_of_a_column(tmp_path):
    with pytest.raises(HeadsetError, match="half a character"):
        read(write(tmp_path, "a.jsonl", '{"a\\ud800": 1}\n'), "train")
