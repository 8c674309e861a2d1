"""What is written before a run is refused for its rows: a table of them, where they were found and why they are bad."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lpo.data.schema import ORIGIN
from lpo.errors import LpoError
from lpo.files import write_parquet

FOLDER = Path("data/refused")
NAMED = 5  # rows that a message shows


def table_of(pairs: pd.DataFrame, reasons: pd.Series) -> pd.DataFrame:
    """Pairs as they were found, labels as text (they may be anything), with where and why.

    file and row are those of the source that the pair came from, where they are known: the rows that a person can look
    at. They are those of the shard elsewhere.
    """
    shown = pairs[["ranking_id", "split", "caption", "image_0_uid", "image_1_uid"]]
    labels = pairs[["label_0", "label_1"]].astype(str)
    where = pairs[["file", "row"]].copy()
    if set(ORIGIN) <= set(pairs.columns):
        known = pairs["source_file"].notna() & pairs["source_row"].notna()
        where["file"] = pairs["source_file"].where(known, where["file"])
        where["row"] = pairs["source_row"].where(known, where["row"]).astype("int64")
    return pd.concat([shown, labels, where], axis=1).assign(reason=reasons)


def refuse(stage: str, rows: pd.DataFrame, what: str, remedy: str) -> None:
    """Write `rows` (file, row, reason and more) to data/refused/STAGE.parquet, then raise.

    Raises:
        LpoError: always. It names that file and the first rows.
    """
    path = FOLDER / f"{stage}.parquet"
    rows = rows.sort_values(["file", "row"], kind="stable", ignore_index=True)
    write_parquet(path, rows)
    named = [f"{row.file} row {row.row}: {row.reason}" for row in rows.head(NAMED).itertuples()]
    if len(rows) > NAMED:
        named.append(f"and {len(rows) - NAMED} more rows")
    raise LpoError(what, "\n    ".join([f"all of them: {path}", *named]), remedy)


def forget(stage: str) -> None:
    """Remove the table of an earlier refusal: this run was not refused."""
    (FOLDER / f"{stage}.parquet").unlink(missing_ok=True)
