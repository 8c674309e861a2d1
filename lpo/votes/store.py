"""One SQLite file of pictures, questions and votes. A vote that was acknowledged is on the disk.

    store = Store()                                    data/votes.sqlite, made on the first use
    store.add_set(prompt, [png, png], [model, model])  pictures of one prompt, to be compared
    votes_frame()                                      one row a vote

A set is 2 or 4 pictures of one prompt. It becomes a question when it is shown to a voter (lpo/votes/questions.py), and
a question becomes one vote for each pair of its pictures. Picture a of a pair is the one with the lower SHA-256,
whichever side it was shown on. Pictures are stored as they are served and exported: PNG, without metadata.

The journal is a write-ahead log. A vote is acknowledged once the log is flushed to the disk, so neither a killed
process nor a power cut loses an acknowledged vote. The flush comes after the transaction and without its lock: others
write meanwhile, and the next flush serves all of them. A transaction takes the write lock at its start: two processes
or threads may write.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from lpo.errors import LpoError

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

PATH = Path("data/votes.sqlite")
SIZES = (2, 4)  # pictures of a set
PATIENCE = 30.0  # seconds that a writer waits for the other processes
COLUMNS = (
    "vote_id", "created_at", "voter", "prompt", "image_a", "image_b", "model_a", "model_b", "choice", "share_a",
    "seconds", "side", "kind", "undone", "split",
)  # fmt: skip
SHARES = {"a": 1.0, "tie": 0.5, "b": 0.0}  # of a choice for picture a; a skip has none
Split = Literal["train", "validation"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS images (
    sha256 TEXT PRIMARY KEY, data BLOB NOT NULL,
    served INTEGER NOT NULL  -- bytes of the answer that carries it, the same for all pictures of a set
);
CREATE TABLE IF NOT EXISTS sets (
    set_id INTEGER PRIMARY KEY, created_at TEXT NOT NULL, prompt TEXT NOT NULL,
    split TEXT NOT NULL,    -- of the prompt: votes on train become pairs, votes on validation only judge models
    source TEXT NOT NULL,   -- what the pictures were drawn for: a page shows the sets of one source
    kind TEXT NOT NULL,     -- regular | obvious | imported
    images TEXT NOT NULL,   -- JSON list of SHA-256, ascending
    models TEXT NOT NULL,   -- JSON list, in the order of images
    best TEXT,              -- of kind obvious: the picture that everybody prefers
    claims INTEGER NOT NULL DEFAULT 0,  -- voters whom it was shown to, less those who skipped it
    UNIQUE (prompt, images)
);
CREATE INDEX IF NOT EXISTS sets_open ON sets (source, kind, claims);
CREATE TABLE IF NOT EXISTS questions (
    question_id TEXT PRIMARY KEY, set_id INTEGER NOT NULL REFERENCES sets, voter TEXT NOT NULL,
    kind TEXT NOT NULL,     -- regular | repeat | obvious
    shown TEXT NOT NULL,    -- JSON list of SHA-256 as they were shown, from left to right
    repeats TEXT,           -- of kind repeat: the question that is asked again
    asked_at TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'open'  -- open | answered | undone | expired
);
CREATE INDEX IF NOT EXISTS questions_voter ON questions (voter, state);
CREATE INDEX IF NOT EXISTS questions_set ON questions (set_id, voter);
CREATE INDEX IF NOT EXISTS questions_repeats ON questions (repeats) WHERE repeats IS NOT NULL;
CREATE TABLE IF NOT EXISTS votes (
    vote_id INTEGER PRIMARY KEY AUTOINCREMENT, created_at TEXT NOT NULL, question_id TEXT NOT NULL, voter TEXT NOT NULL,
    prompt TEXT NOT NULL, split TEXT NOT NULL, image_a TEXT NOT NULL, image_b TEXT NOT NULL, model_a TEXT NOT NULL,
    model_b TEXT NOT NULL, choice TEXT NOT NULL, seconds REAL NOT NULL, side TEXT NOT NULL, kind TEXT NOT NULL,
    undone INTEGER NOT NULL DEFAULT 0, batch TEXT REFERENCES batches,
    UNIQUE (question_id, image_a, image_b)
);
CREATE INDEX IF NOT EXISTS votes_voter ON votes (voter);
CREATE TABLE IF NOT EXISTS batches (
    batch TEXT PRIMARY KEY, created_at TEXT NOT NULL, written INTEGER NOT NULL DEFAULT 0
);
PRAGMA user_version = 1;
"""


