"""Pairs on disk: what is read, what is refused, and that images never fill the memory."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lpo.data import schema
from lpo.data.schema import (
    inspect_images,
    iter_images,
    read_pairs,
    read_scores,
)
from lpo.errors import LpoError
from lpo.images import decode_rgb, image_problem


def encode(value: int, size: int = 4, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of under 100 bytes whose header claims width x height pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def frame(rows: int = 2, start: int = 0, **columns: Any) -> pd.DataFrame:
    numbers = range(start, start + rows)
    made: dict[str, Any] = {
        "ranking_id": list(numbers),
        "caption": [f"caption {i}" for i in numbers],
        "jpg_0": [encode(2 * i) for i in numbers],
        "jpg_1": [encode(2 * i + 1) for i in numbers],
        "image_0_uid": [f"{i}a" for i in numbers],
        "image_1_uid": [f"{i}b" for i in numbers],
        "label_0": 1.0,
        "label_1": 0.0,
        "has_label": True,
        "are_different": True,
        "num_example_per_prompt": 1,
    }
    return pd.DataFrame(made | columns)


def write(folder: Path, name: str = "train-00000", rows: pd.DataFrame | None = None) -> Path:
    path = folder / f"{name}.parquet"
    (frame() if rows is None else rows).to_parquet(path, index=False)
    return path


def message(folder: Path) -> str:
    with pytest.raises(LpoError) as caught:
        read_pairs(folder)
    assert caught.value.where
    assert caught.value.remedy
    return str(caught.value)


def test_all_shards_are_read_in_order_with_their_places(tmp_path: Path) -> None:
    write(tmp_path, "train-00001", frame(1, start=2))
    write(tmp_path, "train-00000-of-00002-ab12", frame(2))
    write(tmp_path, "test-00000", frame(1, start=9, category="count", model_0="render", url="not ours"))
    pairs = read_pairs(tmp_path)
    assert pairs["ranking_id"].tolist() == [9, 0, 1, 2]
    assert pairs["split"].tolist() == ["test", "train", "train", "train"]
    assert pairs["row"].tolist() == [0, 0, 1, 0]
    assert pairs["file"][3] == str(tmp_path / "train-00001.parquet")
    assert pairs["category"].isna().tolist() == [False, True, True, True]
    assert not {"jpg_0", "jpg_1", "url"} & set(pairs.columns)


def test_types_do_not_depend_on_how_a_shard_was_written(tmp_path: Path) -> None:
    narrow = frame(1).astype({"ranking_id": "int32", "label_0": "int64", "label_1": "float32"})
    table = pa.Table.from_pandas(narrow, preserve_index=False)
    fields = [field.with_type(pa.large_string()) if field.name == "caption" else field for field in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), tmp_path / "train-00000.parquet")
    write(tmp_path, "train-00001", frame(2))
    types = {str(name): str(kind) for name, kind in read_pairs(tmp_path).dtypes.items()}
    assert types["ranking_id"] == types["num_example_per_prompt"] == "Int64"
    assert types["label_0"] == types["label_1"] == "float64"
    assert types["has_label"] == types["are_different"] == "boolean"
    assert {types[name] for name in ("split", "caption", "image_0_uid", "category", "difference")} == {"str"}


def test_a_hole_in_a_column_stays_a_hole(tmp_path: Path) -> None:
    holes = {"ranking_id": pd.array([None, 1], dtype="Int64"), "caption": [None, "a"], "has_label": [None, True]}
    write(tmp_path, rows=frame(2, **holes))
    pairs = read_pairs(tmp_path)
    assert all(pairs[name].isna().tolist() == [True, False] for name in holes)
    assert pairs["ranking_id"][1] == 1


def test_a_column_of_holes_and_an_empty_shard_are_read(tmp_path: Path) -> None:
    write(tmp_path, "test-00000", frame(1, difference=None).iloc[:0])
    write(tmp_path, "train-00000", frame(2, caption=None, label_0=None))
    pairs = read_pairs(tmp_path)
    assert pairs["caption"].isna().tolist() == pairs["label_0"].isna().tolist() == [True, True]
    assert str(pairs["label_0"].dtype) == "float64" and str(pairs["caption"].dtype) == "str"
    assert [uids for uids, _ in iter_images(tmp_path, None, 8)] == [["0a", "0b", "1a", "1b"]]


def test_missing_columns_and_wrong_types_are_named_with_their_files_all_at_once(tmp_path: Path) -> None:
    write(tmp_path, "test-00000", frame().drop(columns=["caption", "jpg_1"]))
    write(tmp_path, "train-00000", frame(label_0="won"))
    text = message(tmp_path)
    assert "test-00000.parquet: caption is missing" in text
    assert "test-00000.parquet: jpg_1 is missing" in text
    assert "train-00000.parquet: label_0 is" in text and "not double" in text
    assert "data/README.md" in text


def test_an_empty_folder_and_an_unknown_split(tmp_path: Path) -> None:
    assert "there are no pairs" in message(tmp_path)
    write(tmp_path, "training-00000")
    assert "training-00000.parquet names no split" in message(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 1000, -9])
def test_a_truncated_shard_is_named(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    text = message(tmp_path)
    assert "cannot be read" in text and str(path) in text


def test_damage_inside_a_shard_is_named_too(tmp_path: Path) -> None:
    path = write(tmp_path)
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)  # pages, not the footer
    path.write_bytes(data)
    assert str(path) in message(tmp_path)


def test_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_pandas(frame(1), preserve_index=False)
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe"))
    index = table.schema.get_field_index("caption")
    pq.write_table(table.set_column(index, "caption", broken), tmp_path / "train-00000.parquet")
    assert "cannot be read" in message(tmp_path)


def test_every_image_comes_once_in_the_order_of_the_shards(tmp_path: Path) -> None:
    write(tmp_path, "train-00000", frame(2))
    again = frame(2, start=1)  # its first row repeats images of the first shard
    write(tmp_path, "train-00001", again)
    batches = list(iter_images(tmp_path, None, 4))
    assert [uids for uids, _ in batches] == [["0a", "0b", "1a", "1b"], ["2a", "2b"]]
    assert batches[1][1] == [again["jpg_0"][1], again["jpg_1"][1]]


def test_only_wanted_images_come_and_missing_ones_are_named(tmp_path: Path) -> None:
    write(tmp_path, rows=frame(3))
    assert [uids for uids, _ in iter_images(tmp_path, {"2b", "0b"}, 8)] == [["0b", "2b"]]
    with pytest.raises(LpoError, match="1 images are not among the pairs: nowhere"):
        list(iter_images(tmp_path, {"0a", "nowhere"}, 8))


def test_images_that_do_not_decode_and_rows_without_uid_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, rows=frame(2, jpg_0=[b"", encode(2)], image_1_uid=["0b", None]))
    assert [uids for uids, _ in iter_images(tmp_path, None, 8)] == [["0b", "1a"]]


def test_memory_holds_a_batch_and_not_a_row_group(tmp_path: Path) -> None:
    rng, rows, size = np.random.default_rng(0), 6000, 6000
    images = {name: [rng.bytes(size) for _ in range(rows)] for name in ("jpg_0", "jpg_1")}
    path = write(tmp_path, rows=frame(rows, **images))
    assert pq.ParquetFile(path).num_row_groups == 1
    wanted = {f"{i}{side}" for i in range(rows) for side in "ab"}
    before, most = pa.total_allocated_bytes(), 0
    for _ in iter_images(tmp_path, wanted, 16):
        most = max(most, pa.total_allocated_bytes() - before)
    assert path.stat().st_size > 70e6
    assert most < 0.5 * path.stat().st_size


def test_inspection_has_the_rows_of_the_pairs(tmp_path: Path) -> None:
    write(tmp_path, "test-00000", frame(1, start=9))
    shared = encode(7)
    write(tmp_path, "train-00000", frame(2, jpg_0=[shared, b"GIF89a"], jpg_1=[encode(8), shared]))
    images, pairs = inspect_images(tmp_path), read_pairs(tmp_path)
    assert images.index.equals(pairs.index)
    assert images["image_0_problem"].isna().tolist() == [True, True, False]
    assert images["image_1_problem"].isna().all()
    assert images["image_0_digest"][1] == images["image_1_digest"][2]
    assert pd.concat([images["image_0_digest"], images["image_1_digest"]]).nunique() == 5


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images_of_the_three_formats_are_good(kind: str) -> None:
    assert image_problem(encode(3, kind=kind)) == ""


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (None, "has no bytes"),
        (b"", "has no bytes"),
        (b"<html>not found</html>", "is not a JPEG, PNG, WEBP image"),
        (encode(3, kind="GIF"), "is not a JPEG, PNG, WEBP image"),
        (encode(3, size=64)[:-60], "does not decode"),
        (encode(3, size=64, kind="JPEG")[:-60], "does not decode"),
        (bomb(5000, 5000), "claims 5000x5000 pixels, more than 16777216"),
        (bomb(60000, 60000), "does not decode"),  # Pillow's own limit comes first
        (bomb(0, 7), "is not a JPEG, PNG, WEBP image"),
    ],
    ids=["missing", "empty", "html", "gif", "cut-png", "cut-jpeg", "bomb", "huge-bomb", "no-width"],
)
def test_what_is_wrong_with_an_image_is_said_the_same_way_every_time(data: bytes | None, problem: str) -> None:
    assert problem in image_problem(data)
    assert image_problem(data) == image_problem(data)
    assert " object at " not in image_problem(data)


def test_decoding_keeps_pixels_and_shrinks_enlarged_pixel_art_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    small, large = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels).save(small, "PNG")
    Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(large, "PNG")
    decoded = decode_rgb([small.getvalue(), large.getvalue()], 8, pixel_art=True)
    assert decoded.dtype == np.uint8
    assert (decoded == pixels).all()


def test_decoding_gives_three_channels_and_a_square() -> None:
    data = []
    for mode in ("L", "LA", "P", "RGBA"):
        buffer = io.BytesIO()
        Image.new(mode, (5, 9)).save(buffer, "PNG")
        data.append(buffer.getvalue())
    assert decode_rgb(data, 6, pixel_art=False).shape == (4, 6, 6, 3)
    with pytest.raises(LpoError, match="5000x5000"):
        decode_rgb([bomb(5000, 5000)], 8, pixel_art=False)


def test_images_are_found_by_row_and_side_across_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.parquet"
    rows = frame(7, jpg_0=[f"{i}a".encode() for i in range(7)], jpg_1=[f"{i}b".encode() for i in range(7)])
    rows.to_parquet(path, row_group_size=3, index=False)
    places = [(0, 1), (2, 0), (2, 1), (3, 0), (6, 1)]
    assert list(schema.images_at(path, places)) == [b"0b", b"2a", b"2b", b"3a", b"6b"]
    assert list(schema.images_at(path, [(5, 0)])) == [b"5a"]


def test_scores_are_read_typed_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    with pytest.raises(LpoError, match="there are no scores"):
        read_scores(path)
    table = pd.DataFrame({"image_uid": ["a"], "aesthetic": np.float32(5), "clip": [30], "vqa": [0.5], "extra": 1})
    table.to_parquet(path)
    scores = read_scores(path)
    assert list(scores.columns) == list(schema.SCORES)
    assert (scores.dtypes.iloc[1:] == "float64").all()
    table.drop(columns="clip").assign(vqa="high").to_parquet(path)
    with pytest.raises(LpoError, match=r"clip is missing; vqa is (large_)?string, not double"):
        read_scores(path)
