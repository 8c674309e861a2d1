"""Rows of a table that somebody brings, whatever its kind.

    table = open_table(path)            csv, tsv, jsonl, parquet; the text kinds also as .gz
    table.columns                       the names of its columns
    for row in table.rows(["caption"]): row.number, row.values, row.problem

A row that cannot be read has a problem and no values; the rows around it are read all the same. What says how to read
the file is in the file: gzip and parquet are known by their first bytes, UTF-16 by its byte order mark or its zeros, a
separator by the header. Text without a mark is UTF-8. Lines end at LF, CR LF or CR and nowhere else: a caption may hold
U+2028. Memory holds `BATCH` rows; a line has at most `LINE_LIMIT` characters.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from lpo.errors import LpoError

KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
BATCH = 64  # rows of a parquet file that are in memory at once
BATCH_BYTES = 2**28  # of their columns, as the file's metadata count them
FIELD_LIMIT = 2**20  # characters of a CSV field
LINE_LIMIT = 2**24  # characters of a line: a compressed file can hold a line of any length
SAMPLE = 4096  # bytes by which an encoding without a mark is told
NAMED_BY = 1000  # rows of a JSON Lines file whose keys are its columns
MARKS = {  # UTF-32 before UTF-16: its mark begins with the other's
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
FOREIGN = {b"PK\x03\x04": "a zip archive or an Excel file", b"\xd0\xcf\x11\xe0": "an old Excel file", b"%PDF": "a PDF"}


class Row(NamedTuple):
    """number counts the rows of the file from 0, the header apart; problem is "" where the row was read."""

    number: int
    values: dict[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose header was read. `groups` are the numbers of rows of each row group of a parquet file."""

    path: Path
    kind: str
    columns: list[str]
    groups: list[int] = field(default_factory=list)

    def rows(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Rows start to stop with these columns; None where a row lacks one. Raises LpoError if the file is damaged."""
        if self.kind == ".parquet":
            return _parquet_rows(self, columns, start, stop)
        read = _json_rows(self.path) if self.kind == ".jsonl" else _csv_rows(self.path, self.kind)
        return (
            row if row.problem else row._replace(values={name: row.values.get(name) for name in columns})
            for row in islice(read, start, stop)
        )


def open_table(path: Path) -> Table:
    """Read a file's header.

    Raises:
        LpoError: if there is no such file, it is of no known kind, or its header cannot be read.
    """
    kind = kind_of(path, KINDS)
    if kind == ".parquet":
        with _readable(path):
            meta, schema = pq.read_metadata(path), pq.read_schema(path)
        _check_names(schema.names, path)
        return Table(path, kind, list(schema.names), [meta.row_group(i).num_rows for i in range(meta.num_row_groups)])
    if kind == ".jsonl":
        names = [name for row in islice(_json_rows(path), NAMED_BY) for name in row.values]
        return Table(path, kind, list(dict.fromkeys(names)))
    return Table(path, kind, _header(path, kind)[0])


def kind_of(path: Path, kinds: Sequence[str]) -> str:
    """The kind of a plain file: one of `kinds`, by its first bytes or its name.

    Raises:
        LpoError: if there is no such plain file, or its kind is none of `kinds`.
    """
    if not path.is_file():
        what = "it is not a plain file" if path.exists() else "there is no such file"
        raise LpoError(what, str(path), f"name a file that ends in {', '.join(kinds)}")
    with _readable(path), path.open("rb") as file:
        head = file.read(4)
    if head == b"PAR1" and ".parquet" in kinds:
        return ".parquet"
    name = path.name.lower().removesuffix(".gz")
    kind = next((kind for kind in kinds if name.endswith(kind)), "")
    foreign = FOREIGN.get(head)
    if not kind or foreign:
        ending = path.suffix or "no ending"
        what = f"the file is {foreign}" if foreign else f"{ending} is not a kind of file that is read here"
        raise LpoError(what, str(path), f"write it as {', '.join(kinds)}; the text kinds may be compressed as .gz")
    return kind


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a text file, which may be compressed by gzip, with their line ends.

    Raises:
        LpoError: if it is not text in UTF-8, UTF-16 or UTF-32, or a line has more than `LINE_LIMIT` characters.
    """
    number = 0
    try:
        with _text(path) as stream:
            while line := stream.readline(LINE_LIMIT + 1):
                number += 1
                if len(line) > LINE_LIMIT:
                    raise _unreadable(path, f"line {number} has more than {LINE_LIMIT} characters")
                if not line.isascii():
                    _check_utf8(line, number, path)
                yield line
    except UnicodeDecodeError as error:
        what = f"it begins as {error.encoding.upper()} and does not go on so after line {number}"
        raise _unreadable(path, what) from error
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, str(error) or type(error).__name__) from error


def _check_utf8(line: str, number: int, path: Path) -> None:
    """Raises LpoError where a byte of the line was no UTF-8: it was read as a surrogate, so that its line is known."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) & 0xFF
        what = f"the file is not UTF-8: byte 0x{byte:02x} in line {number}; it may be Latin-1 or Windows-1252"
        remedy = f"save it as UTF-8: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > NEW"
        raise LpoError(what, str(path), remedy) from error


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """The text of a file. No line end is translated, so that a quoted one in a CSV file stays as it is."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        data: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        buffered = io.BufferedReader(data)
        sample = buffered.peek(SAMPLE)[:SAMPLE]
        encoding = _encoding(sample)
        errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
        yield io.TextIOWrapper(buffered, encoding=encoding, errors=errors, newline="")


