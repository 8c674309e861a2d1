"""Your own pairs: a parquet or CSV file, with images as bytes, paths, or structs of both (the Image of `datasets`).

    parts = table.parts("pairs.csv", images="pictures", columns={"caption": "prompt"}, held_out_share=0.02)

caption, jpg_0, jpg_1 and label_0 must be there, under these names or those that `columns` gives. The rest follows from
them where it is missing:

    label_1 = 1 - label_0                    image_k_uid = SHA-256 of image and caption     ranking_id = the row
    num_example_per_prompt = rows of a caption           split = by a hash of the caption, or the same for all rows
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lpo.data.schema import IMAGES, SPLITS, UIDS
from lpo.data.sources import Left, Pair, Part, image_bytes, rows_of, split_of_caption
from lpo.errors import LpoError
from lpo.files import inside

NEEDED = ["caption", "jpg_0", "jpg_1", "label_0"]
DERIVED = ["label_1", "image_0_uid", "image_1_uid", "ranking_id", "num_example_per_prompt", "split"]
FLAGS = ["has_label", "are_different"]
ROWS = 5000  # of a CSV file in one part; a part of a parquet file is a row group
FIELD_LIMIT = 2**20  # characters of a CSV field


def parts(path: Path, images: Path, columns: dict[str, str], split: str | None, held_out_share: float) -> list[Part]:
    """Parts of a file.

    Args:
        images: the folder that image paths are relative to; none may leave it.
        columns: our name -> the file's name, where they differ.
        split: the split of all rows; None where a column or the caption says it.

    Raises:
        LpoError: if the file is no parquet or CSV, or lacks what must be there.
    """
    found = _names(path)
    unknown = sorted(columns.keys() - {*NEEDED, *DERIVED, *FLAGS})
    if unknown:
        what = f"there is no column {', '.join(unknown)}"
        raise LpoError(what, "--column", f"name one of {', '.join([*NEEDED, *DERIVED, *FLAGS])}")
    named = {name: columns.get(name, name) for name in [*NEEDED, *DERIVED, *FLAGS]}
    missing = [
        f"{name} ({theirs})"
        for name, theirs in named.items()
        if theirs not in found and (name in NEEDED or name in columns)
    ]
    if missing:
        what = f"the file has no column for {', '.join(missing)}; it has {', '.join(found)}"
        raise LpoError(what, str(path), "name them: --column caption=prompt")
    named = {name: theirs for name, theirs in named.items() if theirs in found}
    captions = (row[named["caption"]] for row in _read(path, [named["caption"]], None))
    counts = Counter(caption for caption in captions if isinstance(caption, str))
    splits = (split,) if split else SPLITS
    pieces: list[tuple[int, Any]]
    if path.suffix == ".csv":
        pieces = [(start, (start, start + ROWS)) for start in range(0, _length(path), ROWS)]
    else:
        meta = pq.read_metadata(path)
        sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        pieces = [(sum(sizes[:i]), [i]) for i in range(len(sizes))]
    return [
        Part(f"{number:05d}", splits, partial(_rows, path, images, named, split, held_out_share, counts, start, piece))
        for number, (start, piece) in enumerate(pieces)
    ]


def _rows(
    path: Path, images: Path, named: dict[str, str], split: str | None, share: float, counts: Counter[str], start: int,
    piece: Any,
) -> Iterator[Pair | Left]:  # fmt: skip
    for number, found in enumerate(_read(path, list(named.values()), piece), start):
        row = {name: found[theirs] for name, theirs in named.items()}
        try:
            yield _pair(row, number, images, split, share, counts)
        except LpoError as error:
            yield Left(path.name, number, number, error.what)


def _pair(
    row: dict[str, Any], number: int, images: Path, split: str | None, share: float, counts: Counter[str]
) -> Pair:
    """Raises LpoError with what has no place in the schema."""
    caption = row["caption"] if isinstance(row["caption"], str) else None
    for name in ("has_label", "are_different"):
        if name in row and not _truth(row[name], name):
            raise LpoError(f"nobody compared them ({name} is false)")
    label_0 = _number(row["label_0"], "label_0")
    label_1 = _number(row["label_1"], "label_1") if "label_1" in row else None if label_0 is None else 1 - label_0
    data = [_image(row[name], images) for name in IMAGES]
    uids = [
        str(row[uid]) if row.get(uid) not in (None, "") else
        None if uid in row else hashlib.sha256(encoded + b"\0" + (caption or "").encode()).hexdigest()[:32]
        for uid, encoded in zip(UIDS, data, strict=True)
    ]  # fmt: skip
    given = split or row.get("split") or ("train" if caption is None else split_of_caption(caption, share))
    if given not in SPLITS:
        raise LpoError(f"no such split: {str(given)[:40]!r}")
    return Pair(
        given,
        {
            "ranking_id": _whole(row.get("ranking_id"), "ranking_id", number),
            "caption": caption, "jpg_0": data[0], "jpg_1": data[1], "image_0_uid": uids[0], "image_1_uid": uids[1],
            "label_0": label_0, "label_1": label_1, "has_label": True, "are_different": True,
            "num_example_per_prompt": _whole(
                row.get("num_example_per_prompt"), "num_example_per_prompt", counts[caption or ""]
            ),
        },
    )  # fmt: skip


def _image(value: Any, folder: Path) -> bytes:
    if isinstance(value, dict):  # the struct of `datasets`: bytes, or a path
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise LpoError("no image: neither bytes nor a path")
    try:
        return image_bytes(inside(folder, value))
    except (LpoError, ValueError) as error:  # a path with a NUL byte is a ValueError
        raise LpoError(f"no image: {error.what if isinstance(error, LpoError) else error}") from error


def _number(value: Any, name: str) -> float | None:
    """A label as it is, whatever its value: the contract judges that. None for a hole."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise LpoError(f"{name} is no number: {str(value)[:40]!r}") from error


def _whole(value: Any, name: str, other: int) -> int:
    number = _number(value, name)
    if number is None:
        return other
    if not number.is_integer() or abs(number) >= 2**63:
        raise LpoError(f"{name} is no whole number: {str(value)[:40]!r}")
    return int(value) if isinstance(value, int) else int(number)


def _truth(value: Any, name: str) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    text = str(value).strip().lower()
    if value is not None and text not in known:
        raise LpoError(f"{name} is neither true nor false: {text[:40]!r}")
    return value is None or known[text]


def _names(path: Path) -> list[str]:
    if not path.is_file() or path.suffix not in (".csv", ".parquet"):
        raise LpoError("there is no such parquet or CSV file", str(path), "name a .parquet or .csv file")
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    try:
        return list(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        what = f"the file cannot be read: {str(error).splitlines()[0][:300]}"
        raise LpoError(what, str(path), "damaged: make or copy it again") from error


def _read(path: Path, columns: list[str], piece: Any) -> Iterator[dict[str, Any]]:
    """Rows of a piece (None: all) with these columns. Raises LpoError if the file is damaged."""
    if path.suffix == ".parquet":
        yield from rows_of(path, columns, piece)
        return
    csv.field_size_limit(FIELD_LIMIT)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in islice(csv.DictReader(file), *(piece or (0, None))):
                yield {name: row[name] for name in columns}
    except (csv.Error, UnicodeDecodeError) as error:
        raise LpoError(f"the file is no CSV: {error}", str(path), "write it as UTF-8 with a line of names") from error


def _length(path: Path) -> int:
    return sum(1 for _ in _read(path, [], None))
