"""Encoded pictures from outside: which can be used, and what they show.

A picture is what a viewer would show: turned as its EXIF orientation says, converted to sRGB where it carries an ICC
profile, 16 bits scaled to 8, transparency laid on white. Bytes that cannot be read, and pictures of more than
`MAX_PIXELS`, are refused with the reason.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from lpo.errors import LpoError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
FORMATS = ("JPEG", "PNG", "WEBP")  # each further format is one more decoder that hostile bytes can reach
MAX_PIXELS = 4096 * 4096  # a few kilobytes can claim far more, and decoding them would fill the memory
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def image_problem(data: bytes | None) -> str:
    """Why encoded bytes are not a usable picture, "" if they are."""
    try:
        decode_picture(data)
    except LpoError as error:
        return error.what
    return ""


def decode_rgb(data: Sequence[bytes | None], size: int, pixel_art: bool, threads: int = 1) -> np.ndarray:
    """(N, size, size, 3) uint8 of encoded pictures; other shapes are resized to the square.

    Args:
        pixel_art: True resizes with a box filter, so that enlarging repeats pixels and shrinking enlarged pixel art
            restores it exactly. False resizes bilinearly, as the published code does; shrinking is antialiased.
        threads: that decode. The result does not depend on them.

    Raises:
        LpoError: if one does not decode or claims more than `MAX_PIXELS`.
    """
    filter_ = Image.Resampling.BOX if pixel_art else Image.Resampling.BILINEAR
    return np.stack(_each(lambda item: np.asarray(decode_picture(item).resize((size, size), filter_)), data, threads))


def decode_pictures(data: Sequence[bytes | None], threads: int = 1) -> list[Image.Image]:
    """Encoded pictures as RGB pictures of their own size. Raises LpoError if one does not decode."""
    return _each(decode_picture, data, threads)


def _each(work: Callable[[bytes | None], T], data: Sequence[bytes | None], threads: int) -> list[T]:
    """`work` of every item, in their order. Pillow lets other threads run while it decodes and resizes."""
    if threads == 1:
        return [work(item) for item in data]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, data))


def decode_picture(data: bytes | None) -> Image.Image:
    """One encoded picture as a viewer shows it: RGB, 8 bits a channel, upright, in its own size.

    Raises:
        LpoError: with the reason, if it does not decode or claims more than `MAX_PIXELS`.
    """
    if not data:
        raise LpoError("has no bytes")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height <= MAX_PIXELS:
            picture.load()
            return _upright(_on_white(picture), _orientation(picture))
    except UnidentifiedImageError as error:  # its text holds a memory address, which differs between runs
        raise LpoError(f"is not a {', '.join(FORMATS)} image") from error
    except Exception as error:  # a decoder may raise anything on broken bytes
        raise LpoError(f"does not decode ({str(error)[:100] or type(error).__name__})") from error
    raise LpoError(f"claims {picture.width}x{picture.height} pixels, more than {MAX_PIXELS}")


def _on_white(picture: Image.Image) -> Image.Image:
    """The picture in sRGB on a white ground."""
    profile = picture.info.get("icc_profile")
    picture = _eight_bits(picture)
    if picture.mode == "P" or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode in ("1", "I", "F"):
        picture = picture.convert("L")
    alpha = picture.getchannel("A") if "A" in picture.getbands() else None
    colours = picture if alpha is None else picture.convert(picture.mode.removesuffix("A"))
    colours = _to_srgb(colours, profile)
    if alpha is None:
        return colours
    return Image.composite(colours, Image.new("RGB", colours.size, "white"), alpha)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8: Pillow's own conversion would clip all values above 255 to white.

    Colours of 16 bits are scaled by Pillow when it reads them, but not the colour that PNG declares transparent.
    """
    clear = picture.info.get("transparency")
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.float64)
        grey = Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
        if isinstance(clear, int):
            grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        return grey
    if isinstance(clear, tuple) and max(clear) > 255:
        picture.info["transparency"] = tuple(value >> 8 for value in clear)
    return picture


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB by the picture's ICC profile; without one, or with one that cannot be used, by Pillow's conversion."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            return picture if converted is None else converted
        except (ImageCms.PyCMSError, OSError, ValueError):  # viewers ignore a broken profile too
            pass
    return picture.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation from 1 to 8; 1 where it is absent or unreadable, as in viewers."""
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # EXIF is a file format of its own, and its parser may raise anything
        return 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """(N, 3, H, W) in [-1, 1] -> (N, H, W, 3) uint8."""
    return ((images.float().cpu() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1], the inverse of `to_uint8`."""
    import torch  # half of this file's users read no tensors

    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
