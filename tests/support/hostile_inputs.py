"""Generated pictures and tables as strangers bring them: right, odd and broken, from one seed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageCms

CAPTIONS = [
    "a cat", 'a sign that says "stop", in red', "an old man\u2028on two lines", "Ä cäfé – 夜の街 🐈", "half; half",
    "a\ttab", "   ", "", "x" * 3000, "nul \x00 inside", "=1+1", "line\nbreak", "e\u0301", "\u202eright",
]  # fmt: skip
LABELS = [1, 0, 0.5, "1", "0.0", "first", "Second", "A", "b", "left", "RIGHT", "tie", "yes", "no", True, False, 2, -1,
          "maybe", "", None, "nan", "inf", "1e999", 10**400]  # fmt: skip
IDS = [None, 7, "9007199254740993", 2**63 - 1, 2**63, -5, 1.5, 1e300, "x", "", True]


def png_claiming(width: int, height: int, depth: int = 8, kind: int = 2, data: bytes = b"") -> bytes:
    """A PNG whose header claims width x height pixels, whatever follows."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def picture(rng: random.Random) -> bytes:
    """An encoded picture of any mode, format, orientation and profile that the formats have."""
    width, height = rng.choice([(1, 1), (2, 3), (31, 7), (64, 64), (200, 3)])
    mode = rng.choice(["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
    bands = {"RGB": 3, "RGBA": 4, "LA": 2, "CMYK": 4}.get(mode, 1)
    noise = np.frombuffer(rng.randbytes(width * height * bands), np.uint8).reshape(height, width, bands)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.frombytes(mode, (width, height), noise.tobytes()) if mode not in ("1", "P") else (
            Image.fromarray(noise[..., 0]).convert(mode)
        )  # fmt: skip
    kind = "JPEG" if mode == "CMYK" else rng.choice(["PNG", "JPEG", "WEBP"] if mode in ("RGB", "L") else ["PNG"])
    options: dict[str, Any] = {}
    if rng.random() < 0.4:
        exif = Image.Exif()
        exif[0x0112] = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 0, 99])
        options["exif"] = rng.choice([exif.tobytes(), b"Exif\x00\x00" + rng.randbytes(30)])
    if rng.random() < 0.3:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(rng.choice(["sRGB", "LAB", "XYZ"]))).tobytes()
        options["icc_profile"] = rng.choice([profile, profile[: len(profile) // 2], rng.randbytes(200)])
    if mode in ("P", "L", "RGB") and kind == "PNG" and rng.random() < 0.3:
        options["transparency"] = (1, 2, 3) if mode == "RGB" else 0
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def broken(data: bytes, rng: random.Random) -> bytes:
    """The bytes of a picture after an accident."""
    how = rng.randrange(7)
    if how == 0:
        return data[: rng.randrange(len(data))]
    if how == 1:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 20)):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(changed)
    if how == 2:
        return rng.randbytes(rng.randrange(1, 500))
    if how == 3:
        side = rng.choice([0, 1, 4097, 60_000, 2**31 - 1])
        return png_claiming(side, side, rng.choice([1, 8, 16]), rng.choice([0, 2, 3, 4, 6]), b"\0" * 100)
    if how == 4:
        return rng.choice([b"", b"<html></html>", b"GIF89a" + data, data[:8], b"RIFF\xff\xff\xff\xffWEBPVP8 "])
    return data + rng.randbytes(50) if how == 5 else data[8:]


def fill_images(folder: Path, rng: random.Random) -> list[str]:
    """A folder of pictures and of what only looks like them; the names that tables may give, some of them bad."""
    folder.mkdir()
    names = []
    for number in range(24):
        name = f"{number}.png"
        (folder / name).write_bytes(picture(rng) if number < 16 else broken(picture(rng), rng))
        names.append(name)
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "out.png").symlink_to("/etc/hostname")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    with (folder / "huge.png").open("wb") as file:
        file.truncate(70 * 2**20)  # a hole: no bytes on the disk
    return [*names, "pipe.png", "loop.png", "out.png", "zero.png", "folder.png", "huge.png", "absent.png",
            "../0.png", "/etc/passwd", "x" * 5000, "nul\x00.png", "", "folder.png/0.png", "."]  # fmt: skip


