"""The columns of Pick-a-Pic, and how pairs are read: a typed frame without images, images one batch at a time.

    pairs = read_pairs("data/pairs")                         one row a pair, in the order of the shards
    for uids, data in iter_images("data/pairs", None, 64):   every image once, as encoded bytes
        pictures = decode_pictures(data)                     of lpo/images.py

A shard is SPLIT-*.parquet; where a folder is asked for, several may be named. `file` and `row` say where each pair was
found. Integers and truth values are nullable: a hole in the data stays a hole until the contract names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from lpo.errors import LpoError
from lpo.images import image_problem

SPLITS = ("train", "validation", "test")
UIDS, IMAGES = ["image_0_uid", "image_1_uid"], ["jpg_0", "jpg_1"]
PAIRS = {
    "ranking_id": pa.int64(),
    "caption": pa.string(),
    "image_0_uid": pa.string(),
    "image_1_uid": pa.string(),
    "label_0": pa.float64(),  # the share of votes for image 0: 1 or 0 of one vote, 0.5 for a tie
    "label_1": pa.float64(),
    "has_label": pa.bool_(),
    "are_different": pa.bool_(),
    "num_example_per_prompt": pa.int64(),
    "jpg_0": pa.binary(),  # an encoded image, whatever its name says
    "jpg_1": pa.binary(),
}
OPTIONAL = {"category": pa.string(), "difference": pa.string()}  # what the embedded world adds; null elsewhere
ORIGIN = {"source_file": pa.string(), "source_row": pa.int64()}  # where a pair of people was found; null elsewhere
SCORES = {"image_uid": pa.string(), "aesthetic": pa.float64(), "clip": pa.float64(), "vqa": pa.float64()}

BATCH = 64  # rows whose images are in memory at once
NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
Folders = str | Path | Sequence[Path]


def shards(folder: Folders) -> list[Path]:
    """The shards of each folder in the order of their names, all of them with the columns of `PAIRS`.

    Raises:
        LpoError: if there is none, one is named after no split, cannot be read, or has other columns: all mistakes.
    """
    folders = [Path(folder)] if isinstance(folder, str | Path) else folder
    paths = [path for each in folders for path in sorted(each.glob("*.parquet"))]
    if not paths:
        raise LpoError("there are no pairs", f"{folders[0]}/*.parquet", "run `lpo dataset`, or put shards there")
    for path in paths:
        if split_of(path) not in SPLITS:
            raise LpoError(f"{path.name} names no split", str(path), f"call it SPLIT-*.parquet, SPLIT of {SPLITS}")
    mistakes = [f"{path}: {mistake}" for path in paths for mistake in column_mistakes(path, PAIRS)]
    if mistakes:
        remedy = "give the shards the columns and types of Pick-a-Pic that data/README.md lists"
        raise LpoError("pairs do not have the columns that they must have", "; ".join(mistakes), remedy)
    return paths


def split_of(path: Path) -> str:
    """The split that a shard is named after: train of train-00000.parquet."""
    return path.stem.split("-")[0]


def read_pairs(folder: Folders) -> pd.DataFrame:
    """All pairs of a folder without their images: split, file, row, then `PAIRS`, `OPTIONAL` and `ORIGIN`.

    Raises:
        LpoError: see `shards`.
    """
    columns = {name: kind for name, kind in PAIRS.items() if name not in IMAGES} | OPTIONAL | ORIGIN
    frames = []
    for path in shards(folder):
        frame = _read(path, columns)
        frame.insert(0, "split", split_of(path))
        frame.insert(1, "file", str(path))
        frame.insert(2, "row", np.arange(len(frame)))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def read_captions(folder: str | Path, split: str) -> pd.Series:
    """The captions of a split's pairs. Raises LpoError: see `shards`."""
    columns = {"caption": PAIRS["caption"]}
    return pd.concat([_read(path, columns)["caption"] for path in shards(folder) if split_of(path) == split])


def read_scores(path: str | Path) -> pd.DataFrame:
    """The table of scores: image_uid, aesthetic, clip, vqa.

    Raises:
        LpoError: if it is absent, cannot be read, or lacks a column.
    """
    path = Path(path)
    if not path.exists():
        raise LpoError("there are no scores", str(path), "run `lpo score`")
    mistakes = column_mistakes(path, SCORES)
    if mistakes:
        raise LpoError("scores lack what they must have: " + "; ".join(mistakes), str(path), "run `lpo score` again")
    return _read(path, SCORES)


def iter_images(
    folder: Folders, wanted: set[str] | None, batch_size: int, label: str = ""
) -> Iterator[tuple[list[str], list[bytes]]]:
    """Every image once, in the order of the shards, as (uids, encoded bytes) of at most `batch_size` images.

    Memory holds one batch and the uids. With `wanted`, exactly those images; without it, every one that decodes.

    Raises:
        LpoError: see `shards`; or if a wanted image is not there.
    """
    seen: set[str] = set()
    uids, data = [], []
    for row in _image_rows(shards(folder), UIDS, label):
        for uid, encoded in zip(row[:2], row[2:], strict=True):
            known = uid is None or uid in seen
            if known or (image_problem(encoded) if wanted is None else uid not in wanted):
                continue
            seen.add(uid)
            uids.append(uid)
            data.append(encoded)
            if len(uids) == batch_size:
                yield uids, data
                uids, data = [], []
    if uids:
        yield uids, data
    missing = sorted((wanted or set()) - seen)
    if missing:
        what = f"{len(missing)} images are not among the pairs: {', '.join(missing[:5])}"
        raise LpoError(what, "data/filtered/kept.parquet", "run `lpo filter` again")


