import json

import numpy as np
import pandas as pd
import pytest

from lpo.errors import LpoError
from lpo.evaluate.metrics import evaluate_results, paired, win_rate_rows

EMOJI = ["emoji"]


def results() -> pd.DataFrame:
    """Four prompts of two categories, one seed; the tuned model is better in utility on three of four."""
    # prompt, category, then (all_correct, alignment, aesthetic, utility) of base, base_matched, tuned
    world = [
        ("a cat", "single", (0, 0.5, 4.0, -1.0), (1, 1.0, 5.0, 0.0), (1, 1.0, 6.0, 1.0)),
        ("a dog", "single", (0, 0.5, 4.0, -1.0), (0, 0.5, 5.0, 0.0), (1, 1.0, 5.0, 0.5)),
        ("two cats", "count", (0, 0.5, 4.0, -1.0), (1, 1.0, 5.0, 0.0), (0, 0.5, 4.0, -0.5)),
        ("two dogs", "count", (0, 0.5, 4.0, -1.0), (0, 0.5, 5.0, 0.0), (0, 0.5, 7.0, 2.0)),
    ]
    rows = []
    for prompt, category, *sides in world:
        for model, (right, alignment, aesthetic, utility) in zip(("base", "base_matched", "tuned"), sides, strict=True):
            rows.append(
                {"prompt": prompt, "category": category, "seed": 1, "model": model, "png": b"",
                 "all_correct": bool(right), "alignment": alignment, "aesthetic": aesthetic, "utility": utility,
                 "clip": utility + 0.25, "vqa": 0.5, "aesthetic_score": -utility, "lrm": 3 * utility}
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_win_rates_by_hand():
    found = evaluate_results(results(), EMOJI)["win_rate"]
    assert found["overall"]["value"] == 3 / 4  # a cat, a dog, two dogs
    assert found["alignment"]["value"] == (0.5 + 1 + 0 + 0.5) / 4
    assert found["alignment"]["ties"] == 2 / 4
    assert found["aesthetics"]["value"] == (1 + 0.5 + 0 + 1) / 4
    assert found["overall"]["prompts"] == 4


def test_headline_is_against_the_matched_base_and_the_other_rate_against_the_usual_one():
    frame = results()
    frame.loc[frame["model"] == "base", "utility"] = 100.0
    found = evaluate_results(frame, EMOJI)
    assert found["win_rate"]["overall"]["value"] == 3 / 4
    assert found["win_rate_default_cfg"]["overall"]["value"] == 0.0


def test_all_correct_by_hand():
    found = evaluate_results(results(), EMOJI)["all_correct"]
    assert (found["base"], found["tuned"], found["difference"]) == (0.5, 0.5, 0.0)
    assert found["low"] < 0 < found["high"]
    assert (found["only_tuned"], found["only_base"]) == (1, 1)  # a dog; two cats
    more = results()
    more.loc[(more["model"] == "base_matched") & (more["prompt"] == "a cat"), "all_correct"] = False
    found_more = evaluate_results(more, EMOJI)["all_correct"]
    assert (found_more["only_tuned"], found_more["only_base"]) == (2, 1)
    assert found["by_category"]["single"]["difference"] == 0.5
    assert found["by_category"]["count"]["difference"] == -0.5


def test_by_category_by_hand():
    found = evaluate_results(results(), EMOJI)["by_category"]
    assert found["single"]["overall"]["value"] == 1.0
    assert found["count"]["overall"]["value"] == 0.5
    assert found["count"]["overall"]["prompts"] == 2


def test_scorers_read_their_own_columns():
    found = evaluate_results(results(), EMOJI)
    assert found["scorers"]["clip"]["base"] == 0.25
    assert found["scorers"]["clip"]["difference"] == 0.75  # the mean of 1, .5, -.5 and 2
    assert found["scorers"]["vqa"]["win_rate"]["ties"] == 1.0
    assert found["scorers"]["aesthetic"]["difference"] == -0.75
    assert found["reward"]["difference"] == 2.25
    assert found["means"]["aesthetics"]["difference"] == 0.5


def test_order_of_rows_does_not_matter_and_the_result_is_json():
    frame = results()
    shuffled = frame.sample(frac=1, random_state=0)
    assert json.dumps(evaluate_results(frame, EMOJI)) == json.dumps(evaluate_results(shuffled, EMOJI))


def test_images_of_one_prompt_stay_together():
    frame = results()
    twice = pd.concat([frame, frame.assign(seed=2)])
    one, two = evaluate_results(frame, EMOJI), evaluate_results(twice, EMOJI)
    assert two["images"] == 2 * one["images"] == 8
    assert two["win_rate"] == one["win_rate"]


def test_pairs_join_on_prompt_and_seed():
    frame = results().sample(frac=1, random_state=1)
    pairs = paired(frame, "tuned", "base_matched").set_index("prompt")
    assert pairs.loc["two dogs", "aesthetic_tuned"] == 7.0
    assert pairs.loc["two dogs", "aesthetic_base"] == 5.0


def test_an_image_without_partner_is_named():
    with pytest.raises(LpoError, match=r"1 images of 'tuned' and 'base_matched' have no partner.*two dogs"):
        evaluate_results(results().iloc[:-1], EMOJI)


def test_an_image_that_appears_twice_is_refused():
    frame = results()
    with pytest.raises(LpoError, match="1 images appear twice: model 'tuned'"):
        evaluate_results(pd.concat([frame, frame.iloc[-1:]]), EMOJI)


def test_a_score_that_is_not_finite_is_refused():
    frame = results()
    frame.loc[2, "clip"] = np.nan
    with pytest.raises(LpoError, match="not finite"):
        evaluate_results(frame, EMOJI)


def judged() -> pd.DataFrame:
    """Two tasks with unlike numbers of prompts; a picture's verdicts of base and tuned model by hand."""
    world = [
        # prompt, task, (pickscore, geneval) of base and tuned
        ("a cat", "single", (20.0, 0), (21.0, 1)),
        ("a dog", "single", (20.0, 1), (21.0, 1)),
        ("a car", "single", (20.0, 0), (19.0, 0)),
        ("two cats", "count", (20.0, 0), (22.0, 1)),
    ]
    rows = []
    for prompt, category, *sides in world:
        for model, (score, right) in zip(("base", "base_matched", "tuned"), (sides[0], *sides), strict=True):
            rows.append({"prompt": prompt, "category": category, "seed": 1, "model": model, "png": b"",
                         "pickscore": score, "geneval": float(right), "lrm": -score})  # fmt: skip
    return pd.DataFrame(rows)


def test_judges_by_hand():
    found = evaluate_results(judged(), ["pickscore", "geneval"])
    row = found["judges"]["pickscore"]
    assert (row["base"], row["tuned"], row["difference"]) == (20.0, 20.75, 0.75)
    assert row["win_rate"]["value"] == found["win_rate"]["overall"]["value"] == 3 / 4
    assert row["low"] < 0.75 < row["high"] and found["judge"] == "pickscore"
    assert found["by_category"]["count"]["overall"]["value"] == 1.0
    assert found["reward"]["difference"] == -0.75
    assert "geneval" not in evaluate_results(judged(), ["pickscore"])
    json.dumps(found)


def test_geneval_is_the_mean_of_its_tasks_not_of_its_pictures():
    overall = evaluate_results(judged(), ["geneval"])["geneval"]["overall"]
    assert overall["base"] == pytest.approx((1 / 3 + 0) / 2, abs=1e-5)
    assert overall["tuned"] == pytest.approx((2 / 3 + 1) / 2, abs=1e-5)
    assert overall["difference"] == pytest.approx((1 / 3 + 1) / 2, abs=1e-5)
    assert overall["low"] <= overall["difference"] <= overall["high"] and overall["prompts"] == 4


def both() -> pd.DataFrame:
    """The emoji world's columns, and PickScore, which prefers the base everywhere."""
    frame = results()
    return frame.assign(pickscore=np.where(frame["model"] == "tuned", 19.0, 20.0))


def test_emoji_beside_another_judge_is_the_headline_and_keeps_its_figures():
    alone = evaluate_results(results(), EMOJI)
    for judges in (["emoji", "pickscore"], ["pickscore", "emoji"]):
        found = evaluate_results(both(), judges)
        assert "judge" not in found and found["judges"]["pickscore"]["win_rate"]["value"] == 0.0
        assert {key: value for key, value in found.items() if key != "judges"} == alone
    rows = {row["axis"]: row["value"] for row in win_rate_rows(found)}
    assert rows == {"overall": 0.75, "alignment": 0.5, "aesthetics": 0.625, "pickscore": 0.0}


def test_win_rates_that_are_plotted_are_those_of_the_judges():
    found = evaluate_results(judged(), ["pickscore", "geneval"])
    assert {row["axis"]: row["value"] for row in win_rate_rows(found)} == {"pickscore": 0.75, "geneval": 0.75}


def test_every_judge_is_compared_with_the_promoted_model():
    """The promoted model scores 1 more than the base in PickScore and is never right: by hand from `judged`."""
    frame = judged()
    promoted = frame[frame["model"] == "base"].assign(model="promoted", geneval=0.0)
    promoted["pickscore"] += 1
    found = evaluate_results(pd.concat([frame, promoted]), ["pickscore", "geneval"])["promoted"]
    assert set(found) == {"win_rate", "judges", "geneval", "reward"}
    row = found["judges"]["pickscore"]
    assert (row["promoted"], row["tuned"], row["difference"]) == (21.0, 20.75, -0.25) and "base" not in row
    assert found["win_rate"]["overall"]["value"] == (0.5 + 0.5 + 0 + 1) / 4
    assert found["geneval"]["overall"]["promoted"] == 0.0
    assert found["geneval"]["overall"]["difference"] == pytest.approx((2 / 3 + 1) / 2, abs=1e-5)
