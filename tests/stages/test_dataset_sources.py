"""Real sources through the stage dataset: the published layouts, all that is wrong with them, a stop in the middle."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lpo.commands import imports as data_stage
from lpo.config import Params, load_params
from lpo.data import schema
from lpo.data.captions import split_of_caption
from lpo.data.download import Store
from lpo.emoji.vocabulary import make_tokenizer
from lpo.errors import LpoError
from lpo.files import folder_hash
from lpo.preflight import data as preflight
from lpo.stages import dataset

sys.path.append(str(Path(__file__).parents[1] / "data"))
from support.loopback_hub import serve  # noqa: E402


@pytest.fixture(autouse=True)
def tokenizer(project: Path) -> None:
    """The embedded model's words, but as long as CLIP's captions."""
    words = make_tokenizer()
    words.model_max_length = 77
    words.save_pretrained("data/base/tokenizer")


def png(*colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (*colour, 0, 0)[:3]).save(buffer, "PNG")
    return buffer.getvalue()


def pickapic(split: str, rows: int, **columns: Any) -> pd.DataFrame:
    """Rows of a shard as published, with the columns that nobody here reads too."""
    frame = {
        "are_different": True, "best_image_uid": "", "caption": [f"{split} prompt {i // 2}" for i in range(rows)],
        "created_at": pd.Timestamp(2023, 1, 1), "has_label": True, "image_0_uid": [f"{split}{i}a" for i in range(rows)],
        "image_0_url": "", "image_1_uid": [f"{split}{i}b" for i in range(rows)], "image_1_url": "",
        "jpg_0": [png(i, 1) for i in range(rows)], "jpg_1": [png(i, 2) for i in range(rows)],
        "label_0": [(1.0, 0.0, 0.5)[i % 3] for i in range(rows)],
        "label_1": [(0.0, 1.0, 0.5)[i % 3] for i in range(rows)],
        "model_0": "a", "model_1": "b", "ranking_id": range(rows), "user_id": 1, "num_example_per_prompt": 2,
        "__index_level_0__": range(rows),
    }  # fmt: skip
    return pd.DataFrame(frame | columns)


def publish(folder: Path, **train: Any) -> None:
    """Two shards of train and one of each other split, named as on the hub."""
    (folder / "data").mkdir(parents=True)
    shards = {
        "train-00000-of-00002-0a": pickapic("train", 6), "train-00001-of-00002-0b": pickapic("more", 6, **train),
        "validation-00000-of-00001-0c": pickapic("validation", 4), "test-00000-of-00001-0d": pickapic("test", 4),
        "validation_unique-00000-of-00001-0e": pickapic("validation", 4)[::2],
        "test_unique-00000-of-00001-0f": pickapic("test", 4)[::2],
    }  # fmt: skip
    for name, frame in shards.items():
        frame.to_parquet(folder / f"data/{name}.parquet", index=False)


def params(**changes: Any) -> Params:
    loaded = load_params()
    contract = dataclasses.replace(loaded.filter, max_quarantined=0.5)
    return dataclasses.replace(loaded, dataset=dataclasses.replace(loaded.dataset, **changes), filter=contract)


def pairs() -> pd.DataFrame:
    return schema.read_pairs("data/pairs")


def images() -> dict[str, bytes]:
    return {uid: data for batch in schema.iter_images("data/pairs", None, 3) for uid, data in zip(*batch, strict=True)}


def left_out() -> pd.DataFrame:
    return pd.read_parquet("data/left_out.parquet")


def test_pickapic_comes_whole_with_labels_ties_uids_and_prompts(project: Path) -> None:
    publish(project / "source", has_label=[True, False] * 3, are_different=[True] * 4 + [False] * 2)
    dataset.run(params(source="pickapic", path="source"))
    found = pairs()
    assert found["split"].value_counts().to_dict() == {"train": 8, "validation": 4, "test": 4}
    train = found[found["split"] == "train"]
    expected = pd.concat([pickapic("train", 6), pickapic("more", 6).iloc[[0, 2]]])
    for name in schema.PAIRS.keys() - {"jpg_0", "jpg_1"}:
        assert train[name].tolist() == expected[name].tolist(), name
    assert images()["more2b"] == png(2, 2)
    assert left_out()[["file", "row", "ranking_id"]].values.tolist() == [
        ["data/train-00001-of-00002-0b.parquet", row, row] for row in (1, 3, 4, 5)
    ]
    assert left_out()["reason"].str.contains("has_label").tolist() == [True, True, False, True]
    prompts = pd.read_parquet("data/prompts.parquet")
    of = {split: set(table["prompt"]) for split, table in prompts.groupby("split")}
    assert of["test"] == {"validation prompt 0", "validation prompt 1"}  # the set that papers evaluate on
    assert of["validation"] == {"test prompt 0", "test prompt 1"}
    assert of["train"] == {"train prompt 0", "train prompt 1", "train prompt 2", "more prompt 0", "more prompt 1"}
    metrics = json.loads(Path("metrics/dataset.json").read_text())
    assert metrics["train"] == {"pairs": 8, "ties": 3}
    assert sum(metrics["left_out"].values()) == 4


def test_a_limit_gives_the_first_pairs_of_every_split(project: Path) -> None:
    publish(project / "source")
    dataset.run(params(source="pickapic_v2", path="source", limit=3))
    assert pairs().groupby("split")["ranking_id"].apply(list).to_dict() == {
        split: [0, 1, 2] for split in ("train", "validation", "test")
    }
    assert [path.name for path in schema.shards("data/pairs") if path.name.startswith("train")] == [
        "train-00000.parquet"
    ]


def test_train_prompts_that_are_held_out_too_are_taken_out_of_train(project: Path) -> None:
    publish(project / "source", caption=["VALIDATION  Prompt 0"] * 3 + ["fresh"] * 3)
    dataset.run(params(source="pickapic", path="source"))
    prompts = pd.read_parquet("data/prompts.parquet")
    assert set(prompts.loc[prompts["split"] == "train", "prompt"]) == {f"train prompt {i}" for i in range(3)} | {
        "fresh"
    }
    assert json.loads(Path("metrics/dataset.json").read_text())["prompts"]["in_several_splits"] == 1


def test_a_stopped_import_goes_on_where_it_was_and_ends_the_same(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(project / "source")
    dataset.run(params(source="pickapic", path="source"))
    whole = folder_hash("data")
    damaged = project / "source/data/train-00001-of-00002-0b.parquet"
    good, stamp = damaged.read_bytes(), damaged.stat()
    damaged.write_bytes(
        good[: len(good) // 2] + bytes(len(good) - len(good) // 2)
    )  # as a truncated one, of the same size
    os.utime(damaged, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(LpoError, match="cannot be read") as caught:
        dataset.run(params(source="pickapic", path="source"))
    assert "0b.parquet" in caught.value.where and "again" in caught.value.remedy
    assert folder_hash("data") == whole  # the results of the run before stay
    (done,) = Path(".checkpoints/dataset").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in done.glob("*.json")}
    assert len(before) >= 1
    damaged.write_bytes(good)
    os.utime(damaged, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    read: list[str] = []
    get = Store.get
    monkeypatch.setattr(Store, "get", lambda self, name: (read.append(name), get(self, name))[1])
    dataset.run(params(source="pickapic", path="source"))
    assert folder_hash("data") == whole
    shards = [name for name in read if "unique" not in name]
    assert shards == ["data/train-00001-of-00002-0b.parquet"]  # only what was missing
    assert not done.exists()


def test_from_a_hub_only_what_a_limit_needs_is_loaded(project: Path) -> None:
    publish(project / "remote")
    text = Path("params.yaml").read_text()
    text = text.replace("source: simulated", "source: pickapic").replace("limit: null", "limit: 4")
    text = text.replace("judges: [emoji]", "judges: [pickscore]")
    Path("params.yaml").write_text(text.replace("keep_downloads: true", "keep_downloads: false"))
    with serve("yuvalkirstain/pickapic_v1", project / "remote") as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(project / "home")}
        program = "from lpo.config import load_params; from lpo.stages.dataset import run; run(load_params())"
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=300, capture_output=True)
        loaded = {path.rsplit("/", 1)[-1].split("-of-")[0] for path, _ in hub.requests if path.endswith(".parquet")}
    assert loaded == {"train-00000", "validation-00000", "test-00000", "validation_unique-00000", "test_unique-00000"}
    assert pairs()["split"].value_counts().to_dict() == {"train": 4, "validation": 4, "test": 4}
    stayed = {path.name.split("-")[0] for path in Path("data/sources/pickapic").rglob("*.parquet")}
    assert stayed == {"validation_unique", "test_unique"}  # of the others the pairs are written


def test_a_mirror_takes_the_place_of_the_sources_repository(project: Path) -> None:
    publish(project / "remote")
    text = Path("params.yaml").read_text().replace("source: simulated", "source: pickapic")
    text = text.replace("limit: null", "limit: 4").replace("judges: [emoji]", "judges: [pickscore]")
    Path("params.yaml").write_text(text.replace("repository: null", "repository: somebody/mirror"))
    with serve("somebody/mirror", project / "remote") as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(project / "home")}
        program = "from lpo.config import load_params; from lpo.stages.dataset import run; run(load_params())"
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=300, capture_output=True)
    assert pairs()["split"].value_counts().to_dict() == {"train": 4, "validation": 4, "test": 4}
    assert Path("data/sources/somebody--mirror").is_dir() and not Path("data/sources/pickapic").exists()


def test_shards_without_the_columns_of_pickapic_are_refused(project: Path) -> None:
    publish(project / "source")
    pickapic("test", 4).drop(columns="jpg_1").to_parquet("source/data/test-00000-of-00001-0d.parquet")
    with pytest.raises(LpoError, match="jpg_1 is missing"):
        dataset.run(params(source="pickapic", path="source"))


def publish_hpd(folder: Path, train: list[dict[str, Any]]) -> None:
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps(train))
    test = [
        {"prompt": "three pictures", "image_path": ["t0.jpg", "t1.jpg", "t2.jpg"], "rank": [2, 0, 2],
         "raw_annotations": [{"rank": [3, 1, 2], "user_hash": "x"}]},
    ]  # fmt: skip
    (folder / "test.json").write_text(json.dumps(test))
    names = [
        name for item in train for name in item.get("image_path", item.get("file_path", [])) if "absent" not in name
    ]
    for split, images in (("train", sorted(set(names))), ("test", ["t0.jpg", "t1.jpg", "t2.jpg"])):
        with tarfile.open(folder / f"{split}.tar.gz", "w:gz") as tar:
            for number, name in enumerate(images):
                info, data = tarfile.TarInfo(f"{split}/{name}"), png(number)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def hpd_item(i: int, **changes: Any) -> dict[str, Any]:
    return {
        "prompt": f"p{i}",
        "image_path": [f"{i}a.jpg", f"{i}b.jpg"],
        "human_preference": [i % 2, 1 - i % 2],
    } | changes


def test_hpdv2_becomes_pairs_and_every_broken_item_has_its_reason(project: Path) -> None:
    train = [hpd_item(i) for i in range(60)]
    train[1]["file_path"] = train[1].pop("image_path")  # as its card writes
    train[2] = hpd_item(2, image_path=["2a.jpg", "absent.jpg"])
    train[3] = hpd_item(3, human_preference=[1])
    train[4] = hpd_item(4, prompt=None)
    train[5] = hpd_item(5, image_path=["../absent", "5b.jpg"])
    train[6] = hpd_item(6, human_preference=[2, 0])  # no label, but a number: the contract judges it
    publish_hpd(project / "hpd", train)
    dataset.run(params(source="hpdv2", path="hpd", held_out_share=0.2))
    found = pairs()
    test = found[found["split"] == "test"]
    labels = dict(zip(zip(test["image_0_uid"], test["image_1_uid"], strict=True), test["label_0"], strict=True))
    assert labels == {  # a lower rank wins, equal ones tie
        ("test/t0.jpg", "test/t1.jpg"): 0, ("test/t0.jpg", "test/t2.jpg"): 0.5, ("test/t1.jpg", "test/t2.jpg"): 1,
    }  # fmt: skip
    assert test["num_example_per_prompt"].tolist() == [3, 3, 3] and test["ranking_id"].nunique() == 1
    rest = found[found["split"] != "test"]
    assert sorted(rest["ranking_id"]) == [i for i in range(60) if i not in (2, 3, 4, 5)]
    for row in rest.itertuples():
        held_out = split_of_caption(row.caption, 0.2) == "test"
        assert row.split == ("validation" if held_out else "train")
        assert row.label_0 == (2 if row.ranking_id == 6 else row.ranking_id % 2)
    reasons = dict(zip(left_out()["ranking_id"], left_out()["reason"], strict=True))
    assert set(reasons) == {2, 3, 4, 5}
    assert "absent.jpg" in reasons[2] and "leaves its folder" in reasons[5]
    assert (reasons[3], reasons[4]) == ("not one rank or preference an image", "no prompt")


@pytest.mark.parametrize("text", ["", "{}", "[1, 2", '[{"prompt": "a"'])
def test_a_json_that_is_no_array_or_breaks_off_stops_the_run(project: Path, text: str) -> None:
    publish_hpd(project / "hpd", [hpd_item(0)])
    Path("hpd/train.json").write_text(text)
    with pytest.raises(LpoError, match="JSON array"):
        dataset.run(params(source="hpdv2", path="hpd"))


def test_an_archive_that_leaves_its_folder_writes_nothing_outside(project: Path) -> None:
    publish_hpd(project / "hpd", [hpd_item(0)])
    with tarfile.open("hpd/test.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("../../escaped.jpg")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(LpoError, match="cannot be unpacked"):
        dataset.run(params(source="hpdv2", path="hpd"))
    assert not list(project.rglob("escaped.jpg")) and not (project.parent / "escaped.jpg").exists()


def table(rows: int = 30) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt": [f"prompt {i}" for i in range(rows)], "first": [f"{i}.png" for i in range(rows)],
            "second": [f"{i + 1}.png" for i in range(rows)], "preferred": [(1, 0, 0.5)[i % 3] for i in range(rows)],
        }
    )  # fmt: skip


COLUMNS = {"caption": "prompt", "jpg_0": "first", "jpg_1": "second", "label_0": "preferred"}


def import_table(project: Path, frame: pd.DataFrame, suffix: str = "csv", **options: Any) -> dict[str, dict[str, int]]:
    (project / "pictures").mkdir(exist_ok=True)
    for i in range(len(frame) + 1):
        (project / f"pictures/{i}.png").write_bytes(png(i))
    path = project / f"mine.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path, row_group_size=7)
    arguments = {"images": project / "pictures", "columns": COLUMNS} | options
    return data_stage.import_pairs(params(held_out_share=0.2), [path], out=Path("data/sources/mine"), **arguments)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_ones_own_is_imported_and_survives_every_run_of_the_stage(project: Path, suffix: str) -> None:
    counts = import_table(project, table(), suffix)
    assert sum(counts["pairs"].values()) == 30 and counts["ties"] and not counts["left"]
    for _ in range(2):  # the stage reads it and never writes there
        dataset.run(params(source="folder", path="data/sources/mine"))
    found = pairs().set_index("ranking_id").sort_index()
    assert found["label_0"].tolist() == table()["preferred"].tolist()
    assert (found["label_0"] + found["label_1"] == 1).all()
    assert found["split"].tolist() == [split_of_caption(f"prompt {i}", 0.2) for i in range(30)]
    assert found["image_0_uid"].nunique() == 30 and (found["num_example_per_prompt"] == 1).all()
    assert images()[found.loc[4, "image_1_uid"]] == png(5)
    assert "data/sources/mine" in json.loads(Path("data/sources.json").read_text())


def test_bytes_structs_and_given_columns_are_taken_as_they_are(project: Path) -> None:
    frame = table(6).assign(
        first=[png(i) for i in range(6)], second=[{"bytes": png(99), "path": None}] * 6, label_1=[0, 1, 0.5] * 2,
        image_0_uid=list("abcdef"), ranking_id=range(100, 106), num_example_per_prompt=7,
        split=["train", "train", "validation", "validation", "test", "dev"], are_different=[True] * 5 + [False],
    )  # fmt: skip
    counts = import_table(project, frame, "parquet")
    assert counts["pairs"] == {"train": 2, "validation": 2, "test": 1}
    dataset.run(params(source="folder", path="data/sources/mine"))
    found = pairs().sort_values("ranking_id")
    assert found["image_0_uid"].tolist() == list("abcde") and found["ranking_id"].tolist() == list(range(100, 105))
    assert set(found["num_example_per_prompt"]) == {7}


def test_rows_of_a_table_that_cannot_be_pairs_are_left_out_with_their_reasons(project: Path) -> None:
    frame = table().astype(object)
    frame.loc[0, "first"] = "../mine.csv"
    frame.loc[1, "second"] = "absent.png"
    frame.loc[2, "preferred"] = "maybe"
    frame.loc[3, "first"] = ""
    counts = import_table(project, frame)
    left = pd.read_parquet("data/sources/mine/left_out/left_out.parquet")
    assert sum(counts["left"].values()) == 4 == 30 - sum(counts["pairs"].values())
    reasons = left.set_index("row")["reason"].to_dict()
    assert "leaves its folder" in reasons[0] and "absent.png" in reasons[1]
    assert reasons[2].startswith("label_0 is neither a number nor a word")
    assert reasons[3] == "no image: neither bytes nor a path"


def test_a_table_without_its_columns_or_damaged_is_refused_at_once(project: Path) -> None:
    with pytest.raises(LpoError, match=r"no column for jpg_0 \(jpg_0\), .*it has prompt, first, second, preferred"):
        import_table(project, table(), columns={})
    with pytest.raises(LpoError, match="no such folder of images"):
        import_table(project, table(), images=project / "nowhere")
    with pytest.raises(LpoError, match="no column capiton"):
        import_table(project, table(), columns={"capiton": "prompt"})
    import_table(project, table(), "parquet")
    path = project / "mine.parquet"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(LpoError, match="cannot be read"):
        data_stage.import_pairs(params(), [path], None, Path("data/sources/mine"), COLUMNS)
    assert pq.read_metadata(next(Path("data/sources/mine").glob("train-*"))).num_rows  # what was there stays


def test_a_folder_that_was_not_imported_or_changed_since_is_refused(project: Path) -> None:
    with pytest.raises(LpoError, match="nothing was imported"):
        dataset.run(params(source="folder", path="data/sources/mine"))
    import_table(project, table())
    next(Path("data/sources/mine").glob("test-*")).unlink()
    with pytest.raises(LpoError, match="came, went or changed"):
        dataset.run(params(source="folder", path="data/sources/mine"))


def test_prompts_of_a_file_take_the_place_of_the_sources_own(project: Path) -> None:
    publish(project / "source")
    Path("parti.txt").write_text("a new prompt\n\nTrain   PROMPT 1\n")
    dataset.run(params(source="pickapic", path="source", prompts="parti.txt", train_prompts=2))
    prompts = pd.read_parquet("data/prompts.parquet")
    of = {split: list(group["prompt"]) for split, group in prompts.groupby("split")}
    assert of["test"] == ["a new prompt", "Train   PROMPT 1"] and of["validation"] == ["test prompt 0", "test prompt 1"]
    assert len(of["train"]) == 2 and "train prompt 1" not in of["train"]
    Path("bad.csv").write_text("prompt,split\na,dev\n")
    with pytest.raises(LpoError, match="no such split: dev"):
        dataset.run(params(source="pickapic", path="source", prompts="bad.csv"))


def test_hostile_rows_go_through_every_stage_and_each_ends_with_its_reason(project: Path) -> None:
    """From the imported table to the filter: what a stage cannot judge the next one does, and nothing is lost."""
    import numpy as np

    from lpo.stages import filter as filter_stage
    from lpo.stages import score

    make_tokenizer().save_pretrained("data/base/tokenizer")
    bomb = io.BytesIO()
    Image.new("1", (5000, 5000)).save(bomb, "PNG")
    rows = 40
    frame = pd.DataFrame(
        {
            "caption": [f"a cat {i}" for i in range(rows)], "jpg_0": [png(i, 1) for i in range(rows)],
            "jpg_1": [png(i, 2) for i in range(rows)], "label_0": 1.0, "label_1": 0.0,
            "image_0_uid": [f"{i}a" for i in range(rows)], "image_1_uid": [f"{i}b" for i in range(rows)],
            "ranking_id": range(rows), "split": ["train"] * 20 + ["validation"] * 10 + ["test"] * 10,
        }
    ).astype({"caption": object, "jpg_0": object})  # fmt: skip
    frame.at[0, "jpg_0"] = b""
    frame.at[1, "jpg_0"] = bomb.getvalue()
    frame.at[2, "caption"] = "a" * 10_000
    frame.loc[3, "label_0"] = 2.0
    frame.at[4, "caption"] = " A  cat 25"  # of validation
    frame.loc[5, "image_0_uid"] = "6a"  # two images under one uid
    frame.loc[7, "image_1_uid"] = "7a"
    frame.loc[8, ["ranking_id", "image_0_uid", "image_1_uid"]] = [9, "9b", "9a"]  # 9 again, turned
    frame.at[8, "jpg_0"], frame.at[8, "jpg_1"], frame.at[8, "caption"] = png(9, 2), png(9, 1), "a cat 9"
    frame.at[10, "jpg_0"] = None
    frame.to_parquet("mine.parquet", index=False)
    out = Path("data/sources/mine")
    data_stage.import_pairs(params(), [Path("mine.parquet")], None, out, {})
    dataset.run(params(source="folder", path=str(out)))
    uids = sorted({*frame["image_0_uid"], *frame["image_1_uid"]})
    scores = pd.DataFrame({"image_uid": uids, "aesthetic": 5.0, "clip": 0.3, "vqa": 0.5})
    scores.loc[scores["image_uid"] == "11a", "vqa"] = np.nan
    pd.concat([scores, scores[scores["image_uid"] == "12a"]]).to_csv("scores.csv", index=False)
    table = Path("data/sources/scores.parquet")
    data_stage.import_scores(Path("scores.csv"), table)
    loaded = load_params()
    score.run(dataclasses.replace(loaded, score=dataclasses.replace(loaded.score, table=str(table))))
    filter_stage.run(dataclasses.replace(loaded, filter=dataclasses.replace(loaded.filter, max_quarantined=0.5)))
    quarantine = pd.read_parquet("data/filtered/quarantine.parquet")
    reasons = quarantine.groupby("ranking_id")["reason"].agg("; ".join).to_dict()
    expected = {
        0: "image_0 is unusable: has no bytes", 1: "image_0 is unusable: claims 5000x5000 pixels",
        2: "the caption has more than 16 tokens", 3: "label_0 is not in 0..1",
        4: "the caption is in several splits",
        5: "image_0_uid stands for several images", 6: "image_0_uid stands for several images",
        7: "image_0_uid and image_1_uid are the same", 9: "the pair is there several times under one ranking_id",
        11: "image_0 has no usable scores: vqa is NaN", 12: "image_0 has no usable scores: scored several times",
        25: "the caption is in several splits",
    }  # fmt: skip
    assert reasons.keys() == expected.keys()
    for ranking_id, text in expected.items():
        assert text in reasons[ranking_id], (ranking_id, reasons[ranking_id])
    left = pd.read_parquet("data/sources/mine/left_out/left_out.parquet")
    assert left[["ranking_id", "reason"]].values.tolist() == [[10, "no image: neither bytes nor a path"]]
    kept, dropped = (len(pd.read_parquet(f"data/filtered/{name}.parquet")) for name in ("kept", "dropped"))
    assert kept + dropped + len(quarantine) + len(left) == rows


def refused(stage: str) -> pd.DataFrame:
    return pd.read_parquet(f"data/refused/{stage}.parquet")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "jsonl", "parquet"])
def test_chosen_and_rejected_images_are_a_label_in_every_kind_of_table(project: Path, suffix: str) -> None:
    frame = pd.DataFrame({"prompt": table()["prompt"], "chosen": table()["first"], "rejected": table()["second"]})
    frame["ranking_id"] = [2**53 + 1 + i for i in range(30)]
    (project / "pictures").mkdir()
    for i in range(31):
        (project / f"pictures/{i}.png").write_bytes(png(i))
    path = project / f"mine.{suffix}"
    if suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    out = Path("data/sources/mine")
    data_stage.import_pairs(params(held_out_share=0.2), [path], project / "pictures", out, {})
    dataset.run(params(source="folder", path=str(out)))
    found = pairs().sort_values("ranking_id", ignore_index=True)
    assert found["ranking_id"].tolist() == frame["ranking_id"].tolist()  # exact
    assert (found["label_0"] == 1).all() and (found["label_1"] == 0).all()
    assert images()[found.loc[4, "image_0_uid"]] == png(4)


def test_words_are_labels(project: Path) -> None:
    words = ["first", "second", "tie", "A", "B", "yes"] * 5
    import_table(project, table().assign(preferred=words))
    found = schema.read_pairs("data/sources/mine").set_index("ranking_id").sort_index()
    assert found["label_0"].tolist() == [1, 0, 0.5, 1, 0, 1] * 5 and found["source_row"].tolist() == list(range(30))
    assert set(found["source_file"]) == {"mine.csv"}


def test_forty_captions_at_two_percent_fill_every_split(project: Path) -> None:
    (project / "pictures").mkdir()
    for i in range(42):
        (project / f"pictures/{i}.png").write_bytes(png(i))
    for n in (3, 40):
        table(n).to_csv(project / "mine.csv", index=False)
        counts = data_stage.import_pairs(
            params(held_out_share=0.02),
            [project / "mine.csv"],
            project / "pictures",
            Path(f"data/sources/{n}"),
            COLUMNS,
        )
        assert set(counts["pairs"]) == set(schema.SPLITS) and sum(counts["pairs"].values()) == n


def test_an_import_that_is_refused_leaves_its_bad_rows_in_a_table(project: Path) -> None:
    with pytest.raises(LpoError, match="no pairs for train, validation, test") as caught:
        import_table(project, table().assign(preferred="maybe"))
    assert "data/refused/import.parquet" in caught.value.where and "mine.csv row 0" in caught.value.where
    assert caught.value.remedy == "correct these rows"  # no share would help
    assert refused("import")["row"].tolist() == list(range(30)) and set(refused("import")["file"]) == {"mine.csv"}
    assert not Path("data/sources/mine").exists()
    import_table(project, table())
    assert not Path("data/refused/import.parquet").exists()


def test_pairs_that_break_the_contract_are_refused_before_they_are_scored(project: Path) -> None:
    frame = table().astype(object)
    frame.loc[[3, 7, 11], "preferred"] = 2
    import_table(project, frame)
    strict = params(source="folder", path="data/sources/mine")
    strict = dataclasses.replace(strict, filter=dataclasses.replace(strict.filter, max_quarantined=0.05))
    with pytest.raises(LpoError, match="3 of 30 pairs break the data contract") as caught:
        dataset.run(strict)
    assert "mine.csv row 3: label_0 is not" in caught.value.where  # the user's own file and row
    assert refused("dataset")[["file", "row"]].values.tolist() == [["mine.csv", row] for row in (3, 7, 11)]
    assert not Path("data/pairs").exists()


def long_captions(project: Path, how: str, limit: float) -> None:
    frame = table()
    frame.loc[[5, 6], "prompt"] = [" ".join(["cat"] * 90), " ".join(["dog"] * 90)]
    import_table(project, frame)
    given = params(source="folder", path="data/sources/mine")
    changed = dataclasses.replace(given.filter, long_captions=how, max_quarantined=limit)
    dataset.run(dataclasses.replace(given, filter=changed))


def test_long_captions_are_counted_when_the_pairs_are_made(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    long_captions(project, "cut", 0.0)  # what is cut is not bad
    assert json.loads(Path("metrics/dataset.json").read_text())["captions"] == {"limit": 77, "longer": 2}
    assert "2 of 30 captions are cut in training" in caplog.text
    long_captions(project, "quarantine", 0.5)
    assert "2 of 30 captions will be quarantined" in caplog.text
    make_tokenizer().save_pretrained("data/base/tokenizer")  # the embedded model as it is
    with pytest.raises(LpoError, match="break the data contract") as caught:
        long_captions(project, "quarantine", 0.01)
    assert "data/base, which reads 16 tokens of emoji scenes" in caught.value.remedy
    assert "filter.long_captions: cut" in caught.value.remedy


def test_rows_that_are_not_different_are_kept_where_the_parameter_ignores_it(project: Path) -> None:
    publish(project / "source", are_different=[True] * 4 + [False] * 2)
    dataset.run(params(source="pickapic", path="source", are_different="ignored"))
    assert (~pairs()["are_different"].astype(bool)).sum() == 2 and left_out().empty
    dataset.run(params(source="pickapic", path="source"))
    assert pairs()["are_different"].all() and len(left_out()) == 2


def test_prompts_of_any_kind_of_file_and_what_is_left_out_of_them(project: Path) -> None:
    publish(project / "source")
    lines = [
        {"prompt": "one\u2028line", "split": "test"},
        {"prompt": "", "split": "test"},
        {"prompt": "a", "split": "train"},
    ]
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + '\r\n{"prompt": "\\ud800"}\r\n'
    Path("mine.jsonl").write_bytes(text.encode("utf-8-sig"))
    dataset.run(params(source="pickapic", path="source", prompts="mine.jsonl"))
    prompts = pd.read_parquet("data/prompts.parquet")
    assert prompts.loc[prompts["split"] == "test", "prompt"].tolist() == ["one\u2028line"]
    assert prompts.loc[prompts["split"] == "train", "prompt"].tolist() == ["a"]
    assert left_out()[["file", "row", "reason"]].values.tolist() == [
        ["mine.jsonl", 1, "prompt: empty"],
        ["mine.jsonl", 3, "prompt: unreadable: the text holds half a character (a lone surrogate)"],
    ]


def test_hostile_items_of_hpdv2_neither_hang_nor_stop_the_others(project: Path) -> None:
    train = [hpd_item(i) for i in range(40)]
    train[1] = hpd_item(1, prompt="half \ud83d a character")
    train[2] = hpd_item(2, human_preference=[10**400, 0])
    train[3] = hpd_item(3, image_path=["pipe.png", "3b.jpg"])
    train[4] = hpd_item(4, image_path=["loop.png", "4b.jpg"])
    train[5] = hpd_item(5, image_path=["nul\x00.png", "5b.jpg"])
    publish_hpd(project / "hpd", [hpd_item(i) for i in range(40)])
    text = json.dumps(train)
    Path("hpd/train.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    with tarfile.open("hpd/train.tar.gz") as tar:
        tar.extractall("hpd", filter="data")
    os.mkfifo("hpd/train/pipe.png")
    Path("hpd/train/loop.png").symlink_to("loop.png")
    dataset.run(params(source="hpdv2", path="hpd", held_out_share=0.2))
    reasons = dict(zip(left_out()["ranking_id"], left_out()["reason"], strict=True))
    assert reasons.keys() == {1, 2, 3, 4, 5}
    for number, words in enumerate(("lone surrogate", "too large", "not a plain file", "loop", "null byte"), 1):
        assert words in reasons[number].lower(), reasons[number]
    Path("hpd/train.json").write_bytes(b'[{"prompt": "caf\xe9"}]')
    with pytest.raises(LpoError, match="not UTF-8"):
        dataset.run(params(source="hpdv2", path="hpd"))


def publish_hpdv3(folder: Path, train: list[dict[str, Any]], pieces: int = 3) -> None:
    """As on the hub: two JSON arrays, and one archive cut into pieces anywhere."""
    folder.mkdir()
    test = [{"prompt": "t", "path1": "images/96.jpg", "path2": "images/97.jpg", "model1": "flux", "model2": "sdxl"}]
    for name, items in (("train", train), ("test", test)):
        (folder / f"{name}.json").write_text(json.dumps(items))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for number in range(100):
            info, data = tarfile.TarInfo(f"images/{number}.jpg"), png(number, 9)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    whole = packed.getvalue()
    size = len(whole) // pieces + 1
    for piece in range(pieces):
        (folder / f"images.tar.gz.{piece:02d}").write_bytes(whole[piece * size : (piece + 1) * size])


def hpdv3_item(i: int, **changes: Any) -> dict[str, Any]:
    votes = {"choice_dist": [12, 7], "confidence": 0.99, "model1": "flux", "model2": "infinity"}
    return {"prompt": f"p{i}", "path1": f"images/{2 * i}.jpg", "path2": f"images/{2 * i + 1}.jpg"} | votes | changes


def test_hpdv3_becomes_pairs_with_shares_of_votes_as_labels(project: Path) -> None:
    train = [hpdv3_item(i) for i in range(40)]
    train[1] |= {"choice_dist": None, "confidence": None}  # of Midjourney and HPDv2
    train[2] |= {"choice_dist": [5, 5]}
    train[3] |= {"choice_dist": [4, 6]}  # path1 is the preferred one all the same
    train[5] |= {"prompt": "p4", "path1": "images/8.jpg"}  # two pairs of one prompt share a picture
    train[10] |= {"confidence": 0.9}
    train[11] |= {"choice_dist": [1, "x"]}
    train[12] |= {"choice_dist": [0, 0]}
    train[13] |= {"path1": "../outside.jpg"}
    train[14] |= {"path2": "images/absent.jpg"}
    train[15] |= {"path2": None}
    train[16] |= {"prompt": "half \ud83d a character"}
    train[17] |= {"confidence": 10**400}
    publish_hpdv3(project / "hpd3", train)
    (project / "outside.jpg").write_bytes(png(1))
    dataset.run(params(source="hpdv3", path="hpd3", held_out_share=0.2))
    found = pairs()
    rest = found[found["split"] != "test"].set_index("ranking_id")
    assert sorted(rest.index) == [i for i in range(40) if i not in range(10, 18)]
    assert (rest["label_0"] + rest["label_1"] == 1).all()
    assert rest.loc[[0, 1, 2, 3], "label_0"].tolist() == [12 / 19, 1, 0.5, 0.6]
    for row in rest.itertuples():
        held_out = split_of_caption(row.caption, 0.2) == "test"
        assert row.split == ("validation" if held_out else "train")
    assert images()["images/8.jpg"] == png(8, 9) and rest.loc[[4, 5], "num_example_per_prompt"].tolist() == [2, 2]
    assert found[found["split"] == "test"][["image_0_uid", "label_0"]].values.tolist() == [["images/96.jpg", 1.0]]
    reasons = dict(zip(left_out()["ranking_id"], left_out()["reason"], strict=True))
    told = [
        "low agreement: the confidence is 0.9", "not two numbers", "nobody voted", "leaves its folder", "absent.jpg",
        "not two image paths", "lone surrogate", "the confidence is no number",
    ]  # fmt: skip
    assert reasons.keys() == set(range(10, 18))
    assert all(words in reasons[number] for number, words in enumerate(told, 10)), reasons
    assert json.loads(Path("metrics/dataset.json").read_text())["left_out"]["low agreement"] == 1


def test_hpdv3s_images_may_be_unpacked_and_a_lost_piece_is_told(project: Path) -> None:
    publish_hpdv3(project / "hpd3", [hpdv3_item(i) for i in range(30)])
    (project / "hpd3/images.tar.gz.01").unlink()
    given = params(source="hpdv3", path="hpd3", held_out_share=0.2)
    with pytest.raises(LpoError, match="the archive cannot be unpacked") as caught:
        dataset.run(given)
    assert "images.tar.gz.00 to images.tar.gz.02" in caught.value.where and not Path("hpd3/images").exists()
    Path("hpd3/images").mkdir()
    for number in range(100):
        Path(f"hpd3/images/{number}.jpg").write_bytes(png(number, 7))
    dataset.run(given)
    assert images()["images/5.jpg"] == png(5, 7) and left_out().empty
    Path("hpd3/test.json").unlink()
    (absent,) = preflight.source(given, ())
    assert absent.what == "the source has no test.json"


def test_a_caption_that_is_no_utf8_is_left_out_of_a_shard(project: Path) -> None:
    import pyarrow as pa

    publish(project / "source")
    path = Path("source/data/train-00000-of-00002-0a.parquet")
    whole = pq.read_table(path)
    raw = [b"\xff\xfe" if i == 2 else f"train prompt {i // 2}".encode() for i in range(6)]
    ends = [0, *(sum(map(len, raw[: i + 1])) for i in range(6))]
    buffers = [pa.py_buffer(b"".join(end.to_bytes(4, "little") for end in ends)), pa.py_buffer(b"".join(raw))]
    broken = pa.StringArray.from_buffers(6, *buffers)
    pq.write_table(whole.set_column(whole.schema.get_field_index("caption"), "caption", broken), path)
    dataset.run(params(source="pickapic", path="source"))
    assert left_out()[["row", "reason"]].values.tolist() == [[2, "the text is not UTF-8"]]
    assert (pairs()["split"] == "train").sum() == 11
