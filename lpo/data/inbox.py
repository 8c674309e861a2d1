"""New pairs from outside: what a parquet file brings, what is wrong with it, and how what is good is kept.

    findings = examine(folder of one file, known, limits)           one verdict a row
    write_shard(file, findings, shard); write_quarantine(file, findings, table)

A pair is its caption, its two images and its labels, whatever else a file says about it:

    image_k_uid = hash(bytes of image k, caption)      ranking_id = hash(caption, uids and labels, the lower uid first)

Ids of different files collide (many count from zero), so both are derived from contents alone; the image with the
lower uid becomes image 0. Equal pairs are therefore equal rows, in whatever file and whatever order they came, and
being there already is a look-up of the ranking_id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lpo.data.captions import plain
from lpo.data.contract import check_new
from lpo.data.limits import Limits
from lpo.data.schema import OPTIONAL, PAIRS, UIDS, inspect_images, read_pairs
from lpo.files import replacing

COLUMNS = PAIRS | OPTIONAL
AT_ONCE = 512  # rows whose images are in memory while a file is copied


@dataclass(frozen=True)
class Known:
    """What a new pair is held against.

    held_out: plain captions of validation and test -> their split; found: `found_keys` of data/pairs; ranking_ids:
    those in data/collected.
    """

    held_out: dict[str, str]
    found: set[str]
    ranking_ids: set[int]


@dataclass(frozen=True)
class Findings:
    """One row a row of the file: ranking_id, image_0_uid, image_1_uid, swap (bool), reason (str), new (bool).

    A row is quarantined (it has a reason), new, or else a duplicate.
    """

    rows: pd.DataFrame

    def counts(self) -> dict[str, int]:
        new, bad = int(self.rows["new"].sum()), int((self.rows["reason"] != "").sum())
        return {"new_pairs": new, "quarantined": bad, "duplicates": len(self.rows) - new - bad}


def found_keys(pairs: pd.DataFrame) -> list[str]:
    """A name for each of the pairs (N) by its image uids, caption and labels as they were found."""
    values = pairs[["caption", *UIDS, "label_0", "label_1"]].astype(object)
    return [_key(*row) for row in values.where(values.notna(), None).itertuples(index=False)]


def examine(folder: Path, known: Known, limits: Limits) -> Findings:
    """The verdicts on the one file of `folder`, as `lpo.data.schema.shards` reads it.

    Raises:
        LpoError: if the file as a whole cannot be used: it is damaged, or lacks a column.
    """
    pairs, images = read_pairs(folder), inspect_images(folder)
    rows = identities(pairs, images)
    rows["reason"] = ""
    repeated = rows.duplicated("ranking_id")
    first = np.flatnonzero(~repeated)
    if len(first):
        once, seen = (frame.iloc[first].reset_index(drop=True) for frame in (pairs, images))
        reasons = check_new(once, seen, known.held_out, limits)
        rows.loc[first, "reason"] = reasons.to_numpy()
    there = rows["ranking_id"].isin(known.ranking_ids) | pd.Series(found_keys(pairs)).isin(known.found)
    rows["new"] = (rows["reason"] == "") & ~repeated & ~there
    return Findings(rows)


def identities(pairs: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """ranking_id, image_0_uid, image_1_uid and swap (whether the images change places) of pairs (N), from contents."""
    made: list[tuple[int, str, str, bool]] = []
    values = pairs[["caption", "label_0", "label_1"]].astype(object)
    labelled = values.where(values.notna(), None).itertuples(index=False)
    digests = zip(images["image_0_digest"], images["image_1_digest"], strict=True)
    for (caption, label_0, label_1), both in zip(labelled, digests, strict=True):
        uid_0, uid_1 = (_hash([digest, caption]) for digest in both)
        key = _key(caption, uid_0, uid_1, label_0, label_1)
        low, high = sorted((uid_0, uid_1))
        made.append((int(key[:16], 16) >> 1, low, high, uid_0 > uid_1))  # 63 bits: a positive int64
    frame = pd.DataFrame(made, columns=["ranking_id", *UIDS, "swap"])
    return frame.astype({"ranking_id": "int64", "swap": bool})


def write_shard(file: Path, findings: Findings, shard: Path) -> None:
    """Write the new rows of `file` in the columns of `PAIRS` and `OPTIONAL`, with their own ids and order of images."""
    rows = findings.rows[findings.rows["new"]]

    def tables() -> Iterator[pa.Table]:
        for table, taken in _selected(file, rows.index.to_numpy()):
            mine = rows.loc[taken]
            swap = pa.array(mine["swap"].to_numpy(bool))
            columns = {name: table.column(name) for name in COLUMNS}
            for zero, one in (("jpg_0", "jpg_1"), ("label_0", "label_1")):
                columns[zero] = pc.if_else(swap, table.column(one), table.column(zero))
                columns[one] = pc.if_else(swap, table.column(zero), table.column(one))
            columns |= {name: pa.array(mine[name].tolist(), COLUMNS[name]) for name in ("ranking_id", *UIDS)}
            # How many pairs a caption has is known when all files are read: lpo.data.schema.in_order counts.
            columns["num_example_per_prompt"] = pa.array([1] * len(mine), pa.int64())
            yield pa.table(columns, schema=pa.schema(COLUMNS))

    _write(shard, pa.schema(COLUMNS), tables())


def write_quarantine(file: Path, findings: Findings, name: str, target: Path) -> None:
    """Write the bad rows of `file` as they were found, images too, with file (its `name`), row and reason."""
    rows = findings.rows[findings.rows["reason"] != ""]
    schema = pa.schema(COLUMNS | {"file": pa.string(), "row": pa.int64(), "reason": pa.string()})

    def tables() -> Iterator[pa.Table]:
        for table, taken in _selected(file, rows.index.to_numpy()):
            beside = {"file": [name] * len(taken), "row": taken, "reason": rows.loc[taken, "reason"].tolist()}
            columns = {column: table.column(column) for column in COLUMNS} | beside
            yield pa.table(columns, schema=schema)

    _write(target, schema, tables())


def plain_captions(split: pd.Series, captions: pd.Series) -> dict[str, str]:
    """Plain caption -> split, of rows (N) that are not of train."""
    rows = (split != "train") & captions.notna()
    return {plain(caption): name for caption, name in zip(captions[rows], split[rows], strict=True)}


def _selected(file: Path, rows: np.ndarray) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """The `rows` of a parquet file in the types of `COLUMNS`, and their numbers, a part of the file at a time."""
    source = pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
    there = [name for name in COLUMNS if name in source.schema_arrow.names]
    start = 0
    for batch in source.iter_batches(batch_size=AT_ONCE, columns=there):
        taken = rows[(rows >= start) & (rows < start + len(batch))]
        if len(taken):
            table = pa.Table.from_batches([batch]).take(taken - start)
            for name in COLUMNS.keys() - set(there):
                table = table.append_column(name, pa.nulls(len(table)))
            yield table.select(list(COLUMNS)).cast(pa.schema(COLUMNS)), taken
        start += len(batch)


def _write(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    with replacing(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def _key(caption: Any, uid_0: Any, uid_1: Any, label_0: Any, label_1: Any) -> str:
    """Equal for equal pairs, whichever of the two images comes first."""
    sides = sorted(([uid_0, label_0], [uid_1, label_1]), key=lambda side: json.dumps(side))
    return _hash([caption, *sides])


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
