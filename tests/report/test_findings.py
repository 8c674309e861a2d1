"""The headline and the list below it say what improved, what did not, and what got worse."""

from __future__ import annotations

from typing import Any

import pytest

from lpo.report.findings import BETTER, UNCLEAR, WORSE, findings, headline, shown


def rate(low: float, high: float) -> dict[str, Any]:
    return {"value": (low + high) / 2, "low": low, "high": high, "prompts": 400}


UP, SAME, DOWN = rate(0.55, 0.65), rate(0.45, 0.55), rate(0.3, 0.45)


def test_the_verdict_follows_the_interval() -> None:
    up, same, down = (headline({"win_rate": {"overall": row}}) for row in (UP, SAME, DOWN))
    assert up == "The tuned model beats its base on 60.0% of 400 held-out prompts (95% interval 55.0% to 65.0%)."
    assert same.startswith("No difference is shown") and down.startswith("The tuned model is worse")
    assert headline(None) == headline({}) == "There is no result yet: metrics/evaluate.json has no overall win rate."


@pytest.mark.parametrize(("low", "high", "verdict"), [(0.5, 0.6, UNCLEAR), (0.4, 0.5, UNCLEAR), (0.501, 0.6, BETTER)])
def test_an_interval_that_touches_one_half_shows_nothing(low: float, high: float, verdict: str) -> None:
    (found,) = findings({"win_rate": {"overall": rate(low, high)}})
    assert found.verdict == verdict


def test_the_headline_names_what_did_not_improve() -> None:
    change = {"base": 0.7, "tuned": 0.7, "difference": 0.0, "low": -0.01, "high": 0.01}
    evaluate = {
        "win_rate": {"overall": UP, "alignment": SAME, "aesthetics": UP},
        "win_rate_default_cfg": {"overall": UP, "alignment": DOWN, "aesthetics": SAME},
        "all_correct": change,
        "scorers": {"clip": {"win_rate": DOWN}, "vqa": {"win_rate": SAME}},
    }
    said = headline(evaluate)
    assert "No clear change in alignment with the prompt or all-correct rate." in said
    assert "Worse: alignment with the prompt, against the base at its usual guidance scale; clip scorer." in said
    better, unclear, worse = shown(evaluate).split("<li>")[1:]
    assert "overall (win rate 60.0%, 55.0% to 65.0%); aesthetics" in better and "clip" not in better
    assert "all-correct rate (+0.0 points, −1.0 to +1.0)" in unclear and "vqa scorer" in unclear
    assert "clip scorer (win rate 37.5%, 30.0% to 45.0%)" in worse
    assert {item.verdict for item in findings(evaluate)} == {BETTER, UNCLEAR, WORSE}


def test_judges_and_the_promoted_model_are_compared_and_escaped() -> None:
    evaluate = {
        "win_rate": {"overall": UP}, "judge": "pickscore",
        "judges": {"pickscore": {"win_rate": UP}, "hps_v2": {"win_rate": DOWN}},
        "promoted": {"name": "<b>1</b>", "win_rate": {"overall": DOWN}},
    }  # fmt: skip
    assert "held-out prompts by PickScore (95%" in headline(evaluate) and "Worse: HPSv2; overall" in headline(evaluate)
    assert "&lt;b&gt;1&lt;/b&gt;" in shown(evaluate) and "<b>1</b>" not in shown(evaluate)
    assert [item.name for item in findings(evaluate)][:2] == ["overall", "HPSv2"]  # the headline's judge once
    promoted_itself = evaluate | {"promoted": {"name": "x"}}
    assert len(findings(promoted_itself)) == len(findings(evaluate)) - 1


def test_the_same_guidance_scale_is_compared_once() -> None:
    both = {"win_rate": {"overall": UP}, "win_rate_default_cfg": {"overall": UP}}
    assert len(findings(both)) == 1


def test_what_is_empty_says_none() -> None:
    assert shown({"win_rate": {"overall": UP}}).count("none</li>") == 2
    assert shown(None) == ""
