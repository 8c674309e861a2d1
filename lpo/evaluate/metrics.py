"""data/evaluation/results.parquet -> the dict of metrics/evaluate.json.

    win_rate              tuned against the base at the tuned model's guidance scale (base_matched): the headline,
                          because more guidance alone already buys looks
    win_rate_default_cfg  tuned against the base at its own guidance scale
    by_category.NAME      win_rate of the prompts of one category
    all_correct           share of images in which every question of the prompt is answered right
    means, scorers        means of the judge's axes; the same with win rates for the scorers (of MPCF and validation)
    reward                the same for the latent reward model itself: what was climbed, not evidence
    promoted              only where the frame has a promoted model: win_rate, all_correct, means, scorers and reward
                          of the tuned model against it, at the same guidance scale

A win rate is {overall, alignment, aesthetics}, each {value, low, high, ties, prompts}; a change is {base, tuned,
difference, low, high, prompts} with base_matched as base and the interval of the difference; against the promoted
model its mean is `promoted`, not base. Images are paired by prompt and seed.
Shapes: frame (N, columns of the contract: prompt, category, seed, model, all_correct, alignment, aesthetic, utility,
clip, vqa, aesthetic_score, lrm); for every prompt and seed one row of each model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from lpo.errors import LpoError
from lpo.statistics import RESAMPLES, Figures, mean_difference, mean_of_strata, win_rate

AXES = {"overall": "utility", "alignment": "alignment", "aesthetics": "aesthetic"}
SCORERS = {"clip": "clip", "vqa": "vqa", "aesthetic": "aesthetic_score"}
WHERE = "data/evaluation/results.parquet"
DIGITS = 5  # of what is written: enough for any interval, and a diff stays readable


def paired(frame: pd.DataFrame, tuned: str, base: str) -> pd.DataFrame:
    """One row a prompt and seed: prompt, seed, category, and every other column twice (X_tuned, X_base).

    Raises LpoError if an image has no partner or appears twice.
    """
    keys = ["prompt", "seed"]
    sides = {}
    for side, model in (("tuned", tuned), ("base", base)):
        rows = frame[frame["model"] == model].drop(columns="model")
        twice = rows[rows.duplicated(keys)]
        if len(rows) == 0 or len(twice):
            what = f"{len(twice)} images appear twice" if len(rows) else "no images"
            raise LpoError(f"{what}: model '{model}'", WHERE, "run the stage evaluate again")
        sides[side] = rows.set_index(keys).sort_index()
    alone = sides["tuned"].index.symmetric_difference(sides["base"].index)
    if len(alone):
        raise LpoError(
            f"{len(alone)} images of '{tuned}' and '{base}' have no partner, the first: {list(alone[:3])}",
            WHERE,
            "both models must draw the same prompts with the same seeds",
        )
    others = sides["base"].drop(columns="category").add_suffix("_base")
    mine = sides["tuned"].rename(columns={name: f"{name}_tuned" for name in sides["tuned"] if name != "category"})
    return mine.join(others).reset_index()


def evaluate_results(frame: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> Figures:
    """The whole of metrics/evaluate.json (schema: see the top of this file). Raises LpoError as paired does."""
    matched = paired(frame, "tuned", "base_matched")
    default = paired(frame, "tuned", "base")
    by_category = {str(name): rows for name, rows in matched.groupby("category")}

    def rates(pairs: pd.DataFrame) -> Figures:
        return {axis: _win_rate(pairs, column, resamples, seed) for axis, column in AXES.items()}

    def change(pairs: pd.DataFrame, column: str, opponent: str) -> Figures:
        return _change(pairs, column, resamples, seed, opponent)

    def comparison(pairs: pd.DataFrame, opponent: str) -> Figures:
        def change_and_rate(column: str) -> Figures:
            return change(pairs, column, opponent) | {"win_rate": _win_rate(pairs, column, resamples, seed)}

        return {
            "win_rate": rates(pairs),
            "all_correct": change(pairs, "all_correct", opponent),
            "means": {axis: change(pairs, column, opponent) for axis, column in AXES.items()},
            "scorers": {name: change_and_rate(column) for name, column in SCORERS.items()},
            "reward": change_and_rate("lrm"),
        }

    result = {
        "prompts": int(matched["prompt"].nunique()),
        "images": len(matched),
        "win_rate_default_cfg": rates(default),
        "by_category": {name: rates(rows) for name, rows in by_category.items()},
        **comparison(matched, "base"),
    }
    result["all_correct"]["by_category"] = {
        name: change(rows, "all_correct", "base") for name, rows in by_category.items()
    }
    if (frame["model"] == "promoted").any():
        result["promoted"] = comparison(paired(frame, "tuned", "promoted"), "promoted")
    return {name: _rounded(figures) for name, figures in result.items()}


def judged_results(
    frame: pd.DataFrame, judges: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> Figures:
    """metrics/evaluate.json where judges of real pictures decide.

    frame: prompt, category, seed, model, and a column a judge.

        judge, win_rate, win_rate_default_cfg, by_category   the first judge: the headline
        judges.NAME       change and win rate of each judge against the base at the same guidance scale
        geneval           {overall, by_task}: changes of the share of right pictures; overall is the mean over tasks
        reward            change and win rate of the latent reward model itself, where it scored them

    Raises LpoError as paired does.
    """
    matched, default = paired(frame, "tuned", "base_matched"), paired(frame, "tuned", "base")
    by_category = {str(name): rows for name, rows in matched.groupby("category")}

    def change_and_rate(column: str) -> Figures:
        change = _change(matched, column, resamples, seed, "base")
        return change | {"win_rate": _win_rate(matched, column, resamples, seed)}

    result: Figures = {
        "prompts": int(matched["prompt"].nunique()),
        "images": len(matched),
        "judge": judges[0],
        "win_rate": {"overall": _win_rate(matched, judges[0], resamples, seed)},
        "win_rate_default_cfg": {"overall": _win_rate(default, judges[0], resamples, seed)},
        "by_category": {name: {"overall": _win_rate(rows, judges[0], resamples, seed)}
                        for name, rows in by_category.items()},
        "judges": {name: change_and_rate(name) for name in judges},
    }  # fmt: skip
    if "lrm" in frame:
        result["reward"] = change_and_rate("lrm")
    if "geneval" in judges:
        tuned, base = (matched[f"geneval_{side}"] for side in ("tuned", "base"))
        overall = mean_of_strata(tuned - base, matched["prompt"].to_numpy(), matched["category"], resamples, seed)
        overall["difference"] = overall.pop("value")
        for side in ("base", "tuned"):
            overall[side] = float(matched.groupby("category")[f"geneval_{side}"].mean().mean())
        by_task = {name: _change(rows, "geneval", resamples, seed, "base") for name, rows in by_category.items()}
        result["geneval"] = {"overall": overall, "by_task": by_task}
    return {name: _rounded(figures) for name, figures in result.items()}


def _win_rate(pairs: pd.DataFrame, column: str, resamples: int, seed: int) -> Figures:
    return win_rate(pairs[f"{column}_tuned"], pairs[f"{column}_base"], pairs["prompt"].to_numpy(), resamples, seed)


def _change(pairs: pd.DataFrame, column: str, resamples: int, seed: int, opponent: str) -> Figures:
    tuned, base = pairs[f"{column}_tuned"].astype(float), pairs[f"{column}_base"].astype(float)
    found = mean_difference(tuned, base, pairs["prompt"].to_numpy(), resamples, seed)
    found["difference"] = found.pop("value")
    return found | {opponent: float(base.mean()), "tuned": float(tuned.mean())}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, DIGITS) if isinstance(value, float) else value
