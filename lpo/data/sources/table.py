"""Your own pairs: tables with images as bytes, paths, or structs of both (the Image of `datasets`).

    tables = [open_pairs(Path("pairs.csv"), images=Path("pictures"), columns={"caption": "prompt"}, split=None)]
    parts = table_parts(tables, held_out_share=0.02, must_differ=True)

`lpo.tables` reads the files. The columns caption, jpg_0, jpg_1 and label_0 must be there, under these names or those
that `columns` gives; prompt stands for caption, and chosen and rejected for jpg_0, jpg_1 and a label of 1. The rest
follows from them where it is missing:

    label_1 = 1 - label_0                    image_k_uid = SHA-256 of image and caption     ranking_id = the row
    num_example_per_prompt = rows of a caption           split = by a hash of the caption, or the same for all rows

A label is a number or one of the words of `lpo.data.sources.cells`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lpo.data.captions import plain, split_captions
from lpo.data.schema import IMAGES, SPLITS, UIDS
from lpo.data.sources import IMAGE_LIMIT, QUOTED, Left, Pair, Part, image_file
from lpo.data.sources.cells import is_hole, label, truth, whole
from lpo.errors import LpoError
from lpo.tables import Row, Table, open_table

NEEDED = ["caption", "jpg_0", "jpg_1", "label_0"]
DERIVED = ["label_1", "image_0_uid", "image_1_uid", "ranking_id", "num_example_per_prompt", "split"]
FLAGS = ["has_label", "are_different"]
SIDES = ["chosen", "rejected"]  # other names of jpg_0 and jpg_1, which say the label too
ROWS = 20_000  # of one part


@dataclass(frozen=True)
class Pairs:
    """A table, the folder of its images, our name -> its column, and the split of all its rows (None: see each row)."""

    table: Table
    images: Path
    named: dict[str, str]
    split: str | None

    @property
    def chosen(self) -> bool:
        """Whether image 0 is preferred in every row."""
        return "label_0" not in self.named


def open_pairs(path: Path, images: Path, columns: Mapping[str, str], split: str | None) -> Pairs:
    """Look at a table's columns.

    Args:
        images: the folder that image paths are relative to; none may leave it.
        columns: our name -> the file's name, where they differ.

    Raises:
        LpoError: if the file is not a table, or lacks what must be there.
    """
    table = open_table(path)
    known = [*NEEDED, *DERIVED, *FLAGS, *SIDES]
    unknown = sorted(columns.keys() - set(known))
    if unknown:
        raise LpoError(f"there is no column {', '.join(unknown)}", "--column", f"name one of {', '.join(known)}")
    folded = {name.casefold(): name for name in reversed(table.columns)}
    named = {name: columns.get(name) or folded.get(name) for name in known}
    named["caption"] = named["caption"] or folded.get("prompt")
    needed = NEEDED
    if named["chosen"] and named["rejected"] and not (named["jpg_0"] or named["jpg_1"] or named["label_0"]):
        named |= {"jpg_0": named["chosen"], "jpg_1": named["rejected"]}
        needed = [name for name in NEEDED if name != "label_0"]
    absent = {name for name, theirs in columns.items() if theirs not in table.columns}
    absent |= {name for name in needed if not named[name]}
    if absent:
        missing = ", ".join(f"{name} ({columns.get(name, name)})" for name in known if name in absent)
        what = f"the file has no column for {missing}; it has {', '.join(table.columns)}"
        raise LpoError(what, str(path), "name them: --column caption=prompt")
    return Pairs(table, images, {name: theirs for name, theirs in named.items() if theirs and name not in SIDES}, split)


def table_parts(tables: list[Pairs], held_out_share: float, must_differ: bool) -> list[Part]:
    """Parts of all tables, in their order.

    Args:
        held_out_share: of the captions whose split nobody names, for validation and for test; at least one for each.
        must_differ: whether rows whose are_different is false are left out.

    Raises:
        LpoError: if a table is damaged, or there are too few captions for three splits.
    """
    counts: Counter[str] = Counter()
    free: dict[str, None] = {}  # plain captions whose split nobody names, in their order
    given: set[str] = set()
    for pairs in tables:
        for caption, split in _captions(pairs):
            counts[caption] += 1
            given |= {split} if split else set()
            free |= {} if split else {plain(caption): None}
    splits = split_captions(list(free), held_out_share, set(SPLITS) - given)
    parts = []
    for number, pairs in enumerate(tables):
        possible = (pairs.split,) if pairs.split else SPLITS
        pieces = _pieces(pairs.table)
        for place, (start, stop) in enumerate(pieces):
            rows = partial(_rows, pairs, start, stop, counts, splits, must_differ)
            parts.append(Part(f"{number:03d}-{place:05d}", possible, rows))
    return parts


def _captions(pairs: Pairs) -> Iterator[tuple[str, str | None]]:
    """(caption, the split that the table names) of every row that has a caption."""
    column, split = pairs.named["caption"], pairs.named.get("split")
    for row in pairs.table.rows([column, *([split] if split else [])]):
        caption = row.values.get(column)
        if isinstance(caption, str):
            named = row.values.get(split) if split else None
            yield caption, pairs.split or (None if is_hole(named) else str(named))


def _pieces(table: Table) -> Iterator[tuple[int, int]]:
    """The first row of each part and that after its last. A part of a parquet file is a row group."""
    if table.kind == ".parquet":
        first = 0
        for size in table.groups:
            yield first, first + size
            first += size
        return
    length = sum(1 for _ in table.rows([]))
    for start in range(0, length, ROWS):
        yield start, start + ROWS


def _rows(
    pairs: Pairs, start: int, stop: int, counts: Counter[str], splits: Mapping[str, str], must_differ: bool
) -> Iterator[Pair | Left]:
    path = pairs.table.path
    for row in pairs.table.rows(list(dict.fromkeys(pairs.named.values())), start, stop):
        try:
            if row.problem:
                raise LpoError(row.problem)
            yield _pair(row, pairs, counts, splits, must_differ)
        except LpoError as error:
            yield Left(path.name, row.number, row.number, error.what)


def _pair(found: Row, pairs: Pairs, counts: Counter[str], splits: Mapping[str, str], must_differ: bool) -> Pair:
    """Raises LpoError with what has no place in the schema."""
    row = {name: found.values.get(theirs) for name, theirs in pairs.named.items()}
    caption = row["caption"] if isinstance(row["caption"], str) else None
    if not truth(row.get("has_label"), "has_label"):
        raise LpoError("nobody compared them (has_label is false)")
    differ = truth(row.get("are_different"), "are_different")
    if must_differ and not differ:
        raise LpoError("nobody compared them (are_different is false)")
    label_0 = 1.0 if pairs.chosen else label(row["label_0"], "label_0")
    label_1 = label(row["label_1"], "label_1") if "label_1" in row else None if label_0 is None else 1 - label_0
    data = [_image(row[name], pairs.images) for name in IMAGES]
    uids = [
        str(row[uid]) if not is_hole(row.get(uid)) else
        None if uid in row else hashlib.sha256(encoded + b"\0" + (caption or "").encode()).hexdigest()[:32]
        for uid, encoded in zip(UIDS, data, strict=True)
    ]  # fmt: skip
    named = None if is_hole(row.get("split")) else str(row["split"])
    split = pairs.split or named or ("train" if caption is None else splits[plain(caption)])
    if split not in SPLITS:
        raise LpoError(f"no such split: {split[:QUOTED]!r}")
    ranking_id = whole(row.get("ranking_id"), "ranking_id")
    examples = whole(row.get("num_example_per_prompt"), "num_example_per_prompt")
    return Pair(
        split,
        {
            "ranking_id": found.number if ranking_id is None else ranking_id,
            "caption": caption, "jpg_0": data[0], "jpg_1": data[1], "image_0_uid": uids[0], "image_1_uid": uids[1],
            "label_0": label_0, "label_1": label_1, "has_label": True, "are_different": differ,
            "num_example_per_prompt": counts[caption or ""] if examples is None else examples,
            "source_file": pairs.table.path.name, "source_row": found.number,
        },
    )  # fmt: skip


def _image(value: Any, folder: Path) -> bytes:
    if isinstance(value, dict):  # the struct of `datasets`: bytes, or a path
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        if len(value) > IMAGE_LIMIT:
            raise LpoError(f"no image: it has {len(value)} bytes, more than {IMAGE_LIMIT}")
        return value
    if not isinstance(value, str) or not value:
        raise LpoError("no image: neither bytes nor a path")
    return image_file(folder, value)
