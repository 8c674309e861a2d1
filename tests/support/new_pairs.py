"""Pairs as somebody else might send them, for the tests of the inbox."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from PIL import Image


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def pairs(n: int, start: int = 0) -> pd.DataFrame:
    """n good pairs; image 0 is preferred, ids count from zero as in any other file."""
    numbers = np.arange(start, start + n)
    return pd.DataFrame(
        {
            "ranking_id": np.arange(n),
            "caption": [f"a cat {i}" for i in numbers],
            "jpg_0": [png(2 * int(i)) for i in numbers],
            "jpg_1": [png(2 * int(i) + 1) for i in numbers],
            "image_0_uid": [f"{i}a" for i in range(n)],
            "image_1_uid": [f"{i}b" for i in range(n)],
            "label_0": 1.0,
            "label_1": 0.0,
            "has_label": True,
            "are_different": True,
            "num_example_per_prompt": 7,
        }
    )


def mirrored(frame: pd.DataFrame) -> pd.DataFrame:
    """The same statements, told from the other side."""
    return frame.rename(
        columns={
            "jpg_0": "jpg_1", "jpg_1": "jpg_0", "image_0_uid": "image_1_uid", "image_1_uid": "image_0_uid",
            "label_0": "label_1", "label_1": "label_0",
        }
    )  # fmt: skip