class Ballot(NamedTuple):
    """What a voter says about two pictures: choice is a, b, tie or skip; side is the one shown left, a or b."""

    image_a: str
    image_b: str
    choice: str
    side: str


class Store:
    """A connection that threads share; one of them uses it at a time."""

    def __init__(self, path: Path = PATH) -> None:
        """Raises LpoError if the file is no store of this version."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._lock, self._flushing = path, threading.Lock(), threading.Lock()
        self._commits, self._flushed = 0, 0  # transactions that ended, and how many of them are on the disk
        self._log: int | None = None  # the file of the log
        self._db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, 1):
                raise LpoError(f"the votes are of version {version}, this program reads 1", str(path), "update lpo")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # no flush at a commit: `_flush` does it
            if version == 0:
                self._db.executescript(SCHEMA)
        except (LpoError, sqlite3.DatabaseError) as error:
            self._db.close()
            if isinstance(error, LpoError):
                raise
            what = f"the file of votes cannot be read: {error}"
            raise LpoError(what, str(path), "move it away; a copy of it may still be repaired") from error

    def close(self) -> None:
        self._db.close()
        if self._log is not None:
            os.close(self._log)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            yield self._db

    @contextmanager
    def writing(self, flush: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction: what the block did is on the disk when it ends, or nothing of it if it raises.

        flush: False where a power cut may undo the block, such as a question that nobody has answered. A later
        transaction with a flush brings it to the disk too, since the log is written in order.
        """
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
            self._commits += 1
            mine = self._commits
        if flush:
            self._flush(mine)

    def _flush(self, commit: int) -> None:
        """Bring the log to the disk up to this transaction, unless a flush that began after it did so already."""
        with self._flushing:
            if self._flushed < commit:
                if self._log is None:
                    self._log = os.open(f"{self.path}-wal", os.O_RDWR)
                seen = self._commits
                os.fsync(self._log)
                self._flushed = seen

    def add_set(
        self, prompt: str, images: Sequence[bytes], models: Sequence[str], *, split: Split = "train",
        kind: str = "regular", best: int | None = None, source: str = "",
    ) -> int | None:  # fmt: skip
        """Store pictures of one prompt (see `to_png`), and return their set_id.

        A set that is there already keeps its id, and is shown for this source from now on. None if two of the pictures
        are the same: nobody could choose.

        Args:
            models: who drew each picture: base@HASH, or the name of a LoRA as `lpo models` lists it.
            best: of kind obvious, the place of the picture that everybody prefers.
        """
        names = [hashlib.sha256(data).hexdigest() for data in images]
        if len(set(names)) < len(names):
            return None
        if len(names) not in SIZES or len(models) != len(names):
            raise ValueError(f"a set has 2 or 4 pictures with their models, not {len(names)} and {len(models)}")
        order = sorted(range(len(names)), key=names.__getitem__)
        key, served = json.dumps([names[i] for i in order]), max(map(len, images))
        with self.writing() as db:
            found = db.execute("SELECT set_id FROM sets WHERE prompt = ? AND images = ?", (prompt, key)).fetchone()
            if found:
                if kind != "imported":
                    db.execute("UPDATE sets SET source = ?, kind = ? WHERE set_id = ?", (source, kind, found[0]))
                return int(found[0])
            for name, data in zip(names, images, strict=True):
                db.execute(
                    "INSERT INTO images VALUES (?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET served = max(served, excluded.served)",
                    (name, data, served),
                )
            cursor = db.execute(
                "INSERT INTO sets (created_at, prompt, split, source, kind, images, models, best)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (now(), prompt, split, source, kind, key, json.dumps([models[i] for i in order]),
                 None if best is None else names[best]),
            )  # fmt: skip
            return cursor.lastrowid

    def image(self, sha256: str) -> tuple[bytes, int] | None:
        """A picture's bytes, and the length of the answer that carries them; None if there is no such picture."""
        with self.reading() as db:
            return db.execute("SELECT data, served FROM images WHERE sha256 = ?", (sha256,)).fetchone()


