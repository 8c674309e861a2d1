from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpo.data.examples import drawn, images_of, with_images
from lpo.data.schema import PAIRS
from lpo.errors import LpoError


def shard(path: Path, uids: list[tuple[str, str]]) -> None:
    """A shard whose image is its uid as bytes."""
    rows = [
        {"ranking_id": i, "caption": "a cat", "image_0_uid": a, "image_1_uid": b, "label_0": 1.0, "label_1": 0.0,
         "has_label": True, "are_different": True, "num_example_per_prompt": 1,
         "jpg_0": a.encode(), "jpg_1": b.encode()}
        for i, (a, b) in enumerate(uids)
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(PAIRS.items()))), path, row_group_size=2)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    shard(tmp_path / "pairs/train-00000.parquet", [("a", "b"), ("c", "d"), ("a", "e"), ("f", "g"), ("h", "i")])
    shard(tmp_path / "pairs/train-00001.parquet", [("b", "j")])
    (tmp_path / "collected").mkdir()
    return tmp_path / "pairs", tmp_path / "collected"


def test_images_come_from_every_shard_and_both_sides(folders: tuple[Path, Path]) -> None:
    assert images_of({"a", "d", "i", "j"}, folders) == {"a": b"a", "d": b"d", "i": b"i", "j": b"j"}
    assert images_of(set(), folders) == {}


def test_a_folder_without_shards_is_passed_over_but_not_all_of_them(folders: tuple[Path, Path]) -> None:
    shard(folders[1] / "train-new.parquet", [("x", "y")])
    assert images_of({"a", "y"}, folders) == {"a": b"a", "y": b"y"}
    with pytest.raises(LpoError, match="there are no pairs"):
        images_of({"a"}, (folders[0] / "nothing",))


def test_pairs_carry_their_images_and_those_without_are_left_out(folders: tuple[Path, Path]) -> None:
    pairs = pd.DataFrame({"caption": ["1", "2"], "image_0_uid": ["h", "a"], "image_1_uid": ["c", "gone"]})
    (row,) = with_images(pairs, folders)
    assert (row["caption"], row["jpg_0"], row["jpg_1"]) == ("1", b"h", b"c")


def test_the_draw_depends_on_the_seed_alone() -> None:
    pairs = pd.DataFrame({"x": range(100)})
    first = drawn(pairs, 4, seed=1)["x"].tolist()
    assert first == sorted(first) == drawn(pairs, 4, seed=1)["x"].tolist()
    assert len({tuple(drawn(pairs, 4, seed)["x"]) for seed in range(5)}) > 1
    assert len(drawn(pairs, 1000, seed=1)) == 100
