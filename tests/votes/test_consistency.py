"""Who is believed, and how far people agree."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.ballot_box import RULES, fill

from lpo.votes.consistency import MIN_CHECKS, agreement, judged, krippendorff_alpha, voters_frame
from lpo.votes.questions import answer, ask
from lpo.votes.store import Store


def test_alpha_of_the_published_example() -> None:
    """Krippendorff 2011, section D: four observers, twelve units, missing values; interval distances give 0.849."""
    rows = """
        1 2 3 3 2 1 4 1 2 . . .
        1 2 3 3 2 2 4 1 2 5 . 3
        . 3 3 3 2 3 4 2 2 5 1 .
        1 2 3 3 2 4 4 1 2 5 1 .
    """
    table = np.array([[np.nan if cell == "." else float(cell) for cell in row.split()] for row in rows.split("\n")
                      if row.strip()])  # fmt: skip
    units = [column[~np.isnan(column)] for column in table.T]
    assert krippendorff_alpha(units) == pytest.approx(0.849, abs=0.0005)
    assert math.isnan(krippendorff_alpha([np.array([1.0]), np.array([0.0])]))
    assert krippendorff_alpha([np.array([1.0, 1.0]), np.array([0.0, 0.0])]) == 1


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three voters: careful always prefers the lower SHA-256, and tuned pictures in obvious pairs; left always the left
    one; few is as bad and has hardly voted."""
    store = Store(tmp_path / "votes.sqlite")
    fill(store, 60, obvious=20)
    rules = replace(RULES, check_share=0.4, votes_per_set=3)
    with store.reading() as db:
        best = {name for (name,) in db.execute("SELECT best FROM sets WHERE best IS NOT NULL")}
    for voter, votes in (("careful", 60), ("left", 60), ("few", 8)):
        for _ in range(votes):
            question, _ = ask(store, voter, rules)
            assert question is not None
            right = next((name for name in question.shown if name in best), min(question.shown))
            careful = [float(name != right) for name in question.shown]
            answer(store, voter, question.question_id, careful if voter == "careful" else [0, 1], 1.0)
    return store


def test_who_answers_checks_at_random_is_kept_and_not_used(store: Store) -> None:
    voters = voters_frame(store.path)
    assert voters.loc["careful", "consistency"] == 1 and voters.loc["careful", "checks"] >= 15
    assert voters.loc["left", "consistency"] < 0.6  # turned pictures: never the same answer; obvious ones: half of them
    assert voters.loc["few", "checks"] < MIN_CHECKS
    frame = judged(store.path, 0.65)
    assert len(frame) == 128  # nothing is gone
    used = frame[frame["reason"] == ""]
    assert set(used["voter"]) == {"careful", "few"} and set(used["kind"]) == {"regular"}
    reasons = frame.loc[(frame["voter"] == "left") & (frame["kind"] == "regular"), "reason"].unique()
    assert len(reasons) == 1 and "consistency" in reasons[0] and "below 0.65" in reasons[0]


def test_agreement_counts_used_votes_of_the_same_pictures() -> None:
    rows = [("p", "u", 1.0, ""), ("p", "v", 1.0, ""), ("q", "u", 0.0, ""), ("q", "v", 0.0, ""), ("r", "u", 1.0, ""),
            ("p", "w", 0.0, "it is a check"), ("q", "w", 1.0, "it is a check")]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["prompt", "voter", "share_a", "reason"]).assign(image_a="a", image_b="b")
    assert agreement(frame) == 1
    assert agreement(frame.assign(reason="")) < 0.2
    assert math.isnan(agreement(frame.head(0)))
