"""Votes -> pairs in the inbox (docs/nightly.md), each vote once.

    export(Path("data/votes.sqlite"), "data/inbox", min_consistency)     INBOX/votes-NAME.parquet

A row is a pair of pictures and the votes on it since the last export: label_0 is their share for image 0, so a tie
counts one half. The votes of a batch are marked before its file is written, and the file depends on them alone. Killed
anywhere, the next export writes the same bytes under the same name, and the inbox knows files that it has seen.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lpo.data.schema import OPTIONAL, PAIRS
from lpo.files import replacing
from lpo.votes.consistency import judged
from lpo.votes.store import PATH, SHARES, Store, now

KEYS = ["prompt", "image_a", "image_b"]


def export(path: Path = PATH, inbox: str = "data/inbox", min_consistency: float = 0.0) -> dict[str, Any]:
    """Write the votes that are used and not exported yet.

    Args:
        inbox: a folder, or s3://BUCKET/PREFIX.

    Returns:
        {"votes", "pairs": of this export, "files": their names, "not_used": votes by reason, all of them}.
    """
    frame = judged(path, min_consistency)
    frame.loc[(frame["reason"] == "") & (frame["split"] != "train"), "reason"] = "its prompt is held out"
    result: dict[str, Any] = {"votes": 0, "pairs": 0, "files": []}
    if not frame.empty:
        with closing(Store(path)) as store:
            _mark(store, frame.loc[frame["reason"] == "", "vote_id"].tolist())
            for batch in _unwritten(store):
                votes = _votes(store, batch)
                table = _pairs(store, votes)
                _put(table, inbox, f"{batch}.parquet")
                with store.writing() as db:
                    db.execute("UPDATE batches SET written = 1 WHERE batch = ?", (batch,))
                result["votes"] += len(votes)
                result["pairs"] += len(table)
                result["files"].append(f"{batch}.parquet")
    reasons = frame.loc[frame["reason"] != "", "reason"].value_counts().sort_index()
    return result | {"not_used": {str(reason): int(count) for reason, count in reasons.items()}}


def _mark(store: Store, vote_ids: list[int]) -> None:
    """Put the votes that are in no batch into a new one. A vote that was taken back meanwhile is left out."""
    with store.writing() as db:
        open_ = {row[0] for row in db.execute("SELECT vote_id FROM votes WHERE batch IS NULL AND undone = 0")}
        new = [vote for vote in vote_ids if vote in open_]
        if not new:
            return
        batch = f"votes-{secrets.token_hex(8)}"  # two clones may share an inbox
        db.execute("INSERT INTO batches (batch, created_at) VALUES (?, ?)", (batch, now()))
        db.executemany("UPDATE votes SET batch = ? WHERE vote_id = ?", [(batch, vote) for vote in new])


def _unwritten(store: Store) -> list[str]:
    with store.reading() as db:
        return [row[0] for row in db.execute("SELECT batch FROM batches WHERE written = 0 ORDER BY created_at, batch")]


def _votes(store: Store, batch: str) -> pd.DataFrame:
    with store.reading() as db:
        rows = db.execute(
            "SELECT prompt, image_a, image_b, choice FROM votes WHERE batch = ? ORDER BY vote_id", (batch,)
        ).fetchall()
    frame = pd.DataFrame(rows, columns=[*KEYS, "choice"])
    return frame.assign(share=frame["choice"].map(SHARES))


def _pairs(store: Store, votes: pd.DataFrame) -> pa.Table:
    """The rows of a batch in the columns of `PAIRS` and `OPTIONAL`, sorted by prompt and pictures."""
    rows = []
    for (prompt, image_a, image_b), share in votes.groupby(KEYS, sort=True)["share"].mean().items():
        high = max(share, 1 - share)
        label_0, label_1 = (high, 1 - high) if share >= 0.5 else (1 - high, high)  # so that they sum to 1 exactly
        data = [found[0] if (found := store.image(name)) else None for name in (image_a, image_b)]
        uids = [hashlib.sha256(f"{name}\0{prompt}".encode()).hexdigest()[:32] for name in (image_a, image_b)]
        ranking_id = int(hashlib.sha256(repr((prompt, image_a, image_b)).encode()).hexdigest()[:15], 16)
        rows.append(
            {
                "ranking_id": ranking_id, "caption": prompt, "image_0_uid": uids[0], "image_1_uid": uids[1],
                "label_0": label_0, "label_1": label_1, "has_label": True, "are_different": True,
                "num_example_per_prompt": 1, "jpg_0": data[0], "jpg_1": data[1], "category": None, "difference": None,
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=pa.schema(PAIRS | OPTIONAL))


def _put(table: pa.Table, inbox: str, name: str) -> None:
    """Write a file of the inbox, whole or not at all: a store of objects shows none before it is complete."""
    if "://" not in inbox:
        with replacing(Path(inbox) / name) as partial:
            pq.write_table(table, partial, compression="zstd")
        return
    import fsspec

    files, root = fsspec.core.url_to_fs(inbox)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / name
        pq.write_table(table, local, compression="zstd")
        files.put_file(str(local), f"{root}/{name}")
