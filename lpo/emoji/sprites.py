"""Sprites: 32 Noto emoji (Apache-2.0, see NOTICE) as premultiplied RGBA arrays.

`sprites(size)` -> (N, size, size, 4) float32 in [0, 1]; the order is that of NAMES.
Hearts, balls and books come in four colours with the same drawing: that is what colour prompts ask for.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

ATLAS = Path(__file__).with_name("atlas.png")
ATLAS_SIZE = 28  # pixels a sprite in atlas.png
COLUMNS = 8

# name in captions -> image file of the emoji set
OBJECTS = {
    "apple": "1f34e", "banana": "1f34c", "carrot": "1f955", "cat": "1f431", "dog": "1f436", "fox": "1f98a",
    "frog": "1f438", "penguin": "1f427", "fish": "1f41f", "octopus": "1f419", "car": "1f697", "taxi": "1f695",
    "plane": "2708-fe0f", "rocket": "1f680", "house": "1f3e0", "cactus": "1f335", "sunflower": "1f33b",
    "mushroom": "1f344", "star": "2b50", "umbrella": "2602-fe0f",
}  # fmt: skip
COLOURED = {
    "red heart": "2764-fe0f", "blue heart": "1f499", "green heart": "1f49a", "yellow heart": "1f49b",
    "red ball": "1f534", "blue ball": "1f535", "green ball": "1f7e2", "yellow ball": "1f7e1",
    "red book": "1f4d5", "blue book": "1f4d8", "green book": "1f4d7", "orange book": "1f4d9",
}  # fmt: skip
NAMES: tuple[str, ...] = (*OBJECTS, *COLOURED)


def build_atlas(folder: Path, out: Path = ATLAS) -> None:
    """Make atlas.png from a folder of 64 px emoji images (`img/google/64` of the npm package)."""
    rows = -(-len(NAMES) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * ATLAS_SIZE, rows * ATLAS_SIZE))
    for i, code in enumerate((OBJECTS | COLOURED).values()):
        image = Image.open(folder / f"{code}.png").convert("RGBA")
        image = image.crop(image.getchannel("A").point(lambda a: 255 * (a > 32)).getbbox())
        side = max(image.size)
        square = Image.new("RGBA", (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        # "RGBa" is premultiplied alpha: colours of invisible pixels must not bleed into the edges
        small = square.convert("RGBa").resize((ATLAS_SIZE, ATLAS_SIZE), Image.Resampling.LANCZOS).convert("RGBA")
        atlas.paste(small, (i % COLUMNS * ATLAS_SIZE, i // COLUMNS * ATLAS_SIZE))
    atlas.save(out, optimize=True)


@lru_cache(maxsize=4)
def sprites(size: int) -> np.ndarray:
    """All sprites, premultiplied: (len(NAMES), size, size, 4) float32 in [0, 1]. Read-only."""
    atlas = Image.open(ATLAS).convert("RGBA")
    result = np.zeros((len(NAMES), size, size, 4), np.float32)
    for i in range(len(NAMES)):
        x, y = i % COLUMNS * ATLAS_SIZE, i // COLUMNS * ATLAS_SIZE
        tile = atlas.crop((x, y, x + ATLAS_SIZE, y + ATLAS_SIZE)).convert("RGBa")
        result[i] = np.asarray(tile.resize((size, size), Image.Resampling.BOX), np.float32) / 255
    result.setflags(write=False)
    return result
