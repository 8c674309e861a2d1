"""data/evaluation/results.parquet -> metrics/evaluate.json: one schema, whose keys depend on the judges.

Always there:

    prompts, images       that each model drew
    win_rate              tuned against the base at the same guidance scale (base_matched): the headline, because more
                          guidance alone already improves looks. Its judge is emoji where emoji is among the judges,
                          else the first one
    win_rate_default_cfg  tuned against the base at its own guidance scale, by the same judge
    by_category.NAME      win_rate of the prompts of one category

Only with the emoji oracle (win rates are then overall, alignment and aesthetics; otherwise overall alone):

    all_correct           share of images in which every question of the prompt is answered correctly; and by_category,
                          and only_tuned, only_base: on how many images one model alone is right
    means                 means of overall (utility), alignment and aesthetics
    scorers.NAME          mean and win rate of each scorer of MPCF, which also chose the checkpoint

Only with other judges:

    judge                 the headline's judge; absent where that is emoji
    judges.NAME           mean and win rate of each judge; of vlm also without_score: pairs of images that it left out,
                          since an answer held no score
    geneval               {overall, by_task}: share of correct images; overall is the mean of the tasks

Optional:

    reward                mean and win rate of the latent reward model. Training optimised it, so it is no evidence
    promoted              with a promoted model: its name, and unless it is the tuned model, the figures of the tuned
                          model against it at the same guidance scale: win_rate, all_correct, means, scorers, judges,
                          geneval, reward
    prompts_left_out      with a prompt file: how many of its prompts were not used

A win rate is {value, low, high, ties, prompts}. A mean is {base, tuned, difference, low, high, prompts}, where base is
base_matched and low to high is the 95 % interval of the difference; against the promoted model it has `promoted` in the
place of base. Images are paired by prompt and seed.

Shapes: results (N, columns prompt, category, seed, model, png, and those of lpo/evaluate/judges.py), one row for each
model, prompt and seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lpo.errors import LpoError
from lpo.statistics import RESAMPLES, Figures, mean_difference, mean_of_strata, win_rate

AXES = {"overall": "utility", "alignment": "alignment", "aesthetics": "aesthetic"}
SCORERS = {"clip": "clip", "vqa": "vqa", "aesthetic": "aesthetic_score"}
EMOJI, VLM = "emoji", "vlm"
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


def evaluate_results(frame: pd.DataFrame, judges: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> Figures:
    """metrics/evaluate.json (schema: see the top of this file), without the name of the promoted model.

    Args:
        frame: results.parquet.
        judges: as `evaluate.judges` names them.

    Raises:
        LpoError: if the images of two models do not pair up, or a score is not finite.
    """
    compare = Comparison(judges, resamples, seed)
    matched, default = paired(frame, "tuned", "base_matched"), paired(frame, "tuned", "base")
    by_category = {
        str(name): rows for name, rows in matched.groupby("category")
        if compare.headline != VLM or len(scored(rows, VLM))
    }  # fmt: skip
    result = {
        "prompts": int(matched["prompt"].nunique()),
        "images": len(matched),
        **({} if compare.headline == EMOJI else {"judge": compare.headline}),
        "win_rate_default_cfg": compare.win_rates(default),
        "by_category": {name: compare.win_rates(rows) for name, rows in by_category.items()},
        **compare(matched, "base"),
    }
    if EMOJI in judges:
        changes = {name: compare.change(rows, "all_correct", "base") for name, rows in by_category.items()}
        result["all_correct"]["by_category"] = changes
    if (frame["model"] == "promoted").any():
        result["promoted"] = compare(paired(frame, "tuned", "promoted"), "promoted")
    return {name: _rounded(figures) for name, figures in result.items()}


@dataclass(frozen=True)
class Comparison:
    """The figures of the tuned model against one opponent; `pairs` is a frame of `paired`."""

    judges: Sequence[str]
    resamples: int
    seed: int

    @property
    def headline(self) -> str:
        return EMOJI if EMOJI in self.judges else self.judges[0]

    def __call__(self, pairs: pd.DataFrame, opponent: str) -> Figures:
        found: Figures = {"win_rate": self.win_rates(pairs)}
        if EMOJI in self.judges:
            right, other = (pairs[f"all_correct_{side}"].astype(bool) for side in ("tuned", "base"))
            only = {"only_tuned": int((right & ~other).sum()), f"only_{opponent}": int((other & ~right).sum())}
            found["all_correct"] = self.change(pairs, "all_correct", opponent) | only
            found["means"] = {axis: self.change(pairs, column, opponent) for axis, column in AXES.items()}
            found["scorers"] = {name: self.change_and_rate(pairs, column, opponent) for name, column in SCORERS.items()}
        if others := [name for name in self.judges if name != EMOJI]:
            found["judges"] = {name: self.change_and_rate(pairs, name, opponent) for name in others}
        if "geneval" in self.judges:
            found["geneval"] = self.geneval(pairs, opponent)
        if "lrm_tuned" in pairs:
            found["reward"] = self.change_and_rate(pairs, "lrm", opponent)
        return found

    def win_rates(self, pairs: pd.DataFrame) -> Figures:
        columns = AXES if self.headline == EMOJI else {"overall": self.headline}
        return {axis: self.win_rate(pairs, column) for axis, column in columns.items()}

    def win_rate(self, pairs: pd.DataFrame, column: str) -> Figures:
        pairs = scored(pairs, column)
        prompts = pairs["prompt"].to_numpy()
        return win_rate(pairs[f"{column}_tuned"], pairs[f"{column}_base"], prompts, self.resamples, self.seed)

    def change(self, pairs: pd.DataFrame, column: str, opponent: str) -> Figures:
        pairs = scored(pairs, column)
        tuned, base = pairs[f"{column}_tuned"].astype(float), pairs[f"{column}_base"].astype(float)
        found = mean_difference(tuned, base, pairs["prompt"].to_numpy(), self.resamples, self.seed)
        found["difference"] = found.pop("value")
        return found | {opponent: float(base.mean()), "tuned": float(tuned.mean())}

    def change_and_rate(self, pairs: pd.DataFrame, column: str, opponent: str) -> Figures:
        found = self.change(pairs, column, opponent) | {"win_rate": self.win_rate(pairs, column)}
        return found | ({"without_score": len(pairs) - len(scored(pairs, VLM))} if column == VLM else {})

    def geneval(self, pairs: pd.DataFrame, opponent: str) -> Figures:
        """Overall is the mean of the tasks (the categories), each with the same weight, as GenEval defines it."""
        tuned, base = pairs["geneval_tuned"], pairs["geneval_base"]
        prompts, tasks = pairs["prompt"].to_numpy(), pairs["category"]
        overall = mean_of_strata(tuned - base, prompts, tasks, self.resamples, self.seed)
        overall["difference"] = overall.pop("value")
        for name, values in ((opponent, base), ("tuned", tuned)):
            overall[name] = float(values.groupby(tasks).mean().mean())
        by_task = {str(name): self.change(rows, "geneval", opponent) for name, rows in pairs.groupby("category")}
        return {"overall": overall, "by_task": by_task}


def scored(pairs: pd.DataFrame, column: str) -> pd.DataFrame:
    """The pairs whose two images the judge vlm has a score for. Of any other judge a missing score is an error."""
    return pairs.dropna(subset=[f"{VLM}_tuned", f"{VLM}_base"]) if column == VLM else pairs


def win_rate_rows(metrics: Figures) -> list[Figures]:
    """plots/win_rates.json: a row {axis, value, low, high, ties, prompts} for each axis of emoji, then each judge."""
    axes = {} if "judge" in metrics else metrics["win_rate"]
    rates = axes | {name: row["win_rate"] for name, row in metrics.get("judges", {}).items()}
    return [{"axis": axis, **rate} for axis, rate in rates.items()]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, DIGITS) if isinstance(value, float) else value
