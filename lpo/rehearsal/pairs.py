"""A few pairs of pictures in the layout of Pick-a-Pic: shards of parquet, named after their split.

The pictures are smooth noise of the model's size. The captions are of the emoji grammar, each once.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from lpo.emoji.scenes import sample_prompts
from lpo.files import write_parquet

PROMPTS = {"validation": "test_unique", "test": "validation_unique"}  # whose captions are prompts of which split


def write_pairs(folder: Path, counts: Mapping[str, int], prompts: int, side: int, seed: int = 0) -> None:
    """Write a shard of every split, and one with the prompts of validation and of test.

    Args:
        counts: pairs of train, validation and test.
        prompts: of validation, and as many of test.
        side: of the pictures, in pixels.
    """
    (folder / "data").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    sizes = dict(counts) | {name: max(prompts, counts[split]) for split, name in PROMPTS.items()}
    captions = [scene.caption for scene in sample_prompts("train", sum(sizes.values()), rng, unique=True)]
    number = 0
    for name, size in sizes.items():
        rows = [
            _row(i, captions[i]) | {f"jpg_{k}": _picture(rng, side) for k in (0, 1)}
            for i in range(number, number + size)
        ]
        write_parquet(folder / f"data/{name}-00000-of-00001-0a.parquet", pd.DataFrame(rows))
        number += size


def _row(number: int, caption: str) -> dict[str, object]:
    return {
        "ranking_id": number, "caption": caption, "image_0_uid": f"a{number}", "image_1_uid": f"b{number}",
        "label_0": float(number % 2), "label_1": float(1 - number % 2), "has_label": True, "are_different": True,
        "num_example_per_prompt": 1,
    }  # fmt: skip


def _picture(rng: np.random.Generator, side: int) -> bytes:
    buffer = io.BytesIO()
    small = rng.integers(0, 256, (max(side // 8, 4),) * 2 + (3,), dtype=np.uint8)
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