def add_votes(
    db: sqlite3.Connection, question_id: str, set_id: int, voter: str, kind: str, ballots: Sequence[Ballot],
    seconds: float, created_at: str = "",
) -> int:  # fmt: skip
    """Append the votes of one question, inside a transaction; votes that are there already are not added again.

    Returns:
        the number of votes that were added.
    """
    prompt, split, images, models = db.execute(
        "SELECT prompt, split, images, models FROM sets WHERE set_id = ?", (set_id,)
    ).fetchone()
    model_of = dict(zip(json.loads(images), json.loads(models), strict=True))
    cursor = db.executemany(
        "INSERT OR IGNORE INTO votes (created_at, question_id, voter, prompt, split, image_a, image_b, model_a,"
        " model_b, choice, seconds, side, kind) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(created_at or now(), question_id, voter, prompt, split, a, b, model_of[a], model_of[b], choice, seconds, side,
          kind) for a, b, choice, side in ballots],
    )  # fmt: skip
    return cursor.rowcount


def ballots(shown: Sequence[str], ranks: Sequence[float] | None) -> list[Ballot]:
    """The ballots of all pairs of the pictures that were shown from left to right.

    Args:
        ranks: of each picture, the lowest is the best and equal ones tie; None for a skip.
    """
    found = []
    for left, right in combinations(range(len(shown)), 2):
        a, b = sorted((left, right), key=lambda i: shown[i])
        choice = "skip" if ranks is None else "tie" if ranks[a] == ranks[b] else "a" if ranks[a] < ranks[b] else "b"
        found.append(Ballot(shown[a], shown[b], choice, "a" if a == left else "b"))
    return found


def votes_frame(path: Path = PATH) -> pd.DataFrame:
    """All votes in the order in which they came, undone ones and checks among them; no rows where there is no file.

    Columns: vote_id (int), created_at (UTC), voter (a pseudonym), prompt, image_a and image_b (SHA-256, a < b), model_a
    and model_b (base@HASH, or the name of a LoRA as `lpo models` lists it), choice (a | b | tie | skip), share_a (1,
    0.5 or 0 for picture a, NaN for a skip), seconds, side (a | b: which was shown left), kind (regular | repeat |
    obvious), undone (bool), split (train | validation: of the prompt).

    Raises:
        LpoError: if the file is no store.
    """
    import pandas as pd

    rows: list[tuple] = []
    if path.exists():
        with closing(Store(path)) as store, store.reading() as db:
            names = ", ".join("NULL" if name == "share_a" else name for name in COLUMNS)
            rows = db.execute(f"SELECT {names} FROM votes ORDER BY vote_id").fetchall()
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame["share_a"] = frame["choice"].map(SHARES).astype(float)
    frame["created_at"] = pd.to_datetime(frame["created_at"], utc=True, format="ISO8601")
    return frame.astype({"vote_id": "int64", "seconds": "float64", "undone": bool})


def to_png(picture: Image.Image) -> bytes:
    """A picture as it is stored: PNG of RGB, with nothing beside the pixels that could name a model."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", exif=b"", icc_profile=None, pnginfo=None)
    return buffer.getvalue()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
