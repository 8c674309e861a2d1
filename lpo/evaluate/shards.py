"""Drawing and judging in parts, so that a killed evaluation goes on where it stopped.

    parts = draw(folder, "tuned", rows, 8, picture)          folder/tuned-00000.parquet, ... with the pictures
    scores = judge_parts("pickscore-KEY", "pickscore", parts, 16, load)   folder/pickscore-KEY/tuned-00000.parquet, ...

A part is written whole or not at all, and what is there is not made again. A folder belongs to one set of inputs: the
caller names it by their hash. At most one part is in memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from lpo.errors import LpoError
from lpo.files import write_parquet
from lpo.scorers.judges import Judge

PREVIEW = 256  # pixels of the longer side of what the report shows


def draw(
    folder: Path, name: str, rows: pd.DataFrame, size: int, picture: Callable[[pd.DataFrame], np.ndarray]
) -> list[Path]:
    """Parts of `size` rows (prompt, category, seed), each with its pictures as PNG; `picture` draws (n, H, W, 3)."""
    parts = []
    starts = range(0, len(rows), size)
    for i in tqdm(starts, desc=f"draw {name}", mininterval=2):
        path = folder / f"{name}-{i // size:05d}.parquet"
        if not path.exists():
            part = rows.iloc[i : i + size]
            write_parquet(path, part.assign(model=name, png=[_png(p) for p in picture(part)]))
        parts.append(path)
    return parts


def judge_parts(
    folder: str, name: str, parts: Sequence[Path], size: int, load: Callable[[], Judge]
) -> list[Path]:
    """A file (prompt, seed, model, NAME) in `folder` beside each part; the judge is loaded only if one is missing.

    Raises:
        LpoError: if a score is no finite number, with the prompt; the parts before it stay.
    """
    judge: Judge | None = None
    found = []
    for part in tqdm(parts, desc=f"judge {name}", mininterval=2):
        path = part.parent / folder / part.name
        found.append(path)
        if path.exists():
            continue
        judge = judge or load()
        rows = pd.read_parquet(part)
        scores: list[float] = []
        for i in range(0, len(rows), size):
            batch = rows.iloc[i : i + size]
            pictures = [Image.open(io.BytesIO(png)).convert("RGB") for png in batch["png"]]
            scores += judge.score(pictures, batch["prompt"].tolist()).double().tolist()
        bad = [i for i, score in enumerate(scores) if not np.isfinite(score)]
        if bad:
            prompt = rows["prompt"].iloc[bad[0]]
            raise LpoError(
                f"{name} gives {scores[bad[0]]} to {len(bad)} pictures, the first of {prompt!r}", str(part),
                "look at that picture; leave the judge out if it cannot rate it",
            )  # fmt: skip
        write_parquet(path, rows[["prompt", "seed", "model"]].assign(**{name: scores}))
    return found


def collect(parts: Sequence[Path], scores: Mapping[str, Sequence[Path]]) -> pd.DataFrame:
    """prompt, category, seed, model, png (small, for the report), and a column a judge: one row a picture."""
    frames = []
    for i, part in enumerate(parts):
        rows = pd.read_parquet(part)
        frame = rows[["prompt", "category", "seed", "model"]].assign(png=[preview(png) for png in rows["png"]])
        for name, files in scores.items():
            mine = pd.read_parquet(files[i])
            if not mine[["prompt", "seed", "model"]].equals(frame[["prompt", "seed", "model"]]):
                raise LpoError(f"scores of {name} belong to other pictures", str(files[i]), "delete that file")
            frame[name] = mine[name].to_numpy()
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def preview(png: bytes) -> bytes:
    """The picture as PNG, made smaller if its longer side is above 256 pixels."""
    picture = Image.open(io.BytesIO(png))
    if max(picture.size) <= PREVIEW:
        return png
    picture.thumbnail((PREVIEW, PREVIEW), Image.Resampling.LANCZOS)
    return _png(np.array(picture.convert("RGB")))


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