def _encoding(sample: bytes) -> str:
    """By the byte order mark; without one, UTF-16 by the zeros of its ASCII characters, else UTF-8."""
    for mark, name in MARKS.items():
        if sample.startswith(mark):
            return name
    pairs = len(sample) // 2
    zeros = [sample[side : 2 * pairs : 2].count(0) for side in (0, 1)]
    if pairs and max(zeros) > 0.4 * pairs and min(zeros) < 0.1 * pairs:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return "utf-8"


def _header(path: Path, kind: str) -> tuple[list[str], str]:
    """(names of the columns, the separator: that of the header, since tables of other countries have semicolons)."""
    first = next(text_lines(path), "")
    usual = "\t" if kind == ".tsv" else ","
    outside = "".join(first.split('"')[::2])  # a name in quotes may hold a separator
    separator = max((usual, ",", ";", "\t"), key=lambda sign: (outside.count(sign), sign == usual))
    names = next((row.values for row in _split(path, separator)), {})
    found = [str(name).strip() for name in names.values()]
    if not any(found):
        raise LpoError("the file has no header", str(path), "write the names of the columns into its first line")
    _check_names(found, path)
    return found, separator


def _check_names(names: Sequence[str], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1 and name})
    if twice:
        raise LpoError(f"several columns are called {', '.join(twice)}", str(path), "give each column its own name")


def _split(path: Path, separator: str) -> Iterator[Row]:
    """Rows of a CSV file by the place of their fields, the header first."""
    csv.field_size_limit(FIELD_LIMIT)
    ended = False

    def lines() -> Iterator[str]:
        nonlocal ended
        yield from text_lines(path)
        ended = True

    reader, number, width = csv.reader(lines(), delimiter=separator), 0, 0
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _unreadable(path, f"line {line}: {error}") from error
        if ended:  # a whole row ends before the reader asks for a line that is not there
            raise _unreadable(path, f'the quote (") that opens in the row of line {line} is never closed')
        if fields and (number == 0 or len(fields) > 1 or width == 1 or fields[0].strip()):  # not an empty line
            width = width or len(fields)
            yield Row(number, dict(enumerate(fields)))  # type: ignore[arg-type]
            number += 1


def _csv_rows(path: Path, kind: str) -> Iterator[Row]:
    names, separator = _header(path, kind)
    for number, row in enumerate(islice(_split(path, separator), 1, None)):
        fields = list(row.values.values())
        if len(fields) == len(names):
            yield Row(number, dict(zip(names, fields, strict=True)))
        else:
            yield Row(number, {}, f"the row has {len(fields)} fields and the header {len(names)}")


def _json_rows(path: Path) -> Iterator[Row]:
    lines = (line for line in text_lines(path) if line.strip())
    for number, line in enumerate(lines):
        try:
            values = json.loads(line.rstrip("\r\n"))
            if not isinstance(values, dict):
                raise ValueError(f"it is not an object but {type(values).__name__}")
            if "\\ud" in line.lower():  # an escape that may be half a character
                json.dumps(values, ensure_ascii=False).encode()
            yield Row(number, values)
        except UnicodeEncodeError:
            yield Row(number, {}, "the text holds half a character (a lone surrogate)")
        except (ValueError, RecursionError) as error:
            yield Row(number, {}, f"the line is not JSON: {str(error)[:100]}")


def _parquet_rows(table: Table, columns: Sequence[str], start: int, stop: int | None) -> Iterator[Row]:
    """Whole row groups before `start` are passed by."""
    first = 0
    with _readable(table.path):
        file = pq.ParquetFile(table.path, pre_buffer=False, buffer_size=2**20)
        for group, size in enumerate(table.groups):
            if first + size > start and (stop is None or first < stop):
                rows = _group_rows(file, group, columns)
                low, high = max(start - first, 0), size if stop is None else min(size, stop - first)
                for number, (values, problem) in enumerate(islice(rows, low, high), first + low):
                    yield Row(number, values, problem)
            first += size


def _group_rows(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
    meta = file.metadata.row_group(group)
    size = max(1, min(BATCH, BATCH_BYTES * meta.num_rows // max(meta.total_byte_size, 1)))
    for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=list(columns)):
        try:
            found = [(row, "") for row in batch.to_pylist()]
        except (ValueError, OverflowError):
            found = [_one(batch.slice(i, 1)) for i in range(len(batch))]
        yield from found


def _one(batch: pa.RecordBatch) -> tuple[dict[str, Any], str]:
    try:
        return batch.to_pylist()[0], ""
    except UnicodeDecodeError:
        return {}, "the text is not UTF-8"
    except (ValueError, OverflowError) as error:
        return {}, f"a value cannot be read: {str(error)[:100]}"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, (str(error) or type(error).__name__).splitlines()[0][:300]) from error


def _unreadable(path: Path, why: str) -> LpoError:
    return LpoError(f"the file cannot be read: {why}", str(path), "it is damaged or of another kind: write it again")
