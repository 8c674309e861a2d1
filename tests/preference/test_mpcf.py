import numpy as np
import pandas as pd
import pytest

from lpo.errors import LpoError
from lpo.preference.mpcf import gaps_from_scores, mpcf, soft_labels

MARGINS = {"aesthetic": -0.5, "clip": 0.0, "vqa": 0.0}
TIES = {"aesthetic": 0.2, "clip": 0.03, "vqa": 0.07}


def gaps(*rows: tuple[float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=["aesthetic", "clip", "vqa"])


def ties(*values: bool) -> pd.Series:
    return pd.Series(list(values))


def test_a_pair_on_its_margins_is_kept_and_one_below_is_not() -> None:
    below = np.nextafter(0.0, -1.0)
    frame = gaps((-0.5, 0.0, 0.0), (-0.5, below, 0.0), (9.0, 9.0, 9.0))
    verdict = mpcf(frame, ties(False, False, False), MARGINS, TIES)
    assert verdict["keep"].tolist() == [True, False, True]
    assert verdict["keep"].dtype == bool
    assert (verdict["reason"] == "").tolist() == [True, False, True]


def test_strictly_a_pair_on_a_margin_is_left_out_and_a_tie_on_its_own_stays() -> None:
    """The released code keeps gaps above their margins; the paper, and the default here, those on them too."""
    above = np.nextafter(0.0, 1.0)
    frame = gaps((-0.5, 1.0, 1.0), (0.0, above, above), (0.2, 0.03, 0.07))
    verdict = mpcf(frame, ties(False, False, True), MARGINS, TIES, strict=True)
    assert verdict["keep"].tolist() == [False, True, True]
    assert verdict["reason"].tolist()[0] == "mpcf: aesthetic -0.5 <= -0.5"


def test_the_reason_names_every_score_that_failed() -> None:
    verdict = mpcf(gaps((-0.71, 0.2, -0.02), (0.1, -0.05, 0.3)), ties(False, True), MARGINS, TIES)
    assert verdict["reason"].tolist() == [
        "mpcf: aesthetic -0.71 < -0.5; vqa -0.02 < 0",
        "mpcf: tie |clip| 0.05 > 0.03; tie |vqa| 0.3 > 0.07",
    ]


def test_ties_are_kept_by_absolute_gap() -> None:
    inside, high, low = (0.2, -0.03, 0.07), (0.0, 0.031, 0.0), (0.0, -0.031, 0.0)
    assert mpcf(gaps(inside, high, low), ties(True, True, True), MARGINS, TIES)["keep"].tolist() == [True, False, False]


def test_the_three_strategies_differ_by_the_aesthetic_margin_only() -> None:
    frame = gaps((0.1, 0.1, 0.1), (-0.3, 0.1, 0.1), (-0.8, 0.1, 0.1), (-1.2, 0.1, 0.1), (0.1, -0.1, 0.1))
    win = ties(*[False] * 5)
    kept = [int(mpcf(frame, win, {**MARGINS, "aesthetic": a}, TIES)["keep"].sum()) for a in (0.0, -0.5, -1.0)]
    assert kept == [1, 2, 3]


def test_no_strategy_keeps_everything() -> None:
    verdict = mpcf(gaps((-9.0, -9.0, -9.0), (9.0, 9.0, 9.0)), ties(False, True), None, TIES)
    assert verdict["keep"].all() and (verdict["reason"] == "").all()


def test_no_pairs_are_no_verdicts() -> None:
    verdict = mpcf(gaps(), pd.Series([], dtype=bool), MARGINS, TIES)
    assert len(verdict) == 0 and verdict["keep"].dtype == bool


def test_nan_gaps_are_an_error_under_every_strategy() -> None:
    for margins in (MARGINS, None):
        with pytest.raises(LpoError, match="1 pairs have a NaN gap: rows 1"):
            mpcf(gaps((1.0, 1.0, 1.0), (1.0, np.nan, 1.0)), ties(False, False), margins, TIES)


def test_another_index_is_refused() -> None:
    with pytest.raises(ValueError, match="share one index"):
        mpcf(gaps((1.0, 1.0, 1.0)), pd.Series([False], index=[7]), MARGINS, TIES)


def pairs(*rows: tuple[str, str, float]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=["image_0_uid", "image_1_uid", "label_0"])
    return frame.assign(label_1=1 - frame["label_0"])


SCORES = pd.DataFrame(
    {"image_uid": ["c", "a", "b"], "aesthetic": [7.0, 5.0, 6.0], "clip": [0.7, 0.5, 0.6], "vqa": [0.1, 0.9, 0.5]}
)


def test_gaps_are_winner_less_loser_joined_on_uids() -> None:
    frame = pairs(("a", "b", 1.0), ("a", "b", 0.0), ("c", "a", 0.5)).set_axis([10, 20, 30])
    expected = pd.DataFrame(
        {"aesthetic": [-1.0, 1.0, 2.0], "clip": [-0.1, 0.1, 0.2], "vqa": [0.4, -0.4, -0.8]}, index=[10, 20, 30]
    )
    pd.testing.assert_frame_equal(gaps_from_scores(frame, SCORES), expected)


def test_gaps_do_not_depend_on_the_order_of_scores_or_pairs() -> None:
    frame = pairs(("a", "b", 1.0), ("b", "c", 0.0), ("c", "a", 0.5))
    expected = gaps_from_scores(frame, SCORES)
    pd.testing.assert_frame_equal(gaps_from_scores(frame, SCORES.iloc[::-1]), expected)
    pd.testing.assert_frame_equal(gaps_from_scores(frame.iloc[[2, 0, 1]], SCORES).sort_index(), expected)


def test_an_image_without_scores_is_named() -> None:
    with pytest.raises(LpoError, match="2 images of pairs have no scores: x, y"):
        gaps_from_scores(pairs(("a", "b", 1.0), ("x", "b", 1.0), ("x", "y", 0.0)), SCORES)


def test_an_image_scored_twice_is_named() -> None:
    with pytest.raises(LpoError, match="1 images are scored twice: b"):
        gaps_from_scores(pairs(("a", "b", 1.0)), pd.concat([SCORES, SCORES.iloc[[2]]]))


def test_soft_labels_by_hand() -> None:
    """Gaps of aesthetic 3 and -3, root mean square 3; of clip 0.1 and 0, rms 0.1 / sqrt(2); vqa never differs."""
    pairs = pd.DataFrame({"gap_aesthetic": [3.0, -3.0], "gap_clip": [0.1, 0.0], "gap_vqa": [0.0, 0.0]})
    z = np.array([(1 + np.sqrt(2)) / 3, -1 / 3])
    np.testing.assert_allclose(soft_labels(pairs), 1 / (1 + np.exp(-z)))
    np.testing.assert_allclose(soft_labels(pairs.assign(gap_clip=[1e3, 0.0])), 1 / (1 + np.exp(-z)))  # no unit counts
    with pytest.raises(LpoError, match="1 pairs have no score gaps"):
        soft_labels(pairs.assign(gap_vqa=[0.0, np.nan]))
