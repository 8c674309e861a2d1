"""Pick-a-Pic v1 and v2 (arXiv 2305.01569): data/SPLIT-NNNNN-of-NNNNN-HASH.parquet with the columns of `schema.PAIRS`.

Its captions are apart by split. `validation_unique` and `test_unique` hold one pair of each of the 500 captions of
validation and of test; the first are the prompts that papers evaluate on, so the second validate here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lpo.data import schema
from lpo.data.download import Store
from lpo.data.sources import Left, Pair, Part
from lpo.errors import LpoError
from lpo.tables import open_table

REPOSITORIES = {"pickapic": "yuvalkirstain/pickapic_v1", "pickapic_v2": "yuvalkirstain/pickapic_v2"}
PROMPTS = {"validation": "test_unique", "test": "validation_unique"}


def parts(store: Store, keep: bool, must_differ: bool) -> list[Part]:
    """A part a shard, train last, so that a mistake of a small split shows before the large one is loaded.

    Args:
        keep: whether a downloaded shard stays when its pairs are written.
        must_differ: whether rows whose are_different is false are left out.

    Raises:
        LpoError: if a split has no shard.
    """
    return [
        Part(
            f"{number:05d}", (split,), partial(_rows, store, name, split, must_differ),
            (lambda: None) if keep else partial(store.forget, name),
        )
        for split in ("test", "validation", "train")
        for number, name in enumerate(store.names(f"{split}-*.parquet"))
    ]  # fmt: skip


def prompts(store: Store) -> dict[str, list[str]]:
    """Captions of the published prompt sets, for validation and for test, in their order."""
    found: dict[str, list[str]] = {}
    for split, name in PROMPTS.items():
        tables = (open_table(store.get(file)) for file in store.names(f"{name}-*.parquet"))
        captions = (row.values.get("caption") for table in tables for row in table.rows(["caption"]))
        found[split] = list(dict.fromkeys(caption for caption in captions if caption))
    return found


def _rows(store: Store, name: str, split: str, must_differ: bool) -> Iterator[Pair | Left]:
    path = store.get(name)
    check_columns(path)
    table = open_table(path)
    origin = [column for column in schema.ORIGIN if column in table.columns]  # of a table that was imported
    for row in table.rows([*schema.PAIRS, *origin]):
        values: dict[str, Any] = {"source_file": name, "source_row": row.number} | row.values
        reason = row.problem
        if not reason and values["has_label"] is False:
            reason = "nobody labelled it (has_label is false)"
        elif not reason and values["are_different"] is False and must_differ:
            reason = "both images are the same (are_different is false)"
        if reason:
            yield Left(name, row.number, values.get("ranking_id"), reason)
        else:
            yield Pair(split, values)


def check_columns(path: Path) -> None:
    """Raises LpoError if a file lacks a column of `schema.PAIRS`, has one of another type, or cannot be read."""
    mistakes: list[Any] = schema.column_mistakes(path, schema.PAIRS)
    if mistakes:
        raise LpoError("; ".join(mistakes), str(path), "these are not the columns of Pick-a-Pic: see data/README.md")
    if pq.read_metadata(path).num_rows == 0:
        raise LpoError("the file has no rows", str(path), "make or download it again")
