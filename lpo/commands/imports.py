"""data: tables of your own -> a folder or a file that the stages read, kept outside what DVC deletes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from lpo import resume
from lpo.config import Params
from lpo.data import schema, sources_index
from lpo.data.sources import Part, convert, finish
from lpo.data.sources_table import parts
from lpo.errors import LpoError
from lpo.files import write_parquet
from lpo.outputs import output_file, output_folder

LEFT_OUT = "left_out.parquet"


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
        LpoError: if a table is damaged or lacks a column, or a split gets no pairs. What `out` held before stays.
    """
    share = params.dataset.held_out_share
    found: list[Part] = []
    for number, table in enumerate(tables):
        split = table.stem.split("-")[0] if table.stem.split("-")[0] in schema.SPLITS else None
        for part in parts(table, images or table.parent, columns, split, share):
            found.append(Part(f"{number:03d}-{part.name}", part.splits, part.rows))
    stamps = {str(table): [table.stat().st_size, table.stat().st_mtime_ns] for table in tables}
    identity = {"tables": stamps, "images": str(images), "columns": columns, "share": share}
    folder = resume.folder("import", identity)
    counts = convert(found, folder, None, "import")
    with output_folder(out, "lpo data import") as partial:
        finish(counts, folder, partial, folder / LEFT_OUT)
        (partial / "left_out").mkdir()
        shutil.move(folder / LEFT_OUT, partial / "left_out" / LEFT_OUT)
    sources_index.register(out)
    shutil.rmtree(folder)
    return {name: counts[name] for name in ("pairs", "ties", "left")}


def import_scores(table: Path, out: Path, force: bool = False) -> int:
    """Copy a table of scores, keyed by image uid, to `out`; register it. Returns its rows.

    Raises:
        LpoError: if it cannot be read, has no image_uid or lacks a score.
    """
    try:
        frame = pd.read_csv(table, dtype={"image_uid": str}) if table.suffix == ".csv" else schema.read_scores(table)
    except (OSError, ValueError) as error:
        raise LpoError(f"no scores can be read: {error}", str(table), "name a .parquet or .csv file") from error
    missing = [name for name in schema.SCORES if name not in frame]
    if missing:
        what = f"there is no column {', '.join(missing)}; there are {', '.join(frame)}"
        raise LpoError(what, str(table), "scores are found by image_uid, never by the place of a row")
    words = [name for name in list(schema.SCORES)[1:] if not pd.api.types.is_numeric_dtype(frame[name])]
    if words:
        raise LpoError(f"{', '.join(words)} hold more than numbers", str(table), "write NaN as an empty field")
    with output_file(out, "lpo data scores", force) as partial:
        write_parquet(partial, frame[list(schema.SCORES)])
    sources_index.register(out)
    return len(frame)
