"""The contract: every way to be bad has its reason, good rows have none, and the docs say the same as the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lpo.data import data_docs
from lpo.data.contract import COPY, Verdict, check, check_early
from lpo.data.limits import Limits
from lpo.data.tokens import Tokens
from lpo.errors import LpoError

HOSTILE = "<script>alert(1)</script>"


def words(captions: list[str]) -> list[int]:
    return [len(caption.split()) + 2 for caption in captions]


class Tables:
    """Three good pairs a split, to be broken one cell at a time; rows 0-2 are train, 3-5 validation, 6-8 test."""

    def __init__(self, rows: int = 9) -> None:
        split = np.repeat(["train", "validation", "test"], rows // 3)
        self.pairs = pd.DataFrame(
            {
                "split": pd.Series(split, dtype=str),
                "file": pd.Series([f"data/pairs/{name}-00000.parquet" for name in split], dtype=str),
                "row": np.arange(rows) % 3,
                "ranking_id": pd.array(range(rows), dtype="Int64"),
                "caption": pd.Series([f"a cat number {i}" for i in range(rows)], dtype=str),
                "image_0_uid": pd.Series([f"{i}a" for i in range(rows)], dtype=str),
                "image_1_uid": pd.Series([f"{i}b" for i in range(rows)], dtype=str),
                "label_0": np.tile([1.0, 0.0, 0.5], rows // 3),
                "label_1": np.tile([0.0, 1.0, 0.5], rows // 3),
                "has_label": pd.array([True] * rows, dtype="boolean"),
                "are_different": pd.array([True] * rows, dtype="boolean"),
                "num_example_per_prompt": pd.array([1] * rows, dtype="Int64"),
            }
        )
        nothing = pd.Series([None] * rows, dtype=str)
        self.images = pd.DataFrame(
            {
                "image_0_digest": self.pairs["image_0_uid"].copy(),
                "image_1_digest": self.pairs["image_1_uid"].copy(),
                "image_0_problem": nothing,
                "image_1_problem": nothing.copy(),
            }
        )
        uids = pd.concat([self.pairs["image_0_uid"], self.pairs["image_1_uid"]], ignore_index=True)
        self.scores = pd.DataFrame({"image_uid": uids, "aesthetic": 5.0, "clip": 0.3, "vqa": 0.5})

    def score(self, uid: str, name: str, value: float) -> None:
        self.scores.loc[self.scores["image_uid"] == uid, name] = value

    def check(self, max_tokens: int = 77, **limits: bool) -> Verdict:
        given = Limits(Tokens(words, max_tokens, "a model"), **{"cut": False, "must_differ": True} | limits)
        return check(self.pairs, self.images, self.scores, given)

    def bad(self, max_tokens: int = 77, **limits: bool) -> dict[int, str]:
        reasons = self.check(max_tokens, **limits).reasons
        return {row: text for row, text in reasons.items() if text}


def test_good_tables_have_no_bad_rows() -> None:
    verdict = Tables().check()
    assert verdict.reasons.tolist() == [""] * 9
    assert verdict.counts == {}
    assert verdict.summary["quarantined"] == 0
    expectations = verdict.summary["expectations"]
    assert expectations["evaluated"] == expectations["met"] > 40


Break = Callable[[Tables, int], None]


def cell(column: str, value: Any) -> Break:
    def breaks(tables: Tables, row: int) -> None:
        tables.pairs.loc[row, column] = value

    return breaks


def undecodable(tables: Tables, row: int) -> None:
    tables.images.loc[row, "image_0_problem"] = "does not decode (x)"


def same_image(tables: Tables, row: int) -> None:
    tables.pairs.loc[row, "image_0_uid"] = tables.images.loc[row, "image_0_digest"] = f"{row}b"


def unscored(tables: Tables, row: int) -> None:
    tables.scores = tables.scores[tables.scores["image_uid"] != f"{row}b"]


def scored_twice(tables: Tables, row: int) -> None:
    tables.scores = pd.concat([tables.scores, tables.scores[tables.scores["image_uid"] == f"{row}b"]])


def score(name: str, value: float) -> Break:
    return lambda tables, row: tables.score(f"{row}b", name, value)


CASES: dict[str, tuple[Break, str]] = {
    "no caption": (cell("caption", None), "caption is missing"),
    "empty caption": (cell("caption", ""), "caption is empty"),
    "blank caption": (cell("caption", " \t\n"), "caption is empty"),
    "long caption": (cell("caption", "cat " * 76), "the caption has more than 77 tokens: 78"),
    "10,000 characters": (cell("caption", "c " * 5000), "the caption has more than 77 tokens: 5002"),
    "no ranking_id": (cell("ranking_id", pd.NA), "ranking_id is missing"),
    "no label_0": (cell("label_0", np.nan), "label_0 is missing"),
    "label 2": (cell("label_0", 2.0), "label_0 is not in 0..1; the labels do not sum to 1"),
    "label -1": (cell("label_1", -1.0), "label_1 is not in 0..1; the labels do not sum to 1"),
    "infinite label": (cell("label_1", np.inf), "label_1 is not in 0..1; the labels do not sum to 1"),
    "two winners": (cell("label_0", 1.0), "the labels do not sum to 1"),
    "half a tie": (cell("label_0", 0.5), "the labels do not sum to 1"),
    "no label": (cell("has_label", False), "has_label is false"),
    "unknown whether labelled": (cell("has_label", pd.NA), "has_label is missing"),
    "alike": (cell("are_different", False), "are_different is false"),
    "no weight": (cell("num_example_per_prompt", 0), "num_example_per_prompt is below 1: 0"),
    "no uid": (cell("image_0_uid", None), "image_0_uid is missing"),
    "the same image": (same_image, "image_0_uid and image_1_uid are the same"),
    "undecodable": (undecodable, "image_0 is unusable: does not decode (x)"),
    "unscored": (unscored, "image_1 has no usable scores: there are none"),
    "scored twice": (scored_twice, "image_1 has no usable scores: scored several times"),
    "NaN score": (score("vqa", np.nan), "image_1 has no usable scores: vqa is NaN or missing"),
    "infinite score": (score("clip", np.inf), "image_1 has no usable scores: clip is not in -100..100: inf"),
    "score out of range": (score("vqa", 1.5), "image_1 has no usable scores: vqa is not in 0..1: 1.5"),
}
ROWS = {name: 3 * i + 1 for i, name in enumerate(CASES)}  # every one a win of image 1, between good rows


@pytest.fixture(scope="module")
def broken() -> Verdict:
    tables = Tables(3 * len(CASES))
    for name, (breaks, _) in CASES.items():
        breaks(tables, ROWS[name])
    return tables.check()


@pytest.mark.parametrize("name", CASES)
def test_a_bad_row_has_its_reason_and_no_other(name: str, broken: Verdict) -> None:
    assert set(broken.reasons[ROWS[name]].split("; ")) == set(CASES[name][1].split("; "))


def test_rows_beside_bad_ones_are_good(broken: Verdict) -> None:
    assert (broken.reasons.drop(list(ROWS.values())) == "").all()


def test_an_empty_uid_is_bad_even_where_it_has_scores() -> None:
    tables = Tables()
    tables.pairs.loc[4, "image_0_uid"] = ""
    tables.scores.loc[tables.scores["image_uid"] == "4a", "image_uid"] = ""
    assert tables.bad() == {4: "image_0_uid is empty"}


def test_a_caption_of_just_so_many_tokens_is_good() -> None:
    tables = Tables()
    tables.pairs.loc[4, "caption"] = "cat " * 75  # with start and end of text: 77
    assert tables.bad() == {}
    assert tables.bad(max_tokens=76) == {4: "the caption has more than 76 tokens: 77"}


def test_a_row_has_all_its_reasons() -> None:
    tables = Tables()
    for name in ("empty caption", "label 2", "undecodable", "NaN score"):
        CASES[name][0](tables, 4)
    wanted = [CASES[name][1] for name in ("empty caption", "label 2", "undecodable", "NaN score")]
    assert set(tables.bad()[4].split("; ")) == set("; ".join(wanted).split("; "))


def test_of_a_pair_that_is_repeated_the_first_is_kept_in_whichever_order_its_images_come() -> None:
    tables = Tables()
    tables.pairs.loc[1, ["ranking_id", "caption"]] = [0, tables.pairs["caption"][0]]
    for table in (tables.pairs, tables.images):
        first, second = [name for name in table.columns if name.endswith(("uid", "digest"))]
        table.loc[1, [first, second]] = table.loc[0, [second, first]].to_numpy()
    assert tables.bad() == {1: COPY}  # the label 0, 1 of the turned pair says what 1, 0 does
    assert tables.check().too_many(0) == ""  # a copy is not a mistake
    tables.pairs.loc[1, "ranking_id"] = 1  # the same pair, ranked by somebody else
    assert tables.bad() == {}
    tables.pairs.loc[1, ["ranking_id", "label_0", "label_1"]] = [0, 1.0, 0.0]
    reason = "the pair is there several times under one ranking_id and does not say the same: 2"
    assert tables.bad() == {0: reason, 1: reason}
    assert "2 of 9 pairs" in tables.check().too_many(0.2) and tables.check().too_many(0.25) == ""


def test_long_captions_that_training_cuts_are_good_and_counted() -> None:
    tables = Tables()
    tables.pairs.loc[[4, 5], "caption"] = ["cat " * 76, ""]
    assert tables.bad(cut=True) == {5: "caption is empty"}
    assert tables.check(cut=True).cut.tolist() == [row == 4 for row in range(9)]
    assert not tables.check().cut.any()


def test_are_different_can_be_ignored() -> None:
    tables = Tables()
    tables.pairs.loc[4, "are_different"] = False
    assert tables.bad(must_differ=False) == {}


def test_the_early_look_sees_what_needs_neither_images_nor_scores() -> None:
    tables = Tables()
    for row, name in enumerate(("label 2", "undecodable", "NaN score", "long caption")):
        CASES[name][0](tables, row)
    limits = Limits(Tokens(words, 77, "a model"), cut=False, must_differ=True)
    reasons = check_early(tables.pairs, limits).reasons
    assert [bool(text) for text in reasons] == [True, False, False, True] + [False] * 5


def test_the_same_ranking_id_for_other_images_is_good() -> None:
    tables = Tables()
    tables.pairs["ranking_id"] = pd.array([0] * 9, dtype="Int64")
    assert tables.bad() == {}


def test_a_uid_that_stands_for_two_images_or_captions_is_bad_wherever_it_is() -> None:
    tables = Tables()
    tables.pairs.loc[2, "image_1_uid"] = "0a"
    reasons = tables.bad()
    assert reasons.keys() == {0, 2}
    assert set(reasons[0].split("; ")) == {
        "image_0_uid stands for several images: 2",
        "image_0_uid stands under several captions: 2",
    }
    assert "image_1_uid stands for several images: 2" in reasons[2]
    tables.images.loc[2, "image_1_digest"] = "0a"
    tables.pairs.loc[2, "caption"] = tables.pairs["caption"][0]
    assert tables.bad() == {}


@pytest.mark.parametrize("other", ["a cat number 0", "A Cat  number 0 "])
def test_a_caption_in_two_splits_is_bad_in_both(other: str) -> None:
    tables = Tables()
    tables.pairs.loc[8, "caption"] = other
    reason = "the caption is in several splits: 2"
    assert tables.bad() == {0: reason, 8: reason}


def test_empty_captions_are_no_leak() -> None:
    tables = Tables()
    tables.pairs.loc[[0, 8], "caption"] = ["", " "]
    assert tables.bad() == {0: "caption is empty", 8: "caption is empty"}


def test_counts_and_reasons_agree_beyond_the_limits_of_a_validation_result() -> None:
    tables = Tables(1500)
    tables.pairs.loc[:699, "label_0"] = 2.0
    tables.scores.loc[tables.scores["image_uid"].isin([f"{i}b" for i in range(300)]), "vqa"] = np.nan
    verdict = tables.check()
    assert (verdict.reasons != "").sum() == verdict.summary["quarantined"] == 700
    assert verdict.counts == {
        reason: int(verdict.reasons.str.contains(reason, regex=False).sum()) for reason in verdict.counts
    }
    assert verdict.counts["label_0 is not in 0..1"] == 700
    assert verdict.counts["image_1 has no usable scores"] == 300


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_stops_the_run(split: str) -> None:
    tables = Tables()
    keep = tables.pairs["split"] != split
    tables.pairs = tables.pairs[keep].reset_index(drop=True)
    tables.images = tables.images[keep].reset_index(drop=True)
    with pytest.raises(LpoError, match=f"the split {split} has no pairs") as caught:
        tables.check()
    assert caught.value.where == "data/pairs"
    assert caught.value.remedy


def test_no_scores_at_all_stop_the_run() -> None:
    tables = Tables()
    tables.scores = tables.scores.iloc[:0]
    with pytest.raises(LpoError, match="no image has scores") as caught:
        tables.check()
    assert caught.value.where == "data/scores.parquet"


def test_a_column_of_another_type_or_none_stops_the_run() -> None:
    tables = Tables()
    tables.pairs["label_0"] = tables.pairs["label_0"].astype(str)
    with pytest.raises(LpoError, match="label_0 is not float64"):
        tables.check()


def hostile() -> Verdict:
    tables = Tables()
    tables.pairs.loc[4, "image_0_uid"] = HOSTILE
    tables.images.loc[4, "image_0_problem"] = f'does not decode ({HOSTILE}" onload="x)' + "y" * 5000
    tables.pairs.loc[1, "caption"] = "<img src=x onerror=alert(1)> " * 20
    twice = pd.DataFrame({"image_uid": [HOSTILE, HOSTILE, "$a {{7*7}}"], "aesthetic": 5.0, "clip": 0.3, "vqa": np.nan})
    tables.scores = pd.concat([tables.scores, twice])
    return tables.check(max_tokens=10)


def test_data_docs_are_static_offline_and_safe() -> None:
    page = data_docs.render(hostile().results)
    assert "Suite: pairs" in page and "Suite: scores" in page
    assert "&lt;script&gt;alert(1)" in page
    for forbidden in ("<script", "<img", "http", "src=", "<link", 'onload="', "y" * 200, "href="):
        assert forbidden not in page


def test_equal_data_give_equal_data_docs() -> None:
    assert data_docs.render(hostile().results) == data_docs.render(hostile().results)


def test_data_docs_show_what_the_rows_say() -> None:
    tables = Tables()
    good = data_docs.render(tables.check().results)
    tables.pairs.loc[4, "label_0"] = 2.0
    bad = data_docs.render(tables.check().results)
    assert "fa-times text-danger" not in good and "unexpected values found" not in good
    assert bad.count("1 unexpected values found") == 2  # the label, and the sum of labels
