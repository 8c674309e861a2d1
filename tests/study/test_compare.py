from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from lpo.errors import LpoError
from lpo.study.choices import choices, sentence
from lpo.study.compare import (
    best_within,
    comparison,
    curves,
    flip_rates,
    gains,
    holm,
    interval,
    limit_of,
    nested_draws,
    wins,
)
from lpo.study.page import conclusion, render
from lpo.study.verifier_section import searches, verifier_section


def cell(arm: str, run: int, snapshots: list[tuple[float, int, float]], prompts: int = 40) -> pd.DataFrame:
    """(seconds, prompts, share of pictures better than the base) by snapshot; the rest are worse, alignment ties.

    Validation rises from snapshot to snapshot.
    """
    rows = []
    for k, (seconds, used, share) in enumerate([(0.0, 0, 0.0), *snapshots]):
        for i in range(prompts):
            better = 1.0 if i < share * prompts else -1.0
            rows.append(
                {
                    "arm": arm, "run": run, "snapshot": k - 1, "seconds": seconds, "prompts": used, "prompt": f"p{i}",
                    "seed": i, "utility": 0.0 if k == 0 else better, "aesthetic": 0.0 if k == 0 else better,
                    "alignment": 1.0, "reward_seconds": 7.0, "validation": float(k),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_holm_by_hand() -> None:
    """Sorted .01 .02 .04: times 3, 2, 1 is .03 .04 .04, and never falls."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.5]) == [1.0, 1.0] and holm([]) == []


def test_draws_of_runs_that_agree_within_are_draws_of_runs_alone() -> None:
    """Two runs, all ones and all zeros: a draw is 0, 1/2 or 1 with shares 1/4, 1/2, 1/4."""
    draws = nested_draws([np.ones(5), np.zeros(7)], resamples=4000)
    shares = [(draws == value).mean() for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_draws_of_one_run_have_the_standard_error_of_its_prompts() -> None:
    values = np.repeat([0.0, 1.0], 50)
    draws = nested_draws([values], resamples=4000)
    assert draws.std() == pytest.approx(math.sqrt(0.25 / 100), rel=0.06)
    found = interval([values], chance=0.5)
    assert found["value"] == 0.5 and found["low"] < 0.5 < found["high"] and found["p"] > 0.5
    sure = interval([np.ones(30)], chance=0.5)
    assert sure == {"value": 1.0, "low": 1.0, "high": 1.0, "p": 1 / 2000}


def test_the_base_at_its_best_guidance_is_an_opponent_of_its_own() -> None:
    frame = cell("lpo", 1, [(10, 32, 0.75)])
    best = frame[frame["snapshot"] == -1].assign(snapshot=-2, utility=2.0)
    rows = comparison(
        pd.concat([frame, best, cell("spo", 1, [(10, 32, 0.5)]), best.assign(arm="spo")]), "q", ["spo"], "prompts"
    )
    utility = {row["arm"]: row for row in rows if row["axis"] == "utility"}
    assert utility["lpo"]["value"] == 0.75 and utility["lpo"]["best_base_value"] == 0.0
    assert all(
        "best_base_value" not in row
        for row in comparison(pd.concat([frame, cell("spo", 1, [(10, 32, 0.5)])]), "q", ["spo"], "prompts")
    )


def test_wins_are_paired_with_the_base_and_ties_are_halves() -> None:
    frame = cell("lpo", 1, [(10, 32, 0.75)])
    gained = gains(frame, 0, "utility")
    assert wins(gained).mean() == 0.75 and gained.mean() == 0.5
    assert wins(gains(frame.sample(frac=1, random_state=0), 0, "alignment")).tolist() == [0.5] * 40
    broken = frame.copy()
    broken.loc[broken.index[-1], "seed"] = 999
    with pytest.raises(LpoError, match="other prompts or seeds"):
        gains(broken, 0, "utility")


def test_the_snapshot_within_the_limit_is_the_one_that_validation_likes_best() -> None:
    slow = cell("spo", 1, [(50, 32, 0.5), (95, 64, 0.6)])
    fast = cell("lpo", 1, [(20, 64, 0.7), (99, 320, 0.9)])
    both = pd.concat([slow, fast])
    assert limit_of(both, "seconds") == 99 and limit_of(both, "prompts") == 64
    assert [best_within(fast, "seconds", 99), best_within(fast, "prompts", 64)] == [1, 0]
    assert best_within(fast, "seconds", 10) is None
    gone_too_far = fast.assign(validation=-fast["validation"])
    assert best_within(gone_too_far, "seconds", 99) == 0


def test_the_table_of_a_question() -> None:
    cells = pd.concat(
        [cell("lpo", run, [(20, 64, 0.6), (99, 320, 0.9)]) for run in (1, 2)]
        + [cell("spo", run, [(50, 32, 0.5), (95, 64, 0.7)]) for run in (1, 2)]
    )
    rows = pd.DataFrame(comparison(cells, "methods", ["spo", "grpo"], "seconds"))  # of grpo there is nothing yet
    assert set(rows["arm"]) == {"lpo", "spo"} and len(rows) == 6
    by = rows.set_index(["arm", "axis"])
    assert by.loc[("lpo", "utility"), "value"] == pytest.approx(0.9)
    assert by.loc[("spo", "utility"), "value"] == pytest.approx(0.7)
    assert by.loc[("spo", "utility"), "difference_value"] == pytest.approx(-0.2)
    assert by.loc[("spo", "utility"), "difference_high"] < 0 and by.loc[("spo", "utility"), "runs"] == 2
    assert by.loc[("lpo", "alignment"), "ties"] == 1 and by.loc[("lpo", "alignment"), "value"] == 0.5
    data = pd.DataFrame(comparison(cells, "methods", ["spo"], "prompts")).set_index(["arm", "axis"])
    assert data.loc[("lpo", "utility"), "value"] == pytest.approx(0.6) and data["limit"].unique() == [64]
    assert len(curves(cells, ["lpo", "spo"])) == 8


def test_all_arms_of_a_question_are_compared_over_the_runs_that_all_have() -> None:
    """Of beta_20 the second run is not there yet, so the first alone counts: 0.6 for the reference, not 0.75."""
    lpo = [cell("lpo", run, [(9, 32, share)]) for run, share in ((1, 0.6), (2, 0.9))]
    twice = [cell("beta_100", run, [(9, 32, 0.7)]) for run in (1, 2)]
    cells = pd.concat([*lpo, *twice, cell("beta_20", 1, [(9, 32, 0.5)])])
    by = pd.DataFrame(comparison(cells, "beta", ["beta_20", "beta_100"], "prompts")).set_index(["arm", "axis"])
    assert by["runs"].unique() == [1] and by.loc[("lpo", "utility"), "value"] == pytest.approx(0.6)
    assert by.loc[("beta_100", "utility"), "difference_value"] == pytest.approx(0.1)
    assert by.loc[("beta_20", "utility"), "difference_value"] == pytest.approx(-0.1)
    assert comparison(pd.concat([*lpo, cell("beta_20", 3, [(9, 32, 0.5)])]), "beta", ["beta_20"], "prompts") == []


def test_flips_leave_ties_out_and_know_what_mpcf_keeps() -> None:
    flips = pd.DataFrame(
        [("a", True, False, True), ("b", False, False, True), ("c", True, True, True), ("d", True, False, False)],
        columns=["caption", "flip", "tie", "consistent"],
    ).assign(axis="utility", t=500)
    found = {row["pairs"]: row for row in flip_rates(flips)}
    assert found["all"]["value"] == pytest.approx(2 / 3) and found["all"]["count"] == 3
    assert found["kept"]["value"] == 0.5 and found["dropped"]["value"] == 1


def test_the_page_says_what_came_out_and_escapes_what_it_is_given() -> None:
    cells = pd.concat(
        [cell("lpo", 1, [(99, 320, 0.9)]), cell("spo", 1, [(95, 64, 0.5)]), cell("diffusion_dpo", 1, [(95, 900, 0.9)])]
    )
    arms = ["spo", "diffusion_dpo"]
    rows = pd.DataFrame(comparison(cells, "methods", arms, "seconds") + comparison(cells, "methods", arms, "prompts"))
    said = conclusion(rows)
    assert said.startswith("After 99 s lpo wins 90.0%") and "Its mean gain is +0.800" in said
    assert "1 of 2 arms have less: spo (50.0%); 0 of 2 arms have more." in said
    assert "1 of 2 arms have less: spo (+0.000); 0 of 2 arms have more." in said
    html = render(
        rows, curves(cells, ["lpo", *arms]), [], [], {"methods": "<b>Methods</b>"},
        {"columns": ["PickScore"], "lpo": [21.69]}, ["abc"], ["tuning"], [], [],
    )  # fmt: skip
    assert "&lt;b&gt;Methods" in html and "<b>Methods" not in html and "21.69" in html
    assert "data and reward are the same in all runs" in html
    assert "does not exist: differences between seeds" in html and "Not measured" in html
    assert html == render(
        rows, curves(cells, ["lpo", *arms]), [], [], {"methods": "<b>Methods</b>"},
        {"columns": ["PickScore"], "lpo": [21.69]}, ["abc"], ["tuning"], [], [],
    )  # fmt: skip


def test_an_arm_that_answers_an_open_question_is_quoted() -> None:
    cells = pd.concat([cell("lpo", 1, [(9, 32, 0.9)]), cell("current_timestep", 1, [(9, 32, 0.4)])])
    rows = pd.DataFrame(comparison(cells, "timestep", ["current_timestep"], "prompts"))
    html = render(rows, [], [], [], {}, {}, ["abc"], ["pipeline"], [], [])
    assert "utility: current_timestep less the reference \N{MINUS SIGN}50.0" in html


def test_without_a_clock_the_page_says_which_changes_matter_at_equal_data() -> None:
    """Gains of .9, .4 and .9 of +1 and the rest of -1: the second is 1 below the others."""
    arms = {"lpo": 0.9, "beta_20": 0.4, "beta_100": 0.9}
    cells = pd.concat([cell(arm, 1, [(9, 32, share)]) for arm, share in arms.items()])
    said = conclusion(pd.DataFrame(comparison(cells, "beta", ["beta_20", "beta_100"], "prompts")))
    assert said.startswith("After 32 prompts lpo wins 90.0%") and "Its mean gain is +0.800" in said
    assert "1 of 2 arms have less: beta 20 (40.0%)" in said
    assert "1 of 2 arms have less: beta 20 (\N{MINUS SIGN}0.200)" in said
    alone = pd.DataFrame(comparison(cells[cells["arm"] == "lpo"], "beta", ["beta_20"], "prompts"))
    assert conclusion(alone) == "Nothing was compared with lpo yet."


def verified(search: str, right: list[bool], utility: list[float]) -> pd.DataFrame:
    """Two prompts about one object, two about a relation."""
    categories = ["single", "single", "relation", "relation"]
    return pd.DataFrame(
        {
            "search": search, "prompt": list("abcd"), "seed": range(4), "category": categories, "all_correct": right,
            "utility": utility, "denoiser": 40, "reward": 3, "seconds": 0.5,
        }
    )  # fmt: skip


def test_searches_are_compared_with_the_plain_pictures_of_the_same_prompts() -> None:
    plain = verified("plain", [True, True, False, False], [1.0, 1.0, 0.0, 0.0])
    best = verified("best <of> 4", [True, False, True, True], [1.0, 0.0, 0.5, 1.0])
    first, second = searches(pd.concat([plain, best[::-1]]))
    assert first["change"]["value"] == 0 and first["win_rate"]["value"] == 0.5 and first["win_rate"]["ties"] == 1
    assert second["all_correct"]["value"] == 0.75 and second["change"]["value"] == 0.25
    assert second["relations"]["value"] == 1 and second["relations"]["prompts"] == 2
    assert second["win_rate"]["value"] == (0.5 + 0 + 1 + 1) / 4 and second["gain"]["value"] == 0.125
    html = verifier_section([first, second])
    assert "best &lt;of&gt; 4" in html and "+25.0 (" in html and "+0.125 (" in html
    assert "Not measured" in verifier_section([])


def test_what_validation_chose_is_held_against_what_the_judge_would_choose() -> None:
    """Validation rises throughout. The judge's gains are .5 then .9 in one training, .75 then .5 in the other."""
    gained = ((1, (0.75, 0.95)), (2, (0.875, 0.75)))  # shares of images that are better by 1; the rest is worse by 1
    cells = pd.concat([cell("lpo", run, [(9, 32, first), (18, 64, last)]) for run, (first, last) in gained])
    first, second = choices(pd.concat([cells, cell("spo", 1, [(9, 32, 0.5)])]), ["lpo", "spo"])
    assert (first["chosen"], first["best"], first["regret"]) == (1, 1, 0.0)
    assert (second["chosen"], second["best"]) == (1, 0)
    assert second["regret"] == pytest.approx(0.25)
    assert second["error"] == pytest.approx(math.sqrt((0.125 * 2**2 - 0.25**2) * 40 / 39 / 40))
    said = sentence([first, second])
    assert "in 1 of 2 trainings" in said and "+0.125" in said and "(lpo, seed 2)" in said
