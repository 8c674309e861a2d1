"""What the report and the summary say about the promoted model."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lpo.evaluate.metrics import evaluate_results
from lpo.report.judge_section import promoted
from lpo.report.sections import wins

NAME = "lpo-<b>1</b>"


def results() -> pd.DataFrame:
    """The tuned model beats the base on 12 of 16 prompts and the promoted model on 4 of 16; every other ties."""
    rows = []
    for i in range(16):
        for model in ("base", "base_matched", "tuned", "promoted"):
            value = {"tuned": 1.0, "promoted": 0.0 if i < 4 else 1.0}.get(model, 0.0 if i < 12 else 1.0)
            judged = dict.fromkeys(
                ("alignment", "aesthetic", "utility", "clip", "vqa", "aesthetic_score", "lrm"), value
            )
            rows.append(
                {"prompt": f"{i}", "category": "x", "seed": i, "model": model, "png": b"", "all_correct": True} | judged
            )
    return pd.DataFrame(rows)


def figures() -> dict[str, Any]:
    found = evaluate_results(results(), ["emoji"], resamples=50)
    return found | {"promoted": {"name": NAME} | found["promoted"]}


def test_the_figures_against_both_opponents() -> None:
    found = figures()
    assert found["win_rate"]["overall"]["value"] == 0.875  # 12 wins and 4 ties
    assert found["promoted"]["win_rate"]["overall"]["value"] == 0.625  # 4 wins and 12 ties
    change = found["promoted"]["means"]["alignment"]
    assert (change["promoted"], change["tuned"], change["difference"]) == (0.75, 1.0, 0.25)
    assert found["promoted"]["scorers"]["vqa"]["win_rate"]["value"] == 0.625
    assert found["promoted"]["reward"]["difference"] == 0.25


def test_without_a_promoted_model_the_figures_are_the_same_but_for_it() -> None:
    frame = results()
    alone = evaluate_results(frame[frame["model"] != "promoted"], ["emoji"], resamples=50)
    both = evaluate_results(frame, ["emoji"], resamples=50)
    assert {key: value for key, value in both.items() if key != "promoted"} == alone


def test_the_report_shows_them_and_escapes_the_name() -> None:
    page = wins(figures())
    assert "Against the promoted model lpo-&lt;b&gt;1&lt;/b&gt;" in page and "<b>1</b>" not in page
    assert "<td>62.5%</td>" in page and "+0.250" in page


def test_the_promoted_model_itself_is_named_and_not_compared() -> None:
    (title, said) = promoted({"promoted": {"name": "lpo-1"}})
    assert "lpo-1" in title and "is the promoted one" in said
    assert promoted({"win_rate": {}}) == []
