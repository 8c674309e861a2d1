"""The score stage on the embedded world's scorers and on imported tables: parts, resuming, processes, uids."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lpo import resume
from lpo.commands import imports as data_stage
from lpo.config import Params, load_params
from lpo.errors import LpoError
from lpo.stages import score


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (40 * value % 256, 90, 10)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pairs(project: Path, repository: Path) -> Path:
    """Three shards of three pairs: an image that comes twice, one that does not decode, one without a uid."""
    (project / "data").mkdir(exist_ok=True)
    (project / "data/scorers").symlink_to(repository / "data/scorers")
    Path("data/pairs").mkdir()
    for k, split in enumerate(("train", "validation", "test")):
        numbers = range(3 * k, 3 * k + 3)
        frame = pd.DataFrame(
            {
                "ranking_id": numbers, "caption": [f"a cat and {i} dogs" for i in numbers],
                "image_0_uid": [f"{i}a" for i in numbers], "image_1_uid": [f"{i}b" for i in numbers],
                "jpg_0": [png(i) for i in numbers], "jpg_1": [png(i + 100) for i in numbers], "label_0": 1.0,
                "label_1": 0.0, "has_label": True, "are_different": True, "num_example_per_prompt": 1,
            }
        )  # fmt: skip
        if split == "train":
            frame.loc[1, "image_1_uid"], frame.at[1, "jpg_1"] = "0a", png(0)
            frame.at[2, "jpg_0"] = b"no image"
            frame.loc[2, "image_1_uid"] = None
        frame.to_parquet(f"data/pairs/{split}-00000.parquet", index=False, row_group_size=2)
    return Path("data/pairs")


def params(**changes: Any) -> Params:
    loaded = load_params()
    settings = {"batch_size": 2, "shard_size": 2} | changes
    return dataclasses.replace(loaded, score=dataclasses.replace(loaded.score, **settings))


def scores() -> pd.DataFrame:
    return pd.read_parquet("data/scores.parquet")


UIDS = ["0a", "0b", "1a", "3a", "3b", "4a", "4b", "5a", "5b", "6a", "6b", "7a", "7b", "8a", "8b"]


def test_every_picture_that_decodes_is_scored_once_whatever_the_parts(pairs: Path) -> None:
    score.run(params())
    small = scores()
    assert small["image_uid"].tolist() == UIDS
    score.run(params(batch_size=64, shard_size=1000))
    pd.testing.assert_frame_equal(scores(), small, rtol=1e-4, atol=1e-5)
    assert np.isfinite(small[["aesthetic", "clip", "vqa"]].to_numpy()).all()


def test_a_stopped_run_goes_on_with_the_parts_that_are_missing(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score.run(params())
    whole = Path("data/scores.parquet").read_bytes()
    (folder,) = Path(".checkpoints/score").iterdir()
    parts = sorted(folder.glob("part-*.parquet"))
    assert len(parts) == 8  # 4, 6 and 6 places, at most two in a part
    for part in parts[4:]:
        part.unlink()
    seen: list[str] = []
    right = score.score
    monkeypatch.setattr(
        score, "score", lambda s, places, *rest: (seen.extend(p.uid for p in places), right(s, places, *rest))[1]
    )
    score.run(params())
    assert Path("data/scores.parquet").read_bytes() == whole
    assert seen == UIDS[2:9]  # the parts of test and the first of train are there


def test_machines_share_the_parts_and_the_last_one_only_joins_them(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    score.run(params())
    whole = Path("data/scores.parquet").read_bytes()
    (folder,) = Path(".checkpoints/score").iterdir()
    for file in (Path("data/scores.parquet"), *folder.iterdir()):
        file.unlink()
    capsys.readouterr()
    for number in (3, 1, 2):
        score.run(params(), resume.Share(number, 3))
        names = {int(path.stem[-1]) for path in folder.iterdir()}
        assert number - 1 in names and not Path("data/scores.parquet").exists()
        assert capsys.readouterr().out == f"parts in {folder}\n"
    monkeypatch.setattr(score, "load_scorers", lambda *_: pytest.fail("a scorer was loaded"))
    score.run(params(), resume.Share(2, 3))
    score.run(params())
    assert Path("data/scores.parquet").read_bytes() == whole


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/4/2", "-1/4"])
def test_a_share_is_one_of_n(text: str) -> None:
    with pytest.raises(LpoError, match="is not a share"):
        resume.share_of(text)
    assert resume.share_of("4/4") == (4, 4)


def table(uids: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"image_uid": uids, "aesthetic": np.arange(len(uids)) / 2, "clip": 0.1, "vqa": 0.5})


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_imported_scores_are_found_by_uid_never_by_their_place(pairs: Path, suffix: str) -> None:
    mine = table([*UIDS[::-1], "of another image"])
    path = Path(f"mine.{suffix}")
    mine.to_csv(path, index=False) if suffix == "csv" else mine.to_parquet(path)
    assert data_stage.import_scores(path, Path("data/sources/scores.parquet")) == 16
    score.run(params(table="data/sources/scores.parquet"))
    assert dict(zip(scores()["image_uid"], scores()["aesthetic"], strict=True)) == {
        uid: (14 - i) / 2 for i, uid in enumerate(UIDS)
    }


def test_a_table_of_other_images_without_uids_or_changed_since_is_refused(pairs: Path) -> None:
    out = Path("data/sources/scores.parquet")
    with pytest.raises(LpoError, match="nothing was imported"):
        score.run(params(table=str(out)))
    table(UIDS).drop(columns="image_uid").to_csv("mine.csv", index=False)
    with pytest.raises(LpoError, match="no column image_uid"):
        data_stage.import_scores(Path("mine.csv"), out)
    table(UIDS).assign(vqa="high").to_csv("mine.csv", index=False)
    with pytest.raises(LpoError, match="15 of 15 rows hold no scores"):
        data_stage.import_scores(Path("mine.csv"), out)
    table(["x", "y"]).to_csv("mine.csv", index=False)
    data_stage.import_scores(Path("mine.csv"), out)
    with pytest.raises(LpoError, match="none of the 2 scores belongs to one of the 16 images"):
        score.run(params(table=str(out)))
    table(UIDS).to_parquet(out)
    with pytest.raises(LpoError, match="came, went or changed"):
        score.run(params(table=str(out)))


def test_nothing_is_scored_where_no_strategy_reads_it(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "load_scorers", lambda *_: pytest.fail("a scorer was loaded"))
    loaded = params()
    score.run(dataclasses.replace(loaded, filter=dataclasses.replace(loaded.filter, strategy="none")))
    assert scores().empty and list(scores().columns) == ["image_uid", "aesthetic", "clip", "vqa"]
