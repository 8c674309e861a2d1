"""What the cells of a table mean, as numbers or as words."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lpo.data.sources.cells import label, truth, whole
from lpo.errors import LpoError


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1), (0, 0), (0.5, 0.5), ("1", 1), (" 0.0 ", 0), ("first", 1), ("Second", 0), ("A", 1), ("b", 0), ("LEFT", 1),
     ("right", 0), ("tie", 0.5), ("draw", 0.5), ("yes", 1), ("No", 0), (True, 1), (False, 0), (2, 2), (-1, -1)],
)  # fmt: skip
def test_a_label_of_image_0(value: Any, expected: float) -> None:
    assert label(value, "label_0") == expected


def test_words_for_a_side_name_the_winner_in_either_column_and_yes_speaks_of_its_own() -> None:
    assert label("first", "label_1") == 0 and label("B", "label_1") == 1 and label("tie", "label_1") == 0.5
    assert label("yes", "label_1") == 1 and label("no", "label_1") == 0


@pytest.mark.parametrize("hole", [None, "", "  ", math.nan])
def test_a_hole_stays_a_hole(hole: Any) -> None:
    assert label(hole, "label_0") is None


@pytest.mark.parametrize("value", ["maybe", "a cat", [1], b"x", 10**400])
def test_anything_else_is_told(value: Any) -> None:
    with pytest.raises(LpoError, match="label_0 is neither a number nor a word"):
        label(value, "label_0")


def test_whole_numbers_are_exact_above_two_to_the_53() -> None:
    exact = 2**53 + 1
    assert whole(str(exact), "ranking_id") == whole(exact, "ranking_id") == exact
    assert whole("7.0", "ranking_id") == whole(7.0, "ranking_id") == 7
    assert whole("", "ranking_id") is whole(math.nan, "ranking_id") is None
    for value, message in ((float(exact), "not exact"), (2**63, "64 bits"), ("1.5", "whole"), ("x", "whole"),
                           (True, "whole"), (math.inf, "whole"), ("1e300", "not exact")):  # fmt: skip
        with pytest.raises(LpoError, match=message):
            whole(value, "ranking_id")


def test_flags() -> None:
    assert [truth(value, "x") for value in (None, "", True, "Yes", 1, "0", "FALSE", "n")] == [True] * 5 + [False] * 3
    with pytest.raises(LpoError, match="neither true nor false"):
        truth("perhaps", "x")
