"""A few pairs with their images, for a person to look at, out of folders of any size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from lpo.data.schema import UIDS, images_at, shards


def drawn(pairs: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """`count` rows drawn at random with `seed`, or all of them, in their order."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:count])
    return pairs.iloc[rows].reset_index(drop=True)


def with_images(pairs: pd.DataFrame, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Each row as a dict, with its encoded images as jpg_0 and jpg_1. Pairs whose images are gone are left out."""
    found = images_of(set(pairs[UIDS].to_numpy().ravel()), folders)
    rows = [
        row | {f"jpg_{side}": found.get(row[uid]) for side, uid in enumerate(UIDS)} for row in pairs.to_dict("records")
    ]
    return [row for row in rows if row["jpg_0"] and row["jpg_1"]]


def images_of(uids: set[str], folders: Sequence[Path]) -> dict[str, bytes]:
    """uid -> encoded image. Of the shards only the columns of uids are read whole.

    Raises:
        LpoError: if there are no shards, or one cannot be read.
    """
    found: dict[str, bytes] = {}
    for path in shards([folder for folder in folders if any(folder.glob("*.parquet"))] or folders[:1]):
        columns = pq.read_table(path, columns=UIDS)
        sides = [columns.column(name).to_pylist() for name in UIDS]
        places, names = [], []
        for row, pair in enumerate(zip(*sides, strict=True)):
            for side, uid in enumerate(pair):
                if uid in uids and uid not in found and uid not in names:
                    places.append((row, side))
                    names.append(uid)
        for uid, data in zip(names, images_at(path, places), strict=True):
            if data:
                found[uid] = data
    return found
