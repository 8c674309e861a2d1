"""What names a pair, and what is read, swapped and written of a file. Expected values are derived by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.new_pairs import mirrored, pairs, png

from lpo.data.inbox import Known, examine, found_keys, identities, plain_captions, write_quarantine, write_shard
from lpo.data.limits import Limits
from lpo.data.schema import OPTIONAL, PAIRS, in_order, inspect_images, read_pairs
from lpo.data.tokens import Tokens
from lpo.errors import LpoError

NOTHING = Known({}, set(), set())


def words(captions: list[str]) -> list[int]:
    return [len(caption.split()) + 2 for caption in captions]


LIMITS = Limits(Tokens(words, 77, "a model"), cut=False, must_differ=True)


def put(folder: Path, frame: pd.DataFrame) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train-0.parquet"
    frame.to_parquet(path, index=False)
    return path


def look(tmp_path: Path, frame: pd.DataFrame, known: Known = NOTHING) -> pd.DataFrame:
    put(tmp_path / "work", frame)
    return examine(tmp_path / "work", known, LIMITS).rows


def names(tmp_path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    put(tmp_path / "names", frame)
    return identities(read_pairs(tmp_path / "names"), inspect_images(tmp_path / "names"))


def test_a_pair_is_named_by_what_it_says_and_not_by_its_ids(tmp_path: Path) -> None:
    frame = pairs(3)
    ids = names(tmp_path, frame)
    assert ids["ranking_id"].is_unique and (ids["ranking_id"] >= 0).all()
    other = frame.assign(ranking_id=99, image_0_uid="x", image_1_uid="y", num_example_per_prompt=1, category="cat")
    told = names(tmp_path, mirrored(other))
    columns = ["ranking_id", "image_0_uid", "image_1_uid"]
    assert told[columns].equals(ids[columns])
    assert (told["swap"] != ids["swap"]).all()
    assert (ids["image_0_uid"] < ids["image_1_uid"]).all()


@pytest.mark.parametrize(("column", "value"), [("caption", "a dog"), ("jpg_1", png(200)), ("label_1", 0.5)])
def test_another_caption_image_or_label_is_another_pair(tmp_path: Path, column: str, value: Any) -> None:
    frame = pairs(1)
    first = names(tmp_path, frame)["ranking_id"].item()
    frame[column] = [value]
    assert names(tmp_path, frame)["ranking_id"].item() != first


def test_found_keys_do_not_see_which_image_comes_first_nor_the_ranking_id() -> None:
    frame = pairs(2)
    assert found_keys(frame) == found_keys(mirrored(frame).assign(ranking_id=5))
    swapped_labels = frame.assign(label_0=0.0, label_1=1.0)
    assert not set(found_keys(frame)) & set(found_keys(swapped_labels))
    assert len(set(found_keys(frame.assign(caption=None)))) == 2  # a hole is no mistake here


def test_repeated_known_and_new_rows_are_told_apart(tmp_path: Path) -> None:
    frame = pairs(5)
    ids = names(tmp_path, frame)["ranking_id"]
    known = Known({}, {found_keys(frame)[1]}, {ids[2]})
    again = mirrored(frame.iloc[[0]]).assign(ranking_id=50)
    rows = look(tmp_path, pd.concat([frame, again]), known)
    assert rows["new"].tolist() == [True, False, False, True, True, False]
    assert (rows["reason"] == "").all()


def test_what_is_wrong_with_a_row_is_told(tmp_path: Path) -> None:
    frame = pairs(9)
    frame.loc[1, "label_0"] = 2.0
    frame.at[2, "jpg_0"] = b"no image"
    frame.loc[3, "caption"] = "A  Dog\tat night"  # a test caption in disguise
    frame.loc[4, "image_1_uid"] = "5b"  # one uid, two images and two captions
    frame.loc[6, "caption"] = " ".join(["cat"] * 76)
    frame.loc[7, "caption"] = None
    frame.loc[8, ["ranking_id", "label_0", "label_1"]] = [0, 0.5, 0.5]
    frame.loc[8, ["caption", "image_0_uid", "image_1_uid"]] = frame.loc[0, ["caption", "image_0_uid", "image_1_uid"]]
    frame.at[8, "jpg_0"], frame.at[8, "jpg_1"] = frame.at[0, "jpg_0"], frame.at[0, "jpg_1"]
    rows = look(tmp_path, frame, Known({"a dog at night": "test"}, set(), set()))
    expected = {
        0: "several times under one ranking_id", 1: "label_0 is not in 0..1", 2: "image_0 is unusable",
        3: "the caption is held out: test", 4: "image_1_uid stands for several images",
        5: "image_1_uid stands under several captions", 6: "more than 77 tokens: 78", 7: "caption is missing",
        8: "several times under one ranking_id",
    }  # fmt: skip
    assert {row: text in rows["reason"][row] for row, text in expected.items()} == dict.fromkeys(expected, True)
    assert not rows["new"].any()


def test_a_bad_row_that_is_there_twice_is_kept_once(tmp_path: Path) -> None:
    frame = pairs(2)
    frame.loc[0, "label_0"] = 2.0
    rows = look(tmp_path, pd.concat([frame, frame]))
    assert (rows["reason"] != "").tolist() == [True, False, False, False]
    assert rows["new"].tolist() == [False, True, False, False]


def test_a_shard_holds_the_new_rows_with_the_preference_on_the_right_image(tmp_path: Path) -> None:
    frame = pairs(20).assign(category="pair", unknown="x")
    frame.loc[3, "label_0"] = 2.0
    source = put(tmp_path / "work", frame)
    findings = examine(tmp_path / "work", NOTHING, LIMITS)
    write_shard(source, findings, tmp_path / "collected/train-1.parquet")
    made = pd.read_parquet(tmp_path / "collected/train-1.parquet")
    assert list(made.columns) == [*PAIRS, *OPTIONAL]
    assert made["caption"].tolist() == [f"a cat {i}" for i in range(20) if i != 3]
    swapped = findings.rows.loc[findings.rows["new"], "swap"].to_numpy()
    assert swapped.any() and not swapped.all()
    best = made["jpg_0"].where(made["label_0"] == 1, made["jpg_1"])
    assert best.tolist() == [png(2 * i) for i in range(20) if i != 3]
    assert (made["label_0"] + made["label_1"] == 1).all() and ((made["label_1"] == 1) == swapped).all()
    assert read_pairs(tmp_path / "collected")["category"].eq("pair").all()


def test_the_same_pairs_in_any_file_make_the_same_rows(tmp_path: Path) -> None:
    frame = pairs(6)
    made = []
    for name, order in (("one", frame), ("other", mirrored(frame.iloc[::-1]).assign(ranking_id=range(10, 16)))):
        source = put(tmp_path / name, order)
        target = tmp_path / f"{name}.parquet"
        write_shard(source, examine(tmp_path / name, NOTHING, LIMITS), target)
        made.append(pd.read_parquet(target).sort_values("ranking_id", ignore_index=True))
    pd.testing.assert_frame_equal(*made)


def test_quarantine_holds_the_row_as_it_was_found(tmp_path: Path) -> None:
    frame = pairs(3)
    frame.loc[2, "label_0"] = 2.0
    source = put(tmp_path / "work", frame)
    findings = examine(tmp_path / "work", NOTHING, LIMITS)
    write_quarantine(source, findings, "../odd name.parquet", tmp_path / "bad.parquet")
    (row,) = pd.read_parquet(tmp_path / "bad.parquet").to_dict("records")
    assert (row["ranking_id"], row["image_0_uid"], row["label_0"], row["row"]) == (2, "2a", 2.0, 2)
    assert row["jpg_1"] == png(5) and row["file"] == "../odd name.parquet"
    assert "label_0 is not in 0..1" in row["reason"]


def test_a_file_without_rows_brings_nothing(tmp_path: Path) -> None:
    assert look(tmp_path, pairs(3).iloc[:0]).empty


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LpoError, match="columns"):
        look(tmp_path, pairs(3).drop(columns="caption"))


def test_held_out_captions_are_those_of_the_other_splits() -> None:
    found = plain_captions(pd.Series(["train", "test", "validation", "test"]), pd.Series(["A", " B  c", "D", None]))
    assert found == {"b c": "test", "d": "validation"}


def test_collected_pairs_come_last_by_their_ids_and_their_captions_are_counted(tmp_path: Path) -> None:
    """Whatever the shards are called: the same pairs in other files are the same table."""
    fixed = pairs(4).assign(caption=["a", "b", "b", "c"])
    put(tmp_path / "pairs", fixed)
    tables = []
    for name, files in (("x", ([0, 1], [2, 3])), ("y", ([3], [0, 2, 1]))):
        collected = tmp_path / name
        frame = pairs(4, 50).assign(ranking_id=[9, 6, 8, 7], caption=["b", "n", "n", "n"], num_example_per_prompt=1)
        collected.mkdir()
        for number, rows in enumerate(files):
            frame.iloc[rows].to_parquet(collected / f"train-{number}.parquet", index=False)
        folders = (tmp_path / "pairs", collected)
        table, images = in_order(read_pairs(folders), inspect_images(folders), collected)
        tables.append(pd.concat([table.drop(columns=["file", "row"]), images], axis=1))
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["ranking_id"].tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert tables[0]["num_example_per_prompt"].tolist() == [7, 3, 3, 7, 3, 3, 3, 3]
