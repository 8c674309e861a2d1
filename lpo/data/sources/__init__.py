"""Pairs of people, whatever form they were published in, as shards of one schema: `lpo.data.schema`.

    parts = pickapic.parts(store)                      pieces of work in a fixed order
    counts = convert(parts, folder, limit)             SPLIT-PART.parquet; a killed run resumes
    finish(counts, folder, "data/pairs", ...)          the shards in their place, and the table of what was left out

A source yields a `Pair` (its split and the columns) or a `Left` (what did not become a pair, and why) a row. Only what
has no place in the schema is left out here: no image file, no number where a label belongs, a row that nobody labelled.
What a pair must be beyond that, the data contract decides. Each pair keeps the file and row that it was found in.
Memory holds `schema.BATCH` rows.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from lpo.data import refused
from lpo.data.schema import BATCH, IMAGES, ORIGIN, PAIRS, SPLITS
from lpo.errors import LpoError
from lpo.files import atomic_folder, inside, replacing, write_json, write_parquet

SCHEMA = pa.schema(PAIRS | ORIGIN)
LEFT = ".left"  # ends the name of a parquet table that is no shard
QUOTED = 100  # characters of a value inside a reason
IMAGE_LIMIT = 64 * 2**20  # bytes of an encoded image; no picture that a model made is larger
BATCH_LIMIT = 256 * 2**20  # bytes of images that wait to be written


class Pair(NamedTuple):
    split: str
    row: dict[str, Any]  # the columns of `PAIRS` and `ORIGIN`


class Left(NamedTuple):
    file: str
    row: int
    ranking_id: int | None
    reason: str


@dataclass(frozen=True)
class Part:
    """A piece of a source: its name, the splits that its rows can be of, and its rows."""

    name: str
    splits: tuple[str, ...]
    rows: Callable[[], Iterable[Pair | Left]]
    done: Callable[[], None] = lambda: None  # called when its pairs are on the disk

    @property
    def key(self) -> str:
        """A name that no other part of the source has."""
        return f"{'+'.join(self.splits)}-{self.name}"


def convert(parts: Iterable[Part], folder: Path, limit: int | None, label: str = "") -> dict[str, Any]:
    """Write the shards of all parts into `folder`, and skip those that are there.

    Args:
        limit: pairs of each split at most, the first ones; None for all.

    Returns:
        pairs and ties by split, left out by reason, and the shards' names.
    """
    pairs: Counter[str] = Counter()
    ties: Counter[str] = Counter()
    left: Counter[str] = Counter()
    shards: list[str] = []
    for part in tqdm(list(parts), desc=label, disable=not label, mininterval=2):
        room = {split: limit - pairs[split] if limit is not None else None for split in part.splits}
        if all(space == 0 for space in room.values()):
            continue
        note = _done(folder, part.key)
        if note is None:
            note = _convert(part, folder, room)
        part.done()
        pairs.update(note["pairs"])
        ties.update(note["ties"])
        left.update(note["left"])
        shards += note["files"]
    return {"pairs": dict(pairs), "ties": dict(ties), "left": dict(left), "shards": shards}


def finish(
    counts: dict[str, Any], folder: Path, pairs: str | Path, left: str | Path, stage: str, more: Iterable[Left] = ()
) -> None:
    """Move the shards to `pairs` and gather what was left out, `more` among it.

    Raises:
        LpoError: if a split got no pairs; what was left out is then in data/refused/STAGE.parquet.
    """
    tables = [pd.read_parquet(folder / name) for name in counts["shards"] if name.endswith(LEFT)]
    rows = pd.concat([left_table([]), *tables, left_table(list(more))], ignore_index=True)
    empty = [split for split in SPLITS if not counts["pairs"].get(split)]
    if empty:
        reasons = ", ".join(f"{count} rows: {reason}" for reason, count in counts["left"].items()) or "nothing"
        what = f"the source has no pairs for {', '.join(empty)}; left out: {reasons}"
        remedy = "correct these rows"
        if len(empty) < len(SPLITS):
            remedy += ", or raise dataset.held_out_share in params.yaml if the source does not name the splits"
        refused.refuse(stage, rows, what, remedy)
    write_parquet(left, rows)
    refused.forget(stage)
    with atomic_folder(pairs) as target:
        for name in counts["shards"]:
            if not name.endswith(LEFT):
                shutil.move(folder / name, target / name)


def left_table(left: list[Left]) -> pd.DataFrame:
    """file, row, ranking_id and reason of what did not become pairs."""
    types = {"file": "str", "row": "int64", "ranking_id": "Int64", "reason": "str"}
    return pd.DataFrame(left, columns=list(Left._fields)).astype(types)


def image_file(folder: Path, name: str) -> bytes:
    """The bytes of the plain file `folder/name`. Whatever the name is, this neither waits nor leaves the folder.

    Raises:
        LpoError: if it is absent, leaves the folder, is larger than `IMAGE_LIMIT`, or is a folder, a pipe or a device.
    """
    shown = name if len(name) <= QUOTED else f"{name[:QUOTED]}..."
    try:
        descriptor = os.open(inside(folder, name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise LpoError(f"no image: {shown!r} is not a plain file")
            if status.st_size > IMAGE_LIMIT:
                raise LpoError(f"no image: {shown!r} has {status.st_size} bytes, more than {IMAGE_LIMIT}")
            return file.read(IMAGE_LIMIT)
    except LpoError as error:
        raise LpoError(error.what if error.what.startswith("no image") else f"no image: {error.what}") from error
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a NUL byte in the name
        why = getattr(error, "strerror", None) or str(error)[:QUOTED]
        raise LpoError(f"no image: {shown!r} cannot be read: {why}") from error


def _done(folder: Path, key: str) -> dict[str, Any] | None:
    note = folder / f"{key}.json"
    if not note.exists():
        return None
    read: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    return read if all((folder / file).exists() for file in read["files"]) else None


def _convert(part: Part, folder: Path, room: dict[str, int | None]) -> dict[str, Any]:
    """Write one part, and last a note that says so."""
    pairs: Counter[str] = Counter()
    ties: Counter[str] = Counter()
    waiting: dict[str, list[dict[str, Any]]] = {split: [] for split in part.splits}
    held = dict.fromkeys(part.splits, 0)  # bytes of the images that wait
    left: list[Left] = []
    with ExitStack() as files:
        writers: dict[str, pq.ParquetWriter] = {}

        def flush(split: str) -> None:
            if split not in writers:
                path = files.enter_context(replacing(folder / f"{split}-{part.name}.parquet"))
                writers[split] = files.enter_context(_writer(path))
            good, bad = _batch(waiting[split])
            writers[split].write_batch(good)
            left.extend(bad)
            pairs[split] -= len(bad)
            waiting[split], held[split] = [], 0

        for item in part.rows():
            if isinstance(item, Left):
                left.append(item)
                continue
            split, row = item
            if pairs[split] == room[split]:
                if all(pairs[name] == space for name, space in room.items()):
                    break
                continue
            pairs[split] += 1
            ties[split] += row["label_0"] is not None and row["label_0"] == row["label_1"]
            waiting[split].append(row)
            held[split] += sum(len(row[name] or b"") for name in IMAGES)
            if len(waiting[split]) == BATCH or held[split] > BATCH_LIMIT:
                flush(split)
        for split in part.splits:
            if waiting[split]:
                flush(split)
    names = sorted(f"{split}-{part.name}.parquet" for split in writers)
    if left:
        names.append(f"{part.key}{LEFT}")
        write_parquet(folder / names[-1], left_table(left))
    reasons = Counter(item.reason.split(":")[0] for item in left)
    note = {"pairs": dict(pairs), "ties": dict(ties), "left": dict(reasons), "files": names}
    write_json(folder / f"{part.key}.json", note)
    return note


def _batch(rows: list[dict[str, Any]]) -> tuple[pa.RecordBatch, list[Left]]:
    """(the rows in the types of the schema, those of them that have a value without a place there)."""
    try:
        return pa.RecordBatch.from_pylist(rows, schema=SCHEMA), []
    except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
        if len(rows) == 1:
            why = f"a value cannot be stored: {str(error).splitlines()[0][:QUOTED]}"
            item = Left(rows[0]["source_file"], rows[0]["source_row"], None, why)
            return pa.RecordBatch.from_pylist([], schema=SCHEMA), [item]
    parts = [_batch([row]) for row in rows]
    good = pa.Table.from_batches([batch for batch, _ in parts]).combine_chunks().to_batches(max_chunksize=len(rows))
    empty = pa.RecordBatch.from_pylist([], schema=SCHEMA)
    return good[0] if good else empty, [item for _, items in parts for item in items]


def _writer(path: Path) -> pq.ParquetWriter:
    """Images are compressed already: neither a codec nor a dictionary nor statistics would gain anything."""
    plain = [name for name in SCHEMA.names if name not in IMAGES]
    compression = {name: "none" if name in IMAGES else "zstd" for name in SCHEMA.names}
    return pq.ParquetWriter(path, SCHEMA, compression=compression, use_dictionary=plain, write_statistics=plain)
