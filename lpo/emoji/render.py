"""Renderer: scenes -> pictures, (N, 32, 32, 3) uint8."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from lpo.emoji.scenes import CANVAS, SPRITE, Scene
from lpo.emoji.sprites import NAMES, sprites

# sRGB in [0, 1]; far enough apart that a blurred or faded picture still shows which one it is
BACKGROUND_COLOURS = {
    "plain": (0.95, 0.95, 0.96),
    "night": (0.12, 0.12, 0.28),
    "grass": (0.74, 0.88, 0.58),
    "sand": (0.93, 0.84, 0.68),
    "sea": (0.60, 0.84, 0.90),
}
_INDEX = {name: i for i, name in enumerate(NAMES)}


def render(scenes: Sequence[Scene], rng: np.random.Generator) -> np.ndarray:
    """Draw scenes. `rng` places the clutter only. Returns (N, 32, 32, 3) uint8."""
    art = sprites(SPRITE)
    result = np.empty((len(scenes), CANVAS, CANVAS, 3), np.uint8)
    for n, scene in enumerate(scenes):
        canvas = np.empty((CANVAS, CANVAS, 3), np.float32)
        canvas[:] = BACKGROUND_COLOURS[scene.background]
        for _ in range(scene.clutter):
            x, y = rng.integers(CANVAS - 1, size=2)
            canvas[y : y + 2, x : x + 2] = rng.random(3)
        for name, x, y in scene.objects:
            sprite = art[_INDEX[name]] * scene.fade
            patch = canvas[y : y + SPRITE, x : x + SPRITE]
            patch *= 1 - sprite[..., 3:]
            patch += sprite[..., :3]
        if scene.blur:
            canvas = gaussian_filter(canvas, (scene.blur, scene.blur, 0), mode="nearest", truncate=3.0)
        result[n] = np.rint(np.clip(canvas, 0, 1) * 255)
    return result
