"""A picture shows what a viewer shows. Expected pixels are derived by hand."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from lpo.errors import LpoError
from lpo.images import decode_picture, decode_pictures, decode_rgb, image_problem

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corners() -> Image.Image:
    """3 x 2 pixels, all different: a turned or mirrored one is another picture."""
    return Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14)


# What has to be done to the stored picture so that it stands upright (EXIF 2.3, table 6).
TURNS = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a), 0: lambda a: a, 99: lambda a: a,
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_picture_is_turned_as_its_exif_says(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode_picture(encoded(corners(), kind, exif=exif.tobytes(), **options))
    assert np.array_equal(np.asarray(found), TURNS[orientation](np.asarray(corners())))


def test_broken_exif_changes_nothing() -> None:
    data = encoded(corners(), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert np.array_equal(np.asarray(decode_picture(data)), np.asarray(corners()))


def test_grey_of_sixteen_bits_is_scaled_and_not_clipped() -> None:
    grey = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    found = np.asarray(decode_picture(encoded(Image.fromarray(grey))))
    assert found[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (found == found[..., :1]).all()


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((255, 0, 51)):
        image.putpixel((x, 0), (*RED, alpha))
    assert [decode_picture(encoded(image)).getpixel((x, 0)) for x in range(3)] == [RED, WHITE, (255, 204, 204)]
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    assert decode_picture(encoded(palette, transparency=1)).getpixel((1, 0)) == WHITE
    for plain, clear in ((Image.new("RGB", (1, 1), RED), RED), (Image.new("L", (1, 1), 7), 7)):
        assert decode_picture(encoded(plain, transparency=clear)).getpixel((0, 0)) == WHITE
    grey = Image.new("LA", (1, 1), (0, 0))
    assert decode_picture(encoded(grey)).getpixel((0, 0)) == WHITE


def test_a_profile_is_converted_to_srgb_and_a_broken_one_ignored() -> None:
    image = Image.new("RGB", (1, 1), (200, 120, 40))
    plain = decode_picture(encoded(image)).getpixel((0, 0))
    assert plain == (200, 120, 40)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = decode_picture(encoded(image, icc_profile=srgb)).getpixel((0, 0))
    assert np.abs(np.subtract(same, plain)).max() <= 1
    swapped = bytearray(srgb)  # a space whose red is our blue: the tags of two colorants change their names
    red, blue = srgb.index(b"rXYZ"), srgb.index(b"bXYZ")
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    turned = decode_picture(encoded(image, icc_profile=bytes(swapped))).getpixel((0, 0))
    assert np.abs(np.subtract(turned, plain[::-1])).max() <= 3
    for broken in (srgb[:200], b"no profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()):
        assert decode_picture(encoded(image, icc_profile=broken)).getpixel((0, 0)) == plain


def test_cmyk_without_a_profile_is_what_pillow_makes_of_it() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = decode_picture(encoded(image, "JPEG", quality=100))
    assert found.mode == "RGB" and np.abs(np.subtract(found.getpixel((8, 8)), RED)).max() <= 3


def test_photographs_are_enlarged_smoothly_and_pixel_art_by_pixels() -> None:
    image = Image.fromarray(np.array([[[0] * 3, [255] * 3]] * 2, dtype=np.uint8))
    smooth, pixels = (decode_rgb([encoded(image)], 8, art)[0, 0, :, 0].tolist() for art in (False, True))
    assert pixels == [0] * 4 + [255] * 4
    assert smooth == sorted(smooth) and 0 < smooth[3] < smooth[4] < 255  # 2 x 2 blocks become a ramp


def test_photographs_are_shrunk_without_aliases() -> None:
    """Stripes finer than the small picture's pixels are grey there, and neither black nor white."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = decode_rgb([encoded(Image.fromarray(stripes))], 8, pixel_art=False)
    assert shrunk.min() > 110 and shrunk.max() < 145


def test_threads_decode_the_same_in_the_same_order() -> None:
    rng = np.random.default_rng(1)
    data = [encoded(Image.fromarray(rng.integers(0, 256, (8 * i, 9, 3), dtype=np.uint8))) for i in range(1, 20)]
    assert np.array_equal(decode_rgb(data, 16, False, threads=4), decode_rgb(data, 16, False))
    alone, together = decode_pictures(data), decode_pictures(data, threads=4)
    assert [picture.tobytes() for picture in together] == [picture.tobytes() for picture in alone]
    with pytest.raises(LpoError, match="is not a JPEG"):
        decode_rgb([*data, b"no picture"], 16, False, threads=4)


def test_pixel_art_keeps_its_bytes_at_its_own_size() -> None:
    scene = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(decode_rgb([encoded(Image.fromarray(scene))], 32, pixel_art=True)[0], scene)


def test_a_text_bomb_in_a_picture_is_refused() -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("x", "a" * 2**23, zip=True)
    data = encoded(corners(), pnginfo=info)
    assert len(data) < 20_000 and image_problem(data).startswith("does not decode")
