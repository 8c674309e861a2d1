"""Encoded images from outside: which are usable, and what they show."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from lpo.errors import LpoError

FORMATS = ("JPEG", "PNG", "WEBP")  # each format more is one more decoder that hostile bytes can reach
MAX_PIXELS = 4096 * 4096  # a few kilobytes can claim far more, and decoding them would fill the memory


def image_problem(data: bytes | None) -> str:
    """Why encoded bytes are no usable image, "" if they are."""
    try:
        _open(data)
    except LpoError as error:
        return error.what
    return ""


def decode_rgb(data: list[bytes], size: int) -> np.ndarray:
    """(N, size, size, 3) uint8 of encoded images; other shapes are resized to the square.

    A pixel of the result is the mean of the area it covers, so enlarged pixel art comes back as it was.

    Raises:
        LpoError: if one does not decode or claims more than `MAX_PIXELS`.
    """
    box = Image.Resampling.BOX
    return np.stack([np.asarray(_open(item).convert("RGB").resize((size, size), box)) for item in data])


def decode_pictures(data: list[bytes]) -> list[Image.Image]:
    """Encoded images as RGB pictures of their own size. Raises LpoError if one does not decode."""
    return [_open(item).convert("RGB") for item in data]


def _open(data: bytes | None) -> Image.Image:
    if not data:
        raise LpoError("has no bytes")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height <= MAX_PIXELS:
            picture.load()
            return picture
    except UnidentifiedImageError as error:  # its text holds a memory address, another one every run
        raise LpoError(f"is no {', '.join(FORMATS)} image") from error
    except Exception as error:  # what a decoder raises on broken bytes is its own choice
        raise LpoError(f"does not decode ({str(error)[:100] or type(error).__name__})") from error
    raise LpoError(f"claims {picture.width}x{picture.height} pixels, more than {MAX_PIXELS}")
