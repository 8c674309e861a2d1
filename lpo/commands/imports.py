"""data: tables of your own -> a folder or a file that the stages read, kept outside what DVC deletes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from lpo import resume
from lpo.config import Params
from lpo.data import refused, schema
from lpo.data.sources import convert, finish, index
from lpo.data.sources.cells import is_hole
from lpo.data.sources.table import open_pairs, table_parts
from lpo.errors import LpoError
from lpo.files import write_parquet
from lpo.outputs import output_file, output_folder
from lpo.tables import Row, open_table

LEFT_OUT = "left_out.parquet"
SPLIT_NAME = re.compile(rf"({'|'.join(schema.SPLITS)})(?![a-z])", re.IGNORECASE)  # train.csv, train-2.csv.gz


def import_pairs(
    params: Params, tables: list[Path], images: Path | None, out: Path, columns: dict[str, str]
) -> dict[str, dict[str, int]]:
    """Write SPLIT-NNNNN.parquet of `schema.PAIRS` into `out`, and beside them what was left out; register them.

    A row is of the split that the table is named after (train.csv, train-2.csv), else of its column split, else of the
    one that a hash of its caption gives.

    Args:
        images: the folder that image paths are relative to; None for that of each table.
        columns: our column -> the tables' column.

    Raises:
        LpoError: if a table is damaged or lacks a column, or a split gets no pairs. What `out` held before stays, and
            the rows that were left out are in data/refused/import.parquet.
    """
    if images is not None and not images.is_dir():
        raise LpoError("there is no such folder of images", str(images), "name the folder that image paths start from")
    share, must_differ = params.dataset.held_out_share, params.dataset.are_different == "required"
    opened = []
    for table in tables:
        named = SPLIT_NAME.match(table.name)
        split = named.group(1).lower() if named else None
        opened.append(open_pairs(table, images or table.parent, columns, split))
    found = table_parts(opened, share, must_differ)
    stamps = {str(table): [table.stat().st_size, table.stat().st_mtime_ns] for table in tables}
    identity = {
        "tables": stamps, "images": str(images), "columns": columns, "share": share, "must_differ": must_differ,
    }  # fmt: skip
    folder = resume.folder("import", identity)
    counts = convert(found, folder, None, "import")
    with output_folder(out, "lpo data import") as partial:
        finish(counts, folder, partial, folder / LEFT_OUT, "import")
        (partial / "left_out").mkdir()
        shutil.move(folder / LEFT_OUT, partial / "left_out" / LEFT_OUT)
    index.register(out)
    shutil.rmtree(folder)
    return {name: counts[name] for name in ("pairs", "ties", "left")}


def import_scores(path: Path, out: Path, force: bool = False) -> int:
    """Copy a table of scores, keyed by image uid, to `out`; register it. Returns its rows.

    Raises:
        LpoError: if it cannot be read, has no image_uid, lacks a score, or holds more than numbers; every row that is
            wrong is in data/refused/scores.parquet.
    """
    table = open_table(path)
    missing = [name for name in schema.SCORES if name not in table.columns]
    if missing:
        what = f"there is no column {', '.join(missing)}; there are {', '.join(table.columns)}"
        raise LpoError(what, str(path), "scores are found by image_uid, never by the place of a row")
    read = [(row.number, *_scores(row)) for row in table.rows(list(schema.SCORES))]
    bad = [{"file": path.name, "row": number, "reason": reason} for number, _, reason in read if reason]
    if bad:
        what = f"{len(bad)} of {len(read)} rows hold no scores"
        refused.refuse("scores", pd.DataFrame(bad), what, "correct these rows; write NaN as an empty field")
    refused.forget("scores")
    frame = pd.DataFrame([values for _, values, _ in read], columns=list(schema.SCORES))
    typed = frame.astype(dict.fromkeys(list(schema.SCORES)[1:], "float64") | {"image_uid": "str"})
    with output_file(out, "lpo data scores", force) as partial:
        write_parquet(partial, typed)
    index.register(out)
    return len(frame)


def _scores(row: Row) -> tuple[dict[str, Any], str]:
    """(image_uid and the scores of a row, NaN for a hole; what is wrong with it)."""
    if row.problem:
        return {}, row.problem
    uid = row.values["image_uid"]
    values: dict[str, Any] = {"image_uid": None if is_hole(uid) else str(uid)}
    for name in list(schema.SCORES)[1:]:
        value = row.values[name]
        try:
            values[name] = float("nan") if is_hole(value) else float(value)
        except (TypeError, ValueError, OverflowError):
            return {}, f"{name} is not a number: {str(value)[:40]!r}"
    return values, ""
