"""Tables as people bring them: what is read, what is told, and where a line ends."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpo.errors import LpoError
from lpo.tables import open_table

ROWS = [{"caption": "a cat, „left“\u2028of a dog", "n": "1"}, {"caption": 'say "hi"', "n": "2"}]


def write(folder: Path, name: str, data: bytes | str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode(encoding))
    return path


def read(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    table = open_table(path)
    rows = list(table.rows(columns or table.columns))
    assert [row.number for row in rows] == list(range(len(rows)))
    assert not any(row.problem for row in rows)
    return [row.values for row in rows]


def problems(path: Path) -> list[str]:
    table = open_table(path)
    return [row.problem for row in table.rows(table.columns)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "separator"), [("t.csv", ","), ("t.csv", ";"), ("t.csv", "\t"), ("t.tsv", "\t")])
def test_a_table_says_itself_how_it_is_read(
    tmp_path: Path, encoding: str, ending: str, name: str, separator: str
) -> None:
    text = pd.DataFrame(ROWS).to_csv(index=False, sep=separator, lineterminator=ending)
    assert read(write(tmp_path, name, text, encoding)) == ROWS
    packed = gzip.compress(text.encode(encoding))
    assert read(write(tmp_path, f"{name}.gz", packed)) == ROWS
    assert read(write(tmp_path, name, packed)) == ROWS  # whatever its name says


def test_json_lines_and_parquet_keep_their_types(tmp_path: Path) -> None:
    exact = 2**53 + 1
    lines = write(tmp_path, "t.jsonl", f'{{"n": {exact}, "caption": "a\\u2028b"}}\n\n{{"caption": null, "x": [1]}}\n')
    assert open_table(lines).columns == ["n", "caption", "x"]
    assert read(lines, ["caption", "n"]) == [{"caption": "a\u2028b", "n": exact}, {"caption": None, "n": None}]
    frame = pd.DataFrame({"n": [exact, 2], "caption": ["a", None], "unused": 1})
    path = tmp_path / "t.csv"  # a parquet file, whatever its name says
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=1)
    (tmp_path / "t.parquet").rename(path)
    table = open_table(path)
    assert [row.values for row in table.rows(["n"], 1, 2)] == [{"n": 2}]
    assert [row.number for row in table.rows(["n"], 1, 2)] == [1]


def test_a_row_that_cannot_be_read_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    assert problems(write(tmp_path, "t.csv", "a,b\n1,2\n1,2,3\n1\n\n   \n4,5\n")) == [
        "", "the row has 3 fields and the header 2", "the row has 1 fields and the header 2", "",
    ]  # fmt: skip
    found = problems(write(tmp_path, "t.jsonl", '{"a": 1}\n{"a": "\\ud800"}\n[1]\n{"a"\n' + "[" * 10**5 + "\n"))
    assert found[0] == "" and found[1] == "the text holds half a character (a lone surrogate)"
    assert all(problem.startswith("the line is not JSON") for problem in found[2:]) and len(found) == 5
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xff\xfe"))
    pq.write_table(pa.table({"a": broken}), tmp_path / "t.parquet")
    assert problems(tmp_path / "t.parquet") == ["", "the text is not UTF-8"]


REFUSED = {
    "latin-1": ("t.csv", "caption\na cat\ncafé\n".encode("latin-1"), "byte 0xe9 in line 3; it may be Latin-1"),
    "an open quote": ("t.csv", b'caption,n\n"a cat,1\na dog,2\n', r'quote \("\) that opens in the row of line 2'),
    "no header": ("t.csv", b"\n", "no header"),
    "nothing": ("t.jsonl.gz", b"\x1f\x8b\x08", "cannot be read"),
    "a column twice": ("t.csv", b"a,b,a\n1,2,3\n", "several columns are called a"),
    "Excel": ("t.csv", b"PK\x03\x04rest", "a zip archive or an Excel file"),
    "an unknown ending": ("t.xlsx", b"x", r"\.xlsx is not a kind of file"),
    "a cut archive": ("t.csv.gz", gzip.compress(b"a,b\n1,2\n" * 100)[:-20], "cannot be read"),
    "a cut parquet": ("t.parquet", b"PAR1 and no more", "cannot be read"),
    "a line without end": ("t.jsonl", gzip.compress(b"x" * 2**25), "line 1 has more than 16777216 characters"),
    "a field without end": ("t.csv", b"a\n" + b"x" * 2**21, "field larger than field limit"),
    "half a UTF-16": ("t.csv", "a,b\n1,2\n".encode("utf-16")[:-1], "does not go on so"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_read_is_named_with_a_remedy(tmp_path: Path, case: str) -> None:
    name, data, message = REFUSED[case]
    path = write(tmp_path, name, data)
    with pytest.raises(LpoError, match=message) as caught:
        read(path)
    assert caught.value.where == str(path) and caught.value.remedy


def test_what_is_no_plain_file_is_told_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    for name in ("pipe", "folder"):
        with pytest.raises(LpoError, match="not a plain file"):
            open_table(tmp_path / f"{name}.csv")
    with pytest.raises(LpoError, match="no such file"):
        open_table(tmp_path / "loop.csv")
