"""The cache of an evaluation: pictures and scores in parts, so that a killed run resumes where it stopped.

    parts = draw(folder / side.key, "tuned", rows, 8, workers, painter, arguments)
                                                            00000.parquet, ...: prompt, category, seed, png
    score_parts(judge, parts, workers)                      beside them JUDGE-KEY/00000.parquet, ...: its columns
    results = collect({"tuned": parts}, judges)

A part is written whole or not at all, and what is there is not made again. Names are hashes of what decides the
contents, so another judge draws nothing and another LoRA draws its own side only. At most one part is in the memory of
each process (lpo/sampling/parts.py).
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from lpo.errors import LpoError
from lpo.evaluate.judges import Judge, Look
from lpo.files import key_of, write_parquet
from lpo.resume import Share, in_share
from lpo.sampling.parts import Workers

PREVIEW = 256  # pixels of the longer side of the pictures in the results, which the report shows
KEYS = ["prompt", "seed"]
Painter = Callable[[pd.DataFrame], np.ndarray]  # rows -> pictures (n, H, W, 3) uint8


def draw(
    folder: Path,
    name: str,
    rows: pd.DataFrame,
    size: int,
    workers: Workers,
    painter: Callable[..., Painter],
    arguments: tuple[Any, ...],
    share: Share | None = None,
) -> list[Path]:
    """Parts of `size` rows (prompt, category, seed) with their pictures as PNG, which `painter(*arguments)` draws.

    With `share`, only its parts.
    """
    starts = [start for number, start in enumerate(range(0, len(rows), size)) if in_share(share, number)]
    paths = [folder / f"{start // size:05d}.parquet" for start in starts]
    missing = [
        (path, rows.iloc[start : start + size]) for path, start in zip(paths, starts, strict=True) if not path.exists()
    ]
    for _ in workers.map(drawing, (painter, arguments), missing, f"draw {name}"):
        pass
    return paths


def drawing(painter: Callable[..., Painter], arguments: tuple[Any, ...]) -> Callable[[tuple[Path, pd.DataFrame]], None]:
    """Writes the file of (path, rows)."""
    paint = painter(*arguments)

    def work(part: tuple[Path, pd.DataFrame]) -> None:
        path, rows = part
        write_parquet(path, rows.assign(png=[encode(picture) for picture in paint(rows)]))

    return work


def score_parts(judge: Judge, parts: Sequence[Path], workers: Workers) -> None:
    """Write the judge's columns beside each part. The judge is loaded if a part lacks them.

    Raises:
        LpoError: if a score is not a finite number, with the prompt. The parts before it stay.
    """
    missing = [part for part in parts if not scores_path(part, judge).exists()]
    for _ in workers.map(judging, (judge,), missing, f"judge {judge.name}"):
        pass


def judging(judge: Judge) -> Callable[[Path], None]:
    """Writes the judge's columns beside a part."""
    look = judge.load()

    def work(part: Path) -> None:
        rows = pd.read_parquet(part)
        size = judge.batch_size or len(rows)
        batches = [score(look, rows.iloc[start : start + size]) for start in range(0, len(rows), size)]
        scores = pd.concat(batches, ignore_index=True)
        if not judge.may_lack:
            check_finite(judge.name, scores, rows["prompt"], part)
        write_parquet(scores_path(part, judge), pd.concat([rows[KEYS], scores], axis=1))

    return work


def score(look: Look, rows: pd.DataFrame) -> pd.DataFrame:
    """The judge's columns for rows (prompt, png); numbers are float64, verdicts bool."""
    pictures = [Image.open(io.BytesIO(png)).convert("RGB") for png in rows["png"]]
    columns = {name: np.asarray(values) for name, values in look(pictures, rows["prompt"].tolist()).items()}
    return pd.DataFrame({name: v if v.dtype == bool else v.astype(np.float64) for name, v in columns.items()})


def check_finite(judge: str, scores: pd.DataFrame, prompts: pd.Series, where: Path) -> None:
    for name, values in scores.items():
        bad = np.flatnonzero(~np.isfinite(values.to_numpy(float)))
        if len(bad):
            column = "" if name == judge else f" in {name}"
            raise LpoError(
                f"{judge} gives {values.iloc[bad[0]]}{column} to {len(bad)} pictures, the first of "
                f"{prompts.iloc[bad[0]]!r}",
                str(where),
                "look at that picture; leave the judge out of evaluate.judges if it cannot rate it",
            )


def scores_path(part: Path, judge: Judge) -> Path:
    return part.parent / f"{judge.name}-{key_of(judge.identity)}" / part.name


def collect(sides: Mapping[str, Sequence[Path]], judges: Sequence[Judge]) -> pd.DataFrame:
    """prompt, category, seed, model, png (a small one), and the columns of all judges: one row a picture."""
    frames = []
    for name, parts in sides.items():
        for part in parts:
            rows = pd.read_parquet(part)
            frame = rows[["prompt", "category", "seed"]].assign(model=name, png=[preview(png) for png in rows["png"]])
            for judge in judges:
                path = scores_path(part, judge)
                scores = pd.read_parquet(path)
                if not scores[KEYS].equals(frame[KEYS]):
                    raise LpoError(f"scores of {judge.name} belong to other pictures", str(path), f"rm {path}")
                frame = frame.join(scores.drop(columns=KEYS))
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def keep_pictures(sides: Mapping[str, Sequence[Path]], folder: Path) -> None:
    """Copy the pictures as they were judged to `folder`, if the results hold smaller ones; equal sides once."""
    kept: set[Path] = set()
    for name, parts in sides.items():
        for part in parts:
            rows = pd.read_parquet(part)
            if part not in kept and any(preview(png) != png for png in rows["png"][:1]):
                write_parquet(folder / f"{name}-{part.name}", rows.assign(model=name))
            kept.add(part)


def forget(folder: Path, used: Collection[str]) -> None:
    """Remove the pictures of sides that this evaluation does not ask for."""
    for old in folder.iterdir():
        if old.is_dir() and old.name not in used:
            shutil.rmtree(old)


def preview(png: bytes) -> bytes:
    """The picture as PNG, made smaller if its longer side is above 256 pixels."""
    picture = Image.open(io.BytesIO(png))
    if max(picture.size) <= PREVIEW:
        return png
    picture.thumbnail((PREVIEW, PREVIEW), Image.Resampling.LANCZOS)
    return encode(np.array(picture.convert("RGB")))


def encode(picture: np.ndarray) -> bytes:
    """(H, W, 3) uint8 -> PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
