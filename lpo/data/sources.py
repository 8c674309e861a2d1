"""Pairs of people, whatever form they were published in, as shards of one schema: `lpo.data.schema`.

    parts = pickapic.parts(store)                      pieces of work in a fixed order
    counts = convert(parts, folder, limit)             SPLIT-PART.parquet; goes on where it was killed
    finish(counts, folder, "data/pairs")               the shards in their place, and the table of what was left out

A source yields a `Pair` (its split and the columns) or a `Left` (what did not become a pair, and why) a row. Only what
has no place in the schema is left out here: no image file, no number where a label belongs, a row that nobody labelled.
What a pair must be beyond that, the data contract decides. Memory holds `schema.BATCH` rows.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from lpo.data.schema import BATCH, IMAGES, PAIRS, SPLITS
from lpo.errors import LpoError
from lpo.files import atomic_folder, replacing, write_json, write_parquet

SCHEMA = pa.schema(PAIRS)
FILE_LIMIT = 64 * 2**20  # bytes of an image file; what is larger is no picture that a model made


class Pair(NamedTuple):
    split: str
    row: dict[str, Any]  # the columns of `PAIRS`


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


def finish(counts: dict[str, Any], folder: Path, pairs: str | Path, left: str | Path) -> None:
    """Move the shards to `pairs` and gather what was left out.

    Raises:
        LpoError: if a split got no pairs.
    """
    empty = [split for split in SPLITS if not counts["pairs"].get(split)]
    if empty:
        found = counts["left"] or "nothing"
        what = f"the source has no pairs for {', '.join(empty)}; left out: {found}"
        raise LpoError(what, "dataset", "check dataset.source, dataset.path and dataset.held_out_share in params.yaml")
    tables = [pd.read_parquet(folder / name) for name in counts["shards"] if name.startswith("left-")]
    write_parquet(left, pd.concat([left_table([]), *tables], ignore_index=True))
    with atomic_folder(pairs) as target:
        for name in counts["shards"]:
            if not name.startswith("left-"):
                shutil.move(folder / name, target / name)


def left_table(left: list[Left]) -> pd.DataFrame:
    """file, row, ranking_id and reason of what did not become pairs."""
    types = {"file": "str", "row": "int64", "ranking_id": "Int64", "reason": "str"}
    return pd.DataFrame(left, columns=list(Left._fields)).astype(types)


def split_of_caption(caption: str, held_out_share: float) -> str:
    """A split that depends on the caption alone, capitals and spaces apart, so that no caption is in two."""
    plain = " ".join(caption.casefold().split())
    place = int.from_bytes(hashlib.sha256(plain.encode()).digest()[:8], "big") / 2**64
    return "test" if place < held_out_share else "validation" if place < 2 * held_out_share else "train"


def image_bytes(path: Path) -> bytes:
    """An image file's bytes. Raises LpoError if it is absent or larger than any picture of a model."""
    try:
        size = path.stat().st_size
        if size > FILE_LIMIT:
            raise LpoError(f"{path.name} has {size} bytes, more than {FILE_LIMIT}")
        return path.read_bytes()
    except OSError as error:
        raise LpoError(f"{path.name} cannot be read: {error.strerror}") from error


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
    left: list[Left] = []
    with ExitStack() as files:
        writers: dict[str, pq.ParquetWriter] = {}

        def flush(split: str) -> None:
            if split not in writers:
                path = files.enter_context(replacing(folder / f"{split}-{part.name}.parquet"))
                writers[split] = files.enter_context(_writer(path))
            writers[split].write_batch(pa.RecordBatch.from_pylist(waiting[split], schema=SCHEMA))
            waiting[split] = []

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
            if len(waiting[split]) == BATCH:
                flush(split)
        for split in part.splits:
            if waiting[split]:
                flush(split)
    names = sorted(f"{split}-{part.name}.parquet" for split in writers)
    if left:
        names.append(f"left-{part.key}.parquet")
        write_parquet(folder / names[-1], left_table(left))
    reasons = Counter(item.reason.split(":")[0] for item in left)
    note = {"pairs": dict(pairs), "ties": dict(ties), "left": dict(reasons), "files": names}
    write_json(folder / f"{part.key}.json", note)
    return note


def _writer(path: Path) -> pq.ParquetWriter:
    """Images are compressed already: neither a codec nor a dictionary nor statistics would gain anything."""
    plain = [name for name in SCHEMA.names if name not in IMAGES]
    compression = {name: "none" if name in IMAGES else "zstd" for name in SCHEMA.names}
    return pq.ParquetWriter(path, SCHEMA, compression=compression, use_dictionary=plain, write_statistics=plain)


def rows_of(path: Path, columns: list[str], groups: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file, `BATCH` at a time. Raises LpoError if it is damaged."""
    try:
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        for batch in file.iter_batches(batch_size=BATCH, row_groups=groups, columns=columns):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        what = f"the file cannot be read: {str(error).splitlines()[0][:300]}"
        raise LpoError(what, str(path), "damaged: make or download it again") from error