def images_at(path: Path, places: list[tuple[int, int]]) -> Iterator[bytes | None]:
    """The encoded images at (row, side) of a shard, for places whose rows ascend; the rows between are passed by.

    Raises:
        LpoError: if the shard cannot be read.
    """
    wanted = iter(places)
    row, side = next(wanted, (-1, 0))
    with _readable(path):
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if row < end and row >= 0:
                for batch in file.iter_batches(batch_size=BATCH, row_groups=[group], columns=IMAGES):
                    while start <= row < start + len(batch):
                        yield batch.column(IMAGES[side])[row - start].as_py()
                        row, side = next(wanted, (-1, 0))
                    start += len(batch)
            start = end


def inspect_images(folder: Folders, label: str = "") -> pd.DataFrame:
    """Look at every image: image_{0,1}_problem (null if it decodes) and image_{0,1}_digest, rows as `read_pairs`."""
    problems: dict[str, str | None] = {}  # by digest, so that an image in ten pairs is decoded once
    rows: list[list[str]] = []
    images = _image_rows(shards(folder), [], label)
    with ThreadPoolExecutor() as pool:  # decoders leave Python's lock
        while some := list(islice(images, BATCH)):
            digests = [[hashlib.blake2b(data or b"", digest_size=16).hexdigest() for data in row] for row in some]
            found = {d: data for ds, row in zip(digests, some, strict=True) for d, data in zip(ds, row, strict=True)}
            new = [digest for digest in found if digest not in problems]
            for digest, problem in zip(new, pool.map(image_problem, (found[digest] for digest in new)), strict=True):
                problems[digest] = problem or None
            rows += digests
    frame = pd.DataFrame(rows, columns=["image_0_digest", "image_1_digest"], dtype=str)
    for k in (0, 1):
        frame[f"image_{k}_problem"] = frame[f"image_{k}_digest"].map(problems).astype(str)
    return frame


def in_order(pairs: pd.DataFrame, images: pd.DataFrame, collected: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs and their images with the rows of the folder `collected` last, by ranking_id; their captions recounted.

    A ranking_id there is a hash of the pair (`lpo.data.inbox`), so the result depends on which pairs there are, not on
    the files or the nights they came in. num_example_per_prompt of a caption that has collected pairs counts all train
    pairs of it.
    """
    new = pairs["file"].map(lambda name: Path(name).parent == collected).to_numpy(bool)
    if not new.any():
        return pairs, images
    rows = np.flatnonzero(new)
    by_id = rows[np.argsort(pairs["ranking_id"].to_numpy()[rows], kind="stable")]
    order = np.concatenate([np.flatnonzero(~new), by_id])
    counts = pairs.groupby(["split", "caption"])["row"].transform("size")
    again = (pairs["split"] == "train") & pairs["caption"].isin(pairs.loc[new, "caption"])
    pairs = pairs.assign(num_example_per_prompt=pairs["num_example_per_prompt"].mask(again, counts))
    return pairs.iloc[order].reset_index(drop=True), images.iloc[order].reset_index(drop=True)


def _image_rows(paths: list[Path], columns: list[str], label: str) -> Iterator[tuple]:
    """Rows of `columns` and both images. Without pre-buffering, a row group of gigabytes is read page by page."""
    total = sum(pq.read_metadata(path).num_rows for path in paths)
    with tqdm(total=total, desc=label, disable=not label, mininterval=2) as bar:
        for path in paths:
            with _readable(path):
                file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
                for batch in file.iter_batches(batch_size=BATCH, columns=columns + IMAGES):
                    yield from zip(*(batch.column(name).to_pylist() for name in columns + IMAGES), strict=True)
                    bar.update(len(batch))


def column_mistakes(path: Path, columns: dict[str, pa.DataType]) -> list[str]:
    with _readable(path):
        schema = pq.read_schema(path)
    found = {name: schema.field(name).type for name in schema.names if schema.names.count(name) == 1}
    return [
        f"{name} is missing" if name not in found else f"{name} is {found[name]}, not {kind}"
        for name, kind in columns.items()
        if name not in found or not _fits(found[name], kind)
    ]


def _fits(found: pa.DataType, kind: pa.DataType) -> bool:
    if pa.types.is_null(found):  # how an empty column, or one of holes, is often written
        return True
    if pa.types.is_floating(kind):
        return pa.types.is_floating(found) or pa.types.is_integer(found)
    alike = {
        pa.int64(): [pa.types.is_integer],
        pa.string(): [pa.types.is_string, pa.types.is_large_string],
        pa.binary(): [pa.types.is_binary, pa.types.is_large_binary],
        pa.bool_(): [pa.types.is_boolean],
    }
    return any(test(found) for test in alike[kind])


def _read(path: Path, columns: dict[str, pa.DataType]) -> pd.DataFrame:
    with _readable(path):
        file = pq.ParquetFile(path)
        table = file.read(columns=[name for name in columns if name in file.schema_arrow.names])
        table.validate(full=True)  # finds text that is not UTF-8 while the file is known
        for name in columns.keys() - set(table.column_names):
            table = table.append_column(name, pa.nulls(len(table)))
        frame: pd.DataFrame = table.select(list(columns)).cast(pa.schema(columns)).to_pandas(types_mapper=NULLABLE.get)
        return frame


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise LpoError(f"the file cannot be read: {error}", str(path), "damaged: make or copy it again") from error
