from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo import files
from lpo.errors import LpoError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_replace_the_whole_file_and_leave_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    files.write_text(path, "long first text\r\n")
    files.write_text(path, "ä\r\n")
    assert path.read_bytes() == b"\xc3\xa4\r\n"
    assert names(path.parent) == ["file.txt"]


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.bin"
    files.write_bytes(path, b"old")

    def no_room(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="no space"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_what_a_killed_write_left_is_overwritten_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".file.bin.partial").write_bytes(b"half of something long")
    files.write_bytes(tmp_path / "file.bin", b"new")
    assert (tmp_path / "file.bin").read_bytes() == b"new"
    assert names(tmp_path) == ["file.bin"]


def test_json_is_sorted_ends_with_a_newline_and_takes_numpy_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"b": np.int64(3), "a": [np.float32(0.5), True, None, "ü"]})
    assert path.read_text(encoding="utf-8") == (
        '{\n  "a": [\n    0.5,\n    true,\n    null,\n    "ü"\n  ],\n  "b": 3\n}\n'
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("nan")])
def test_json_refuses_what_is_no_number_and_names_it(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(LpoError, match=r"win_rate\.low\[1\] is (nan|inf)"):
        files.write_json(path, {"win_rate": {"low": [0.5, bad]}})
    assert names(tmp_path) == []


def test_json_refuses_what_has_no_place_in_it(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Path"):
        files.write_json(tmp_path / "a.json", {"a": Path("x")})


def test_equal_frames_are_equal_bytes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"uid": ["a", "b"], "png": [b"\x89", b""], "label": [0.5, 1.0]}, index=[7, 3])
    files.write_parquet(tmp_path / "1.parquet", frame)
    files.write_parquet(tmp_path / "2.parquet", frame.copy().reset_index(drop=True))
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "1.parquet"), frame.reset_index(drop=True))


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "data" / "out"
    for content in ("first", "second"):
        with files.atomic_folder(target) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / f"{content}.txt").write_text(content)
            assert not (target / "sub" / f"{content}.txt").exists()
        assert names(target / "sub") == [f"{content}.txt"]
        assert names(tmp_path / "data") == ["out"]


def test_a_folder_that_fails_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with files.atomic_folder(target) as folder:
        (folder / "old.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(target) as folder:
        (folder / "new.txt").write_text("new")
        raise KeyboardInterrupt
    assert names(target) == ["old.txt"]
    assert names(tmp_path) == ["out"]


def test_what_a_killed_folder_left_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "stale.txt").write_text("stale")
    with files.atomic_folder(tmp_path / "out") as folder:
        (folder / "new.txt").write_text("new")
    assert names(tmp_path / "out") == ["new.txt"]


def test_inside_refuses_to_leave_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    assert files.inside(folder, "a/b.png") == folder / "a" / "b.png"
    for name in ("../x", "/etc/passwd", "a/../../x", ".", "", "link/x", "../images-2/x"):
        with pytest.raises(LpoError, match="leaves its folder"):
            files.inside(folder, name)


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.file_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_folder_hash_sees_names_contents_and_nothing_else(tmp_path: Path) -> None:
    def folder(name: str, content: dict[str, str]) -> str:
        for path, text in content.items():
            files.write_text(tmp_path / name / path, text)
        return files.folder_hash(tmp_path / name)

    one = folder("one", {"a/x": "1", "b": "2"})
    assert folder("two", {"b": "2", "a/x": "1"}) == one
    assert folder("three", {"a/x": "1", "b": "3"}) != one
    assert folder("four", {"a/y": "1", "b": "2"}) != one
    assert folder("five", {"b": "1", "a/x": "2"}) != one


TEXT = st.text("aäß", max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40)
@given(st.dictionaries(TEXT, JSON, max_size=4))
def test_a_key_depends_on_values_not_on_their_order(obj: dict[str, object]) -> None:
    shuffled = dict(reversed(obj.items()))
    assert files.key_of(shuffled) == files.key_of(json.loads(json.dumps(obj)))
    assert files.key_of(obj | {"more": 1}) != files.key_of(obj | {"more": 2})