def rows(rng: random.Random, names: list[str], number: int) -> list[dict[str, Any]]:
    """Rows of one table: mostly right, each with a chance of something else."""
    good = names[:16]
    made: list[dict[str, Any]] = []
    for row in range(rng.randrange(25)):
        odd = rng.random() < 0.35
        if made and rng.random() < 0.03:
            made.append(made[-1])
            continue
        long = f"{'a cat ' * 80}in table {number} row {row}"
        made.append(
            {
                "caption": rng.choice([*CAPTIONS, long]) if odd else f"table {number} row {row}",
                "jpg_0": rng.choice(names if odd else good), "jpg_1": rng.choice(names if odd else good),
                "label_0": rng.choice(LABELS if odd else LABELS[:3]),
                "ranking_id": rng.choice(IDS) if odd else 1000 * number + row,
                "are_different": rng.choice([True, False, "no", "perhaps", None]) if odd else True,
            }
        )  # fmt: skip
    return made


def table(path: Path, rng: random.Random, made: list[dict[str, Any]]) -> Path:
    """Write rows as one of the kinds of table, some of them wrongly; the file's path."""
    kind = rng.choice([".csv", ".csv", ".tsv", ".jsonl", ".jsonl", ".parquet"])
    names = rng.choice([list(made[0]) if made else ["caption", "jpg_0", "jpg_1", "label_0"]] * 9 + [["caption"]])
    if rng.random() < 0.15:  # chosen and rejected say the label
        made = [{**row, "chosen": row["jpg_0"], "rejected": row["jpg_1"]} for row in made]
        names = ["caption", "chosen", "rejected"]
    if kind == ".parquet":
        data = _parquet(made, names)
    else:
        text = _json_lines(made, names, rng) if kind == ".jsonl" else _csv(made, names, rng, kind)
        codec = rng.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])
        data = text.encode(codec, "replace")
        if rng.random() < 0.2:
            data, kind = gzip.compress(data), rng.choice([kind, f"{kind}.gz"])
    if rng.random() < 0.12:
        data = broken(data or b"x", rng)
    file = path.with_name(f"{path.name}{kind}")
    file.write_bytes(data)
    return file


def _csv(made: list[dict[str, Any]], names: list[str], rng: random.Random, kind: str) -> str:
    out = io.StringIO()
    separator = "\t" if kind == ".tsv" else rng.choice([",", ",", ";"])
    writer = csv.writer(out, delimiter=separator, lineterminator=rng.choice(["\n", "\r\n", "\r"]))
    writer.writerow(names)
    for row in made:
        fields = [row.get(name) for name in names]
        writer.writerow(fields + ["one more"] if rng.random() < 0.03 else fields)
    return out.getvalue() + rng.choice(["", "", "\n\n", '"never closed'])


def _json_lines(made: list[dict[str, Any]], names: list[str], rng: random.Random) -> str:
    lines = []
    for row in made:
        line = json.dumps({name: row.get(name) for name in names}, ensure_ascii=rng.random() < 0.5)
        if rng.random() < 0.1:
            line = rng.choice([line[:-2], "[1, 2]", "[" * 3000, '{"caption": "\\ud83d"}', "null", "NaN", "9" * 5000])
        lines.append(line)
    return "\n".join(lines) + rng.choice(["", "\n", "\n\n"])


def _parquet(made: list[dict[str, Any]], names: list[str]) -> bytes:
    """Numbers and words in one column become text, as a spreadsheet would store them."""
    columns = {}
    for name in names:
        values = [row.get(name) for row in made]
        kinds = {type(value) for value in values if value is not None}
        plain = len(kinds) <= 1 and not any(isinstance(value, int) and abs(value) >= 2**63 for value in values)
        columns[name] = pa.array(values if plain else [None if value is None else str(value) for value in values])
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=7)
    return buffer.getvalue()
