"""The filter stage on files: nothing is lost, everything has its reason, and bad inputs stop it with words."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lpo.config import Params, load_params
from lpo.emoji.vocabulary import make_tokenizer
from lpo.errors import LpoError
from lpo.files import folder_hash
from lpo.stages.filter import COLUMNS, run

# (aesthetic, clip, vqa) of winners less losers; image 0 wins where ranking_id is even. Strategy 2 keeps the first two.
GAPS = [(1, 1, 0.1), (-0.4, 0, 0), (-0.6, 1, 0.1), (1, -1, 0.1), (1, 1, -0.1), (-0.6, -1, -0.1)]
TIES = [(0.1, -0.02, 0.05), (0.1, 0.02, -0.08)]  # the first is kept
ROWS = len(GAPS) + len(TIES)


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (value % 256, value // 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


class Data:
    """Pairs of three splits with the same gaps, and their scores, before they are written."""

    def __init__(self) -> None:
        self.splits = {split: self.pairs(i * ROWS) for i, split in enumerate(("train", "validation", "test"))}
        rows = []
        for pairs in self.splits.values():
            for pair, gap in zip(pairs.itertuples(), GAPS + TIES, strict=True):
                sign = -1 if pair.label_1 == 1 else 1
                first = np.array([5, 0.5, 0.5]) + sign * np.array(gap) / 2
                second = np.array([5, 0.5, 0.5]) - sign * np.array(gap) / 2
                rows += [(pair.image_0_uid, *first), (pair.image_1_uid, *second)]
        self.scores = pd.DataFrame(rows, columns=["image_uid", "aesthetic", "clip", "vqa"])
        self.scores = self.scores.sample(frac=1, random_state=0)  # never joined by position

    @staticmethod
    def pairs(start: int) -> pd.DataFrame:
        numbers = np.arange(start, start + ROWS)
        label = np.where(np.arange(ROWS) < len(GAPS), 1.0 - numbers % 2, 0.5)
        return pd.DataFrame(
            {
                "ranking_id": numbers,
                "caption": [f"a cat {i}" for i in numbers],
                "jpg_0": [png(2 * i) for i in numbers],
                "jpg_1": [png(2 * i + 1) for i in numbers],
                "image_0_uid": [f"{i}a" for i in numbers],
                "image_1_uid": [f"{i}b" for i in numbers],
                "label_0": label,
                "label_1": 1 - label,
                "has_label": True,
                "are_different": True,
                "num_example_per_prompt": 1,
                "category": "single",
                "difference": "flaws",
            }
        )

    def set(self, row: int, column: str, value: Any) -> None:
        self.splits["train"][column] = self.splits["train"][column].astype(object)
        self.splits["train"].at[row, column] = value

    def write(self) -> None:
        Path("data/pairs").mkdir(parents=True, exist_ok=True)
        for split, pairs in self.splits.items():
            pairs.to_parquet(f"data/pairs/{split}-00000.parquet", index=False)
        self.scores.to_parquet("data/scores.parquet", index=False)


@pytest.fixture
def data(project: Path) -> Data:
    make_tokenizer().save_pretrained("data/base/tokenizer")
    return Data()


def params(**changes: Any) -> Params:
    loaded = load_params()
    return dataclasses.replace(loaded, filter=dataclasses.replace(loaded.filter, max_quarantined=0.5, **changes))


def filtered(data: Data, **changes: Any) -> dict[str, pd.DataFrame]:
    data.write()
    run(params(**changes))
    return {name: pd.read_parquet(f"data/filtered/{name}.parquet") for name in ("kept", "dropped", "quarantine")}


def metrics() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("metrics/filter.json").read_text())
    return found


def test_mpcf_decides_train_pairs_and_leaves_the_others(data: Data) -> None:
    tables = filtered(data, strategy="2")
    kept, dropped = tables["kept"], tables["dropped"]
    assert kept[kept["split"] == "train"]["ranking_id"].tolist() == [0, 1, 6]
    assert (kept["split"] == "validation").sum() == (kept["split"] == "test").sum() == ROWS
    assert dict(zip(dropped["ranking_id"], dropped["reason"], strict=True)) == {
        2: "mpcf: aesthetic -0.6 < -0.5",
        3: "mpcf: clip -1 < 0",
        4: "mpcf: vqa -0.1 < 0",
        5: "mpcf: aesthetic -0.6 < -0.5; clip -1 < 0; vqa -0.1 < 0",
        7: "mpcf: tie |vqa| 0.08 > 0.07",
    }
    assert tables["quarantine"].empty
    gaps = kept.set_index("ranking_id").loc[1, ["gap_aesthetic", "gap_clip", "gap_vqa"]].astype(float)
    assert gaps.tolist() == pytest.approx([-0.4, 0, 0])


def test_every_table_has_the_columns_and_types_that_later_stages_read(data: Data) -> None:
    data.set(0, "caption", "")
    tables = filtered(data)
    assert list(tables["kept"].columns) == COLUMNS
    assert list(tables["dropped"].columns) == [*COLUMNS, "reason"]
    types = {str(name): str(kind) for name, kind in tables["kept"].dtypes.items()}
    assert types["ranking_id"] == types["num_example_per_prompt"] == "int64"
    assert {types[name] for name in ("label_0", "label_1", "gap_aesthetic", "gap_clip", "gap_vqa")} == {"float64"}
    assert {types[name] for name in ("split", "caption", "category", "difference")} == {"str"}
    assert tables["quarantine"].iloc[0].to_dict() == {
        "ranking_id": 0, "split": "train", "caption": "", "image_0_uid": "0a", "image_1_uid": "0b",
        "label_0": "1.0", "label_1": "0.0", "file": "data/pairs/train-00000.parquet", "row": 0,
        "reason": "caption is empty",
    }  # fmt: skip
    assert json.loads(Path("data/filtered/summary.json").read_text())["quarantined_by"] == {"caption is empty": 1}
    assert "caption_tokens" in Path("data/filtered/data_docs/index.html").read_text()


def test_metrics_add_up(data: Data) -> None:
    data.set(0, "label_0", 2.0)
    filtered(data)
    found = metrics()
    parts = ("kept", "dropped", "quarantined")
    assert found["input"] == sum(found[name] for name in parts) == 3 * ROWS
    assert [found[name] for name in parts] == [18, 5, 1]
    assert found["by_split"]["train"] == {"input": ROWS, "kept": 2, "dropped": 5, "quarantined": 1}
    assert found["dropped_by"] == {"aesthetic": 2, "clip": 2, "vqa": 2, "tie": 1}
    assert found["quarantined_by"] == {"label_0 is not in 0..1": 1, "the labels do not sum to 1": 1}
    assert found["kept_ties"] == 5
    assert sum(found["share"].values()) == pytest.approx(1)
    # five win-lose train pairs are left: 1..5
    assert found["agreement"]["all"] == {"aesthetic": 0.4, "clip": 0.6, "vqa": 0.6, "every": 0.0, "pairs": 5}
    assert found["agreement"]["kept"] == {"aesthetic": 0.0, "clip": 1.0, "vqa": 1.0, "every": 0.0, "pairs": 1}


def test_the_data_docs_say_how_many_pairs_each_rule_dropped(data: Data) -> None:
    data.set(0, "label_0", 2.0)
    filtered(data, strategy="2")
    page = Path("data/filtered/data_docs/index.html").read_text()
    for row in (
        "<td>in</td><td>24</td>",
        "<td>winner less loser: aesthetic &lt; -0.5</td><td>2</td>",
        "<td>winner less loser: clip &lt; 0</td><td>2</td>",
        "<td>winner less loser: vqa &lt; 0</td><td>2</td>",
        "<td>tie: |aesthetic| &gt; 0.2 or |clip| &gt; 0.03 or |vqa| &gt; 0.07</td><td>1</td>",
        "<td>label_0 is not in 0..1</td><td>1</td>",
    ):
        assert row in page, row
    filtered(data, strategy="none")
    assert "no rule: every pair stays" in Path("data/filtered/data_docs/index.html").read_text()


def test_margins_of_ones_own_are_a_strategy_of_that_name(data: Data) -> None:
    from lpo.config import Margins

    strict = {"mine": Margins(aesthetic=0.5, clip=0.5, vqa=0.05)}  # GAPS: only the first pair has all of that
    tables = filtered(data, strategy="mine", strategies=strict)
    assert tables["kept"].query("split == 'train' and label_0 != 0.5")["ranking_id"].tolist() == [0]


def test_no_strategy_keeps_all_that_the_contract_lets_through(data: Data) -> None:
    data.set(3, "caption", " ")
    tables = filtered(data, strategy="none")
    assert len(tables["kept"]) == 3 * ROWS - 1
    assert tables["dropped"].empty and tables["quarantine"]["ranking_id"].tolist() == [3]


def test_nothing_is_lost_and_everything_bad_has_its_reason(data: Data) -> None:
    bomb = io.BytesIO()
    Image.new("1", (5000, 5000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 10_000
    data.set(2, "jpg_0", b"")
    data.set(3, "jpg_1", bomb.getvalue())
    data.set(4, "caption", "<script>alert(1)</script>" * 400)
    data.set(5, "image_1_uid", "6b")  # two images and two captions under one uid, rows 5 and 6
    data.scores = data.scores[data.scores["image_uid"] != "7a"]
    tables = filtered(data)
    reasons = dict(zip(tables["quarantine"]["ranking_id"], tables["quarantine"]["reason"], strict=True))
    assert reasons.keys() == {2, 3, 4, 5, 6, 7}
    assert "image_0 is unusable: has no bytes" in reasons[2]
    assert "image_1 is unusable: claims 5000x5000 pixels" in reasons[3]
    assert "the caption has more than 16 tokens" in reasons[4]  # all that this model reads, below the 77 allowed
    assert "image_1_uid stands for several images" in reasons[5]
    assert "image_1_uid stands under several captions" in reasons[6]
    assert "image_0 has no usable scores: there are none" in reasons[7]
    assert sum(len(table) for table in tables.values()) == 3 * ROWS
    assert len(tables["quarantine"]["caption"][tables["quarantine"]["ranking_id"] == 4].item()) == 10_000
    assert "<script" not in Path("data/filtered/data_docs/index.html").read_text()


def test_the_token_limit_of_the_parameters_holds_where_it_is_lower(data: Data) -> None:
    data.set(0, "caption", "a cat and a cat")
    tables = filtered(data, max_tokens=6)
    assert tables["quarantine"]["reason"].tolist() == ["the caption has more than 6 tokens: 7"]


def test_too_many_bad_rows_stop_the_run_with_their_places(data: Data) -> None:
    for row in (1, 4, 7):
        data.set(row, "label_0", 2.0)
    data.write()
    allowed = dataclasses.replace(params().filter, max_quarantined=2 / 24)
    with pytest.raises(LpoError) as caught:
        run(dataclasses.replace(params(), filter=allowed))
    text = str(caught.value)
    assert "3 of 24 pairs break the data contract" in text
    assert "label_0 is not in 0..1: 3" in text
    assert "data/pairs/train-00000.parquet row 4: " in text
    assert "filter.max_quarantined" in text
    assert not Path("data/filtered").exists() and not Path("metrics/filter.json").exists()
    run(dataclasses.replace(params(), filter=dataclasses.replace(allowed, max_quarantined=3 / 24)))


def breaks(data: Data, how: str) -> None:
    train = data.splits["train"]
    if how == "missing column":
        data.splits["train"] = train.drop(columns="caption")
    elif how == "labels as words":
        data.splits["test"] = data.splits["test"].astype({"label_0": str})
    elif how == "empty split":
        data.splits["validation"] = data.splits["validation"].iloc[:0]
    elif how == "scores without vqa":
        data.scores = data.scores.drop(columns="vqa")
    elif how == "all train pairs dropped":
        train[["label_0", "label_1"]] = [0.0, 1.0]
        data.scores["vqa"] = np.where(data.scores["image_uid"].str.endswith("a"), 0.9, 0.1)
    data.write()
    if how == "truncated shard":
        path = Path("data/pairs/test-00000.parquet")
        path.write_bytes(path.read_bytes()[:-20])
    elif how == "no tokenizer":
        Path("data/base/tokenizer").rename("data/base/elsewhere")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing column", "data/pairs/train-00000.parquet: caption is missing"),
        ("labels as words", "data/pairs/test-00000.parquet: label_0 is"),
        ("empty split", "the split validation has no pairs"),
        ("scores without vqa", "vqa is missing"),
        ("all train pairs dropped", "no pair of the split train is left"),
        ("truncated shard", "data/pairs/test-00000.parquet"),
        ("no tokenizer", "data/base/tokenizer"),
    ],
)
def test_a_broken_table_stops_the_run_and_leaves_the_last_result(data: Data, how: str, message: str) -> None:
    Path("data/filtered").mkdir(parents=True)
    Path("data/filtered/kept.parquet").write_text("the last result")
    breaks(data, how)
    with pytest.raises(LpoError) as caught:
        run(params())
    assert message in str(caught.value)
    assert caught.value.where and caught.value.remedy
    assert Path("data/filtered/kept.parquet").read_text() == "the last result"


def test_equal_inputs_give_equal_bytes(data: Data) -> None:
    data.set(2, "jpg_0", b"no image")
    filtered(data)
    first, figures = folder_hash("data/filtered"), metrics()
    run(params())
    assert folder_hash("data/filtered") == first
    assert metrics() == figures


def test_a_strategy_of_none_needs_no_scores(data: Data) -> None:
    data.set(3, "label_0", 2.0)
    data.write()
    Path("data/scores.parquet").unlink()
    run(params(strategy="none"))
    kept = pd.read_parquet("data/filtered/kept.parquet")
    assert len(kept) == 3 * ROWS - 1 and kept[["gap_aesthetic", "gap_clip", "gap_vqa"]].isna().all().all()
    assert metrics()["agreement"] == {"all": {}, "kept": {}} and metrics()["quarantined"] == 1


def test_a_refusal_leaves_the_bad_rows_under_the_users_own_names(data: Data) -> None:
    data.splits["train"] = data.splits["train"].assign(source_file="votes.csv", source_row=range(100, 100 + ROWS))
    for row in (1, 4):
        data.set(row, "label_0", 2.0)
    data.write()
    strict = dataclasses.replace(params(), filter=dataclasses.replace(params().filter, max_quarantined=0.0))
    with pytest.raises(LpoError) as caught:
        run(strict)
    assert "data/refused/filter.parquet" in caught.value.where and "votes.csv row 104: " in caught.value.where
    table = pd.read_parquet("data/refused/filter.parquet")
    assert table[["file", "row"]].values.tolist() == [["votes.csv", 101], ["votes.csv", 104]]
    run(params())
    assert not Path("data/refused/filter.parquet").exists()


def test_captions_that_are_cut_are_kept_and_counted(data: Data) -> None:
    data.set(0, "caption", "a cat " * 40)
    tables = filtered(data, long_captions="cut")
    assert tables["quarantine"].empty and metrics()["captions_cut"] == 1
    assert (tables["kept"]["caption"] == "a cat " * 40).sum() == 1  # the text stays whole; only the model cuts it
